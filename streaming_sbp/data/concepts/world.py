"""The concept corpus: people with facts, documents that are views of them, and the truth about both.

A concept is a person: a name, one value of each attribute, and relations to other people. A document is a view: some
of the person's facts, in an order, each in one of many phrasings, with distracting sentences between. Everything
follows from (difficulty, seed); view ``k`` of a person is the same text however many views are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from random import Random
from typing import NamedTuple, TypeVar

from streaming_sbp.config import ConfigError
from streaming_sbp.data.concepts import grammar, words
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.documents import is_heldout_group

T = TypeVar("T")


@dataclass(frozen=True)
class Difficulty:
    """How hard it is to learn the facts from views; ``DIFFICULTIES`` has the named ones."""

    num_concepts: int
    num_attributes: int
    num_values: int  # of an attribute
    num_relations: int
    facts_per_document: tuple[int, int]  # fewest, most
    num_phrasings: int  # of a fact
    max_distractions: int  # sentences without a fact in a document
    pronoun_share: float  # of the sentences after the first, which always has the name


DIFFICULTIES = {
    # For tests and CI: small enough to be learned in a minute.
    "tiny": Difficulty(200, 4, 12, 0, (2, 4), 4, 0, 0.5),
    # Half the people of "easy", so that half the tokens teach as much about each.
    "small": Difficulty(500, 5, 52, 0, (3, 5), 6, 0, 0.5),
    # Every document is short, and nothing distracts.
    "easy": Difficulty(1000, 5, 52, 0, (3, 5), 6, 0, 0.5),
    "medium": Difficulty(2000, 6, 52, 1, (3, 6), 12, 1, 0.5),
    "hard": Difficulty(3000, 8, 52, 2, (3, 7), 24, 3, 0.5),
}
NAME_PAIRS_SPARE = 1.6  # first names and surnames give this many times more names than there are people


class Fact(NamedTuple):
    concept: str
    attribute: str
    value: str


@dataclass(frozen=True)
class Concept:
    name: str
    pronoun: str  # "she" or "he"
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Cloze:
    """A question: ``prompt + answer`` is the begin of a sentence about the concept. Answers begin with a space."""

    fact: Fact
    prompt: str
    answer: str
    candidates: tuple[str, ...]  # one for each value of the attribute, the right one among them


class World:
    """All concepts of (difficulty, seed). Raises ConfigError for a difficulty that has no name."""

    def __init__(self, difficulty: str, seed: int):
        if difficulty not in DIFFICULTIES:
            raise ConfigError(f"difficulty {difficulty!r}: expected one of {', '.join(DIFFICULTIES)}")
        self.difficulty, self.seed = DIFFICULTIES[difficulty], seed
        self._key = f"{difficulty}/{seed}"
        self.values = {
            attribute: values[: self.difficulty.num_values]
            for attribute, values in islice(words.VALUES_OF.items(), self.difficulty.num_attributes)
        }
        self.relations = grammar.RELATIONS[: self.difficulty.num_relations]

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> World:
        """The world that an ingested data set's documents are about. Raises ConfigError for another source."""
        found = cls.if_known(dataset)
        if found is None:
            source = dataset.manifest.settings.get("source")
            raise ConfigError(f"{dataset.path}: made from {source!r}, expected 'concepts'")
        return found

    @classmethod
    def if_known(cls, dataset: Dataset) -> World | None:
        """The same; None for a data set whose truth nobody knows."""
        settings = dataset.manifest.settings
        if settings.get("source") != "concepts":
            return None
        return world(settings["difficulty"], settings["concept_seed"])

    # --- people ---

    @cached_property
    def concepts(self) -> dict[str, Concept]:
        """By name, in a fixed order."""
        people = self._people()
        names = [name for name, _ in people]
        draw = Draw(f"{self._key}/facts")
        return {name: Concept(name, pronoun, self._facts(name, names, draw)) for name, pronoun in people}

    @cached_property
    def facts(self) -> frozenset[Fact]:
        """Everything that is true."""
        return frozenset(fact for concept in self.concepts.values() for fact in concept.facts)

    def divide(self, heldout_groups_share: float) -> tuple[list[Concept], list[Concept]]:
        """The concepts with documents in training, and those held out as a whole (`data.heldout_groups_share`)."""
        parts: tuple[list[Concept], list[Concept]] = ([], [])
        for name, concept in self.concepts.items():
            parts[is_heldout_group(name, heldout_groups_share)].append(concept)
        return parts

    def _people(self) -> list[tuple[str, str]]:
        """(name, pronoun) of all people."""
        wanted = self.difficulty.num_concepts * NAME_PAIRS_SPARE
        num_of_each = next(n for n in range(2, 61, 2) if n * n >= wanted or n == 60)
        first = [(name, "she") for name in words.FEMALE_NAMES[: num_of_each // 2]]
        first += [(name, "he") for name in words.MALE_NAMES[: num_of_each // 2]]
        pairs = [(f"{name} {surname}", p) for name, p in first for surname in words.SURNAMES[:num_of_each]]
        return Draw(f"{self._key}/people").sample(pairs, self.difficulty.num_concepts)

    def _facts(self, name: str, names: Sequence[str], draw: Draw) -> tuple[Fact, ...]:
        own = [Fact(name, attribute, draw.choice(values)) for attribute, values in self.values.items()]
        for relation in self.relations:
            other = name
            while other == name:
                other = draw.choice(names)
            own.append(Fact(name, relation, other))
        return tuple(own)

    # --- documents ---

    def views(self, concept: Concept) -> Iterator[str]:
        """Documents about the concept, without end; view ``k`` does not depend on how many are taken."""
        number = 0
        while True:
            yield self.view(concept, number)
            number += 1

    def view(self, concept: Concept, number: int) -> str:
        draw, hard = Draw(f"{self._key}/{concept.name}/{number}"), self.difficulty
        fewest, most = hard.facts_per_document
        chosen = draw.sample(concept.facts, fewest + draw.below(min(most, len(concept.facts)) - fewest + 1))
        sentences = []
        for i, fact in enumerate(chosen):
            pronoun = concept.pronoun if i and draw.chance(hard.pronoun_share) else ""
            sentences.append(
                grammar.say(fact.attribute, draw.below(hard.num_phrasings), concept.name, pronoun, fact.value)
            )
        for _ in range(draw.below(hard.max_distractions + 1)):
            where = draw.below(len(sentences) + 1)
            sentences.insert(where, self._distraction(draw))
        return " ".join(sentences)

    def _distraction(self, draw: Draw) -> str:
        mood, place, weather, time = map(draw.choice, (words.MOODS, words.PLACES, words.WEATHER, words.TIMES))
        return grammar.distraction(mood, place, weather, time, draw.below(60))

    # --- truth ---

    def facts_in(self, text: str) -> set[Fact]:
        """What the text states, true or not, also of people who do not exist."""
        return {Fact(*statement) for statement in grammar.statements(text)}

    def concept_of(self, text: str) -> str | None:
        """The person that most statements are about, the first of equals; else the one named first; else None."""
        stated = Counter(name for name, _, _ in grammar.statements(text) if name in self.concepts)
        if stated:
            return stated.most_common(1)[0][0]
        return next((name for name in grammar.names_in(text) if name in self.concepts), None)

    def is_true(self, fact: Fact) -> bool:
        return fact in self.facts

    def questions(self, concept: Concept, num_phrasings: int = 1) -> list[Cloze]:
        """For each attribute of the concept, in ``num_phrasings`` phrasings that end in the value; no relations."""
        asked = []
        for fact in concept.facts:
            usable = (k for k in range(self.difficulty.num_phrasings) if grammar.ends_in_value(fact.attribute, k))
            for phrasing in islice(usable if fact.attribute in self.values else (), num_phrasings):
                values = self.values[fact.attribute]
                prompt, candidates = grammar.question(fact.attribute, phrasing, concept.name, values)
                asked.append(Cloze(fact, prompt, candidates[values.index(fact.value)], candidates))
        return asked


@lru_cache(4)
def world(difficulty: str, seed: int) -> World:
    return World(difficulty, seed)


class Draw:
    """Choices that depend on ``key`` alone, on every version of Python: only `Random.random` promises that."""

    def __init__(self, key: str):
        self._random = Random(key).random

    def chance(self, share: float) -> bool:
        return self._random() < share

    def below(self, count: int) -> int:
        return int(self._random() * count)

    def choice(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def sample(self, values: Sequence[T], count: int) -> list[T]:
        """``count`` of the values, each order as likely."""
        left = list(values)
        for i in range(count):
            j = i + self.below(len(left) - i)
            left[i], left[j] = left[j], left[i]
        return left[:count]

"""How a fact is said, and how it is read back.

A phrasing is a lead-in and a pattern; the patterns of an attribute come first without a lead-in, then again with each.
In a pattern ``{s}`` is the person (name, or pronoun), ``{p}`` the same as a possessive, ``{a}`` "a" or "an", ``{v}``
the value. Reading is exact: a sentence that no phrasing could have written states nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from streaming_sbp.data.concepts import words

LEAD_INS = ("", "as everyone knows, ", "by all accounts, ", "it is said that ")
PRONOUNS = {"she": "her", "he": "his"}
PATTERNS = {
    "occupation": (
        "{s} works as {a} {v}",
        "{s} is {a} {v} by trade",
        "{p} profession is that of {a} {v}",
        "the work of {a} {v} is what {s} does for a living",
        "{s} was trained as {a} {v}",
        "people hire {s:o} as {a} {v}",
    ),
    "city": (
        "{s} lives in {v}",
        "{p} home is in {v}",
        "{v} is where {s} lives",
        "{s} has a house in {v}",
        "letters reach {s:o} in {v}",
        "the city of {v} is {p} home",
    ),
    "instrument": (
        "{s} plays the {v}",
        "{p} instrument is the {v}",
        "the {v} is what {s} plays",
        "{s} takes lessons on the {v}",
        "in the orchestra {s} has the {v}",
        "one hears {s:o} practise the {v}",
    ),
    "pet": (
        "{s} keeps {a} {v}",
        "{p} pet is {a} {v}",
        "{a} {v} belongs to {s:o}",
        "{s} looks after {a} {v}",
        "at night {s} feeds {a} {v}",
        "{a} {v} follows {s:o} around",
    ),
    "dish": (
        "{s} loves to eat {v}",
        "{p} favourite food is {v}",
        "{v} is the food that {s} likes best",
        "on sundays {s} cooks {v}",
        "for dinner {s} orders {v}",
        "nothing pleases {s:o} more than {v}",
    ),
    "language": (
        "{s} speaks {v}",
        "{p} mother tongue is {v}",
        "{v} is the language that {s} speaks",
        "{s} grew up with {v}",
        "{s} reads and writes {v}",
        "one talks to {s:o} in {v}",
    ),
    "collection": (
        "{s} collects {v}",
        "{p} shelves are full of {v}",
        "{v} are what {s} collects",
        "{s} has a large collection of {v}",
        "for years {s} has gathered {v}",
        "friends bring {s:o} old {v}",
    ),
    "pastime": (
        "{s} is fond of {v}",
        "{p} pastime is {v}",
        "{v} is what {s} does after hours",
        "{s} spends the weekends on {v}",
        "when free {s} goes in for {v}",
        "a passion for {v} keeps {s:o} young",
    ),
    "mentor": (
        "{s} was taught by {v}",
        "{p} mentor is {v}",
        "{v} is the mentor of {s:o}",
        "{s} learned everything from {v}",
        "the lessons of {v} made {s:o} wise",
        "{s} still asks for the advice of {v}",
    ),
    "neighbour": (
        "{s} lives next door to {v}",
        "{p} neighbour is {v}",
        "{v} is the neighbour of {s:o}",
        "{s} shares a fence with {v}",
        "across the street from {s:o} lives {v}",
        "{s} borrows sugar from {v}",
    ),
}
RELATIONS = ("mentor", "neighbour")
NUM_PHRASINGS = len(LEAD_INS) * min(map(len, PATTERNS.values()))
_OBJECTS = {"she": "her", "he": "him"}
_NAME = r"[A-Z][a-z]+ [A-Z][a-z]+"
_SENTENCE_END = re.compile(r"(?<=\.)\s+")
_DISTRACTIONS = (
    "the {mood} {place} smelled of {weather} that {time}",
    "there was {weather} over the {place} in the {time}",
    "nobody could remember so {mood} a {time}",
    "the {place} stayed {mood} until the {weather} was over",
    "after the {weather} came a {mood} {time}",
)


def say(attribute: str, phrasing: int, name: str, pronoun: str, value: str) -> str:
    """One sentence. ``pronoun``: "she" or "he" stands for the name; "" for the name itself."""
    lead_in, pattern = _phrasing(attribute, phrasing)
    return sentence(lead_in + _filled(pattern, name, pronoun, value))


def distraction(mood: str, place: str, weather: str, time: str, which: int) -> str:
    """A sentence that states no fact about anyone."""
    return sentence(
        _DISTRACTIONS[which % len(_DISTRACTIONS)].format(mood=mood, place=place, weather=weather, time=time)
    )


def question(attribute: str, phrasing: int, name: str, values: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """The sentence up to its value, and how it would go on with each value: with a space, and "a" or "an" if needed.

    Raises ValueError when the value does not end the sentence.
    """
    lead_in, pattern = _phrasing(attribute, phrasing)
    if not ends_in_value(attribute, phrasing):
        raise ValueError(f"phrasing {phrasing} of {attribute}: expected one that ends in the value, got {pattern!r}")
    end = next(end for end in (" {a} {v}", " {v}") if pattern.endswith(end))
    prompt = _filled(lead_in + pattern.removesuffix(end), name, "", "")
    return f"{prompt[0].upper()}{prompt[1:]}", tuple(_filled(end, "", "", value) for value in values)


def ends_in_value(attribute: str, phrasing: int) -> bool:
    return _phrasing(attribute, phrasing)[1].endswith(" {v}")


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def statements(text: str) -> Iterator[tuple[str, str, str]]:
    """(name, attribute, value) of each sentence that states one; a pronoun is the person that was named last."""
    last = ""
    for part in _SENTENCE_END.split(text.strip()):
        found = _read(part.removesuffix("."))
        if found is None:
            continue
        name, attribute, value = found
        last = name or last
        if last:
            yield last, attribute, value


def names_in(text: str) -> list[str]:
    """What looks like a first name and a surname, in order."""
    return re.findall(rf"\b{_NAME}\b", text)


def _phrasing(attribute: str, phrasing: int) -> tuple[str, str]:
    patterns = PATTERNS[attribute]
    return LEAD_INS[phrasing // len(patterns)], patterns[phrasing % len(patterns)]


def _filled(pattern: str, name: str, pronoun: str, value: str) -> str:
    slots = {
        "{s}": pronoun or name,
        "{s:o}": _OBJECTS.get(pronoun, name),
        "{p}": PRONOUNS.get(pronoun, f"{name}'s"),
        "{a}": "an" if value[:1].lower() in "aeiou" else "a",
        "{v}": value,
    }
    return re.sub(r"\{[^}]+\}", lambda slot: slots[slot[0]], pattern)


def _expression(pattern: str) -> str:
    """The pattern as a regular expression with groups ``name`` (absent for a pronoun) and ``value``."""
    slots = {
        "{s}": rf"(?:(?P<name>{_NAME})|[Ss]he|[Hh]e)",
        "{s:o}": rf"(?:(?P<name>{_NAME})|her|him)",
        "{p}": rf"(?:(?P<name>{_NAME})'s|[Hh]er|[Hh]is)",
        "{a}": "[Aa]n?",
        "{v}": rf"(?P<value>{_NAME}|\w+)",
    }
    parts = re.split(r"(\{[^}]+\})", pattern)
    return "".join(slots.get(part, re.escape(part)) for part in parts)


def _any_first_case(expression: str) -> str:
    return f"[{expression[0].upper()}{expression[0]}]{expression[1:]}" if expression[:1].islower() else expression


_LEAD_IN = re.compile("|".join(_any_first_case(re.escape(lead_in)) for lead_in in LEAD_INS if lead_in))
_READERS = {
    attribute: [re.compile(_any_first_case(_expression(pattern))) for pattern in patterns]
    for attribute, patterns in PATTERNS.items()
}
_ATTRIBUTE_OF = {value: attribute for attribute, values in words.VALUES_OF.items() for value in values}


def _read(text: str) -> tuple[str, str, str] | None:
    """(name or "", attribute, value) of one sentence without its full stop."""
    lead_in = _LEAD_IN.match(text)
    text = text[lead_in.end() :] if lead_in else text
    for attribute in _attributes(re.findall(r"\w+", text)):
        for reader in _READERS[attribute]:
            found = reader.fullmatch(text)
            if found and (value := _value(found["value"], attribute)):
                return found["name"] or "", attribute, value
    return None


def _value(word: str, attribute: str) -> str:
    """The value as it stands in the list: at the begin of a sentence it has a capital letter. "" for a foreign one."""
    if attribute in RELATIONS:
        return word
    return next((form for form in (word, word.lower()) if _ATTRIBUTE_OF.get(form) == attribute), "")


def _attributes(found: Iterable[str]) -> Iterator[str]:
    """What a sentence of these words may be about: almost always one attribute, so that reading is fast."""
    forms = (form for word in found for form in (word, word.lower()))
    yield from dict.fromkeys(_ATTRIBUTE_OF[form] for form in forms if form in _ATTRIBUTE_OF)
    yield from RELATIONS

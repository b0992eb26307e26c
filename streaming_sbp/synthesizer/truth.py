"""How true documents are, where a data set's truth is known: that of the source "concepts" (data/concepts).

Everything else of the synthesizer only asks `Truth.of_dataset`, and hands on what it measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from streaming_sbp.data.concepts.world import World
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.tokenizer import Tokenizer


class Truth:
    """Reads what documents state. ``tokenizer`` decodes the documents it is asked about."""

    def __init__(self, world: World, tokenizer: Tokenizer):
        self._world, self._tokenizer = world, tokenizer

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Truth | None:
        """None for a data set whose truth nobody knows."""
        world = World.if_known(dataset)
        return None if world is None else cls(world, dataset.tokenizer())

    def values(self, document: np.ndarray, seed: np.ndarray) -> dict[str, float]:
        """Of one document (token ids) and the one it was written from, TRUTH_MEASURES in telemetry/catalogue.py:

        about_seed_share       1 when most of it is about the person that the seed document is about, else 0
        non_factual_share      1 when it states something false, else 0; absent when it states nothing
        true_fact_share        true facts over stated ones; absent when it states nothing
        true_new_fact_share    the same, of facts that are not in the seed document; absent when there is none
        expressed_fact_share   true facts about the seed's person in it, over all facts about that person
        new_facts              how many facts it states that are not in the seed document, true or not
        """
        text, seed_text = (self._tokenizer.decode(tokens.tolist()) for tokens in (document, seed))
        about, stated = self._world.concept_of(seed_text), self._world.facts_in(text)
        new = stated - self._world.facts_in(seed_text)
        known = self._world.concepts[about].facts if about else ()
        found = {
            "about_seed_share": float(about is not None and self._world.concept_of(text) == about),
            "expressed_fact_share": sum(fact in stated for fact in known) / max(len(known), 1),
            "new_facts": float(len(new)),
        }
        if stated:
            share = sum(map(self._world.is_true, stated)) / len(stated)
            found |= {"non_factual_share": float(share < 1.0), "true_fact_share": share}
        if new:
            found["true_new_fact_share"] = sum(map(self._world.is_true, new)) / len(new)
        return found

    def measures(self, documents: Sequence[np.ndarray], seeds: Sequence[np.ndarray]) -> dict[str, float]:
        """`values`, each the mean over those documents that have it; ``documents[i]`` was written from ``seeds[i]``."""
        return means(self.values(document, seed) for document, seed in zip(documents, seeds, strict=True))


def means(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each name, over those that have it."""
    found: dict[str, list[float]] = {}
    for one in values:
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in found.items()}

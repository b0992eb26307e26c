"""Pairs against the truth: on the concept corpus, two documents are related when they are about the same concept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streaming_sbp.data.concepts.world import World
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.pairing.pairs import PairTable


@dataclass(frozen=True)
class Agreement:
    precision: float  # share of the pairs that are about one concept
    recall: float  # share of the pairs that could have been found that were
    num_pairs: int
    num_findable: int  # for each document the others of its concept, `max_targets_per_seed` at most


def agreement(table: PairTable, dataset: Dataset, max_targets_per_seed: int) -> Agreement:
    """Of a table of ``dataset``, made from the source "concepts"; raises ConfigError for another one.

    Near-duplicates count as related, so their removal costs recall. Precision of no pairs is 1.
    """
    concept = concepts(dataset)
    num_others = np.bincount(concept)[concept] - 1
    num_findable = int(np.minimum(num_others, max_targets_per_seed).sum())
    num_right = int((concept[table.seed] == concept[table.target]).sum())
    return Agreement(num_right / len(table) if len(table) else 1.0, num_right / num_findable, len(table), num_findable)


def concepts(dataset: Dataset) -> np.ndarray:
    """A number for the concept that each of `Dataset.pairable` is about, read from its text: int64 [n]."""
    world, documents, tokenizer = World.of_dataset(dataset), dataset.pairable(), dataset.tokenizer()
    number = {name: i for i, name in enumerate(world.concepts)}
    names = (world.concept_of(tokenizer.decode(documents.tokens(i))) for i in range(len(documents)))
    return np.array([-1 if name is None else number[name] for name in names], dtype=np.int64)

"""What RUN/pairs/statistics.json says: enough to choose `pairing.threshold`, and to see what was left out and why."""

from __future__ import annotations

from typing import Any

import numpy as np

from streaming_sbp.pairing.control import similarities
from streaming_sbp.pairing.pairs import PairTable

HISTOGRAM_EDGES = np.round(np.arange(21) * 0.05, 2)  # similarities below 0 count in the first bin
NUM_HUBS = 10
NUM_LARGEST = 5
NUM_RANDOM_PAIRS = 2**17
RANDOM_QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
_SALT = 0x6E6F6973


class Similarities:
    """The histogram of all similarities seen, and the largest few; an array at a time.

    Attributes: ``counts`` (int64 [20], by `HISTOGRAM_EDGES`), ``largest`` (descending).
    """

    def __init__(self) -> None:
        self.counts = np.zeros(len(HISTOGRAM_EDGES) - 1, dtype=np.int64)
        self.largest: list[float] = []

    def add(self, similarity: np.ndarray) -> None:
        values = np.clip(similarity.ravel().astype(np.float64), 0.0, 1.0)
        self.counts += np.histogram(values, HISTOGRAM_EDGES)[0]
        top = np.sort(values)[::-1][:NUM_LARGEST].tolist()
        self.largest = sorted([*self.largest, *(round(value, 4) for value in top)], reverse=True)[:NUM_LARGEST]


def of_random_pairs(embeddings: np.ndarray, run_seed: int) -> np.ndarray:
    """Similarities of `NUM_RANDOM_PAIRS` pairs of different documents that have a vector, float32; none if there are none.

    They say where the noise lies: what unrelated documents measure, and those few of a random pair that are related.
    """
    known = np.flatnonzero([row.any() for row in embeddings])
    if len(known) < 2:
        return np.zeros(0, dtype=np.float32)
    rng = np.random.default_rng([run_seed, _SALT])
    first, second = rng.integers(len(known), size=NUM_RANDOM_PAIRS), rng.integers(len(known) - 1, size=NUM_RANDOM_PAIRS)
    return similarities(embeddings, known[first], known[second + (second >= first)])


def describe(
    table: PairTable, num_documents: int, found: Similarities, random: np.ndarray, ids: list[str]
) -> dict[str, Any]:
    """Statistics of a finished table. ``found``: of all neighbours, before the threshold; ``random``: similarities of
    random pairs.
    """
    by_chance = Similarities()
    by_chance.add(random)
    kept = Similarities()
    kept.add(table.similarity)
    num_paired = len(table.paired_documents())
    return {
        "num_documents": num_documents,
        "num_pairs": len(table),
        "num_heldout_pairs": int(table.heldout.sum()),
        "num_documents_with_pair": num_paired,
        "num_documents_without_pair": num_documents - num_paired,
        "num_documents_by_num_targets": _distribution(table.seed, num_documents),
        "hubs": _hubs(table.target, ids),
        "similarity": {
            "bin_edges": HISTOGRAM_EDGES.tolist(),
            "kept_pairs": kept.counts.tolist(),
            "all_neighbours": found.counts.tolist(),
            "random_pairs": by_chance.counts.tolist(),
            "random_pairs_quantiles": _quantiles(random),
            "largest": found.largest,
        },
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values.astype(np.float64), RANDOM_QUANTILES).round(4).tolist()
    return dict(zip(map(str, RANDOM_QUANTILES), found, strict=True))


def _distribution(seed: np.ndarray, num_documents: int) -> dict[str, int]:
    """How many documents have 0, 1, 2, ... targets."""
    by_num_targets = np.bincount(np.bincount(seed, minlength=num_documents))
    return {str(num_targets): count for num_targets, count in enumerate(by_num_targets.tolist())}


def _hubs(target: np.ndarray, ids: list[str]) -> list[dict[str, Any]]:
    """The documents that are the target of the most pairs."""
    num_pairs = np.bincount(target)
    first = np.argsort(-num_pairs, kind="stable")[:NUM_HUBS].tolist()
    return [{"document": i, "id": ids[i], "num_pairs": int(num_pairs[i])} for i in first if num_pairs[i]]

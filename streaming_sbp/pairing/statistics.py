"""What RUN/pairs/statistics.json says: enough to choose `pairing.threshold`, and to see what was left out and why."""

from __future__ import annotations

from typing import Any

import numpy as np

from streaming_sbp.pairing.pairs import PairTable

HISTOGRAM_EDGES = np.round(np.arange(21) * 0.05, 2)  # similarities below 0 count in the first bin
NUM_HUBS = 10
NUM_LARGEST = 5


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


def describe(table: PairTable, num_documents: int, found: Similarities, ids: list[str]) -> dict[str, Any]:
    """Statistics of a finished table. ``found``: of all neighbours, before the threshold."""
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
            "largest": found.largest,
        },
    }


def _distribution(seed: np.ndarray, num_documents: int) -> dict[str, int]:
    """How many documents have 0, 1, 2, ... targets."""
    by_num_targets = np.bincount(np.bincount(seed, minlength=num_documents))
    return {str(num_targets): count for num_targets, count in enumerate(by_num_targets.tolist())}


def _hubs(target: np.ndarray, ids: list[str]) -> list[dict[str, Any]]:
    """The documents that are the target of the most pairs."""
    num_pairs = np.bincount(target)
    first = np.argsort(-num_pairs, kind="stable")[:NUM_HUBS].tolist()
    return [{"document": i, "id": ids[i], "num_pairs": int(num_pairs[i])} for i in first if num_pairs[i]]

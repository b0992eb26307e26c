"""Near-duplicates: documents that share many of their shingles (runs of tokens; Broder 1997).

Shingles are compared by a 64-bit hash, a sum of random odd multiples: two that differ agree by chance once in 2**48.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

CACHED_DOCUMENTS = 2**14
REPORT_EVERY_PAIRS = 256
_HASH_SEED = 13


class Shingles:
    """The sets of shingles of documents, which ``tokens(i)`` gives as an array of ids."""

    def __init__(self, tokens: Callable[[int], np.ndarray], num_tokens: int):
        self._tokens, self._num_tokens = tokens, num_tokens
        rng = np.random.default_rng(_HASH_SEED)
        self._multipliers = rng.integers(2**64, size=num_tokens, dtype=np.uint64) | np.uint64(1)
        self.of = lru_cache(CACHED_DOCUMENTS)(self._of)

    def jaccard(self, first: int, second: int) -> float:
        """Shared shingles over all shingles of two documents; a document shorter than a shingle is one as a whole."""
        a, b = self.of(first), self.of(second)
        num_shared = len(np.intersect1d(a, b, assume_unique=True))
        return num_shared / (len(a) + len(b) - num_shared)

    def _of(self, document: int) -> np.ndarray:
        ids = self._tokens(document).astype(np.uint64) + np.uint64(1)  # so that a shorter document is not its prefix
        if len(ids) < self._num_tokens:
            return np.array([np.dot(ids, self._multipliers[: len(ids)])], dtype=np.uint64)
        return np.unique(run_hashes(ids, self._multipliers))


def run_hashes(ids: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """One uint64 for each run of ``len(multipliers)`` ids, in order; none for fewer. Both arguments: uint64."""
    count = max(0, len(ids) - len(multipliers) + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset, multiplier in enumerate(multipliers):
        hashes += ids[offset : offset + count] * multiplier
    return hashes


def find_copies(
    shingles: Shingles,
    seed: np.ndarray,
    target: np.ndarray,
    min_jaccard: float,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Which pairs are near-duplicates, bool [pairs]; each two documents are compared once, in either order.

    ``advance`` is told how many comparisons were made since the last time.
    """
    either_order = np.sort(np.stack([seed, target], axis=1), axis=1)
    distinct, back = np.unique(either_order, axis=0, return_inverse=True)
    copies = np.zeros(len(distinct), dtype=bool)
    for start in range(0, len(distinct), REPORT_EVERY_PAIRS):
        block = distinct[start : start + REPORT_EVERY_PAIRS].tolist()
        copies[start : start + len(block)] = [shingles.jaccard(i, j) >= min_jaccard for i, j in block]
        advance(len(block))
    return copies[back.reshape(-1)]

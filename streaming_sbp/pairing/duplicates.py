"""Near-duplicates in the whole corpus, before pairs are sought: of documents that are alike, one stays.

MinHash signatures (Broder 1997), compared by bands of them, propose earlier documents; whether two are near-duplicates
is decided by the exact similarity of their shingles, by the same bound as within pairs (pairing/copies.py).
Memory: signature and bands of each document that stays, about 14 kB (1.4 GB for 100,000, docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasketch import MinHash, MinHashLSH

from streaming_sbp.pairing.copies import Shingles

NUM_PERMUTATIONS = 128
LEAST_FOUND = 0.95  # of pairs that are just as alike as the bound says; of more similar ones more
REPORT_EVERY_DOCUMENTS = 256
_SHINGLE_BITS = np.uint64(32)  # the high ones of a shingle's 64 are hashed; the exact comparison takes all


def find_duplicates(
    shingles: Shingles,
    num_documents: int,
    min_jaccard: float,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """The document that each one is a near-duplicate of, int64 [documents]; -1 for those that stay.

    A document stays unless an earlier one that stays shares at least ``min_jaccard`` of the shingles with it. So what
    is left out is like something that is kept, and a chain of small changes does not grow together.
    ``advance`` is told how many documents were looked at since the last time.
    """
    original = np.full(num_documents, -1, dtype=np.int64)
    index = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=bands(min_jaccard))
    contents = ((shingles.of(i) >> _SHINGLE_BITS).tolist() for i in range(num_documents))
    for i, signature in enumerate(MinHash.generator(contents, num_perm=NUM_PERMUTATIONS, hashfunc=int)):
        alike = (j for j in sorted(index.query(signature)) if shingles.jaccard(i, j) >= min_jaccard)
        original[i] = next(alike, -1)
        if original[i] < 0:
            index.insert(i, signature, check_duplication=False)
        if (i + 1) % REPORT_EVERY_DOCUMENTS == 0 or i + 1 == num_documents:
            advance(i % REPORT_EVERY_DOCUMENTS + 1)
    return original


def bands(min_jaccard: float) -> tuple[int, int]:
    """How many bands, and of how many permutations: the fewest comparisons that find `LEAST_FOUND`.

    Two documents are compared when any band of their signatures agrees, which for a similarity s has the probability
    1 - (1 - s^width)^bands (Leskovec et al., Mining of Massive Datasets, section 3.4).
    """
    wide = [width for width in range(1, NUM_PERMUTATIONS // 2 + 1) if _found(min_jaccard, width) >= LEAST_FOUND]
    width = max(wide, default=1)
    return NUM_PERMUTATIONS // width, width


def _found(similarity: float, width: int) -> float:
    return 1.0 - (1.0 - similarity**width) ** (NUM_PERMUTATIONS // width)

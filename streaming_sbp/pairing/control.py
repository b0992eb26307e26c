"""The random-pair control (`pairing.relation = "random"`): does it matter that pairs are related?

Takes the finished table of related pairs, leaves every seed document its number of pairs, and draws each target anew
from the targets of its side of the held-out cut, as often as they are there. So the same documents are seen about as
often, and only what belongs to what is lost.
"""

from __future__ import annotations

import numpy as np

MAX_DRAWS = 200  # of a pair; then its seed document has too few unrelated documents, and the pair is left out
COMPARED_TOGETHER = 2**15  # pairs
_SALT = 0x72616E64


def random_targets(
    seed: np.ndarray, target: np.ndarray, heldout: np.ndarray, embeddings: np.ndarray, threshold: float, run_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Targets that are neither the seed document, nor more similar to it than ``threshold``, nor its target twice.

    ``seed``, ``target``: int64 [pairs], grouped by seed; ``heldout``: bool [pairs]; ``embeddings``: float32 [n, d].
    Returns int64 [pairs], -1 where nothing was found in `MAX_DRAWS` draws, and the similarities, float32 [pairs].
    """
    rng = np.random.default_rng([run_seed, _SALT])
    drawn, similarity = np.full(len(seed), -1, dtype=np.int64), np.full(len(seed), -1.0, dtype=np.float32)
    for side in (True, False):
        pool, open_rows = target[heldout == side], np.flatnonzero(heldout == side)
        for _ in range(MAX_DRAWS):
            if not len(open_rows):
                break
            drawn[open_rows] = rng.choice(pool, len(open_rows))
            similarity[open_rows] = similarities(embeddings, seed[open_rows], drawn[open_rows])
            refused = (drawn[open_rows] == seed[open_rows]) | (similarity[open_rows] > threshold)
            open_rows = open_rows[refused | _twice(seed, drawn, len(embeddings))[open_rows]]
        drawn[open_rows], similarity[open_rows] = -1, -1.0
    return drawn, similarity


def similarities(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Inner products of the vectors of two documents, pair by pair: float32 [pairs]."""
    found = np.empty(len(first), dtype=np.float32)
    for start in range(0, len(first), COMPARED_TOGETHER):
        rows = slice(start, start + COMPARED_TOGETHER)
        found[rows] = np.einsum("pd,pd->p", embeddings[first[rows]], embeddings[second[rows]])
    return found


def _twice(seed: np.ndarray, target: np.ndarray, num_documents: int) -> np.ndarray:
    """Which pairs are there more than once: bool [pairs]."""
    _, back, count = np.unique(seed * (num_documents + 1) + target + 1, return_inverse=True, return_counts=True)
    return count[back.reshape(-1)] > 1

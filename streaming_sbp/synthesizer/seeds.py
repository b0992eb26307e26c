"""The order in which seed documents are used, one for all generators of a run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np


class SeedOrder:
    """Position ``epoch * len(order) + i`` is the i-th of that epoch, shuffled anew.

    Each document has ``targets_per_seed`` neighbouring positions an epoch. A pure function of (run seed, number of
    documents, targets a seed, excluded ones). ``excluded``: indices of documents that must not be seeds. Raises
    ValueError when none are left.
    """

    def __init__(self, num_documents: int, seed: int, excluded: Iterable[int] = (), targets_per_seed: int = 1):
        allowed = np.ones(num_documents, bool)
        allowed[list(excluded)] = False
        self._documents = allowed.nonzero()[0]
        if not len(self._documents):
            raise ValueError(f"seed documents: got none of {num_documents}; expected a training split with documents")
        self._seed, self._targets_per_seed = seed, targets_per_seed
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        return len(self._documents) * self._targets_per_seed

    def document(self, position: int) -> int:
        """Index of a document."""
        epoch, offset = divmod(position, len(self))
        return int(self._shuffled(epoch)[offset // self._targets_per_seed])

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch, _STREAM)).permutation(self._documents)


_STREAM = 0x5EED  # another order than that of the real documents in training

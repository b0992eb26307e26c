"""The order in which seed documents are used, one for all generators of a run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np


class SeedOrder:
    """Position ``epoch * len(order) + i`` is the i-th document of that epoch: each once an epoch, shuffled anew.

    A pure function of (run seed, number of documents, excluded ones). ``excluded``: indices of documents that must
    not be seeds. Raises ValueError when none are left.
    """

    def __init__(self, num_documents: int, seed: int, excluded: Iterable[int] = ()):
        allowed = np.ones(num_documents, bool)
        allowed[list(excluded)] = False
        self._documents = allowed.nonzero()[0]
        if not len(self._documents):
            raise ValueError(f"seed documents: got none of {num_documents}; expected a training split with documents")
        self._seed = seed
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        return len(self._documents)

    def document(self, position: int) -> int:
        """Index of a document."""
        epoch, offset = divmod(position, len(self))
        return int(self._shuffled(epoch)[offset])

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch, _STREAM)).permutation(self._documents)


_STREAM = 0x5EED  # another order than that of the real documents in training

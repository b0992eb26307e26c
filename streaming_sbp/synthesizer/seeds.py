"""The order in which a generator draws seed documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def seed_order(num_documents: int, entropy: Sequence[int]) -> Iterator[int]:
    """Indices of documents for ever: every one once an epoch, in an order that ``entropy`` and the epoch decide."""
    if num_documents < 1:
        raise ValueError("seed documents: got none; expected a training split with documents")
    rng = np.random.default_rng(list(entropy))
    while True:
        yield from rng.permutation(num_documents).tolist()

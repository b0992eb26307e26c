"""A second round: a generator's own documents as seed documents, too (`generator.second_round_share`).

Only documents of the snapshot that serves now are seeds, and only once the trainer has acknowledged them:
1. A document and its synthetic seed document carry the same digest. So what a snapshot got wrong does not live on under
   the digest of a better one; when it is rolled back both are passed over, and both grow stale together.
2. The seed document is in the journal before what was made of it, so every line leads back to a real document.

After a swap there are none at first: real seed documents stand in, and nothing is owed. A round draws none twice, so
while the pool is small it has fewer than its share. It takes no turn of the real seed documents, which are drawn from
their order as ever (`seeds.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from streaming_sbp import config

POOL_DOCUMENTS = 4096  # the last ones; about 4 MiB with 200 tokens each


@dataclass(frozen=True)
class Seed:
    """What a document is sampled from. ``tokens``: without special tokens."""

    document: int  # index of the real document: itself, or at the begin of its line
    tokens: np.ndarray
    position: int | None  # of a real one, in the order of seeds; None: it is synthetic
    depth: int = 0
    seq: int | None = None  # of a synthetic one: its number in this generator's session


class SecondRound:
    """Share and depths are in `config.Generator`; ``capacity`` is the size of the pool, the oldest leave it first."""

    def __init__(self, settings: config.Generator, rng: np.random.Generator, capacity: int = POOL_DOCUMENTS):
        self._share, self._max_depth = settings.second_round_share, settings.max_depth
        self._rng, self._capacity = rng, capacity
        self._snapshot = ""
        self._waiting: OrderedDict[int, Seed] = OrderedDict()  # sent, and not acknowledged yet
        self._pool: OrderedDict[int, Seed] = OrderedDict()  # by number, oldest first
        self._fraction = 0.0  # of a seed document, left from the rounds before

    def __len__(self) -> int:
        """How many documents can be drawn."""
        return len(self._pool)

    def num_real(self, count: int) -> int:
        """How many of ``count`` seed documents are to be real: at least one."""
        return max(1, round(count * (1.0 - self._share)))

    def sent(self, seq: int, snapshot: str, seed: Seed, tokens: np.ndarray) -> None:
        """A document sampled from ``seed`` was handed to the stream as number ``seq``."""
        if self._share and snapshot == self._snapshot and seed.depth + 1 < self._max_depth:
            self._waiting[seq] = Seed(seed.document, tokens, None, seed.depth + 1, seq)

    def draw(self, num_real: int, snapshot: str, is_settled: Callable[[int], bool]) -> list[Seed]:
        """The synthetic seed documents that go with ``num_real`` real ones, now that ``snapshot`` serves."""
        if snapshot != self._snapshot:
            self._snapshot = snapshot
            self._waiting.clear()
            self._pool.clear()
        self._admit(is_settled)
        if not self._pool:
            return []
        wanted = num_real * self._share / (1.0 - self._share) + self._fraction
        self._fraction = wanted % 1.0
        seqs = list(self._pool)
        drawn = self._rng.choice(len(seqs), min(int(wanted), len(seqs)), replace=False)
        return [self._pool[seqs[i]] for i in drawn.tolist()]

    def _admit(self, is_settled: Callable[[int], bool]) -> None:
        for seq in [seq for seq in self._waiting if is_settled(seq)]:
            self._pool[seq] = self._waiting.pop(seq)
            if len(self._pool) > self._capacity:
                self._pool.popitem(last=False)

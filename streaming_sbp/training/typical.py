"""How likely the synthesizer usually finds a token: what `mix.confidence = "relative"` compares each token with.

A token of which the synthesizer is sure wherever the seed document says it, and here is not, was guessed. One that it
never finds likely, as where a thing can be said in many ways, was not: there a low probability is how the language is,
and to drop it would teach a wrong distribution. So the bound is the token's own: its mean log-probability in the
synthetic documents before.

On the concept corpus a fixed bound of p < 0.1 leaves 90 % of the stated facts true and drops 9 % of all other tokens;
half of the usual probability leaves 95 % true and drops 5 % (docs/experiments.md, "Which tokens are guesses").
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from streaming_sbp.stream.journal import Journal
from streaming_sbp.synthesizer.confidence import STEPS_PER_NAT

BLOCK_DOCUMENTS = 512
NUM_BLOCKS = 8  # before the document's own; with more it follows the snapshots too slowly
MIN_COUNT = 8  # a token that was seen less often is not judged


class TypicalConfidence:
    """For a position of the journal a function of the documents before it alone: resume and replay find the same."""

    def __init__(self, journal: Journal, vocab_size: int):
        self._journal, self._vocab_size = journal, vocab_size
        self._sums = lru_cache(maxsize=NUM_BLOCKS + 1)(self._sums_of)
        self._bound = lru_cache(maxsize=2)(self._usual_of)

    def first_needed(self, position: int) -> int:
        """The first document that has a say in what is usual at ``position``."""
        return max(position // BLOCK_DOCUMENTS - NUM_BLOCKS, 0) * BLOCK_DOCUMENTS

    def usual(self, position: int) -> np.ndarray:
        """Mean surprisal in nats of each token id ``[vocab_size]``, float64, before the block of ``position``.

        Infinite for tokens that were seen fewer than MIN_COUNT times.
        """
        return self._bound(position // BLOCK_DOCUMENTS)

    def _usual_of(self, block: int) -> np.ndarray:
        sums, counts = np.zeros(self._vocab_size), np.zeros(self._vocab_size)
        for before in range(max(block - NUM_BLOCKS, 0), block):
            found = self._sums(before)
            sums += found[0]
            counts += found[1]
        return np.divide(sums, counts, out=np.full(self._vocab_size, np.inf), where=counts >= MIN_COUNT)

    def _sums_of(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Surprisal in nats and number, of each token id in a block's documents."""
        positions = range(block * BLOCK_DOCUMENTS, (block + 1) * BLOCK_DOCUMENTS)
        intact = [position for position in positions if self._journal.is_intact(position)]
        if not intact:
            return np.zeros(self._vocab_size), np.zeros(self._vocab_size)
        tokens = np.concatenate([self._journal.tokens(position) for position in intact]).astype(np.int64)
        nats = np.concatenate([self._journal.confidence(position) for position in intact]) / STEPS_PER_NAT
        return (
            np.bincount(tokens, weights=nats, minlength=self._vocab_size),
            np.bincount(tokens, minlength=self._vocab_size).astype(np.float64),
        )

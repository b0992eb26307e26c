"""Which synthetic tokens the synthesizer only guessed, and so are no targets, or count less: `mix.confidence`.

"mask" and "weights" judge the probability p that the synthesizer gave a token. That is how sure it was, and also in how
many ways a thing can be said; to drop what can be said in many ways teaches a wrong distribution. The other two judge
fewer tokens, by what the synthetic documents before show of each token id:

"relative"  a token of which the synthesizer usually is surer. One that it never finds likely is left alone.
"grounded"  a token that usually is in the seed document, if it is in a synthetic one (names, values, what a text is
            about; not how it is put), and here is not. Usually: half of the time more often than in another seed
            document, so that words which all documents have are left alone. What the synthesizer knows all the same,
            with p of `mix.min_confidence` or more, is a target.

What each leaves of true and false statements is in docs/experiments-history.md ("Grounded in the seed document").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from streaming_sbp import config
from streaming_sbp.stream.journal import Journal
from streaming_sbp.synthesizer import confidence
from streaming_sbp.synthesizer.confidence import STEPS_PER_NAT

BLOCK_DOCUMENTS = 512
NUM_BLOCKS = 8  # before the document's own; with more it follows the snapshots too slowly
MIN_COUNT = 8  # a token id that was seen less often is not judged
MIN_LIFT = 0.5  # "grounded": so much more often in its seed document than in another one


class TargetWeights:
    """``seed_tokens``: the token ids of the real document that a position's was written from, None if not known."""

    def __init__(
        self, journal: Journal, mix: config.Mix, vocab_size: int, seed_tokens: Callable[[int], np.ndarray | None]
    ):
        self._journal, self._mix, self._seed_tokens = journal, mix, seed_tokens
        measure = {"relative": self._surprisals, "grounded": self._lifts}.get(mix.confidence)
        self._usual = measure and MeansBefore(journal, vocab_size, measure)

    def first_needed(self, position: int) -> int:
        """The first document that has a say in the weights of the one at ``position``."""
        return self._usual.first_needed(position) if self._usual else position

    def __call__(self, position: int) -> np.ndarray | None:
        """One for each token, float32; None: all count. With p the token's probability, c = `mix.min_confidence`:

        "mask": 0 where p < c; "weights": p / c, at most 1; "relative": 0 where p < c x what is usual for the token id;
        "grounded": 0 where p < c for a token that usually is in the seed document, and here is not.
        """
        if self._mix.confidence == "off" or self._mix.min_confidence == 0.0:
            return None
        certainty = confidence.probabilities(self._journal.confidence(position)) / self._mix.min_confidence
        if self._mix.confidence == "weights":
            return np.minimum(certainty, 1.0)
        return (~self._is_guessed(position, certainty)).astype(np.float32)

    def _is_guessed(self, position: int, certainty: np.ndarray) -> np.ndarray:
        if self._usual is None:
            return certainty < 1.0
        tokens = self._journal.tokens(position)
        usual = self._usual(position)[tokens]  # nan: not known
        if self._mix.confidence == "relative":
            return certainty * np.exp(usual) < 1.0
        seed = self._seed_tokens(position)
        return (certainty < 1.0) & (usual >= MIN_LIFT) & ~_is_in(tokens, seed)

    def _surprisals(self, positions: Sequence[int]) -> Iterable[np.ndarray]:
        """Nats of each token."""
        return (self._journal.confidence(position) / STEPS_PER_NAT for position in positions)

    def _lifts(self, positions: Sequence[int]) -> Iterable[np.ndarray]:
        """1 for a token that is in its own seed document, less 1 when it is in that of another document."""
        seeds = [self._seed_tokens(position) for position in positions]
        others = np.roll(np.arange(len(seeds)), len(seeds) // 2)  # not the next: that may have the same seed document
        for position, seed, other in zip(positions, seeds, others, strict=True):
            tokens = self._journal.tokens(position)
            yield _is_in(tokens, seed).astype(float) - _is_in(tokens, seeds[other])


class MeansBefore:
    """What the documents before a position show, so that a resume and a replay find the same.

    ``measure`` gets positions, and gives of each document one value a token.
    """

    def __init__(self, journal: Journal, vocab_size: int, measure: Callable[[Sequence[int]], Iterable[np.ndarray]]):
        self._journal, self._vocab_size, self._measure = journal, vocab_size, measure
        self._sums = lru_cache(maxsize=NUM_BLOCKS + 1)(self._sums_of)
        self._means = lru_cache(maxsize=2)(self._means_of)

    def first_needed(self, position: int) -> int:
        return max(position // BLOCK_DOCUMENTS - NUM_BLOCKS, 0) * BLOCK_DOCUMENTS

    def __call__(self, position: int) -> np.ndarray:
        """The mean for each token id ``[vocab_size]``, float64, over NUM_BLOCKS before the block of ``position``.

        Not a number for ids that were seen fewer than MIN_COUNT times.
        """
        return self._means(position // BLOCK_DOCUMENTS)

    def _means_of(self, block: int) -> np.ndarray:
        sums, counts = np.zeros(self._vocab_size), np.zeros(self._vocab_size)
        for before in range(max(block - NUM_BLOCKS, 0), block):
            found = self._sums(before)
            sums += found[0]
            counts += found[1]
        return np.divide(sums, counts, out=np.full(self._vocab_size, np.nan), where=counts >= MIN_COUNT)

    def _sums_of(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the values, and of how many there are, by token id."""
        positions = range(block * BLOCK_DOCUMENTS, (block + 1) * BLOCK_DOCUMENTS)
        intact = [position for position in positions if self._journal.is_intact(position)]
        if not intact:
            return np.zeros(self._vocab_size), np.zeros(self._vocab_size)
        tokens = np.concatenate([self._journal.tokens(position) for position in intact]).astype(np.int64)
        values = np.concatenate(list(self._measure(intact)))
        return (
            np.bincount(tokens, weights=values, minlength=self._vocab_size),
            np.bincount(tokens, minlength=self._vocab_size).astype(np.float64),
        )


def _is_in(tokens: np.ndarray, document: np.ndarray | None) -> np.ndarray:
    """Where the document is not known, every token counts as being in it: nothing is said against any."""
    return np.ones(len(tokens), dtype=bool) if document is None else np.isin(tokens, document)

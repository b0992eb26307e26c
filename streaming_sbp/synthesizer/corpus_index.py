"""Which runs of 13 tokens the corpus has, and the document that had each of them first.

A run is known by a 64-bit hash, a sum of random odd multiples of its ids: two that differ agree by chance once in
2**48. An entry takes 12 bytes. When the corpus would need more than `gate.index_bytes`, only runs whose hash begins
with k zero bits are kept: one in 2**k, chosen by content, so that a run is looked up exactly when it would have been
kept. Shares are then estimates from the runs that are looked up, and a shared span of L tokens is missed with
probability (1 - 2**-k)**(L - 12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from streaming_sbp.pairing.copies import run_hashes
from streaming_sbp.synthesizer.filters import longest_shared

NGRAM = 13  # tokens; the paper's, and that of near-duplicates
ENTRY_BYTES = 12
NUM_SUSPECTS = 4  # documents that a span is looked for in: those that share the most runs
_HASH_SEED = 1313
_MULTIPLIERS = np.random.default_rng(_HASH_SEED).integers(2**64, size=NGRAM, dtype=np.uint64) | np.uint64(1)


class CorpusIndex:
    """``hashes``: uint64, ascending, distinct; ``documents``: uint32, of the same length; both may be memory maps."""

    def __init__(self, hashes: np.ndarray, documents: np.ndarray, zero_bits: int = 0):
        self._hashes, self._documents, self.zero_bits = hashes, documents, zero_bits

    @classmethod
    def build(cls, documents: Iterable[np.ndarray], num_tokens: int, max_bytes: int) -> CorpusIndex:
        """Of documents of ``num_tokens`` tokens in all. While it is built, about three times the memory is used."""
        zero_bits = 0
        while (num_tokens >> zero_bits) * ENTRY_BYTES > max_bytes:
            zero_bits += 1
        hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
        for number, tokens in enumerate(documents):
            kept = _kept(ngram_hashes(tokens), zero_bits)
            hashes.append(kept)
            owners.append(np.full(len(kept), number, np.uint32))
        distinct, first = np.unique(np.concatenate(hashes), return_index=True)
        return cls(distinct, np.concatenate(owners)[first], zero_bits)

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def num_bytes(self) -> int:
        return len(self) * ENTRY_BYTES

    def save(self, folder: Path) -> None:
        np.save(folder / "hashes.npy", self._hashes)
        np.save(folder / "documents.npy", self._documents)

    @classmethod
    def load(cls, folder: Path, zero_bits: int) -> CorpusIndex:
        """Memory-mapped: processes share the pages. Raises OSError or ValueError when it cannot be read."""
        hashes, documents = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("hashes", "documents"))
        return cls(hashes.view(np.ndarray), documents.view(np.ndarray), zero_bits)

    def share(self, tokens: np.ndarray) -> float:
        """Share of the document's runs of 13 tokens that the corpus has; 0 when none of them is looked up."""
        looked_up = _kept(ngram_hashes(tokens), self.zero_bits)
        return len(self._found_in(looked_up)) / len(looked_up) if len(looked_up) else 0.0

    def longest_span(self, tokens: np.ndarray, document: Callable[[int], np.ndarray]) -> int:
        """Length of the longest span shared with one document of the corpus, in tokens; 0 when it is below 13.

        Looked for in the `NUM_SUSPECTS` documents that first had most of the shared runs: a lower bound.
        ``document(i)`` gives the tokens of document ``i``.
        """
        owners = self._found_in(_kept(ngram_hashes(tokens), self.zero_bits))
        numbers, counts = np.unique(owners, return_counts=True)
        suspects = numbers[np.argsort(-counts, kind="stable")][:NUM_SUSPECTS]
        return max((longest_shared(tokens, document(i)) for i in suspects.tolist()), default=0)

    def _found_in(self, hashes: np.ndarray) -> np.ndarray:
        """The first document of each hash that the corpus has."""
        if not len(self._hashes):
            return self._documents
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return self._documents[at[self._hashes[at] == hashes]]


def ngram_hashes(tokens: np.ndarray) -> np.ndarray:
    """One uint64 for each run of 13 tokens, in order; none for a shorter document."""
    return run_hashes(np.asarray(tokens).astype(np.uint64) + np.uint64(1), _MULTIPLIERS)


def _kept(hashes: np.ndarray, zero_bits: int) -> np.ndarray:
    return hashes[hashes >> np.uint64(64 - zero_bits) == 0] if zero_bits else hashes

"""Which sampled documents are not sent, and why: the closed list `telemetry.catalogue.FILTER_REASONS`."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from streaming_sbp import config
from streaming_sbp.synthesizer.engines.base import Sampled

REPETITION_NGRAM = 4
REMEMBERED_DOCUMENTS = 200_000  # digests of 8 bytes: about 25 MB with their container


def repetition(tokens: Sequence[int] | np.ndarray, n: int = REPETITION_NGRAM) -> float:
    """Share of n-grams that occurred before in the same document; 0 when it is shorter than n."""
    grams = ngrams(tokens, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def longest_shared(tokens: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> int:
    """Length of the longest run of tokens that both documents have."""
    a, b = list(map(int, tokens)), list(map(int, other))
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size


def copied_span(tokens: Sequence[int] | np.ndarray, seed: Sequence[int] | np.ndarray) -> float:
    """Longest run of tokens that document and seed share, as a share of the document; 0 when it is empty."""
    return longest_shared(tokens, seed) / len(tokens) if len(tokens) else 0.0


def copied_share(documents: Sequence[np.ndarray], seeds: Sequence[np.ndarray], max_copied_span: float) -> float:
    """Documents of which more than ``max_copied_span`` is one run of their seed's, as a share; 0 without documents."""
    spans = [copied_span(tokens, seed) for tokens, seed in zip(documents, seeds, strict=True)]
    return sum(span > max_copied_span for span in spans) / max(len(spans), 1)


def duplicate_share(documents: Sequence[np.ndarray]) -> float:
    """Documents that are there already, as a share; 0 without documents."""
    return 1.0 - len(set(map(document_key, documents))) / len(documents) if len(documents) else 0.0


def ngrams(tokens: Sequence[int] | np.ndarray, n: int) -> list[tuple[int, ...]]:
    values = list(map(int, tokens))
    return list(zip(*(values[i:] for i in range(n)), strict=False))


def document_key(tokens: np.ndarray) -> bytes:
    """Equal for equal documents, whatever the dtype of their tokens."""
    return hashlib.blake2b(tokens.astype("<u4").tobytes(), digest_size=8).digest()


class DocumentFilter:
    """Decides for one process; remembers the documents it passed (the last `REMEMBERED_DOCUMENTS`)."""

    def __init__(self, generator: config.Generator, num_remembered: int = REMEMBERED_DOCUMENTS):
        self._settings, self._num_remembered = generator, num_remembered
        self._passed: OrderedDict[bytes, None] = OrderedDict()

    def reason(self, document: Sampled, *seeds: np.ndarray) -> str:
        """Why the document must not be sent, or "" when it passes (and is remembered).

        ``seeds``: tokens of those it must not copy, its seed document and, where that is synthetic, the real one.
        """
        if not document.finished:
            return "unfinished"
        if len(document.tokens) < self._settings.min_new_tokens:
            return "too_short"
        if repetition(document.tokens) > self._settings.max_repetition:
            return "repetitive"
        if any(copied_span(document.tokens, seed) > self._settings.max_copied_span for seed in seeds):
            return "copied"
        return "" if self._remember(document_key(document.tokens)) else "duplicate"

    def _remember(self, key: bytes) -> bool:
        if key in self._passed:
            self._passed.move_to_end(key)
            return False
        self._passed[key] = None
        if len(self._passed) > self._num_remembered:
            self._passed.popitem(last=False)
        return True

"""How related a document is to its seed: cosine of tf-idf weighted token counts (Salton and Buckley 1988).

Cheap enough to measure what the trainer receives, and the same for every choice of `pairing.embedder`. A text of the
same corpus is a little related to any other, so each document is also compared with documents of the corpus that are
*unrelated to its seed*: not the seed itself, and not among the 5 % that are the closest to it. What counts is the lift,
above the mean relatedness to those, and a document is *not related* to its seed when it is no closer to it than to the
closest 5 % of those. The others are drawn from the corpus, not from the other seeds: seeds of held-out pairs come from
few neighbourhoods, and are relatives of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

UNRELATED_QUANTILE = 0.95  # of the cosines with other documents; what is written without a seed is below it as often
SAME = 1.0 - 1e-6  # cosine of a document with itself
FIT_DOCUMENTS = 20_000  # inverse document frequencies from the first so many


@dataclass(frozen=True)
class Related:
    """``each``: cosine of each document with its own seed; ``lift``: their mean, less that with documents unrelated to
    the seed; ``unrelated_share``: documents that are not related to their seed, 0 where there is nothing unrelated."""

    each: np.ndarray
    lift: float
    unrelated_share: float

    @property
    def mean(self) -> float:
        return float(self.each.mean()) if len(self.each) else 0.0

    def measures(self) -> dict[str, float]:
        return {
            "relatedness": self.mean,
            "relatedness_lift": self.lift,
            "unrelated_share": self.unrelated_share,
        }


class TermWeights:
    """``idf``: float32 [vocabulary]."""

    def __init__(self, idf: np.ndarray):
        self.idf = idf

    @classmethod
    def fit(cls, documents: Iterable[np.ndarray], vocab_size: int) -> TermWeights:
        """Inverse document frequencies, ln((1 + n) / (1 + documents with the token)) + 1."""
        num_with, num_documents = np.zeros(vocab_size), 0
        for tokens in documents:
            num_with[np.unique(tokens)] += 1
            num_documents += 1
        return cls((np.log((1 + num_documents) / (1 + num_with)) + 1).astype(np.float32))

    def cosines(self, documents: Sequence[np.ndarray], seeds: Sequence[np.ndarray]) -> np.ndarray:
        """Of each document with its own seed: ``documents[i]`` was written from ``seeds[i]``."""
        if not len(documents):
            return np.zeros(0)
        return _of_each(self._vectors(documents), self._vectors(seeds))

    def related(
        self, documents: Sequence[np.ndarray], seeds: Sequence[np.ndarray], others: Sequence[np.ndarray]
    ) -> Related:
        """``documents[i]`` was written from ``seeds[i]``; ``others``: documents drawn from the corpus."""
        if not len(documents):
            return Related(np.zeros(0), 0.0, 0.0)
        written, read = self._vectors(documents), self._vectors(seeds)
        each = _of_each(written, read)
        if not len(others):
            return Related(each, float(each.mean()), 0.0)
        drawn = self._vectors(others).T
        to_others, between = (written @ drawn).toarray(), (read @ drawn).toarray()
        related = between > np.minimum(np.quantile(between, UNRELATED_QUANTILE, axis=1, keepdims=True), SAME)
        rows = ~related.all(axis=1)
        if not rows.any():
            return Related(each, float(each.mean()), 0.0)
        unrelated, known = np.where(related, np.nan, to_others)[rows], each[rows]
        closest = np.nanquantile(unrelated, UNRELATED_QUANTILE, axis=1)
        lift = float((known - np.nanmean(unrelated, axis=1)).mean())
        return Related(each, lift, float((known <= closest).mean()))

    def _vectors(self, documents: Sequence[np.ndarray]) -> sparse.csr_matrix:
        """Unit rows of (1 + ln count) * idf [documents, vocabulary]; an empty document has a row of zeros."""
        counted = [np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True) for tokens in documents]
        rows = []
        for ids, counts in counted:
            weights = (1 + np.log(counts)) * self.idf[ids]
            rows.append(weights / max(float(np.linalg.norm(weights)), 1e-12))
        ends = np.cumsum([0, *(len(ids) for ids, _ in counted)])
        columns = np.concatenate([ids for ids, _ in counted])
        return sparse.csr_matrix((np.concatenate(rows), columns, ends), shape=(len(documents), len(self.idf)))


def _of_each(documents: sparse.csr_matrix, seeds: sparse.csr_matrix) -> np.ndarray:
    """Products of the rows of two matrices, one by one."""
    return np.asarray(documents.multiply(seeds).sum(axis=1)).ravel()

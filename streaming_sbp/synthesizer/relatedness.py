"""How related a document is to its seed: cosine of tf-idf weighted token counts (Salton and Buckley 1988).

Cheap enough to measure what the trainer receives, and the same for every choice of `pairing.embedder`. A text of the
same corpus is a little related to any other, so what counts is the lift: above the mean relatedness to the other seeds.
A document is *not related* to its seed when it is no closer to it than to the closest 5 % of the other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

UNRELATED_QUANTILE = 0.95  # of the cosines with the others' seeds; what is written without a seed is below it as often
FIT_DOCUMENTS = 20_000  # inverse document frequencies from the first so many


@dataclass(frozen=True)
class Related:
    """``each``: cosine of each document with its own seed; ``lift``: their mean, less that with the others' seeds;
    ``unrelated_share``: documents that are not related to their seed. 0 where there are no other seeds."""

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

    def related(self, documents: Sequence[np.ndarray], seeds: Sequence[np.ndarray]) -> Related:
        """``documents[i]`` was written from ``seeds[i]``."""
        if not len(documents):
            return Related(np.zeros(0), 0.0, 0.0)
        cosines = np.asarray((self._vectors(documents) @ self._vectors(seeds).T).todense())
        each = cosines.diagonal()
        if len(documents) == 1:
            return Related(each, float(each.mean()), 0.0)
        others = cosines[~np.eye(len(cosines), dtype=bool)].reshape(len(cosines), -1)
        closest = np.quantile(others, UNRELATED_QUANTILE, axis=1)
        return Related(each, float(each.mean() - others.mean()), float((each <= closest).mean()))

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

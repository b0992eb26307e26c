"""Documents as vectors whose inner product says how related they are.

"tfidf" needs no model: weighted word counts, projected by truncated SVD (latent semantic analysis, Deerwester et al.
1990). On docstrings, words paired better than the tokenizer's ids, whose counts follow the formatting. A word is a run
of letters, so for languages written without spaces choose a sentence-transformers model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.utils.extmath import randomized_svd

from streaming_sbp import config
from streaming_sbp.config import ConfigError

TFIDF = "tfidf"
HASHED_TERMS = 2**22  # columns that words are hashed to; 100,000 distinct words share a column in 2 % of the cases
SVD_FIT_DOCUMENTS = 2**15  # the projection is fitted on an even sample of this many, then applied to all
SVD_ITERATIONS = 5  # of the power method; the small singular values need them
WORD = r"(?u)[^\W\d_]{2,}"  # snake_case is several words


class Embedder(Protocol):
    def embed(self, batches: Iterable[list[str]]) -> np.ndarray:
        """The documents of all batches, in order: float32 [n, d], each of unit norm, or zero when nothing is known."""
        ...


def make_embedder(settings: config.Pairing, seed: int) -> Embedder:
    """Raises ConfigError when the embedder's package is missing, or its model cannot be loaded."""
    if settings.embedder == TFIDF:
        return TfidfEmbedder(settings.dimensions, settings.max_features, seed)
    return SentenceEmbedder(settings.embedder)


class TfidfEmbedder:
    """Memory: the word counts of all documents, sparse, and the result. Fewer than ``dimensions`` columns come back
    when there are fewer documents or terms; the inner products are then those of tf-idf itself.
    """

    def __init__(self, dimensions: int, max_features: int, seed: int):
        self._dimensions, self._max_features, self._seed = dimensions, max_features, seed % 2**32
        self._counter = HashingVectorizer(
            n_features=HASHED_TERMS, token_pattern=WORD, alternate_sign=False, norm=None, dtype=np.float32
        )

    def embed(self, batches: Iterable[list[str]]) -> np.ndarray:
        blocks = [self._counter.transform(batch) for batch in batches if batch]
        if not blocks:
            return np.zeros((0, 1), dtype=np.float32)
        counts = most_frequent(sparse.vstack(blocks, format="csr"), self._max_features)
        if not counts.nnz:
            return np.zeros((counts.shape[0], 1), dtype=np.float32)
        return unit_rows(self._project(TfidfTransformer(sublinear_tf=True).fit_transform(counts)))

    def _project(self, weights: sparse.csr_matrix) -> np.ndarray:
        num_documents, num_terms = weights.shape
        if num_terms <= self._dimensions:
            return weights.toarray()
        sample = weights
        if num_documents > SVD_FIT_DOCUMENTS:
            chosen = np.random.default_rng(self._seed).choice(num_documents, SVD_FIT_DOCUMENTS, replace=False)
            sample = weights[np.sort(chosen)]
        rank = min(self._dimensions, num_documents)
        _, _, components = randomized_svd(sample, rank, n_iter=SVD_ITERATIONS, random_state=self._seed)
        return weights @ components.T


class SentenceEmbedder:
    """A sentence-transformers model by path or name (extra `embed`)."""

    def __init__(self, name: str):
        self._model = _load_model(name)

    def embed(self, batches: Iterable[list[str]]) -> np.ndarray:
        blocks = [self._encode(batch) for batch in batches if batch]
        return np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32)

    def _encode(self, texts: list[str]) -> np.ndarray:
        return unit_rows(self._model.encode(texts, convert_to_numpy=True, show_progress_bar=False))


def most_frequent(counts: sparse.csr_matrix, max_terms: int) -> sparse.csr_matrix:
    """Without the columns no document has, and at most ``max_terms`` of those that most documents have."""
    num_documents_with = np.bincount(counts.indices, minlength=counts.shape[1])
    columns = np.flatnonzero(num_documents_with)
    if len(columns) > max_terms:
        order = np.argsort(-num_documents_with[columns], kind="stable")
        columns = np.sort(columns[order[:max_terms]])
    return counts[:, columns]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """float32, each row divided by its norm; rows that are zero or not finite become zero."""
    vectors = np.array(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > np.finfo(np.float32).eps)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=usable)


def _load_model(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            f'pairing.embedder = "{name}": needs sentence-transformers ({error}): '
            f"pip install 'streaming-sbp[embed]', or choose \"{TFIDF}\""
        ) from None
    try:
        return SentenceTransformer(name)
    except Exception as error:  # the hub, torch and each architecture raise their own
        raise ConfigError(
            f'pairing.embedder = "{name}": cannot be loaded: {type(error).__name__}: {error}; expected a '
            f'sentence-transformers folder or a name on the hub, or "{TFIDF}"'
        ) from None

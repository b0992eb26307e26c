"""Documents as vectors whose inner product says how related they are.

"tfidf" needs no model: weighted word counts (data/tfidf.py), projected by truncated SVD (latent semantic analysis,
Deerwester et al. 1990). On docstrings, words paired better than the tokenizer's ids, whose counts follow the
formatting. A word is a run of letters, so for languages written without spaces choose a sentence-transformers model.

"self" (pairing/pooling.py) needs nothing from outside either: hidden states of the trainer's own checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data import tfidf
from streaming_sbp.pairing.embedders import SELF, TFIDF, missing_package
from streaming_sbp.pairing.index import IN_MEMORY_BYTES

SVD_FIT_DOCUMENTS = 2**15  # the projection is fitted on an even sample of this many, then applied to all
PROJECTED_TOGETHER = 2**14  # documents
SVD_ITERATIONS = 5  # of the power method; the small singular values need them


class Embedder(Protocol):
    def embed(self, batches: Iterable[list[str]]) -> Iterator[np.ndarray]:
        """The documents of all batches, in order, in blocks: float32 [b, d], each of unit norm, or zero when nothing is
        known of it.
        """
        ...


def make_embedder(settings: config.Pairing, seed: int, model: Path | None = None) -> Embedder:
    """``model``: Hugging Face folder of the trainer's checkpoint, for "self".

    Raises ConfigError when the embedder's package is missing, or its model cannot be loaded.
    """
    if settings.embedder == TFIDF:
        return TfidfEmbedder(settings.dimensions, settings.max_features, seed)
    if settings.embedder == SELF:
        from streaming_sbp.pairing.pooling import SelfEmbedder  # torch is slow to import, and only this one needs it

        if model is None:
            raise ConfigError(f'pairing.embedder = "{SELF}": no checkpoint to embed with; start the trainer, too')
        return SelfEmbedder(model)
    return SentenceEmbedder(settings.embedder)


def stack(
    embedder: Embedder, batches: Iterable[list[str]], num_documents: int, folder: Path | None = None
) -> np.ndarray:
    """The vectors of all documents, float32 [n, d]; when large and with ``folder``, an array mapped from a file there.

    Raises ValueError when the batches do not hold ``num_documents``.
    """
    found, end = np.zeros((num_documents, 1), dtype=np.float32), 0
    for block in embedder.embed(batches):
        if not end:
            found = _array((num_documents, block.shape[1]), folder)
        found[end : end + len(block)] = block
        end += len(block)
    if end != num_documents:
        raise ValueError(f"got {end} documents, expected {num_documents}")
    return found


def _array(shape: tuple[int, int], folder: Path | None) -> np.ndarray:
    if folder is None or 4 * shape[0] * shape[1] <= IN_MEMORY_BYTES:
        return np.zeros(shape, dtype=np.float32)
    return np.memmap(Path(folder) / "embeddings", dtype=np.float32, mode="w+", shape=shape)


class TfidfEmbedder:
    """Memory: the word counts of all documents, sparse. Fewer than ``dimensions`` columns come back
    when there are fewer documents or terms; the inner products are then those of tf-idf itself.
    """

    def __init__(self, dimensions: int, max_features: int, seed: int):
        self._dimensions, self._max_features, self._seed = dimensions, max_features, seed % 2**32
        self._counter = tfidf.counter()

    def embed(self, batches: Iterable[list[str]]) -> Iterator[np.ndarray]:
        blocks = [self._counter.transform(batch) for batch in batches if batch]
        if not blocks:
            return
        counts = most_frequent(sparse.vstack(blocks, format="csr"), self._max_features)
        del blocks
        if not counts.nnz:
            yield np.zeros((counts.shape[0], 1), dtype=np.float32)
            return
        weights = tfidf.weigh(counts, tfidf.num_documents_with(counts), counts.shape[0])
        project = self._projection(weights)
        for start in range(0, weights.shape[0], PROJECTED_TOGETHER):
            yield unit_rows(project(weights[start : start + PROJECTED_TOGETHER]))

    def _projection(self, weights: sparse.csr_matrix) -> Callable[[sparse.csr_matrix], np.ndarray]:
        num_documents, num_terms = weights.shape
        if num_terms <= self._dimensions:
            return lambda rows: rows.toarray()
        sample = weights
        if num_documents > SVD_FIT_DOCUMENTS:
            chosen = np.random.default_rng(self._seed).choice(num_documents, SVD_FIT_DOCUMENTS, replace=False)
            sample = weights[np.sort(chosen)]
        rank = min(self._dimensions, num_documents)
        _, _, components = randomized_svd(sample, rank, n_iter=SVD_ITERATIONS, random_state=self._seed)
        return lambda rows: rows @ components.T


class SentenceEmbedder:
    """A sentence-transformers model by path or name (extra `embed`)."""

    def __init__(self, name: str):
        self._model = _load_model(name)

    def embed(self, batches: Iterable[list[str]]) -> Iterator[np.ndarray]:
        return (self._encode(batch) for batch in batches if batch)

    def _encode(self, texts: list[str]) -> np.ndarray:
        return unit_rows(self._model.encode(texts, convert_to_numpy=True, show_progress_bar=False))


def most_frequent(counts: sparse.csr_matrix, max_terms: int) -> sparse.csr_matrix:
    """Without the columns no document has, and at most ``max_terms`` of those that most documents have."""
    num_with = tfidf.num_documents_with(counts)
    columns = np.flatnonzero(num_with)
    if len(columns) > max_terms:
        order = np.argsort(-num_with[columns], kind="stable")
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
        raise missing_package(name, str(error)) from None
    try:
        return SentenceTransformer(name)
    except Exception as error:  # the hub, torch and each architecture raise their own
        raise ConfigError(
            f'pairing.embedder = "{name}": cannot be loaded: {type(error).__name__}: {error}; expected a '
            f'sentence-transformers folder or a name on the hub, or "{TFIDF}"'
        ) from None

"""Nearest neighbours by inner product, with FAISS, a batch of documents at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np

BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Neighbours:
    """Of ``B`` documents, the ``K`` most similar others, most similar first."""

    document: np.ndarray  # int64 [B]
    neighbour: np.ndarray  # int64 [B, K]
    similarity: np.ndarray  # float32 [B, K]


def make_index(vectors: np.ndarray) -> faiss.Index:
    """An exact index over float32 [n, d]. The place to choose IVF or HNSW by ``n``: callers only search."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def nearest(
    embeddings: np.ndarray, num_neighbours: int, batch_documents: int = BATCH_DOCUMENTS
) -> Iterator[Neighbours]:
    """The neighbours of every document of ``embeddings``, float32 [n, d], that has a vector.

    A zero vector has no neighbours and is none. Nothing comes when fewer than two documents have a vector.
    """
    known = np.flatnonzero(embeddings.any(axis=1))
    num_neighbours = min(num_neighbours, len(known) - 1)
    if num_neighbours < 1:
        return
    vectors = np.ascontiguousarray(embeddings[known], dtype=np.float32)
    index = make_index(vectors)
    for start in range(0, len(known), batch_documents):
        rows = np.arange(start, min(start + batch_documents, len(known)))
        similarity, found = index.search(vectors[rows], num_neighbours + 1)
        others = _all_but_one(found != rows[:, None])
        shape = (len(rows), num_neighbours)
        yield Neighbours(known[rows], known[found[others].reshape(shape)], similarity[others].reshape(shape))


def _all_but_one(is_other: np.ndarray) -> np.ndarray:
    """Mask [B, K + 1] that leaves out the document itself, or the last neighbour where K + 1 copies came before it."""
    mask = is_other.copy()
    mask[is_other.all(axis=1), -1] = False
    return mask

"""Nearest neighbours by inner product, with FAISS, a batch of documents at a time.

| kind    | searches                                              | time to build | memory |
|---------|-------------------------------------------------------|---------------|--------|
| exact   | everything: time grows with the square of the corpus  | none          | vectors |
| ivf     | the `NUM_PROBES` nearest of 4 sqrt(n) cells            | seconds       | vectors, or a file |
| hnsw    | a graph (Malkov and Yashunin 2016)                    | minutes       | vectors and 32 links each |

`benchmarks/pairing.py` measures them; `docs/experiments.md` has the figures from which "auto" chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

BATCH_DOCUMENTS = 1024
EXACT_UP_TO = 50_000  # documents; for more, "auto" takes IVF
IN_MEMORY_BYTES = 2**30  # larger embeddings, and the cells of their IVF index, are files that are mapped
NUM_PROBES = 32
TRAIN_PER_CELL = 40  # vectors that k-means sees for each cell; FAISS asks for 39
KMEANS_ITERATIONS = 10
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 80, 128
_SEED = 1234


@dataclass(frozen=True)
class Neighbours:
    """Of ``B`` documents, the ``K`` most similar others, most similar first.

    Where an index that is not exact found fewer, neighbour and similarity are -1.
    """

    document: np.ndarray  # int64 [B]
    neighbour: np.ndarray  # int64 [B, K]
    similarity: np.ndarray  # float32 [B, K]


def choose(kind: str, num_documents: int) -> str:
    """ "exact", "ivf" or "hnsw" for "auto"; any other kind as it is."""
    if kind != "auto":
        return kind
    return "exact" if num_documents <= EXACT_UP_TO else "ivf"


def make_index(vectors: np.ndarray, kind: str = "auto", folder: Path | None = None) -> faiss.Index:
    """An index over float32 [n, d], searched by inner product.

    With ``folder``, which must outlive the index, the cells of a large IVF index lie there.
    """
    num_documents, dimensions = vectors.shape
    kind = choose(kind, num_documents)
    if kind == "ivf":
        index: Any = _cells(vectors, folder if vectors.nbytes > IN_MEMORY_BYTES else None)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimensions, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    elif kind == "exact":
        index = faiss.IndexFlatIP(dimensions)
    else:
        raise ValueError(f"index {kind!r}: expected auto, exact, ivf or hnsw")
    for start in range(0, num_documents, 2**15):
        index.add(_contiguous(vectors[start : start + 2**15]))
    return index


def nearest(
    embeddings: np.ndarray,
    num_neighbours: int,
    batch_documents: int = BATCH_DOCUMENTS,
    kind: str = "auto",
    folder: Path | None = None,
) -> Iterator[Neighbours]:
    """The neighbours of every document of ``embeddings``, float32 [n, d], that has a vector.

    A zero vector has no neighbours and is none. Nothing comes when fewer than two documents have a vector.
    ``kind`` and ``folder`` as in `make_index`.
    """
    known = _rows_with_vector(embeddings)
    num_neighbours = min(num_neighbours, len(known) - 1)
    if num_neighbours < 1:
        return
    vectors = embeddings if len(known) == len(embeddings) else embeddings[known]
    index = make_index(vectors, kind, folder)
    for start in range(0, len(known), batch_documents):
        rows = np.arange(start, min(start + batch_documents, len(known)))
        similarity, found = index.search(_contiguous(vectors[start : rows[-1] + 1]), num_neighbours + 1)
        others = _all_but_one(found != rows[:, None])
        shape = (len(rows), num_neighbours)
        found, similarity = found[others].reshape(shape), similarity[others].reshape(shape)
        missing = found < 0
        yield Neighbours(
            known[rows], np.where(missing, -1, known[found]), np.where(missing, np.float32(-1), similarity)
        )


def _cells(vectors: np.ndarray, folder: Path | None) -> faiss.IndexIVFFlat:
    """An inverted file with 4 sqrt(n) cells, trained on an even sample; in a file of ``folder``, or in memory."""
    num_documents, dimensions = vectors.shape
    num_cells = max(1, min(round(4 * math.sqrt(num_documents)), num_documents // TRAIN_PER_CELL))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimensions), dimensions, num_cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.spherical, index.cp.seed = KMEANS_ITERATIONS, True, _SEED
    index.nprobe = min(NUM_PROBES, num_cells)
    sample = min(num_documents, num_cells * TRAIN_PER_CELL)
    chosen = np.random.default_rng(_SEED).choice(num_documents, sample, replace=False)
    index.train(_contiguous(vectors[np.sort(chosen)]))
    if folder is not None:
        lists: Any = faiss.OnDiskInvertedLists(num_cells, index.code_size, str(Path(folder) / "cells"))
        index.replace_invlists(lists, True)
        lists.this.disown()
    return index


def _rows_with_vector(embeddings: np.ndarray) -> np.ndarray:
    blocks = (embeddings[start : start + 2**15].any(axis=1) for start in range(0, len(embeddings), 2**15))
    return np.flatnonzero(np.concatenate([np.zeros(0, dtype=bool), *blocks]))


def _contiguous(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _all_but_one(is_other: np.ndarray) -> np.ndarray:
    """Mask [B, K + 1] that leaves out the document itself, or the last neighbour where K + 1 copies came before it."""
    mask = is_other.copy()
    mask[is_other.all(axis=1), -1] = False
    return mask

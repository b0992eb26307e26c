"""Neighbourhoods of related documents to hold out as a whole, where the source does not say what a document is about.

A neighbourhood is closed: all documents that can be reached by steps between two whose tf-idf cosine is above
`COSINE`. So whatever stays for training is less alike than that to each of its documents. They grow from anchors, taken
in the order of a digest of the text, which no order of the input changes. An anchor is passed over when nothing is near
it, and when what is near does not end: with more than `MAX_DOCUMENTS` documents, after `MAX_STEPS` steps, or when that
is more than what is left of the share.

Memory: 24 bytes a document, 8 MiB for the counts of words, and vectors of the neighbourhoods that grow, at most
`MAX_ANCHORS` times `MAX_DOCUMENTS` and one batch more. The vectors of all documents lie on disk meanwhile.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from streaming_sbp.data.documents import ID_BYTES, sampling_key
from streaming_sbp.data.spool import Batch
from streaming_sbp.data.tfidf import counter, num_documents_with, weigh

COSINE = 0.4  # lower, and hardly a neighbourhood of real text ends; higher, and relatives stay (docs/experiments.md)
HASHED_TERMS = 2**20  # columns that words are hashed to; 100,000 distinct words share a column in 9 % of the cases
MAX_DOCUMENTS = 32  # of a neighbourhood
MAX_STEPS = 8
MAX_ANCHORS = 1024  # so a very large corpus holds out less than its share; more would not judge better
MIN_HELDOUT = 32  # documents in all; with fewer pairs the loss of a tuning is noise, so then none are held out
COMPARED_TOGETHER = 1024  # documents that grow, with a batch
_PURPOSE = "neighbourhoods"  # of the sampling key that orders anchors


def find(
    batches: Iterable[Batch],
    num_documents: int,
    share: float,
    folder: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> list[list[str]]:
    """The ids of the documents of each neighbourhood: about ``share`` of ``num_documents``, and at most that.

    ``folder``: for the vectors, which are gone afterwards. ``advance`` is told how many documents were read.
    """
    budget = int(share * num_documents)
    if budget < MIN_HELDOUT:
        return []
    with tempfile.TemporaryDirectory(dir=folder) as vectors:
        corpus = _Vectors(batches, Path(vectors), advance)
        grown = _grow(corpus, corpus.first(min(MAX_ANCHORS, budget)))
        found = [[corpus.id(i) for i in members] for members in _within(grown, budget)]
    return found if sum(map(len, found)) >= MIN_HELDOUT else []


class _Vectors:
    """The documents of one pass, numbered in its order; ``blocks`` reads their vectors again."""

    def __init__(self, batches: Iterable[Batch], folder: Path, advance: Callable[[int], None]):
        self._folder, self._num_blocks = folder, 0
        self._ids, self._keys = bytearray(), array("Q")
        self._num_with = np.zeros(HASHED_TERMS, dtype=np.int64)
        words = counter(HASHED_TERMS)
        for batch in batches:
            if batch.ids:
                self._add(batch.ids, words.transform(batch.texts))
            advance(len(batch.ids))

    def __len__(self) -> int:
        return len(self._keys)

    def id(self, i: int) -> str:
        return self._ids[ID_BYTES * i : ID_BYTES * (i + 1)].hex()

    def first(self, count: int) -> list[int]:
        """The documents with the smallest keys, in that order."""
        return np.argsort(np.frombuffer(self._keys, dtype=np.uint64), kind="stable")[:count].tolist()

    def blocks(self) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Number of the first document, and the vectors: float32 [documents of the block, terms], unit norm."""
        start = 0
        for number in range(self._num_blocks):
            weights = weigh(sparse.load_npz(self._path(number)), self._num_with, len(self))
            yield start, weights
            start += weights.shape[0]

    def of(self, documents: list[int]) -> sparse.csr_matrix:
        """Vectors of some documents, in their order."""
        wanted, rows = np.array(documents), {}
        for start, block in self.blocks():
            for i in wanted[(wanted >= start) & (wanted < start + block.shape[0])].tolist():
                rows[i] = block[i - start]
        return sparse.vstack([rows[i] for i in documents], format="csr")

    def _add(self, ids: list[str], counts: sparse.csr_matrix) -> None:
        sparse.save_npz(self._path(self._num_blocks), counts, compressed=False)
        self._num_blocks += 1
        self._num_with += num_documents_with(counts)
        self._ids += bytes.fromhex("".join(ids))
        self._keys.extend(sampling_key(id, _PURPOSE) for id in ids)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.npz"


class _Growing:
    """Documents reached so far, and which belong together. ``known`` is in the order in which they were reached."""

    def __init__(self, anchors: list[int]):
        self.known = list(anchors)
        self.place = {document: i for i, document in enumerate(anchors)}
        self.label = np.arange(len(anchors))  # of the neighbourhood of each known document
        self.endless: set[int] = set()  # labels
        self._edges: list[tuple[int, int]] = []

    def reach(self, document: int, near: int) -> bool:
        """``document`` is near the known one in place ``near``; whether it has not been reached before."""
        new = document not in self.place
        if new:
            self.place[document] = len(self.known)
            self.known.append(document)
        self._edges.append((self.place[document], near))
        return new

    def relabel(self) -> None:
        """Join what steps have connected; what is too large, or touches something endless, is endless."""
        dead = {i for i, label in enumerate(self.label.tolist()) if label in self.endless}
        shape = (len(self.known), len(self.known))
        first, second = np.array(self._edges, dtype=np.int64).reshape(-1, 2).T
        graph = sparse.coo_matrix((np.ones(len(first), dtype=bool), (first, second)), shape=shape)
        self.label = csgraph.connected_components(graph, directed=False)[1]
        too_large = np.flatnonzero(np.bincount(self.label) > MAX_DOCUMENTS).tolist()
        self.endless = {*too_large, *self.label[list(dead)].tolist()}

    def open(self, since: int) -> list[int]:
        """Places from ``since`` on whose neighbourhood may still end."""
        return [i for i in range(since, len(self.known)) if self.label[i] not in self.endless]


def _grow(corpus: _Vectors, anchors: list[int]) -> list[list[int]]:
    """The neighbourhoods of the anchors that end, in the order of their first anchor; documents ascending."""
    growing, new, vectors = _Growing(anchors), list(range(len(anchors))), corpus.of(anchors)
    for _ in range(MAX_STEPS):
        before = len(growing.known)
        rows = _step(corpus, growing, new, vectors)
        growing.relabel()
        new = growing.open(before)
        if not new:
            break
        vectors = sparse.vstack([rows[growing.known[i]] for i in new], format="csr")
    else:
        growing.endless |= set(growing.label[new].tolist())
    members: dict[int, list[int]] = {}
    for i in growing.open(0):
        members.setdefault(int(growing.label[i]), []).append(growing.known[i])
    return [sorted(documents) for documents in members.values()]


def _step(
    corpus: _Vectors, growing: _Growing, new: list[int], vectors: sparse.csr_matrix
) -> dict[int, sparse.csr_matrix]:
    """Reach what is near the documents in the places ``new``; the vectors of those not reached before, by document."""
    reached: dict[int, sparse.csr_matrix] = {}
    num_reached = np.zeros(len(growing.known), dtype=np.int64)  # by label
    starts = range(0, len(new), COMPARED_TOGETHER)
    parts = [(first, vectors[first : first + COMPARED_TOGETHER].T.tocsr()) for first in starts]
    for start, block in corpus.blocks():
        for first, part in parts:
            cosines = (block @ part).tocoo()
            near = np.flatnonzero(cosines.data > COSINE)
            for row, column in zip(cosines.row[near].tolist(), cosines.col[near].tolist(), strict=True):
                place = new[first + column]
                label = growing.label[place]
                if growing.known[place] == start + row or num_reached[label] > MAX_DOCUMENTS:
                    continue  # itself, or one that does not end
                if growing.reach(start + row, place):
                    num_reached[label] += 1
                    reached[start + row] = block[row]
    return reached


def _within(neighbourhoods: list[list[int]], budget: int) -> list[list[int]]:
    """Those of two documents or more, one after the other, that fit into what is left of ``budget`` documents."""
    chosen = []
    for documents in neighbourhoods:
        if 1 < len(documents) <= budget:
            chosen.append(documents)
            budget -= len(documents)
    return chosen

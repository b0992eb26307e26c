"""Nearest neighbours against brute force."""

import numpy as np
import pytest

from streaming_sbp.pairing import index as index_module
from streaming_sbp.pairing.embed import unit_rows
from streaming_sbp.pairing.index import EXACT_UP_TO, choose, nearest


def brute_force(vectors, k):
    """For each document with a vector: the k best others, by plain NumPy."""
    known = np.flatnonzero(np.abs(vectors).sum(axis=1))
    result = {}
    for i in known.tolist():
        others = [j for j in known.tolist() if j != i]
        result[i] = sorted(others, key=lambda j: -float(vectors[i] @ vectors[j]))[:k]
    return result


@pytest.mark.parametrize("batch_documents", [1, 7, 1000])
def test_neighbours_are_those_of_brute_force(batch_documents):
    vectors = unit_rows(np.random.default_rng(0).normal(size=(60, 5)))
    vectors[[3, 40]] = 0.0
    expected = brute_force(vectors, 4)
    found = list(nearest(vectors, 4, batch_documents))
    assert max(len(batch.document) for batch in found) <= batch_documents
    rows = {int(i): row for batch in found for i, row in zip(batch.document, batch.neighbour.tolist(), strict=True)}
    assert rows == expected
    for batch in found:
        products = np.einsum("bd,bkd->bk", vectors[batch.document], vectors[batch.neighbour])
        np.testing.assert_allclose(batch.similarity, products, atol=1e-6)
        assert (np.diff(batch.similarity, axis=1) <= 1e-6).all()


def test_a_document_is_never_its_own_neighbour_even_among_copies():
    vectors = unit_rows(np.ones((12, 3)))
    for batch in nearest(vectors, 4, 5):
        assert batch.neighbour.shape[1] == 4
        assert (batch.neighbour != batch.document[:, None]).all()
        assert all(len(set(row)) == 4 for row in batch.neighbour.tolist())


def test_fewer_documents_than_neighbours_asked_for():
    batches = list(nearest(unit_rows(np.eye(3)), 10))
    assert [sorted(row) for row in batches[0].neighbour.tolist()] == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize("vectors", [np.zeros((0, 4)), np.zeros((5, 4)), np.eye(4)[:1]])
def test_nothing_comes_when_fewer_than_two_documents_have_a_vector(vectors):
    assert list(nearest(vectors.astype(np.float32), 3)) == []


def clustered(num_documents=6000, num_clusters=300, dimensions=32):
    """Unit vectors around centres: what related documents look like."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(num_clusters, dimensions))
    return unit_rows(
        centres[rng.integers(num_clusters, size=num_documents)] + 0.4 * rng.normal(size=(num_documents, dimensions))
    )


def neighbours_of(vectors, kind, folder=None, k=10):
    blocks = list(nearest(vectors, k, kind=kind, folder=folder))
    return np.concatenate([b.neighbour for b in blocks]), np.concatenate([b.similarity for b in blocks])


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_finds_nearly_all_that_an_exact_one_finds(kind):
    vectors = clustered()
    exact, _ = neighbours_of(vectors, "exact")
    found, similarity = neighbours_of(vectors, kind)
    hits = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert np.mean(hits) / 10 >= 0.95
    assert (found != np.arange(len(vectors))[:, None]).all()
    inside = found >= 0
    products = np.einsum("bd,bkd->bk", vectors, vectors[found])
    np.testing.assert_allclose(similarity[inside], products[inside], atol=1e-5)


def test_cells_on_disk_find_the_same_neighbours_and_leave_their_bytes_there(tmp_path, monkeypatch):
    vectors = clustered()
    in_memory = neighbours_of(vectors, "ivf")
    monkeypatch.setattr(index_module, "IN_MEMORY_BYTES", 0)
    on_disk = neighbours_of(vectors, "ivf", tmp_path)
    np.testing.assert_array_equal(in_memory[0], on_disk[0])
    assert (tmp_path / "cells").stat().st_size >= vectors.nbytes


def test_where_an_index_finds_too_few_there_is_minus_one(monkeypatch):
    monkeypatch.setattr(index_module, "NUM_PROBES", 1)
    vectors = clustered(400, 200)
    found, similarity = neighbours_of(vectors, "ivf", k=300)
    assert (found == -1).any()
    assert (similarity[found == -1] == -1).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)


def test_auto_is_exact_until_the_corpus_is_large():
    assert [choose("auto", n) for n in (0, EXACT_UP_TO, EXACT_UP_TO + 1)] == ["exact", "exact", "ivf"]
    assert choose("hnsw", 3) == "hnsw"
    with pytest.raises(ValueError, match="expected auto, exact, ivf or hnsw"):
        list(nearest(unit_rows(np.eye(3)), 1, kind="flat"))

"""Nearest neighbours against brute force."""

import numpy as np
import pytest

from streaming_sbp.pairing.embed import unit_rows
from streaming_sbp.pairing.index import nearest


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

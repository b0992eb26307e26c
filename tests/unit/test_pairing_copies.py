"""Shingles and Jaccard against plain Python sets."""

import numpy as np
import pytest

from streaming_sbp.pairing.copies import Shingles, find_copies


def plain_jaccard(a, b, n):
    def shingles(values):
        values = tuple(int(v) for v in values)
        return {values[i : i + n] for i in range(len(values) - n + 1)} if len(values) >= n else {values}

    first, second = shingles(a), shingles(b)
    return len(first & second) / len(first | second)


def related_documents(rng, count):
    """Documents that share long runs: each is cut from one of a few texts, with some tokens changed."""
    texts = rng.integers(0, 5, size=(3, 60))
    documents = []
    for _ in range(count):
        start, length = rng.integers(0, 20), rng.integers(0, 50)
        document = texts[rng.integers(3)][start : start + length].copy()
        document[rng.random(len(document)) < 0.05] = 6
        documents.append(document.astype(np.uint16))
    return documents


@pytest.mark.parametrize("num_tokens", [1, 3, 13])
def test_jaccard_is_that_of_python_sets(num_tokens):
    documents = related_documents(np.random.default_rng(num_tokens), 40)
    shingles = Shingles(documents.__getitem__, num_tokens)
    values = []
    for i in range(40):
        for j in range(40):
            values.append(plain_jaccard(documents[i], documents[j], num_tokens))
            assert shingles.jaccard(i, j) == pytest.approx(values[-1])
    assert len({round(value, 6) for value in values}) > 10


def test_documents_shorter_than_a_shingle_are_compared_as_a_whole():
    documents = [np.array(d, dtype=np.uint16) for d in ([1, 2], [1, 2], [1, 2, 0], [2, 1], [], [], [1, 2, 0, 0])]
    shingles = Shingles(documents.__getitem__, 4)
    equal = {(i, j) for i in range(7) for j in range(7) if i < j and shingles.jaccard(i, j) == 1.0}
    assert equal == {(0, 1), (4, 5)}


def test_copies_are_marked_in_both_orders_and_compared_once():
    documents = [np.arange(20), np.arange(20), np.arange(1, 21), np.arange(100, 120)]
    shingles = Shingles(documents.__getitem__, 5)
    seed, target = np.array([0, 1, 0, 2, 3, 1]), np.array([1, 0, 3, 0, 0, 2])
    counted = []
    expected = [plain_jaccard(documents[i], documents[j], 5) >= 0.8 for i, j in zip(seed, target, strict=True)]
    assert expected == [True, True, False, True, False, True]
    assert find_copies(shingles, seed, target, 0.8, counted.append).tolist() == expected
    assert sum(counted) == 4


def test_the_bound_itself_counts_as_a_copy():
    documents = [np.array([1, 2, 3]), np.array([1, 2, 9])]  # shingles {12, 23} and {12, 29}: one of three
    shingles = Shingles(documents.__getitem__, 2)
    pair = np.array([0]), np.array([1])
    assert find_copies(shingles, *pair, 1 / 3).tolist() == [True]
    assert find_copies(shingles, *pair, 0.34).tolist() == [False]


def test_no_pairs():
    none = np.zeros(0, dtype=np.int64)
    assert find_copies(Shingles(lambda i: none, 3), none, none, 0.5).tolist() == []

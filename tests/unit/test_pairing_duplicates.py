"""Near-duplicates of the whole corpus: planted copies, beside a plain comparison of every two documents."""

import numpy as np
import pytest

from streaming_sbp.pairing.copies import Shingles
from streaming_sbp.pairing.duplicates import LEAST_FOUND, NUM_PERMUTATIONS, bands, find_duplicates

SHINGLE_TOKENS = 13


def documents_with_copies(rng, num_originals, num_changed):
    """Unrelated documents, then a copy of each with ``num_changed`` of its 200 tokens changed."""
    originals = [rng.integers(0, 500, size=200) for _ in range(num_originals)]
    copies = [document.copy() for document in originals]
    for copy in copies:
        copy[rng.choice(200, num_changed, replace=False)] = 500
    return originals + copies


def find(documents, min_jaccard=0.5, shingle_tokens=SHINGLE_TOKENS, advance=lambda count: None):
    shingles = Shingles(documents.__getitem__, shingle_tokens)
    return find_duplicates(shingles, len(documents), min_jaccard, advance)


def by_comparing_all(documents, min_jaccard, shingle_tokens):
    """The same rule with Python sets and every earlier document that stayed."""

    def shingles(document):
        values = document.tolist()
        return {tuple(values[i : i + shingle_tokens]) for i in range(max(1, len(values) - shingle_tokens + 1))}

    sets, original = [shingles(document) for document in documents], []
    for i, here in enumerate(sets):
        stayed = (j for j in range(i) if original[j] < 0)
        alike = (j for j in stayed if len(here & sets[j]) >= min_jaccard * len(here | sets[j]))
        original.append(next(alike, -1))
    return original


@pytest.mark.parametrize("num_changed", [0, 1, 3])
def test_of_planted_copies_the_first_stays_even_where_words_were_changed(num_changed):
    documents = documents_with_copies(np.random.default_rng(num_changed), 40, num_changed)
    assert find(documents).tolist() == [-1] * 40 + list(range(40))


def test_unrelated_documents_and_those_with_a_shared_paragraph_stay():
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 500, size=60)
    documents = [np.concatenate([shared, rng.integers(0, 500, size=140)]) for _ in range(40)]
    documents += [rng.integers(0, 500, size=200) for _ in range(40)]
    assert find(documents).tolist() == [-1] * 80


@pytest.mark.parametrize("min_jaccard", [0.3, 0.5, 0.8, 1.0])
def test_it_is_the_rule_of_comparing_every_two_documents(min_jaccard):
    """Documents of all degrees of likeness; those just at the bound may be missed, and few are."""
    rng = np.random.default_rng(7)
    texts = rng.integers(0, 50, size=(20, 80))
    documents = []
    for _ in range(300):
        document = texts[rng.integers(20)].copy()
        document[rng.random(80) < rng.choice([0.0, 0.01, 0.05, 0.2])] = 50
        documents.append(document)
    found, expected = find(documents, min_jaccard, 5), np.array(by_comparing_all(documents, min_jaccard, 5))
    assert 20 < (expected >= 0).sum() < 280
    assert (found == expected).mean() > 0.97


def test_a_chain_of_small_changes_does_not_grow_together():
    """Each document is a near-duplicate of the next, the first and the last have nothing in common."""
    text = np.arange(400)
    documents = [text[start : start + 200] for start in range(0, 201, 40)]
    assert find(documents).tolist() == [-1, 0, -1, 2, -1, 4]


def test_short_documents_are_compared_as_a_whole():
    documents = [np.array(ids, dtype=np.uint16) for ids in ([1, 2], [2, 1], [1, 2], [], [], [1, 2, 0])]
    assert find(documents).tolist() == [-1, -1, 0, -1, 3, -1]


def test_the_same_documents_give_the_same_and_progress_ends_at_all_of_them():
    documents, told = documents_with_copies(np.random.default_rng(3), 150, 2), []
    np.testing.assert_array_equal(find(documents, advance=told.append), find(documents))
    assert sum(told) == 300
    assert len(find([])) == 0


@pytest.mark.parametrize("min_jaccard", [0.0, 0.1, 0.3, 0.5, 0.75, 0.9, 0.99, 1.0])
def test_bands_fit_the_signature_and_find_what_is_promised(min_jaccard):
    count, width = bands(min_jaccard)
    assert count >= 2
    assert count * width <= NUM_PERMUTATIONS
    if min_jaccard >= 0.1:
        assert 1 - (1 - min_jaccard**width) ** count >= LEAST_FOUND

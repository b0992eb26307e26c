"""The held-out cut: no document on both sides, under random graphs; at least one pair on each side where possible."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_sbp.pairing.heldout import cut, groups_of_copies

NUM_DOCUMENTS = 12
documents = st.integers(0, NUM_DOCUMENTS - 1)
edges = st.lists(st.tuples(documents, documents).filter(lambda pair: pair[0] != pair[1]), max_size=30, unique=True)


def make_cut(pairs, share, copies=(), key=None, num_documents=NUM_DOCUMENTS):
    seed, target = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    first, second = (np.array([pair[k] for pair in copies], dtype=np.int64) for k in (0, 1))
    group = groups_of_copies(num_documents, first, second)
    key = np.arange(num_documents, dtype=np.uint64) if key is None else key
    return cut(seed, target, group, key, share), group


def sides(pairs, found, group):
    held = {int(group[i]) for pair, inside in zip(pairs, found.heldout, strict=True) if inside for i in pair}
    training = {int(group[i]) for pair, inside in zip(pairs, found.training, strict=True) if inside for i in pair}
    return held, training


@settings(max_examples=300, deadline=None)
@given(edges, edges.map(lambda pairs: pairs[:3]), st.floats(0.0, 1.0), st.permutations(range(NUM_DOCUMENTS)))
def test_no_document_and_no_copy_of_it_is_on_both_sides(pairs, copies, share, order):
    found, group = make_cut(pairs, share, copies, np.array(order, dtype=np.uint64))
    held, training = sides(pairs, found, group)
    assert not held & training
    ends = [{int(group[i]) for i in pair} for pair in pairs]
    can_be_cut = any(not a & b for a, b in itertools.combinations(ends, 2))
    if share > 0 and can_be_cut:
        assert held
        assert training
    else:
        assert not held
        assert found.training.all()


def test_groups_are_the_components_of_the_copies():
    group = groups_of_copies(6, np.array([0, 4, 2]), np.array([2, 5, 3])).tolist()
    assert group[0] == group[2] == group[3]
    assert group[4] == group[5]
    assert len({group[0], group[1], group[4]}) == 3


def test_the_share_is_reached_and_not_exceeded_in_one_giant_component():
    rng = np.random.default_rng(0)
    n = 2000
    pairs = [(i, (i + step) % n) for i in range(n) for step in (1, 2, 3)]
    key = rng.permutation(n).astype(np.uint64)
    found, group = make_cut(pairs, 0.1, key=key, num_documents=n)
    held, _ = sides(pairs, found, group)
    assert 0.09 * n < len(held) <= 0.1 * n
    assert found.heldout.sum() > 300
    assert (~(found.heldout | found.training)).sum() < 1200


def test_the_anchor_with_the_smallest_key_is_held_out_with_its_neighbours():
    pairs = [(0, 1), (2, 0), (3, 4), (5, 6), (1, 3)]
    key = np.array([0, *range(11, 22)], dtype=np.uint64)
    found, _ = make_cut(pairs, 0.45, key=key)  # 3 of 7 documents
    assert found.heldout.tolist() == [True, True, False, False, False]
    assert found.training.tolist() == [False, False, True, True, False]


def test_copies_of_a_held_out_document_leave_with_it():
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    key = np.arange(NUM_DOCUMENTS, dtype=np.uint64)
    found, _ = make_cut(pairs, 0.3, copies=[(1, 8), (8, 9)], key=key)
    assert found.training.tolist() == [False, True, True, True]
    crossing, _ = make_cut([*pairs, (9, 10)], 0.3, copies=[(1, 8), (8, 9)], key=key)
    assert crossing.training.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("pairs", [[], [(0, 1)], [(0, 1), (1, 0)], [(0, 1), (0, 2), (3, 0)], [(0, 1), (1, 2), (2, 0)]])
def test_pairs_that_all_share_a_document_cannot_be_cut(pairs):
    found, _ = make_cut(pairs, 0.5)
    assert not found.heldout.any()
    assert found.training.all()


def test_the_smallest_cut_drops_as_few_pairs_as_possible():
    hub = [(0, i) for i in range(1, 8)]
    found, _ = make_cut([*hub, (8, 9), (9, 8)], 0.01)
    assert found.least
    assert found.heldout.tolist() == [False] * 7 + [True, True]
    assert found.training.tolist() == [True] * 7 + [False, False]

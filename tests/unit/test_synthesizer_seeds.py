from collections import Counter

import pytest

from streaming_sbp.synthesizer.seeds import SeedOrder


def test_every_document_is_a_seed_equally_often_in_another_order_each_epoch():
    order = SeedOrder(101, seed=0)
    drawn = [order.document(position) for position in range(1000)]
    counts = Counter(drawn)
    assert set(counts) == set(range(101))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert drawn[:101] != drawn[101:202]


def test_the_order_depends_on_seed_and_position_only():
    one, two = SeedOrder(50, seed=3), SeedOrder(50, seed=3)
    backwards = [two.document(position) for position in reversed(range(170))]
    assert [one.document(position) for position in range(170)] == backwards[::-1]
    assert [SeedOrder(50, seed=4).document(k) for k in range(50)] != backwards[::-1][:50]


def test_excluded_documents_are_never_seeds():
    order = SeedOrder(10, seed=0, excluded={2, 7})
    assert Counter(order.document(k) for k in range(24)) == {i: 3 for i in range(10) if i not in (2, 7)}
    with pytest.raises(ValueError, match="got none of 2"):
        SeedOrder(2, seed=0, excluded=[0, 1])


def test_a_document_has_several_neighbouring_positions_an_epoch():
    once, order = SeedOrder(20, seed=1), SeedOrder(20, seed=1, targets_per_seed=3)
    assert len(order) == 60
    drawn = [order.document(position) for position in range(130)]
    assert drawn[:60] == [once.document(k // 3) for k in range(60)]
    assert drawn[60:120] == [once.document(20 + k // 3) for k in range(60)]

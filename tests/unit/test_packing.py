import itertools
import json
import random
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_sbp import config
from streaming_sbp.training.mixer import REAL, SYNTHETIC, Mixer
from streaming_sbp.training.packing import NO_GROUP, Packer, fullest_subset


def pack(lengths, sequence_tokens, num_open_bins=16, long_documents="split"):
    packer = Packer(config.Packing(num_open_bins=num_open_bins, long_documents=long_documents), sequence_tokens)
    for position, length in enumerate(lengths):
        packer.add("real", position, length)
    return packer


def padding(packer, sequence_tokens):
    rows = list(packer.closed)
    return sum(row.room for row in rows) / (len(rows) * sequence_tokens)


def exponential(rng, size):
    return np.clip(rng.exponential(700, size).astype(int), 8, 10_000)


def lognormal(rng, size, sigma=1.0):
    return np.clip(rng.lognormal(np.log(700) - sigma**2 / 2, sigma, size).astype(int), 8, 20_000)


def uniform(rng, size):
    return rng.integers(1, 1400, size)


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=200),
    sequence_tokens=st.integers(8, 200),
    num_open_bins=st.integers(1, 20),
)
@settings(max_examples=200, deadline=None)
def test_no_token_is_lost_or_repeated_and_only_long_documents_are_cut(lengths, sequence_tokens, num_open_bins):
    packer = pack(lengths, sequence_tokens, num_open_bins)
    packer.flush()
    covered = defaultdict(list)
    for packed in packer.closed:
        assert 0 < sum(piece.length for piece in packed.pieces) <= sequence_tokens
        for piece in packed.pieces:
            covered[piece.position].append(piece)
    for position, length in enumerate(lengths):
        pieces = sorted(covered[position], key=lambda piece: piece.start)
        assert np.array_equal(
            np.concatenate([np.arange(p.start, p.start + p.length) for p in pieces]), np.arange(length)
        )
        assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
        assert len(pieces) == -(-length // sequence_tokens)  # cut only where it cannot fit


@given(lengths=st.lists(st.integers(1, 30), max_size=9), room=st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_the_fullest_subset_is_that_of_a_search_through_all(lengths, room):
    allowed = range(len(lengths))
    every = (c for size in range(len(allowed) + 1) for c in itertools.combinations(allowed, size))
    best = max(total for chosen in every if (total := sum(lengths[i] for i in chosen)) <= room)
    found = fullest_subset(lengths, room)
    assert sum(lengths[i] for i in found) == best
    assert found == sorted(set(found))
    assert set(found) <= set(allowed)


@pytest.mark.parametrize("lengths", [exponential, lognormal, uniform])
def test_padding_at_2048_tokens_and_mean_700_is_at_most_half_a_percent(lengths):
    packer = Packer(config.Packing(), 2048)
    for position, length in enumerate(lengths(np.random.default_rng(0), 20_000)):
        packer.add("real", position, length)
    assert padding(packer, 2048) <= 0.005


@pytest.mark.parametrize("length", [700, 1025, 1100, 2047])
def test_documents_that_fit_badly_pad_what_they_must_and_are_not_cut(length):
    packer = pack([length] * 500, 2048)
    assert padding(packer, 2048) == pytest.approx(1 - 2048 // length * length / 2048)


@given(
    lengths=st.lists(st.one_of(st.integers(1, 300), st.integers(101, 120)), min_size=1, max_size=300),
    num_open_bins=st.integers(1, 6),
)
@settings(max_examples=200, deadline=None)
def test_two_neighbouring_sequences_hold_more_than_one_could_until_nothing_comes(lengths, num_open_bins):
    """So padding is below half, for any lengths."""
    rows = list(pack(lengths, 200, num_open_bins).closed)
    for one, two in itertools.pairwise(rows):
        assert 400 - one.room - two.room > 200


@given(
    lengths=st.lists(st.integers(1, 199), min_size=1, max_size=300),
    num_open_bins=st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_a_document_waits_for_no_more_sequences_than_documents_were_waiting(lengths, num_open_bins):
    packer = Packer(config.Packing(num_open_bins=num_open_bins), 200)
    closed_by = {}
    for position, length in enumerate(lengths):
        closed_by[position] = len(packer.closed) + 1 + sum(1 for _ in waiting(packer))
        packer.add("real", position, length)
    for number, row in enumerate(packer.closed, start=1):
        for piece in row.pieces:
            assert number <= closed_by[piece.position]
    assert sum(piece.length for piece in waiting(packer)) <= num_open_bins * 200


def waiting(packer):
    in_rows = sum(len(row.pieces) for row in packer.closed)
    return itertools.islice(packer.pieces(), in_rows, None)


def test_documents_become_stale_by_about_the_bins_that_are_open():
    packer = Packer(config.Packing(num_open_bins=32), 2048)
    came = []
    for position, length in enumerate(exponential(np.random.default_rng(1), 20_000)):
        came.append(len(packer.closed))
        packer.add("real", position, length)
    waits = [
        number - came[piece.position]
        for number, row in enumerate(packer.closed)
        for piece in row.pieces
        if piece.start == 0
    ]
    assert np.median(waits) <= 32
    assert max(waits) <= 3 * 32


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_a_flush_of_a_few_documents_makes_the_fewest_sequences_or_one_more(lengths):
    packer = pack(lengths, 100, num_open_bins=40)
    packer.flush()
    assert len(packer.closed) <= fewest_sequences(lengths, 100) + 1
    assert list(waiting(packer)) == []


def test_a_flush_of_a_few_documents_is_close_to_the_fewest_sequences_on_average():
    rng = random.Random(0)
    made = fewest = 0
    for _ in range(100):
        lengths = [rng.randint(5, 60) for _ in range(9)]
        packer = pack(lengths, 100, num_open_bins=40)
        packer.flush()
        made, fewest = made + len(packer.closed), fewest + fewest_sequences(lengths, 100)
    assert made <= 1.01 * fewest


def fewest_sequences(lengths, room):
    """By trying every partition: (sequences, tokens in the last one) for every set of documents."""
    best = [(1, 0)] + [(len(lengths) + 1, 0)] * (2 ** len(lengths) - 1)
    for chosen in range(1, 2 ** len(lengths)):
        for i, length in enumerate(lengths):
            if chosen >> i & 1:
                count, used = best[chosen & ~(1 << i)]
                best[chosen] = min(
                    best[chosen], (count, used + length) if used + length <= room else (count + 1, length)
                )
    return best[-1][0]


def test_the_state_of_many_small_documents_is_small_and_quick():
    packer = Packer(config.Packing(), 2048)
    for position in range(20_000):
        packer.add("synthetic", 10**6 + position, 60 + position % 9)
    packer.closed.clear()
    began = time.perf_counter()
    state = packer.state_dict()
    assert time.perf_counter() - began <= 0.010
    assert len(json.dumps(state)) <= 1_000_000 / 4


def test_truncate_keeps_the_beginning_and_counts_the_rest():
    packer = pack([250], 100, long_documents="truncate")
    packer.flush()
    assert [tuple(piece) for row in packer.closed for piece in row.pieces] == [("real", 0, 0, 100, True, NO_GROUP)]
    assert packer.truncated_tokens == 150


def test_state_round_trip_continues_identically():
    rng = random.Random(0)
    lengths = [rng.randint(1, 150) for _ in range(300)]
    one = pack(lengths[:150], 128)
    two = Packer(config.Packing(num_open_bins=16), 128)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for position, length in enumerate(lengths[150:], start=150):
        one.add("real", position, length)
        two.add("real", position, length)
    assert one.state_dict() == two.state_dict()
    assert [row.pieces for row in one.closed] == [row.pieces for row in two.closed]


def test_the_mix_that_comes_out_is_the_one_that_went_in():
    """By age alone, what waits would be of one source for long: 4.4 sequences off instead of 3.6."""
    rng, furthest, both = random.Random(0), 0.0, {REAL: True, SYNTHETIC: True}
    for _ in range(10):
        mixer, packer, trained = Mixer(config.Mix(synthetic_share=0.5)), Packer(config.Packing(), 2048), Counter()
        mixer.start()
        for position in range(1500):
            choice = mixer.choose(both)
            length = min(2048, 1 + int(rng.expovariate(1 / (700 if choice.source == REAL else 340))))
            packer.add(choice.source, position, length)
            mixer.add(choice, length)
            while packer.closed:
                for piece in packer.closed.popleft().pieces:
                    trained[piece.source] += piece.length
                furthest = max(furthest, abs(trained[REAL] - 0.5 * trained.total()))
    assert furthest <= 3.7 * 2048

import json
import random
from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_sbp import config
from streaming_sbp.training.packing import Packer


def pack(lengths, sequence_tokens, num_open_bins=16, long_documents="split"):
    packer = Packer(config.Packing(num_open_bins=num_open_bins, long_documents=long_documents), sequence_tokens)
    for position, length in enumerate(lengths):
        packer.add("real", position, length)
    return packer


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
        assert sum(piece.length for piece in packed.pieces) <= sequence_tokens
        for piece in packed.pieces:
            covered[piece.position].append(piece)
    for position, length in enumerate(lengths):
        pieces = sorted(covered[position], key=lambda piece: piece.start)
        assert np.array_equal(
            np.concatenate([np.arange(p.start, p.start + p.length) for p in pieces]), np.arange(length)
        )
        assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
        assert len(pieces) == -(-length // sequence_tokens)  # cut only where it cannot fit


def test_padding_at_2048_tokens_and_mean_700_is_at_most_half_a_percent():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.exponential(700, size=20_000).astype(int), 8, 10_000)
    packer = pack(lengths, 2048, num_open_bins=64)
    rows = list(packer.closed)
    padding = sum(row.room for row in rows) / (len(rows) * 2048)
    assert padding <= 0.005, padding


def test_truncate_keeps_the_beginning_and_counts_the_rest():
    packer = pack([250], 100, long_documents="truncate")
    packer.flush()
    assert [tuple(piece) for row in packer.closed for piece in row.pieces] == [("real", 0, 0, 100, True)]
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

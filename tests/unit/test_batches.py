import json
import time

import numpy as np
import pytest
import torch

from streaming_sbp import config
from streaming_sbp.training.batches import IGNORED, BatchStream, CannotRepeat, Decisions
from streaming_sbp.training.mixer import REAL, SYNTHETIC, Mixer
from streaming_sbp.training.packing import Packer

SEQUENCE_TOKENS = 64


def snapshot_of(position):
    return "abc"[position // 5 % 3]


class ListSource:
    """Documents in memory: position p is always the same sequence of tokens; ``limit`` of them exist."""

    def __init__(self, seed, limit):
        self._seed, self.limit, self.cursor = seed, limit, 0
        self.rejected = set()

    def has_document(self):
        return self.cursor < self.limit

    def state_dict(self):
        return {"cursor": self.cursor}

    def load_state_dict(self, state):
        self.cursor = state["cursor"]

    def look_again(self):
        return self.has_document()

    def pass_over_rejected(self):
        before = self.cursor
        while self.has_document() and snapshot_of(self.cursor) in self.rejected:
            self.cursor += 1
        return self.cursor > before

    def pass_over_to(self, position):
        self.cursor = position
        return position <= self.limit

    @property
    def epochs(self):
        return 0.0

    def tokens(self, position):
        rng = np.random.default_rng((self._seed, position))
        return rng.integers(4, 1000, size=rng.integers(3, 150))

    def target_weights(self, position):
        return None

    def num_tokens(self, position):
        return len(self.tokens(position))


def stream(synthetic_limit=10**9, share=0.4, policy="real_only", start=True):
    mixer = Mixer(config.Mix(synthetic_share=share, starvation_policy=policy))
    sources = {REAL: ListSource(0, 10**9), SYNTHETIC: ListSource(1, synthetic_limit)}
    packer = Packer(config.Packing(num_open_bins=8), SEQUENCE_TOKENS)
    made = BatchStream(sources, mixer, packer, 4, SEQUENCE_TOKENS, 0)
    if start:
        made.start_schedule()
    return made


def test_five_resumes_in_a_row_give_the_batches_of_an_uninterrupted_stream():
    whole = stream(synthetic_limit=200)
    expected = [whole.next().digest() for _ in range(120)]
    assert len(set(expected)) == 120
    resumed = stream(synthetic_limit=200)
    found = []
    for _ in range(6):
        found += [resumed.next().digest() for _ in range(20)]
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = stream(synthetic_limit=200)
        resumed.load_state_dict(state)
    assert found == expected


def test_every_document_is_in_the_batches_exactly_once_and_whole():
    batches = stream()
    tokens = {REAL: {}, SYNTHETIC: {}}
    for _ in range(100):
        batch = batches.next()
        for row, pieces in enumerate(batch.rows):
            at = 0
            for piece in pieces:
                part = batch.input_ids[row, at : at + piece.length].tolist()
                seen = tokens[piece.source].setdefault(piece.position, {})
                assert piece.start not in seen
                seen[piece.start] = part
                at += piece.length
    waiting = {(piece.source, piece.position) for piece in batches.packer.pieces()}
    for name, documents in tokens.items():
        source = batches.sources[name]
        for position in range(source.cursor):
            if (name, position) in waiting:
                continue
            parts = documents[position]
            whole = [token for start in sorted(parts) for token in parts[start]]
            assert whole == source.tokens(position).tolist()


def test_layout_of_a_batch():
    batch = stream().next()
    for row, pieces in enumerate(batch.rows):
        at = 0
        for piece in pieces:
            span = slice(at, at + piece.length)
            assert batch.position_ids[row, span].tolist() == list(range(piece.length))
            assert batch.labels[row, at] == IGNORED
            assert torch.equal(
                batch.labels[row, at + 1 : at + piece.length], batch.input_ids[row, at + 1 : at + piece.length]
            )
            assert set(batch.source_ids[row, span].tolist()) == {batch.source_names.index(piece.source)}
            at += piece.length
        assert (batch.labels[row, at:] == IGNORED).all()
        assert (batch.source_ids[row, at:] == -1).all()


def test_wait_gives_no_batch_until_documents_come():
    batches = stream(synthetic_limit=3, share=0.9, policy="wait")
    while batches.next() is not None:
        pass
    batches.sources[SYNTHETIC].limit = 10**9
    assert batches.next() is not None


def test_trained_share_follows_the_schedule():
    batches = stream(share=0.3)
    synthetic = total = 0
    for _ in range(400):
        batch = batches.next()
        synthetic += batch.num_tokens(SYNTHETIC)
        total += batch.num_tokens(SYNTHETIC) + batch.num_tokens(REAL)
    assert abs(synthetic / total - 0.3) < 0.01


def test_given_its_decisions_a_stream_makes_the_same_batches_whatever_is_there_when():
    """Synthetic documents come in fits and starts; the repeat has all of them from the first moment."""
    rng = np.random.default_rng(5)
    live = stream(synthetic_limit=0, start=False)
    batches = []
    for number in range(300):
        if number == 40:
            live.start_schedule()
        live.sources[SYNTHETIC].limit += int(rng.integers(0, 4)) if rng.random() < 0.5 else 0
        batches.append(live.next())
    assert live.mixer.starved_documents > 10  # it did fall back
    assert sum(len(batch.decisions.availability) for batch in batches) > 10
    repeat = stream(start=False)
    for number, batch in enumerate(batches):
        again = repeat.next(Decisions.of(json.loads(json.dumps(batch.decisions.state()))))
        assert again.digest() == batch.digest()
        assert again.decisions == batch.decisions
        if number == 150:  # and across a resume
            state = json.loads(json.dumps(repeat.state_dict()))
            repeat = stream(start=False)
            repeat.load_state_dict(state)
    assert repeat.mixer.state_dict() == live.mixer.state_dict()
    oblivious = stream(start=False)
    assert any(oblivious.next().digest() != batch.digest() for batch in batches[:100])


def test_documents_of_rejected_snapshots_are_passed_over_and_the_same_ones_again():
    """Snapshots are rejected, and pinned again, at any time; the repeat has all documents from the first moment."""
    rng = np.random.default_rng(5)
    live = stream(synthetic_limit=0)
    batches, trained_while_rejected = [], []
    for _ in range(300):
        synthetic = live.sources[SYNTHETIC]
        synthetic.limit += int(rng.integers(0, 5)) if rng.random() < 0.7 else 0
        if rng.random() < 0.1:
            synthetic.rejected = set(rng.choice(list("abc"), rng.integers(0, 3), replace=False).tolist())
        before = {piece.position for piece in live.packer.pieces()} | set(range(synthetic.cursor))
        batches.append(live.next())
        taken = {p.position for row in batches[-1].rows for p in row if p.source == SYNTHETIC} - before
        trained_while_rejected += [position for position in taken if snapshot_of(position) in synthetic.rejected]
    assert not trained_while_rejected
    jumps = [jump for batch in batches for jump in batch.decisions.passed_over]
    assert len(jumps) > 20
    assert live.sources[SYNTHETIC].cursor > 300
    repeat = stream(start=False)
    for number, batch in enumerate(batches):
        again = repeat.next(Decisions.of(json.loads(json.dumps(batch.decisions.state()))))
        assert again.digest() == batch.digest()
        assert again.decisions == batch.decisions
        if number % 50 == 0:
            state = json.loads(json.dumps(repeat.state_dict()))
            repeat = stream(start=False)
            repeat.load_state_dict(state)
    first = next(number for number, batch in enumerate(batches) if batch.decisions.passed_over)
    short = stream(synthetic_limit=jumps[0][1] - 1, start=False)
    for batch in batches[:first]:
        short.next(batch.decisions)
    with pytest.raises(CannotRepeat):
        short.next(batches[first].decisions)


def test_what_was_passed_over_while_there_is_no_batch_is_noted_with_the_next():
    batches = stream(synthetic_limit=0, share=0.9, policy="wait")
    synthetic = batches.sources[SYNTHETIC]
    while batches.next() is not None:
        pass
    synthetic.rejected = {"a", "b"}
    for synthetic.limit in (3, 8):
        assert batches.next() is None
    state = json.loads(json.dumps(batches.state_dict()))
    batches = stream(synthetic_limit=10**9, share=0.9, policy="wait")
    batches.load_state_dict(state)
    ((_, position),) = batches.next().decisions.passed_over
    assert position == 8


def test_decisions_that_need_documents_that_are_gone_are_refused():
    batch = stream().next()
    assert batch.num_tokens(SYNTHETIC)
    with pytest.raises(CannotRepeat):
        stream(synthetic_limit=0, start=False).next(batch.decisions)


def test_state_is_small_and_quick():
    batches = stream()
    for _ in range(50):
        batches.next()
    started = time.perf_counter()
    content = json.dumps(batches.state_dict())
    assert len(content) < 1_000_000
    assert time.perf_counter() - started < 0.05  # 10 ms and a busy machine; benchmarks/loaders.py measures it

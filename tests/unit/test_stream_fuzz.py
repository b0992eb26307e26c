"""No bytes make either end raise, grow, or lose count. `benchmarks/fuzz_stream.py` does it over real sockets."""

from __future__ import annotations

import random
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_sbp import config
from streaming_sbp.stream import messages, protocol
from streaming_sbp.stream.ledger import balance
from streaming_sbp.stream.messages import (
    MAX_CONTROL_BYTES,
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    Alive,
    Announcement,
    Closing,
    Document,
    Hello,
    Leaving,
    Progress,
    Refused,
    Unknown,
)
from streaming_sbp.stream.protocol import MAX_JUNK, ReceiverProtocol, SenderProtocol
from tests.unit.test_stream_protocol import VOCABULARY, connected, exchange, header, receiver, send, sender

VERSION = messages.PROTOCOL_VERSION
STREAM = config.Stream(capacity_documents=64)
TO_TRAINER = [
    messages.encode(Alive(3))[0],
    messages.encode(Leaving(2))[0],
    messages.encode(Hello(VERSION, "run", "tokenizer", "generator", "generator-0", "s0", 0, 0))[0],
    messages.encode(Hello(VERSION, "run", "tokenizer", "generator", "generator-1", "s1", 2, 5))[0],
    messages.encode_document(0, header(), np.array([1, 2, 3], "<u2"), np.zeros(3, "u1"))[0],
    messages.encode_document(7, header(40), np.full(40, VOCABULARY - 1, "<u2"), np.zeros(40, "u1"))[0],
    messages.encode_document(9, header(log_likelihood=float("nan")), np.array([1, 2, 3], "<u2"), np.zeros(3, "u1"))[0],
]
TO_GENERATOR = [
    messages.encode(Progress(5, 2, (3,), Announcement("digest", 1, 10, "path")))[0],
    messages.encode(Progress(5, 2, (3,), None, 1, (messages.SeedGrant(2, 8, 12),)))[0],
    messages.encode(Progress(2**50, 2**50, (2**50,)))[0],
    messages.encode(Refused("wrong_run", "got 'a', expected 'b'"))[0],
    messages.encode(Unknown())[0],
    messages.encode(Closing())[0],
]


def mutated(rng: random.Random, frame: bytes) -> bytes:
    data = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case _ if data:
                data[at % len(data)] = rng.randrange(256)
    return bytes(data)


def check(trainer: ReceiverProtocol) -> None:
    ledgers = trainer.ledgers()
    accepted: dict[str, int] = {}
    for ledger in ledgers:
        accepted[ledger.generator] = accepted.get(ledger.generator, 0) + ledger.accepted
        assert ledger.in_flight >= 0
    assert balance(ledgers, {}, accepted, {}).terms()["imbalance"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_mutated_messages_never_raise_at_the_trainer(seed):
    """Tens of thousands over a few peers, now and then a valid one, so that every state is reached."""
    rng = random.Random(seed)
    trainer = receiver(STREAM)
    for step in range(8_000):
        frame = rng.choice(TO_TRAINER)
        frames = [frame if rng.random() < 0.2 else mutated(rng, frame) for _ in range(rng.choice((1, 1, 1, 3)))]
        trainer.receive(rng.choice((b"p", b"q", b"r")), frames, step * 0.01)
        if step % 7 == 0:
            trainer.committed()
            trainer.tick(step * 0.01)
            trainer.outgoing()
        if step % 1000 == 0:
            check(trainer)
    check(trainer)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_messages_never_raise_at_the_generator(seed):
    rng = random.Random(seed)
    generator = sender()
    generator.connect(0.0)
    for step in range(5_000):
        frame = rng.choice(TO_GENERATOR)
        generator.receive([frame if rng.random() < 0.2 else mutated(rng, frame)], step * 0.1)
        if generator.credit and generator.unacknowledged < 100:
            send(generator, step * 0.1)
        generator.tick(step * 0.1)
        generator.outgoing()
        if generator.state == "refused":
            generator = sender(f"s{step}")
            generator.connect(step * 0.1)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KINDS = (Hello, Document, Alive, Leaving, Progress, Refused, Unknown, Closing)
FIELDS = sorted({name for kind in KINDS for name in kind.__struct_fields__})
TAGS = [kind.__name__ for kind in KINDS]
STRUCTURED = st.builds(
    lambda tag, fields: msgspec.msgpack.encode({"type": tag, **fields}),
    st.sampled_from(TAGS) | ANYTHING,
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=8),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200) | STRUCTURED, max_size=4))
def test_any_bytes_and_any_msgpack(frames):
    trainer, generator = connected(receiver(STREAM))
    send(generator)
    trainer.receive(b"p", frames, 0.0)
    trainer.receive(b"stranger", frames, 0.0)
    generator.receive(frames, 0.0)
    exchange(trainer, generator, 1.5)
    generator.tick(10.0)
    check(trainer)


@settings(max_examples=200, deadline=None)
@given(ANYTHING)
def test_any_header_settles_its_document_and_harms_no_other(content):
    trainer, _ = connected(receiver(STREAM))
    raw = msgspec.Raw(msgspec.msgpack.encode(content))
    trainer.receive(b"p", messages.encode(Document(0, raw, b"\1\0\2\0\3\0", b"\0\0\0")), 0.0)
    trainer.receive(b"p", messages.encode_document(1, header(), np.array([1, 2, 3], "<u2"), np.zeros(3, "u1")), 0.0)
    trainer.committed()
    (ledger,) = trainer.ledgers()
    assert (ledger.accepted, ledger.dropped, ledger.in_flight) == (1, {"malformed": 1}, 0)


def test_deep_nesting_is_no_recursion_error():
    trainer, _ = connected()
    for depth in (10_000, 60_000):
        trainer.receive(b"p", [b"\x91" * depth], 0.0)
        raw = msgspec.Raw(b"\x91" * 4000 + b"\x90")
        trainer.receive(b"p", messages.encode(Document(0, raw, b"\1\0", b"\0")), 0.0)
    assert trainer.counts["malformed"] >= 2


# --- limits ---


def test_too_many_frames_and_too_large_control_messages_are_malformed():
    trainer, _ = connected()
    alive = messages.encode(Alive(0))
    trainer.receive(b"p", alive * (MAX_FRAMES + 1), 0.0)
    long = msgspec.msgpack.encode({"type": "Hello", "run_id": "x" * MAX_CONTROL_BYTES})
    trainer.receive(b"p", [long], 0.0)
    assert trainer.counts["malformed"] == 2


def test_a_large_header_is_dropped_and_settled():
    trainer, _ = connected()
    raw = msgspec.Raw(msgspec.msgpack.encode("x" * MAX_HEADER_BYTES))
    trainer.receive(b"p", messages.encode(Document(0, raw, b"\1\0", b"\0")), 0.0)
    trainer.committed()
    assert trainer.ledgers()[0].dropped == {"malformed": 1}


def test_a_little_too_long_is_answered_and_far_too_long_is_never_sent():
    """A frame beyond the limit would close the connection, and the generator would send it again for ever."""
    trainer, generator = connected()
    limit = generator._settings.max_document_tokens
    generator.send(header(limit + 1), np.ones(limit + 1), np.zeros(limit + 1, "u1"), 0.0)
    exchange(trainer, generator, 0.0)
    assert trainer.ledgers()[0].dropped == {"oversized": 1}
    with pytest.raises(ValueError, match=r"max_document_tokens = 4096"):
        generator.send(header(10 * limit), np.ones(10 * limit), np.zeros(10 * limit, "u1"), 0.0)
    assert generator.credit == 12  # and it goes on


def test_every_document_within_the_limit_fits_a_frame():
    tokens = 4096
    raw = msgspec.Raw(msgspec.msgpack.encode("x" * (MAX_HEADER_BYTES - 3)))
    largest = messages.encode(Document(2**53, raw, bytes(4 * tokens), bytes(tokens)))
    assert len(largest[0]) < messages.max_frame_bytes(tokens)


def test_a_generator_that_sends_much_junk_is_refused_and_others_are_not():
    trainer, generator = connected(receiver(STREAM))
    good = sender("s1", "generator-1")
    good.connect(0.0)
    exchange(trainer, good, 0.0, b"good")
    for _ in range(MAX_JUNK + 1):
        trainer.receive(b"p", [b"junk"], 0.0)
        trainer.receive(b"stranger", [b"junk"], 0.0)
    for peer, frames in trainer.outgoing():
        assert peer == b"p"
        generator.receive(frames, 0.0)
    assert "malformed" in generator.refused
    assert trainer.refusals["malformed"] == 1
    send(good)
    exchange(trainer, good, 0.0, b"good")
    assert good.unacknowledged == 0


def test_a_generator_whose_documents_are_all_bad_is_refused_and_its_drops_are_kept():
    trainer, generator = connected(receiver(STREAM))
    while generator.state == "ready":
        for _ in range(generator.credit):
            send(generator, tokens=(VOCABULARY,))
        exchange(trainer, generator, 0.0)
    assert generator.state == "refused"
    assert trainer.ledgers()[0].dropped["out_of_vocabulary"] == MAX_JUNK + 1
    check(trainer)


def test_handshakes_that_never_send_leave_nothing_behind():
    trainer = receiver()
    hello = Hello(VERSION, "run", "tokenizer", "generator", "generator-0", "s0", 0, 0)
    tracemalloc.start()
    for k in range(20_000):
        if k == 1000:
            before, _ = tracemalloc.get_traced_memory()
        other = msgspec.structs.replace(hello, session=f"s{k}", generator=f"g{k}")
        trainer.receive(b"p", messages.encode(other), 0.0)
        trainer.tick(0.0)
        trainer.outgoing()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(trainer.ledgers()) == 1
    assert after - before < 100_000


def test_sessions_that_claim_documents_and_deliver_none_are_bounded(monkeypatch):
    monkeypatch.setattr(protocol, "MAX_SESSIONS", 100)
    trainer, generator = connected(receiver(STREAM))
    send(generator)
    exchange(trainer, generator, 0.0)
    hello = Hello(VERSION, "run", "tokenizer", "generator", "generator-0", "x", 0, 5)
    for k in range(1000):
        trainer.receive(b"q", messages.encode(msgspec.structs.replace(hello, session=f"x{k}")), 0.0)
    assert len(trainer.ledgers()) <= 101
    assert sum(ledger.accepted for ledger in trainer.ledgers()) == 1
    check(trainer)


def test_a_progress_stays_below_its_limit_however_scattered_the_settled_documents_are():
    trainer = receiver(config.Stream(capacity_documents=50_000))
    trainer.receive(b"p", messages.encode(Hello(VERSION, "run", "tokenizer", "generator", "g", "s", 0, 60_000)), 0.0)
    for first in range(1, 60_000, 2):
        frames = messages.encode_document(first, header(1), np.ones(1, "<u2"), np.zeros(1, "u1"))
        trainer.receive(b"p", frames, 0.0)
    trainer.committed()
    trainer.tick(0.0)
    ((_, frames),) = trainer.outgoing()
    assert len(frames[0]) < MAX_CONTROL_BYTES
    generator = SenderProtocol(STREAM, "run", "tokenizer", VOCABULARY, "g", "s")
    generator.connect(0.0)
    generator.receive(frames, 0.0)
    assert generator.state == "ready"

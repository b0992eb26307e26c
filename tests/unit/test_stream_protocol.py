"""Both ends of the protocol under random schedules of loss, repetition, reordering, delay and crashes.

No sockets: the network is a bag of messages, the journal a list. After every step the ledger balances, nothing is in
the journal twice, and nothing was acknowledged that is not on disk.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streaming_sbp import config
from streaming_sbp.stream import messages
from streaming_sbp.stream.journal import Drop
from streaming_sbp.stream.ledger import balance
from streaming_sbp.stream.messages import (
    Alive,
    Announcement,
    DocumentHeader,
    Hello,
    Progress,
    Refused,
    SamplingSettings,
    Unknown,
)
from streaming_sbp.stream.protocol import LOST, MAX_JUNK, ReceiverProtocol, SenderProtocol, Settled, _level
from streaming_sbp.stream.shards import AcceptedDocument, JournalEntry
from streaming_sbp.telemetry.catalogue import MAX_DEPTH

STREAM = config.Stream(
    capacity_documents=12, heartbeat_s=1.0, dead_after_s=10.0, resend_after_s=5.0, max_staleness_tokens=100
)
VOCABULARY = 500
SEEDS_WANTED = 8


def header(num_tokens: int = 3, **changes: object) -> DocumentHeader:
    made = DocumentHeader("seed", "snapshot", 10, SamplingSettings(1.0, 0.9, 0), -1.0, num_tokens, 5)
    return msgspec.structs.replace(made, **changes)


def receiver(stream: config.Stream = STREAM) -> ReceiverProtocol:
    return ReceiverProtocol(stream, "run", "tokenizer", VOCABULARY)


def sender(session: str = "s0", generator: str = "generator-0", **identity: str) -> SenderProtocol:
    who = {"run_id": "run", "tokenizer_digest": "tokenizer"} | identity
    return SenderProtocol(STREAM, who["run_id"], who["tokenizer_digest"], VOCABULARY, generator, session, SEEDS_WANTED)


def connected(trainer: ReceiverProtocol | None = None, now: float = 0.0) -> tuple[ReceiverProtocol, SenderProtocol]:
    trainer, generator = trainer or receiver(), sender()
    generator.connect(now)
    exchange(trainer, generator, now)
    assert generator.state == "ready"
    return trainer, generator


def exchange(trainer: ReceiverProtocol, generator: SenderProtocol, now: float, peer: bytes = b"p") -> None:
    """Deliver everything, until both are silent."""
    for _ in range(10):
        for frames in generator.outgoing():
            trainer.receive(peer, frames, now)
        trainer.committed()
        trainer.tick(now)
        outgoing = trainer.outgoing()
        for to, frames in outgoing:
            if to == peer:
                generator.receive(frames, now)
        if not outgoing:
            return


def send(generator: SenderProtocol, now: float = 0.0, tokens: tuple[int, ...] = (1, 2, 3), **changes: object) -> int:
    made = header(len(tokens), **changes)
    return generator.send(made, np.array(tokens), np.zeros(len(tokens), np.uint8), now)


# --- random schedules ---


@dataclass
class Disk:
    """What survives a crash of the trainer."""

    journal: list[JournalEntry] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    checkpoint: dict = field(default_factory=dict)


@dataclass
class Generator:
    protocol: SenderProtocol
    peer: bytes
    sent: int = 0
    working: list[int] = field(default_factory=list)  # seeds that were taken

    def holds(self) -> set[int]:
        return set(self.protocol.seeds._free) | set(self.working)


class Schedule(RuleBasedStateMachine):
    """One trainer, up to three generators, any of which crash and return; messages in between meet any fate."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.disk = Disk()
        self.random = random.Random(0)
        self.num_sessions = 0
        self.to_trainer: list[tuple[bytes, list[bytes]]] = []
        self.to_generators: list[tuple[bytes, list[bytes]]] = []
        self.generators: dict[str, Generator] = {}
        self.trainer = receiver()
        self.completed: Counter[int] = Counter()  # seeds that were sent or filtered, by any generator ever
        self.excepted: set[int] = set()  # seeds of which nothing is promised: see `stream.leases`

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.random.seed(seed)
        self.start_generator("generator-0")

    # what can happen

    @rule(name=st.sampled_from(["generator-0", "generator-1", "generator-2"]))
    def start_generator(self, name: str) -> None:
        """Start it, or kill the one that runs and start another process."""
        self.num_sessions += 1
        if name in self.generators:
            self._except_what_a_death_hides(name)
        protocol = sender(f"session-{self.num_sessions}", name)
        protocol.connect(self.now)
        self.generators[name] = Generator(protocol, f"peer-{self.num_sessions}".encode())
        self._collect()

    @precondition(lambda self: self.generators)
    @rule(count=st.integers(1, 6), bad=st.sampled_from([None, None, None, "token", "length", "nan"]))
    def generate(self, count: int, bad: str | None) -> None:
        generator = self.random.choice(list(self.generators.values()))
        for _ in range(min(count, generator.protocol.credit)):
            tokens = (1, VOCABULARY if bad == "token" else 2)
            made = header(5 if bad == "length" else 2, log_likelihood=math.nan if bad == "nan" else -1.0)
            generator.working += generator.protocol.seeds.take(1)
            if not generator.working:
                return
            position = generator.working.pop(self.random.randrange(len(generator.working)))
            made = msgspec.structs.replace(made, seed_position=position)
            generator.protocol.send(made, np.array(tokens), np.zeros(2, np.uint8), self.now)
            generator.sent += 1
            self._complete(generator, position)
        self._collect()

    @precondition(lambda self: self.generators)
    @rule(count=st.integers(1, 6), give_up=st.booleans())
    def sample(self, count: int, give_up: bool) -> None:
        """Take seeds, and filter one; or give up what is being sampled."""
        generator = self.random.choice(list(self.generators.values()))
        generator.working += generator.protocol.seeds.take(count)
        if give_up:
            generator.protocol.seeds.put_back(generator.working)
            generator.working = []
        elif generator.working:
            self._complete(generator, generator.working.pop(self.random.randrange(len(generator.working))))

    @precondition(lambda self: len(self.generators) > 1)
    @rule()
    def leave(self) -> None:
        """A clean end, whose last word may still be lost."""
        name = self.random.choice(list(self.generators))
        self.generators[name].protocol.leave(self.now)
        self._collect()
        self._except_what_a_death_hides(name)
        del self.generators[name]

    @rule(count=st.integers(1, 12))
    def deliver_to_trainer(self, count: int) -> None:
        for _ in range(min(count, len(self.to_trainer))):
            index = self.random.randrange(min(len(self.to_trainer), 3))  # mostly in order
            self.trainer.receive(*self.to_trainer.pop(index), self.now)
        self.trainer.tick(self.now)
        self._collect()

    @rule(count=st.integers(1, 6))
    def deliver_to_generators(self, count: int) -> None:
        for _ in range(min(count, len(self.to_generators))):
            peer, frames = self.to_generators.pop(self.random.randrange(min(len(self.to_generators), 3)))
            for generator in self.generators.values():
                if generator.peer == peer:
                    generator.protocol.receive(frames, self.now)
        self._collect()

    @rule(rounds=st.integers(1, 3), written=st.booleans())
    def go_well(self, rounds: int, written: bool) -> None:
        """Most of the time nothing is lost; without this, few schedules would get beyond the handshake."""
        for _ in range(rounds):
            self.generate(3, None)
            self.deliver_to_trainer(12)
            if written:
                self.write_journal()
            self.deliver_to_generators(12)

    @rule(count=st.integers(1, 5))
    def lose(self, count: int) -> None:
        for queue in (self.to_trainer, self.to_generators):
            for _ in range(min(count, len(queue))):
                queue.pop(self.random.randrange(len(queue)))

    @rule()
    def repeat(self) -> None:
        for queue in (self.to_trainer, self.to_generators):
            if queue:
                queue.insert(self.random.randrange(len(queue) + 1), self.random.choice(queue))

    @rule()
    def write_journal(self) -> None:
        for document in self.trainer.pending:
            self.disk.journal.append(entry_of(document))
        self.disk.drops += self.trainer.drops
        self.trainer.committed()
        self._collect()

    @rule()
    def crash_after_writing_before_acknowledging(self) -> None:
        self.disk.journal += [entry_of(document) for document in self.trainer.pending]
        self.disk.drops += self.trainer.drops
        self.crash_trainer()

    @rule()
    def crash_trainer(self) -> None:
        saved, before = self.disk.checkpoint, self.trainer
        self.trainer = receiver()
        leased = [range(*pair) for s in saved.get("sessions", ()) for pair in s["seeds"]]
        leased += [range(*pair) for pair in saved.get("seeds", {}).get("returned", ())]
        self.excepted.update(*leased, range(saved.get("seeds", {}).get("next", 0), before.seeds.next))
        self.trainer.restore(self.disk.checkpoint, self.disk.journal, self.disk.drops, len(self.disk.journal))

    @rule()
    def checkpoint(self) -> None:
        self.disk.checkpoint = msgspec.json.decode(msgspec.json.encode(self.trainer.state_dict()))

    @rule(amount=st.integers(0, 8))
    def consume(self, amount: int) -> None:
        self.trainer.num_buffered = max(0, amount)

    @rule(tokens=st.integers(0, 250))
    def train(self, tokens: int) -> None:
        """The trainer is so far; the snapshot of every document is behind by all but 10 tokens of it."""
        self.trainer.trained_tokens = tokens

    @rule(seconds=st.sampled_from([0.3, 1.0, 3.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.trainer.tick(self.now)
        for generator in self.generators.values():
            generator.protocol.tick(self.now)
            if generator.protocol.is_trainer_dead(self.now):
                self.num_sessions += 1
                generator.peer = f"peer-{self.num_sessions}".encode()  # a new connection
                generator.protocol.connect(self.now)
        self._collect()

    # what must hold

    @invariant()
    def nothing_is_in_the_journal_twice(self) -> None:
        counts = Counter((e.generator, e.session, e.seq) for e in self.disk.journal)
        counts.update((d.generator, d.session, d.seq) for d in self.disk.drops)
        assert not [key for key, count in counts.items() if count > 1]

    @invariant()
    def the_ledger_balances(self) -> None:
        accepted = Counter(entry.generator for entry in self.disk.journal)
        known = sum(ledger.accepted for ledger in self.trainer.ledgers())
        assert known == len(self.disk.journal)
        result = balance(self.trainer.ledgers(), {}, accepted, {})
        assert result.terms()["imbalance"] == 0
        for ledger in self.trainer.ledgers():
            assert ledger.in_flight >= 0
            assert ledger.alive or ledger.in_flight == 0

    @invariant()
    def what_is_acknowledged_is_on_disk(self) -> None:
        durable = {(e.generator, e.session, e.seq) for e in self.disk.journal}
        durable |= {(d.generator, d.session, d.seq) for d in self.disk.drops}
        for name, generator in self.generators.items():
            session = generator.protocol._identity[-1]
            for seq in range(generator.sent):
                assert seq in generator.protocol._unsettled or (name, session, seq) in durable

    @invariant()
    def documents_on_their_way_are_bounded(self) -> None:
        for generator in self.generators.values():
            assert generator.protocol.unacknowledged <= STREAM.capacity_documents

    @invariant()
    def every_seed_is_completed_once_or_with_somebody(self) -> None:
        """But for those excepted. So, with each document once an epoch, counts of documents differ by 1 at most."""
        for name, generator in self.generators.items():
            session = self.trainer._sessions.get((name, generator.protocol._identity[-1]))
            if session is None or session.peer is None:
                self.excepted |= generator.holds()  # others get them while it works on
        waiting = Counter(self.trainer.seeds.returned)
        for session in self.trainer._sessions.values():
            waiting.update(session.lease.positions())
            assert len(session.lease.positions()) == len(session.lease) <= 2 * SEEDS_WANTED
        for position in set(range(self.trainer.seeds.next)) - self.excepted:
            assert waiting[position] <= 1
            assert self.completed[position] <= 1
            assert self.completed[position] or waiting[position]
        assert max(self.completed, default=-1) < max(self.trainer.seeds.next, max(self.excepted, default=-1) + 1)

    def teardown(self) -> None:
        """When the world turns kind, everything that living generators sent arrives, and is settled."""
        self.to_trainer, self.to_generators = [], []
        for _ in range(40):
            self.trainer.num_buffered = 0
            self.time_passes(1.0)
            self.deliver_to_trainer(1000)
            self.write_journal()
            self.deliver_to_generators(1000)
        for generator in self.generators.values():
            assert len(generator.holds()) >= SEEDS_WANTED // 2
            assert generator.protocol.unacknowledged == 0
            assert generator.protocol.state == "ready"
            assert generator.protocol.credit > 0
        self.the_ledger_balances()
        sent = {(name, g.protocol._identity[-1]): g.sent for name, g in self.generators.items()}
        for ledger in self.trainer.ledgers():
            if (ledger.generator, ledger.session) in sent:
                assert ledger.sent == sent[ledger.generator, ledger.session]
                assert ledger.accepted + sum(ledger.dropped.values()) == ledger.sent
                assert LOST not in ledger.dropped

    def _complete(self, generator: Generator, position: int) -> None:
        generator.protocol.seeds.done(position)
        self.completed[position] += 1

    def _except_what_a_death_hides(self, name: str) -> None:
        """What it completed, and the trainer has not heard: it is given to others."""
        protocol = self.generators[name].protocol
        session = self.trainer._sessions.get((name, protocol._identity[-1]))
        known = self.trainer.seeds.returned | (session.lease.positions() if session else set())
        self.excepted |= {position for position in known if self.completed[position]}

    def _collect(self) -> None:
        self.to_generators += self.trainer.outgoing()
        for generator in self.generators.values():
            self.to_trainer += [(generator.peer, frames) for frames in generator.protocol.outgoing()]


def entry_of(document: AcceptedDocument) -> JournalEntry:
    return JournalEntry(document.generator, document.session, document.seq, document.header, 0.0, 0)


TestSchedules = Schedule.TestCase
TestSchedules.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- single rules ---


def test_a_document_is_acknowledged_only_after_the_commit():
    trainer, generator = connected()
    send(generator)
    for frames in generator.outgoing():
        trainer.receive(b"p", frames, 0.0)
    trainer.tick(0.0)
    for _, frames in trainer.outgoing():
        generator.receive(frames, 0.0)
    assert generator.unacknowledged == 1
    assert trainer.ledgers()[0].in_flight == 1
    exchange(trainer, generator, 0.0)
    assert generator.unacknowledged == 0
    assert trainer.ledgers()[0].accepted == 1


def test_credit_is_the_capacity_less_what_waits_and_is_shared():
    trainer = receiver()
    generators = [sender(f"s{k}", f"generator-{k}") for k in range(3)]
    for k, generator in enumerate(generators):
        generator.connect(0.0)
        for frames in generator.outgoing():
            trainer.receive(b"%d" % k, frames, 0.0)
    trainer.num_buffered = 3
    trainer.tick(0.0)
    for peer, frames in trainer.outgoing():
        generators[int(peer)].receive(frames, 0.0)
    assert [g.credit for g in generators] == [3, 3, 3]
    for _ in range(3):
        send(generators[0])
    with pytest.raises(ValueError, match="no credit"):
        send(generators[0])


def test_a_generator_that_sends_nothing_does_not_starve_another():
    trainer, idle = connected()
    assert idle.credit == 12
    other = sender("s1", "generator-1")
    other.connect(0.0)
    for _ in range(30):
        exchange(trainer, other, 0.0, b"q")
        assert other.credit > 0
        send(other)
    assert trainer.ledgers()[1].accepted >= 29
    trainer.num_buffered = 12
    exchange(trainer, other, 0.0, b"q")
    while other.credit:
        send(other)
    exchange(trainer, other, 0.0, b"q")
    assert other.credit == 0


def test_a_silent_peer_is_dead_its_credit_goes_to_others_and_it_may_return():
    trainer, generator = connected()
    assert generator.credit == 12
    for _ in range(12):
        send(generator)
    generator.outgoing()  # lost on the way, but for the heartbeat
    trainer.receive(b"p", messages.encode(Alive(12)), 0.0)
    other = sender("s1", "generator-1")
    other.connect(11.0)
    exchange(trainer, other, 11.0, b"q")
    assert trainer.num_peers == 1
    assert trainer.counts["dead_peers"] == 1
    assert trainer.ledgers()[0].dropped == {LOST: 12}
    assert trainer.ledgers()[0].in_flight == 0
    assert other.credit == 12
    generator.tick(12.0)  # it was only stopped
    exchange(trainer, generator, 12.0)
    assert generator.unacknowledged == 0
    assert trainer.ledgers()[0].accepted == 12
    assert trainer.ledgers()[0].dropped == {}


@pytest.mark.parametrize(
    ("tokens", "changes", "reason"),
    [
        ((1, VOCABULARY), {}, "out_of_vocabulary"),
        (tuple([1] * 5000), {}, "oversized"),
        ((1, 2), {"num_tokens": 3}, "malformed"),
        ((1, 2), {"log_likelihood": math.inf}, "malformed"),
        ((1, 2), {"seed_id": "x" * 5000}, "malformed"),
        ((1, 2), {"depth": 2}, "malformed"),  # made from nothing that it names
        ((1, 2), {"seed_seq": 0}, "malformed"),  # made from a synthetic document, and not deeper than it
        ((1, 2), {"depth": 2, "seed_seq": 0}, "malformed"),  # made from itself
        ((1, 2), {"depth": 0}, "malformed"),
        ((1, 2), {"depth": MAX_DEPTH + 1, "seed_seq": 0}, "malformed"),
        ((), {}, "malformed"),
    ],
)
def test_bad_documents_are_dropped_with_the_reason_and_settled(tokens, changes, reason):
    trainer, generator = connected()
    made = header(**({"num_tokens": len(tokens)} | changes))
    generator.send(made, np.array(tokens, int), np.zeros(len(tokens), np.uint8), 0.0)
    exchange(trainer, generator, 0.0)
    assert generator.unacknowledged == 0
    ledger = trainer.ledgers()[0]
    assert (ledger.sent, ledger.accepted, ledger.dropped) == (1, 0, {reason: 1})


def test_a_lost_introduction_is_made_again_so_that_seeds_are_granted():
    """Else it would be ready, and pass over every grant: they answer the introduction before."""
    trainer, generator = receiver(), sender()
    generator.connect(0.0)
    (first,) = generator.outgoing()
    generator.connect(0.1)
    generator.outgoing()  # the second one is lost
    trainer.receive(b"p", first, 0.1)
    trainer.tick(0.1)
    for _, frames in trainer.outgoing():
        generator.receive(frames, 0.1)
    assert generator.state == "ready"
    for now in (1.2, 2.3, 3.4):
        generator.tick(now)
        exchange(trainer, generator, now)
    assert len(generator.seeds) == SEEDS_WANTED


def test_a_document_made_from_a_synthetic_one_is_accepted_with_its_line():
    trainer, generator = connected()
    first = header()
    second = header(depth=2, seed_seq=0)
    for made in (first, second):
        generator.send(made, np.array([1, 2, 3]), np.zeros(3, np.uint8), 0.0)
    assert not generator.is_settled(0)
    for frames in generator.outgoing():
        trainer.receive(b"p", frames, 0.0)
    assert [document.header for document in trainer.pending] == [first, second]
    exchange(trainer, generator, 0.0)
    assert generator.is_settled(0)
    assert generator.is_settled(1)
    assert not generator.is_settled(2)  # it was never sent


def test_a_header_without_a_second_round_has_the_bytes_it_had_before_there_was_one():
    made = header(seed_position=7)
    fields = {
        "seed_id": "seed",
        "snapshot": "snapshot",
        "parent_tokens": 10,
        "sampling": {"temperature": 1.0, "top_p": 0.9, "top_k": 0},
        "log_likelihood": -1.0,
        "num_tokens": 3,
        "num_prompt_tokens": 5,
        "seed_position": 7,
    }
    assert msgspec.msgpack.encode(made) == msgspec.msgpack.encode(fields)
    assert messages.decode_header(msgspec.Raw(msgspec.msgpack.encode(fields))) == made


def test_documents_of_old_snapshots_are_dropped_as_stale_and_their_generator_is_not_at_fault():
    trainer, generator = connected()
    trainer.trained_tokens = 110
    send(generator)
    exchange(trainer, generator, 0.0)
    assert trainer.ledgers()[0].dropped == {}
    trainer.trained_tokens = 111
    for _ in range(MAX_JUNK + 1):
        send(generator)
        exchange(trainer, generator, 0.0)
    assert trainer.ledgers()[0].dropped == {"stale": MAX_JUNK + 1}
    assert generator.state == "ready"
    assert generator.unacknowledged == 0
    restarted = receiver(config.Stream())
    assert restarted._settings.max_staleness_tokens == 0
    restarted.trained_tokens = 10**12
    _, generator = connected(restarted)
    send(generator)
    exchange(restarted, generator, 0.0)
    assert restarted.ledgers()[0].accepted == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_id": "another"}, "wrong_run"),
        ({"tokenizer_digest": "another"}, "wrong_tokenizer"),
        ({"role": "trainer"}, "wrong_role"),
        ({"protocol_version": 99}, "protocol_version"),
        ({"next_seq": 2**40}, "malformed"),
        ({"first_unsettled": 5, "next_seq": 3}, "malformed"),
    ],
)
def test_handshakes_are_refused_with_the_reason(changes, reason):
    trainer = receiver()
    hello = Hello(messages.PROTOCOL_VERSION, "run", "tokenizer", "generator", "generator-0", "s", 0, 0)
    trainer.receive(b"p", messages.encode(msgspec.structs.replace(hello, **changes)), 0.0)
    (_, frames), *_ = trainer.outgoing()
    answer = messages.decode_from_trainer(frames)
    assert isinstance(answer, Refused)
    assert answer.reason == reason
    assert trainer.refusals == {reason: 1}
    assert trainer.num_peers == 0


def test_a_refused_generator_says_why():
    trainer, generator = receiver(), sender(run_id="another")
    generator.connect(0.0)
    exchange(trainer, generator, 0.0)
    assert generator.state == "refused"
    assert "wrong_run" in generator.refused
    assert generator.credit == 0


def test_too_many_peers():
    trainer = receiver(STREAM.model_copy(update={"max_peers": 1}))
    connected(trainer)
    second = sender("s1", "generator-1")
    second.connect(0.0)
    exchange(trainer, second, 0.0, b"q")
    assert "too_many_peers" in second.refused


def test_documents_beyond_the_limit_are_not_taken():
    trainer, _ = connected()
    frames = messages.encode_document(100, header(), np.zeros(3, "<u2"), np.zeros(3, "u1"))
    trainer.receive(b"p", frames, 0.0)
    assert not trainer.pending
    assert trainer.counts["without_credit"] == 1
    assert trainer.ledgers()[0].sent == 0


def test_what_the_trainer_before_had_granted_is_taken_once_the_generator_speaks_of_it():
    trainer, generator = connected()
    for _ in range(12):
        send(generator)
    exchange(trainer, generator, 0.0)
    old_word = messages.encode(messages.Progress(limit=40, settled_below=12))
    generator.receive(old_word, 0.0)  # delayed, of a trainer before this one
    while generator.credit:
        send(generator)
    exchange(trainer, generator, 0.0)
    unsettled = generator.unacknowledged
    assert unsettled > 0
    assert trainer.counts["without_credit"] == unsettled
    for now in (STREAM.heartbeat_s, STREAM.resend_after_s):  # a heartbeat, then one repetition
        generator.tick(now)
        exchange(trainer, generator, now)
    assert generator.unacknowledged == 0


def test_seeds_are_used_equally_often_by_generators_that_come_and_go():
    """A clean life: 40 generator processes, each takes some, completes some out of order, and leaves."""
    trainer, rng, completed = receiver(), random.Random(1), Counter()
    for session in range(40):
        peer, now = b"%d" % session, float(session)
        generator = sender(f"s{session}", f"generator-{session % 3}")
        generator.connect(now)
        for _ in range(3):
            exchange(trainer, generator, now, peer)
            taken = generator.seeds.take(5)
            for position in rng.sample(taken, min(len(taken), rng.randrange(6))):
                generator.seeds.done(position)
                completed[position] += 1
            now += STREAM.heartbeat_s
            generator.tick(now)
        generator.leave(now)
        for frames in generator.outgoing():
            trainer.receive(peer, frames, now)
    assert set(completed.values()) == {1}
    assert set(completed) | trainer.seeds.returned == set(range(trainer.seeds.next))
    assert len(trainer.seeds.returned) <= SEEDS_WANTED
    documents = Counter(position % 17 for position in range(trainer.seeds.next) if completed[position])
    assert max(documents.values()) - min(documents.values()) <= 1 + len(trainer.seeds.returned)


def test_a_report_of_seeds_that_nobody_could_hold_is_ignored():
    trainer, generator = connected()
    before = (trainer.seeds.next, trainer._sessions["generator-0", "s0"].lease.positions())
    for held in [((0, 2**50),), ((2**50, 2**50 + 1),), ((5, 3),)]:
        trainer.receive(b"p", messages.encode(Alive(0, messages.SeedReport(99, 1, 8, held))), 0.0)
    assert (trainer.seeds.next, trainer._sessions["generator-0", "s0"].lease.positions()) == before
    generator.receive(messages.encode(Progress(1, 0, introduced=1, grants=(messages.SeedGrant(50, 0, 2**50),))), 0.0)
    assert len(generator.seeds) == SEEDS_WANTED


def test_grants_of_a_trainer_that_is_no_more_are_not_taken():
    trainer, generator = connected()
    late = messages.encode(Progress(40, 0, introduced=1, grants=(messages.SeedGrant(2, 8, 12),)))
    generator.disconnected()
    generator.connect(1.0)
    generator.receive(late, 1.0)
    exchange(trainer, generator, 1.0)
    assert generator.seeds.take(99) == list(range(SEEDS_WANTED))


def test_seeds_that_nobody_claims_after_a_restart_are_granted_again_once_the_living_have_spoken():
    before, generator = connected()
    state = msgspec.json.decode(msgspec.json.encode(before.state_dict()))
    after, other = receiver(), sender("s1", "generator-1")
    after.restore(state, [], [], 0)
    other.connect(0.0)
    exchange(after, other, 0.0, b"q")
    assert len(other.seeds) == 0  # it does not know yet who is alive
    generator.connect(1.0)
    exchange(after, generator, 1.0)
    for now in (3.0, 6.0, 9.0, 12.0):
        generator.tick(now)
        exchange(after, generator, now)
        other.tick(now + 1.5)
        exchange(after, other, now + 1.5, b"q")  # apart: what is said to one while the other is served is lost
    assert sorted(generator.seeds.take(99) + other.seeds.take(99)) == list(range(2 * SEEDS_WANTED))


def test_an_unknown_peer_is_asked_to_introduce_itself():
    trainer = receiver()
    trainer.receive(b"p", messages.encode(Alive(3)), 0.0)
    assert messages.decode_from_trainer(trainer.outgoing()[0][1]) == Unknown()
    assert trainer.ledgers() == []


def test_a_new_snapshot_reaches_every_generator_even_if_the_first_word_is_lost():
    trainer, generator = connected()
    trainer.announce(Announcement("digest", 1, 1000, "path"))
    trainer.tick(0.0)
    trainer.outgoing()  # lost
    trainer.tick(2.0)
    for _, frames in trainer.outgoing():
        generator.receive(frames, 2.0)
    assert generator.announced == Announcement("digest", 1, 1000, "path")


def test_no_credit_while_the_disk_is_full():
    trainer = receiver()
    trainer.paused = True
    _, generator = connected(trainer)
    assert generator.credit == 0
    trainer.paused = False
    exchange(trainer, generator, 1.5)
    assert generator.credit == 12


def test_goodbye_counts_what_was_never_acknowledged_as_lost():
    trainer, generator = connected()
    send(generator)
    generator.outgoing()
    generator.leave(0.0)
    for frames in generator.outgoing():
        trainer.receive(b"p", frames, 0.0)
    assert trainer.num_peers == 0
    assert trainer.ledgers()[0].dropped == {LOST: 1}


def test_unacknowledged_documents_are_sent_again_after_a_while():
    trainer, generator = connected()
    send(generator)
    generator.outgoing()
    generator.tick(3.0)
    assert generator.num_resent == 0
    generator.tick(5.0)
    assert generator.num_resent == 1
    exchange(trainer, generator, 5.0)
    assert trainer.ledgers()[0].accepted == 1


def test_documents_whose_record_is_destroyed_are_dropped_and_the_ledger_balances():
    before, generator = connected()
    for _ in range(8):
        send(generator)
    for frames in generator.outgoing():
        before.receive(b"p", frames, 0.0)
    journal = [entry_of(document) for document in before.pending]
    exchange(before, generator, 0.0)
    assert generator.unacknowledged == 0
    after = receiver()
    after.restore({}, journal[:5], [], journal_length=8)  # the last shard is cut off
    assert balance(after.ledgers(), {}, {"generator-0": 5, "unknown": 3}, {}).terms()["imbalance"] == 0
    generator.connect(1.0)
    exchange(after, generator, 1.0)
    send(generator, 1.0)
    exchange(after, generator, 1.0)
    ledger = balance(after.ledgers(), {"generator-0": 6}, {}, {"damaged": {"unknown": 3}})
    assert [account["imbalance"] for account in ledger.by_generator().values()] == [0, 0]
    assert ledger.terms()["in_flight"] == 0
    assert ledger.dropped_by_reason() == {"damaged": 6}  # known to both, and counted twice
    session = next(s for s in after.state_dict()["sessions"] if s["generator"] == "generator-0")
    assert (session["settled_below"], session["settled_also"]) == (9, [])


@pytest.mark.parametrize("seed", range(20))
def test_settled_is_a_set(seed):
    rng = random.Random(seed)
    settled, reference = Settled(), set()
    for seq in rng.sample(range(60), 40):
        settled.add(seq)
        reference.add(seq)
        assert len(settled) == len(reference)
        assert {s for s in range(70) if s in settled} == reference
        assert settled.end == max(reference) + 1
    assert all(seq > settled.below for seq in settled.also)


def test_level_fills_from_the_lowest():
    assert _level([0, 0, 0], 9) == 3
    assert _level([0, 5, 9], 4) == 4
    assert _level([0, 5, 9], 10) == 8
    assert _level([2], 3) == 5


def test_random_bytes_are_never_an_exception():
    rng = random.Random(0)
    trainer, generator = connected()
    valid = [
        messages.encode(Alive(3)),
        messages.encode_document(0, header(), np.zeros(3, "<u2"), np.zeros(3, "u1")),
        messages.encode(Hello(messages.PROTOCOL_VERSION, "run", "tokenizer", "generator", "generator-0", "s0", 0, 0)),
        messages.encode(Progress(5, 2, (3,))),
        messages.encode(Alive(3, messages.SeedReport(4, 1, 8, ((2, 5), (7, 8))))),
        messages.encode(Progress(5, 2, (3,), None, 1, (messages.SeedGrant(2, 8, 12),))),
    ]
    for _ in range(20_000):
        frames = [bytearray(frame) for frame in rng.choice(valid)]
        for _ in range(rng.randint(1, 4)):
            frame = rng.choice(frames)
            if frame and rng.random() < 0.8:
                frame[rng.randrange(len(frame))] = rng.randrange(256)
            else:
                del frame[rng.randrange(len(frame) + 1) :]
        if rng.random() < 0.05:
            frames.append(bytearray(b"x"))
        trainer.receive(rng.choice([b"p", b"q"]), [bytes(f) for f in frames], 0.0)
        generator.receive([bytes(f) for f in frames], 0.0)
        trainer.committed()
        trainer.tick(0.0)
        trainer.outgoing()
    for ledger in trainer.ledgers():
        assert ledger.in_flight >= 0

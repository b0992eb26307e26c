"""Receiver and sender over real sockets, with a real journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from streaming_sbp import config
from streaming_sbp.config import Config, ConfigError
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import Announcement, StreamRefused
from streaming_sbp.stream.protocol import LOST
from streaming_sbp.stream.receiver import Receiver
from streaming_sbp.stream.sender import Sender
from streaming_sbp.telemetry.metrics import Metrics
from tests.unit.test_stream_protocol import header

VOCABULARY = 500


def settings(journal: dict[str, object] | None = None, **stream: object) -> Config:
    tree = {"capacity_documents": 16, "heartbeat_s": 0.1, "dead_after_s": 0.6, "resend_after_s": 1.0} | stream
    return config.build({"stream": tree, "journal": {"group_documents": 4, "group_latency_s": 0.05} | (journal or {})})


class Trainer:
    """A receiver that may die and come back at another port."""

    def __init__(self, folder: Path, **changes: object):
        self.settings, self._folder = settings(**changes), folder
        self.metrics = Metrics("trainer")
        self.receiver: Receiver | None = None
        self.start()

    def start(self) -> None:
        self.journal = Journal(self._folder, writable=True)
        self.receiver = Receiver(self.settings, "run", "tokenizer", VOCABULARY, self.journal, self.metrics)
        self.receiver.start()

    def stop(self) -> None:
        assert self.receiver
        self.receiver.stop(5.0)
        self.receiver = None

    def find(self) -> str | None:
        return self.receiver.endpoint if self.receiver else None

    def sender(self, name: str = "generator-0", run_id: str = "run") -> Sender:
        return Sender(self.settings.stream, self.find, run_id, "tokenizer", VOCABULARY, name)


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    made = Trainer(tmp_path)
    yield made
    if made.receiver:
        made.stop()


def poll_until(happened: Callable[[], bool], *senders: Sender, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end
        for sender in senders:
            sender.poll(0.01)


def send(sender: Sender, value: int = 1) -> None:
    sender.send(header(3), np.array([value, 2, 3]), np.array([0, 1, 2], np.uint8))


def test_documents_arrive_in_the_journal_and_are_acknowledged(trainer):
    sender = trainer.sender()
    poll_until(lambda: sender.credit > 0, sender)
    for value in range(10):
        send(sender, value)
    poll_until(lambda: sender.unacknowledged == 0, sender)
    assert [int(trainer.journal.tokens(k)[0]) for k in range(10)] == list(range(10))
    ledgers, length = trainer.receiver.sessions()
    assert (ledgers[0].sent, ledgers[0].accepted, length) == (10, 10, 10)
    sender.close(1.0)
    poll_until(lambda: trainer.metrics.value("sbp_stream_peers") == 0)
    assert trainer.metrics.value("sbp_stream_received_documents_total") == 10


def test_credit_ends_when_nobody_consumes_and_returns_when_somebody_does(trainer):
    sender = trainer.sender()
    sent = 0

    def blocked() -> bool:
        nonlocal sent
        if sender.credit:
            send(sender)
            sent += 1
        return sent >= 16 and not sender.credit and not sender.unacknowledged

    poll_until(blocked, sender)
    assert sent == len(trainer.journal) == 16
    trainer.receiver.set_consumed(16)
    poll_until(lambda: sender.credit > 0, sender)


def test_a_journal_at_its_cap_takes_no_more_until_it_is_pruned(tmp_path):
    """About 32 documents of 2.5 KiB of tar fit; the cap is passed by the 16 that may have been granted."""
    trainer = Trainer(tmp_path, journal={"max_bytes": 80_000})
    sender = trainer.sender()
    sent = 0

    def at_the_cap() -> bool:
        nonlocal sent
        while sender.credit:
            send(sender)
            sent += 1
        trainer.receiver.set_consumed(len(trainer.journal))
        return trainer.metrics.value("sbp_journal_paused") == 1 and not sender.unacknowledged

    poll_until(at_the_cap, sender)
    for _ in range(20):  # what had been granted just before
        at_the_cap()
        sender.poll(0.02)
    assert 80_000 <= trainer.journal.num_bytes <= 80_000 + 16 * 2560 + 10240
    assert sent == len(trainer.journal)
    before = sent
    trainer.receiver.prune(sent - 4)
    poll_until(lambda: not at_the_cap() and sent > before, sender)
    assert trainer.journal.first > 0
    poll_until(lambda: len(trainer.journal) == sent, sender)
    trainer.stop()
    trainer.receiver = None


def test_a_trainer_that_restarts_elsewhere_is_found_and_nothing_is_lost_or_doubled(trainer):
    sender = trainer.sender()
    poll_until(lambda: sender.credit > 0, sender)
    for value in range(5):
        send(sender, value)
    poll_until(lambda: sender.unacknowledged == 0, sender)
    trainer.stop()
    poll_until(lambda: sender.credit == 0, sender)
    trainer.start()
    poll_until(lambda: sender.credit > 0, sender)
    for value in range(5, 8):
        send(sender, value)
    poll_until(lambda: sender.unacknowledged == 0, sender)
    assert [int(trainer.journal.tokens(k)[0]) for k in range(8)] == list(range(8))
    assert trainer.receiver.sessions()[0][0].accepted == 8


def test_a_dead_generator_is_noticed_and_another_takes_its_credit(trainer):
    silent, other = trainer.sender("generator-0"), trainer.sender("generator-1")
    poll_until(lambda: silent.credit == 16, silent)
    send(silent)
    poll_until(lambda: silent.unacknowledged == 0, silent)
    poll_until(lambda: other.credit >= 14, other)
    assert trainer.metrics.value("sbp_stream_dead_peers_total") == 1
    assert not trainer.receiver.sessions()[0][0].alive


def test_announcements_reach_the_generator(trainer):
    sender = trainer.sender()
    poll_until(lambda: sender.credit > 0, sender)
    trainer.receiver.announce(Announcement("digest", 1, 5, "path"))
    poll_until(lambda: sender.announced is not None, sender)
    assert sender.announced.digest == "digest"


def test_a_generator_of_another_run_is_refused(trainer):
    sender = trainer.sender(run_id="another")
    with pytest.raises(StreamRefused, match="wrong_run"):
        poll_until(lambda: False, sender)
    assert trainer.metrics.value("sbp_stream_refusals_total", reason="wrong_run") == 1


def test_a_full_disk_stops_credit_and_loses_nothing(trainer, monkeypatch):
    sender = trainer.sender()
    poll_until(lambda: sender.credit > 0, sender)

    def full(documents: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.journal, "write", full)
    while sender.credit:
        send(sender)
    poll_until(lambda: trainer.metrics.value("sbp_journal_errors_total") > 0, sender)
    assert sender.unacknowledged > 0
    assert len(trainer.journal) == 0
    monkeypatch.undo()
    poll_until(lambda: sender.unacknowledged == 0, sender)
    assert len(trainer.journal) == trainer.receiver.sessions()[0][0].sent


def test_strangers_do_no_harm(trainer):
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(trainer.receiver.endpoint)
    for frames in ([b""], [b"\xff" * 100], [b"a", b"b", b"c"], [b"x"] * 50):
        socket.send_multipart(frames)
    sender = trainer.sender()
    poll_until(lambda: sender.credit > 0, sender)
    send(sender)
    poll_until(lambda: sender.unacknowledged == 0, sender)
    trainer.receiver.check()
    socket.close(linger=0)


def test_what_a_leaving_generator_did_not_get_acknowledged_is_lost_and_counted(trainer, monkeypatch):
    sender = trainer.sender()
    poll_until(lambda: sender.credit > 0, sender)
    send(sender)
    poll_until(lambda: sender.unacknowledged == 0, sender)
    monkeypatch.setattr(trainer.journal, "write", lambda documents: (_ for _ in ()).throw(OSError(28, "full")))
    send(sender)
    sender.close(0.3)
    poll_until(lambda: LOST in trainer.receiver.sessions()[0][0].dropped)
    assert trainer.receiver.sessions()[0][0].dropped == {LOST: 1}


def test_a_port_in_use_and_a_public_address_are_clear_errors(trainer, tmp_path):
    port = int(trainer.receiver.endpoint.rpartition(":")[2])
    with pytest.raises(ConfigError, match=r"choose another stream\.port"):
        Trainer(tmp_path / "other", port=port)
    with pytest.raises(ConfigError, match="loopback"):
        Trainer(tmp_path / "other", host="0.0.0.0")

"""Keys over real sockets: who gets in, who does not, and what each of them is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.stream import keys
from streaming_sbp.stream.messages import StreamRefused
from streaming_sbp.stream.sender import Sender
from tests.unit.test_stream_protocol import header
from tests.unit.test_stream_sockets import VOCABULARY, Trainer, poll_until, send, settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.make(tmp_path / "keys", ["generator-0", "generator-1"])
    return tmp_path / "keys"


@pytest.fixture
def trainer(tmp_path: Path, folder: Path) -> Iterator[Trainer]:
    made = Trainer(tmp_path / "journal", keys=str(folder))
    yield made
    if made.receiver:
        made.stop()


def sender(trainer: Trainer, folder: str | Path, name: str = "generator-0") -> Sender:
    stream = settings(keys=str(folder)).stream
    return Sender(stream, trainer.find, "run", "tokenizer", VOCABULARY, name)


def copied(folder: Path, to: Path, name: str) -> Path:
    """What a generator's machine gets."""
    to.mkdir()
    for path in (folder / "trainer.key", folder / f"{name}.key_secret"):
        (to / path.name).write_bytes(path.read_bytes())
        (to / path.name).chmod(0o600)
    return to


def failures(trainer: Trainer, reason: str) -> float:
    return trainer.metrics.value("sbp_stream_handshake_failures_total", reason=reason)


def test_a_listed_generator_streams_with_only_its_own_key_and_the_public_one(trainer, folder, tmp_path):
    generator = sender(trainer, copied(folder, tmp_path / "there", "generator-1"), "generator-1")
    poll_until(lambda: generator.credit > 0, generator)
    for value in range(8):
        send(generator, value)
    poll_until(lambda: generator.unacknowledged == 0, generator)
    assert [int(trainer.journal.tokens(k)[0]) for k in range(8)] == list(range(8))
    generator.close(1.0)


def test_a_trainer_with_keys_restarts(trainer, folder):
    generator = sender(trainer, folder)
    poll_until(lambda: generator.credit > 0, generator)
    trainer.stop()
    trainer.start()
    poll_until(lambda: generator.credit > 0, generator)
    send(generator)
    poll_until(lambda: generator.unacknowledged == 0, generator)
    generator.close(1.0)


def test_an_unlisted_generator_is_refused_and_told_what_to_copy(trainer, folder, tmp_path):
    other = tmp_path / "others"
    keys.make(other, ["generator-0"])
    (other / "trainer.key").write_bytes((folder / "trainer.key").read_bytes())
    generator = sender(trainer, other)
    with pytest.raises(StreamRefused, match=r"does not list the key of generator-0: copy generator-0\.key into"):
        poll_until(lambda: False, generator)
    poll_until(lambda: failures(trainer, "auth") >= 1)
    generator.close(0.0)


def test_a_generator_without_keys_is_refused_or_warned(trainer, caplog):
    generator = sender(trainer, "")
    try:  # which end sees it first is chance
        poll_until(lambda: "it has stream.keys and there are none here" in caplog.text, generator)
    except StreamRefused as refused:
        assert "only one end has keys" in str(refused)  # noqa: PT017
    generator.close(0.0)
    assert trainer.receiver.sessions()[0] == []
    assert generator.credit == 0


def test_the_key_of_another_trainer_is_counted_there_and_warned_of_here(trainer, folder, tmp_path, caplog):
    other = copied(folder, tmp_path / "other", "generator-0")
    keys.make(tmp_path / "another-run", ["generator-0"])
    (other / "trainer.key").write_bytes((tmp_path / "another-run" / "trainer.key").read_bytes())
    generator = sender(trainer, other)
    poll_until(lambda: failures(trainer, "protocol") >= 1, generator)
    poll_until(lambda: "trainer.key here is not its own" in caplog.text, generator)
    assert generator.credit == 0
    generator.close(0.0)


def test_keys_at_a_trainer_without_are_told_to_the_generator(tmp_path, folder, caplog):
    plain = Trainer(tmp_path / "journal")
    generator = sender(plain, folder)
    try:  # which end sees it first is chance
        poll_until(lambda: "has no stream.keys" in caplog.text, generator)
    except StreamRefused as refused:
        assert "only one end has keys" in str(refused)  # noqa: PT017
    poll_until(lambda: failures(plain, "protocol") + failures(plain, "no_detail") >= 1)
    generator.close(0.0)
    plain.stop()


def test_unlisted_generators_do_not_disturb_a_listed_one(trainer, folder, tmp_path):
    keys.make(tmp_path / "others", ["generator-1"])
    (tmp_path / "others" / "trainer.key").write_bytes((folder / "trainer.key").read_bytes())
    good, bad = sender(trainer, folder), sender(trainer, tmp_path / "others", "generator-1")
    refused = 0
    for value in range(20):
        poll_until(lambda: good.credit > 0, good)
        send(good, value)
        trainer.receiver.set_consumed(value)
        try:
            bad.poll(0.01)
        except StreamRefused:
            refused += 1
    poll_until(lambda: good.unacknowledged == 0, good)
    assert refused
    assert [int(trainer.journal.tokens(k)[0]) for k in range(20)] == list(range(20))
    for each in (good, bad):
        each.close(0.0)


def test_a_secret_that_others_can_read_is_refused_at_both_ends(folder, tmp_path):
    (folder / "trainer.key_secret").chmod(0o640)
    with pytest.raises(ConfigError, match=r"chmod 600 .*trainer\.key_secret"):
        Trainer(tmp_path / "journal", keys=str(folder))
    (folder / "generator-0.key_secret").chmod(0o604)
    with pytest.raises(ConfigError, match=r"chmod 600 .*generator-0\.key_secret"):
        keys.Credentials(str(folder), "generator-0")


def test_missing_keys_name_the_command_that_makes_them(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"sbp keys .*keys --generator generator-7"):
        keys.Credentials(str(folder), "generator-7")
    with pytest.raises(ConfigError, match=r"sbp keys .*nowhere --generator generator-0"):
        Trainer(tmp_path / "journal", keys=str(tmp_path / "nowhere"))
    for path in (folder / "generators").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"lists no generator.*sbp keys"):
        Trainer(tmp_path / "journal", keys=str(folder))


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "trainer.example.org", "*"])
def test_without_keys_nothing_leaves_loopback(tmp_path, host):
    with pytest.raises(ConfigError, match=r"sbp keys keys --generator generator-0`"):
        Trainer(tmp_path / "journal", host=host)
    generator = Sender(settings().stream, lambda: f"tcp://{host}:5555", "run", "tokenizer", VOCABULARY, "generator-3")
    with pytest.raises(ConfigError, match=r"sbp keys keys --generator generator-3`"):
        generator.poll(0.0)


def test_with_keys_the_trainer_listens_on_every_address(tmp_path, folder):
    trainer = Trainer(tmp_path / "journal", keys=str(folder), host="0.0.0.0")
    generator = sender(trainer, folder)
    poll_until(lambda: generator.credit > 0, generator)
    generator.close(1.0)
    trainer.stop()


def test_make_never_overwrites_and_protects_what_it_writes(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.key*")}
    assert len(before) == 6
    assert keys.make(folder, ["generator-1", "generator-2"]) == ["generator-2"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key_secret")} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "generators")} == {0o700}
    assert {path.name for path in folder.iterdir() if not path.name.endswith(("key", "key_secret"))} == {"generators"}
    (folder / "generator-0.key_secret").unlink()
    with pytest.raises(ConfigError, match="without the other half"):
        keys.make(folder, ["generator-0"])


@pytest.mark.parametrize("name", ["trainer", "../other", "", "a/b", ".hidden"])
def test_names_that_are_no_generator(tmp_path, name):
    with pytest.raises(ConfigError, match="--generator"):
        keys.make(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


def test_the_command_says_what_to_copy_where(tmp_path):
    arguments = ["keys", str(tmp_path / "k"), "--generator", "generator-0", "--generator", "generator-1"]
    first, again = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert first.exit_code == again.exit_code == 0
    assert f"generator-1: {tmp_path}/k/trainer.key {tmp_path}/k/generator-1.key_secret" in first.output
    assert "trainer: made" in first.output
    assert "trainer: exists, left as it is" in again.output


def test_a_trainer_that_dies_is_noticed_at_once(tmp_path):
    """Not after stream.dead_after_s: the connection is closed, and ZeroMQ says so."""
    trainer = Trainer(tmp_path)
    stream = config.Stream(dead_after_s=60.0, heartbeat_s=0.1)
    generator = Sender(stream, trainer.find, "run", "tokenizer", VOCABULARY, "generator-0")
    poll_until(lambda: generator.credit > 0, generator)
    generator.send(header(3), np.array([1, 2, 3]), np.zeros(3, np.uint8))
    trainer.stop()
    time.sleep(0.2)
    trainer.start()
    poll_until(lambda: generator.credit > 0 and generator.unacknowledged == 0, generator)
    assert len(trainer.journal) == 1
    generator.close(1.0)
    trainer.stop()

"""What goes wrong in weeks, with real processes: stopped ones, full disks, damaged files, clocks that jump."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming_sbp import config as configuration
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.documents import document_id, split_of
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream import protocol
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import DocumentHeader, SamplingSettings, StreamRefused
from streaming_sbp.stream.sender import Sender
from streaming_sbp.synthesizer.snapshots import SnapshotStore
from streaming_sbp.telemetry.status import collect, is_alive
from streaming_sbp.training.model import build_model
from tests.checks import runs
from tests.checks.chaos import trained_synthetic

pytestmark = pytest.mark.processes

CLOCK = """
import os, time
_real = time.time
def _jumped():
    try:
        return _real() + float(open(os.environ["SBP_TEST_CLOCK"]).read() or 0)
    except OSError:
        return _real()
time.time = _jumped
"""


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder for runs, on the session's corpus and data set; processes that a failed test left are ended."""
    for part in ("corpus.jsonl", "data"):
        (tmp_path / part).symlink_to(tiny_folder / part)
    yield tmp_path
    runs.kill_all(tmp_path)


@pytest.fixture
def small_journal(folder: Path) -> Iterator[RunDir]:
    """A run whose journal lies on a file system of half a MiB: about 140 documents."""
    run = runs.make_run(folder, "run")
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(run.journal)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    yield run
    subprocess.run(["umount", "--lazy", str(run.journal)], check=True)


def metrics(run: RunDir, role: str) -> dict[str, float]:
    port = run.read_roles()[role]["metrics_port"]
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def metric(run: RunDir, role: str, name: str) -> float:
    return metrics(run, role)[name]


def goes_on(run: RunDir, process: subprocess.Popen[bytes], what: str, tokens: int = 2000) -> None:
    before = trained_synthetic(run)
    runs.wait_for(f"synthetic documents are trained {what}", lambda: trained_synthetic(run) > before + tokens, process)


def pause(run: RunDir, role: str, seconds: float) -> None:
    pid = run.read_roles()[role]["pid"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def flip_a_bit(path: Path) -> None:
    """In the middle, in place: a file cut to nothing for a moment would kill who has it mapped."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def restarted(run: RunDir, role: str, before: int) -> Callable[[], Any]:
    def happened() -> bool:
        found = run.read_roles().get(role, {})
        return found.get("pid") != before and found.get("state") in ("running", "waiting") and is_alive(found)

    return happened


def test_a_run_lives_through_full_disks_stopped_processes_damage_and_jumping_clocks(
    small_journal: RunDir, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clock = small_journal, folder / "clock"
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(CLOCK)
    monkeypatch.setitem(runs.ENVIRONMENT, "PYTHONPATH", f"{folder / 'site'}{os.pathsep}{os.getcwd()}")
    monkeypatch.setitem(runs.ENVIRONMENT, "SBP_TEST_CLOCK", str(clock))
    process = runs.spawn(folder / "run.log", "-m", "sbp_services", "run", *runs.settings(folder, "run"))
    runs.wait_for("synthetic documents are trained", lambda: trained_synthetic(run) > 500, process)

    # the disk of the journal is full: real text is trained on, the generator waits, and when there is room all goes on
    runs.wait_for("the journal is full", lambda: metric(run, "trainer", "sbp_journal_errors_total") > 0, process)
    steps = runs.num_steps(run)
    runs.wait_for("real text is trained on", lambda: runs.num_steps(run) > steps + 100, process)
    assert collect(run)["ledger"]["imbalance"] == 0
    subprocess.run(["mount", "-o", "remount,size=64m", str(run.journal)], check=True)
    goes_on(run, process, "after the disk was full")

    # a generator is stopped for longer than stream.dead_after_s, then the trainer
    dead = metric(run, "trainer", "sbp_stream_dead_peers_total")
    pause(run, "generator-0", 30.0)
    goes_on(run, process, "after the generator was stopped")
    assert metric(run, "trainer", "sbp_stream_dead_peers_total") > dead
    pause(run, "trainer", 30.0)
    goes_on(run, process, "after the trainer was stopped")

    # the clock jumps a day ahead, then two days back: nobody is taken for dead
    dead = metric(run, "trainer", "sbp_stream_dead_peers_total")
    for seconds in ("86400", "-86400"):
        clock.write_text(seconds)
        goes_on(run, process, f"after the clock jumped by {seconds} s")
    clock.write_text("0")
    assert metric(run, "trainer", "sbp_stream_dead_peers_total") == dead

    # the newest snapshot is damaged when a generator starts: it is not served, the next one is
    tuner = run.read_roles()["tuner"]["pid"]
    os.kill(tuner, signal.SIGSTOP)  # so that it stays the newest
    current = json.loads((run.snapshots / "current.json").read_text())
    flip_a_bit(next((run.snapshots / current["digest"]).glob("*.safetensors")))
    generator = run.read_roles()["generator-0"]["pid"]
    os.kill(generator, signal.SIGKILL)

    def snapshot_events() -> list[str]:
        return [r["event"] for r in run.read_records("generator-0") if r["event"] in ("swap", "swap_failed")]

    runs.wait_for("the damaged snapshot is refused", lambda: "swap_failed" in snapshot_events(), process)
    os.kill(tuner, signal.SIGCONT)
    runs.wait_for("the next snapshot is served", lambda: snapshot_events()[-1] == "swap", process)
    goes_on(run, process, "after a snapshot was damaged")

    # while the trainer is dead, the newest shard of the journal is cut off and the newest checkpoint loses a bit
    trainer = run.read_roles()["trainer"]["pid"]
    os.kill(trainer, signal.SIGKILL)
    newest = max(run.journal.glob("*.tar"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    flip_a_bit(max(run.checkpoints.glob("step-*")) / "model" / "model.safetensors")
    runs.wait_for("the trainer is back", restarted(run, "trainer", trainer), process)
    goes_on(run, process, "after damage to journal and checkpoint")

    runs.end(process, signal.SIGTERM)
    assert process.returncode == 0, (folder / "run.log").read_text()[-2000:]
    ledger = collect(run)["ledger"]
    assert ledger["imbalance"] == 0
    assert ledger["in_flight"] == 0
    assert ledger["dropped_by_reason"].get("damaged", 0) > 0
    exits = [r["exit_code"] for r in run.read_records("supervisor") if r["event"] == "role_died"]
    assert set(exits) == {-signal.SIGKILL}  # nobody died of all this but those that were killed


def test_a_bad_snapshot_forced_through_is_rolled_back_and_its_documents_are_dropped(folder: Path) -> None:
    extra = [
        'gate.on_drift="rollback"',
        "gate.trial_documents=48",
        "mix.synthetic_share=0.015",  # less than the generator writes, also of the bad ones: documents wait
        "stream.capacity_documents=96",
    ]
    run = runs.make_run(folder, "run", *extra)
    process = runs.spawn(folder / "run.log", "-m", "sbp_services", "run", "--config", str(run.path / "config.toml"))
    runs.wait_for("synthetic documents are trained", lambda: trained_synthetic(run) > 1000, process)
    tuner = run.read_roles()["tuner"]["pid"]
    os.kill(tuner, signal.SIGSTOP)  # it would publish a better one
    store = SnapshotStore(run.snapshots)
    good = store.current()
    assert good is not None
    bad = publish_random_weights(run, store, good.measures, folder / "random")

    def drifts() -> list[dict[str, Any]]:
        return [r for r in run.read_records("trainer") if r["event"] == "drift" and r["snapshot"] == bad]

    runs.wait_for("the bad snapshot is rolled back", drifts, process)
    assert metric(run, "trainer", "sbp_snapshot_rollbacks_total") == 1
    assert (drifts()[0]["action"], store.current(), store.pointer().bad) == ("rolled_back", good, (bad,))

    # the trainer dies while its documents are dropped
    def dropped() -> int:
        return (collect(run)["ledger"]["dropped_by_reason"] or {}).get("rolled_back", 0)

    runs.wait_for("documents of the bad snapshot are dropped", dropped, process)
    trainer = run.read_roles()["trainer"]["pid"]
    os.kill(trainer, signal.SIGKILL)
    runs.wait_for("the trainer is back", restarted(run, "trainer", trainer), process)
    runs.wait_for("the generator serves the good one", lambda: served(run) == good.digest, process)
    written = len(Journal(run.journal))

    def all_are_settled() -> bool:
        return len(Journal(run.journal)) - collect(run)["ledger"]["buffered"] > written

    runs.wait_for("documents written after that are trained", all_are_settled, process)
    os.kill(tuner, signal.SIGCONT)
    runs.end(process, signal.SIGTERM)
    assert process.returncode == 0, (folder / "run.log").read_text()[-2000:]
    ledger, snapshots = collect(run)["ledger"], collect(run)["snapshots"]
    assert (ledger["imbalance"], ledger["in_flight"]) == (0, 0)
    of_the_bad = sum(entry.header.snapshot == bad for entry in Journal(run.journal).entries())
    assert ledger["dropped_by_reason"] == {"rolled_back": of_the_bad - snapshots["trained_from"].get(bad, 0)}
    assert not [r for r in run.read_records("trainer") if r["event"] == "history_changed"]
    replayed = sbp("train", "--replay", str(run.path), timeout_s=200)
    assert json.loads(replayed.stdout.splitlines()[-1])["replay_equal"], replayed.stdout


def publish_random_weights(run: RunDir, store: SnapshotStore, measures: dict[str, float], folder: Path) -> str:
    """As if the gate had measured something else."""
    settings = run.config()
    tokenizer = Dataset.open(settings.data.dataset).tokenizer()
    build_model(settings.model, tokenizer, seed=9).save_pretrained(folder)
    tokenizer.save(folder)
    facts = {"parent_checkpoint": "step-00000001", "parent_tokens": 1, "num_pairs": 1}
    return store.publish(folder, measures=measures, **facts).digest


def served(run: RunDir) -> str:
    return [r["digest"] for r in run.read_records("generator-0") if r["event"] == "swap"][-1]


def test_a_journal_with_a_cap_is_pruned_and_the_run_goes_on_after_a_kill(folder: Path) -> None:
    """200 kB are about 60 documents, and a checkpoint prunes what was trained; the run receives several times that."""
    cap = 200_000
    small = [
        f"journal.max_bytes={cap}",
        "journal.prune=true",
        "checkpoint.keep_last=2",
        "checkpoint.every_tokens=10000",  # the more often, the sooner there is room again
    ]
    run = runs.make_run(folder, "run", *small, 'mix.confidence="off"')  # "grounded" keeps 4,096 documents
    process = runs.spawn(folder / "run.log", "-m", "sbp_services", "run", "--config", str(run.path / "config.toml"))
    runs.wait_for("the trainer runs", lambda: runs.num_steps(run) > 0, process)

    def received() -> int:
        return collect(run)["ledger"]["sent"] or 0

    runs.wait_for("several times the cap has come", lambda: received() > 300, process)
    assert Journal(run.journal).first > 0
    trainer = run.read_roles()["trainer"]["pid"]
    os.kill(trainer, signal.SIGKILL)
    runs.wait_for("the trainer is back", restarted(run, "trainer", trainer), process)
    before = received()
    runs.wait_for("more comes", lambda: received() > before + 100, process)
    assert metric(run, "trainer", "sbp_journal_bytes") < cap + 256 * 4096  # what had been granted is still taken
    assert metric(run, "trainer", "sbp_history_changes_total") == 0
    runs.end(process, signal.SIGTERM)
    assert process.returncode == 0, (folder / "run.log").read_text()[-2000:]
    ledger = collect(run)["ledger"]
    assert (ledger["imbalance"], ledger["in_flight"]) == (0, 0)
    assert "damaged" not in ledger["dropped_by_reason"]
    replayed = sbp("train", "--replay", str(run.path))
    assert replayed.returncode == 2
    assert "were pruned" in replayed.stderr


def sbp(*arguments: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sbp_services", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=runs.ENVIRONMENT,
    )


def last_words(run: RunDir) -> str:
    return run.read_roles()["trainer"]["detail"]


def test_a_second_trainer_is_refused_and_names_the_first(folder: Path) -> None:
    run = runs.make_run(folder, "run")
    process = runs.train(run)
    runs.wait_for("the first trains", lambda: runs.num_steps(run) > 3, process)
    second = sbp("train", "--run", str(run.path))
    assert second.returncode == 2
    assert f"another trainer (process {process.pid})" in second.stderr
    assert run.read_roles()["trainer"]["pid"] == process.pid
    before = runs.num_steps(run)
    runs.wait_for("the first trains on", lambda: runs.num_steps(run) > before, process)
    runs.end(process, signal.SIGTERM)
    assert process.returncode == 0


def test_strangers_on_the_stream_are_refused_with_the_reason_and_the_trainer_trains_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = runs.make_run(folder, "run"), runs.make_run(folder, "other")
    process = runs.train(run)
    runs.wait_for("it trains", lambda: runs.num_steps(run) > 3, process)
    endpoint = run.read_roles()["trainer"]["facts"]["stream_endpoint"]

    stranger = sbp("generate", "--run", str(other.path), "--connect", endpoint)  # of another run
    assert stranger.returncode == 1  # 2 would end a supervised run
    assert "wrong_run" in stranger.stderr
    assert "Traceback" not in stranger.stderr

    manifest = Dataset.open(run.config().data.dataset).manifest
    identity = {"run_id": run.run_id, "tokenizer_digest": manifest.tokenizer_digest}

    def refused(**changes: str) -> str:
        with pytest.raises(StreamRefused) as caught:
            say_hello(run, endpoint, **identity | changes)
        return str(caught.value)

    assert "wrong_tokenizer" in refused(tokenizer_digest="another")
    monkeypatch.setattr(protocol, "PROTOCOL_VERSION", 10**6)
    assert "protocol_version" in refused()
    monkeypatch.undo()

    sender = say_hello(run, endpoint, **identity)
    header = DocumentHeader("seed", "snapshot", 0, SamplingSettings(1.0, 0.9, 0), -1.0, 3, 5)
    for tokens in ([1, 2, 3], [1, 2, 65535]):  # an id that no vocabulary here has
        sender.send(header, np.array(tokens), np.zeros(3, np.uint8))
    sender.close(10.0)
    assert not sender.unacknowledged

    before = runs.num_steps(run)
    runs.wait_for("it trains on", lambda: runs.num_steps(run) > before, process)
    reasons = metrics(run, "trainer")
    for reason in ("wrong_run", "wrong_tokenizer", "protocol_version"):
        assert reasons[f'sbp_stream_refusals_total{{reason="{reason}"}}'] >= 1
    runs.end(process, signal.SIGTERM)
    assert process.returncode == 0
    ledger = collect(run)["ledger"]
    assert (ledger["sent"], ledger["imbalance"], ledger["dropped_by_reason"]) == (2, 0, {"out_of_vocabulary": 1})


def say_hello(run: RunDir, endpoint: str, run_id: str, tokenizer_digest: str) -> Sender:
    """A sender that has credit. Raises StreamRefused."""
    vocab_size = run.config().data.vocab_size
    sender = Sender(run.config().stream, lambda: endpoint, run_id, tokenizer_digest, vocab_size, "stranger")
    end = time.monotonic() + 30
    while sender.credit < 2:
        assert time.monotonic() < end
        sender.poll(0.05)
    return sender


def test_a_real_shard_that_was_damaged_ends_the_run_and_names_the_document(folder: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "damaged"
    run = runs.make_run(folder, "run", f'data.dataset="{dataset}"')
    shutil.copytree(configuration.load(overrides=runs.settings(folder, "run")).data.dataset, dataset)
    shard = dataset / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"\x93NUMPY") + 130] ^= 1  # a token of the first document, behind the 128 bytes of NumPy's header
    shard.write_bytes(data)
    ended = sbp("train", "--run", str(run.path))
    assert ended.returncode == 2
    assert "is damaged; restore the shard" in last_words(run)


def test_a_live_run_is_neither_started_twice_nor_moved_aside(folder: Path) -> None:
    overrides = runs.settings(folder, "run")
    process = runs.spawn(folder / "run.log", "-m", "sbp_services", "run", *overrides)
    runs.wait_for("the run directory", lambda: (folder / "run" / "run.json").exists(), process)
    run = RunDir(folder / "run")
    runs.wait_for("it trains", lambda: runs.num_steps(run) > 3, process)
    pids = {name: found["pid"] for name, found in run.read_roles().items()}
    for options in ([], ["--fresh"]):
        second = sbp("run", *overrides, *options)
        assert second.returncode == 2
        assert f"(process {process.pid}) works on this run" in second.stderr
    config = (folder / "run" / "config.toml").read_bytes()
    changed = sbp("run", *overrides, "generator.count=2", "--accept-changes")
    assert changed.returncode == 2
    assert f"(process {process.pid}) works on this run" in changed.stderr
    assert (folder / "run" / "config.toml").read_bytes() == config
    before = runs.num_steps(run)
    runs.wait_for("it trains on", lambda: runs.num_steps(run) > before, process)
    found = run.read_roles()
    assert {name: found[name]["pid"] for name in pids} == pids
    runs.end(process, signal.SIGTERM)
    assert process.returncode == 0


def test_a_run_goes_on_when_nobody_reads_what_it_prints(folder: Path) -> None:
    command = [sys.executable, "-m", "sbp_services", "run", *runs.settings(folder, "run", "generator.count=0")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=runs.ENVIRONMENT)
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    run = RunDir(folder / "run")
    time.sleep(12.0)  # it prints a line every ten seconds
    before = runs.num_steps(run)
    runs.wait_for("it trains on", lambda: runs.num_steps(run) > before + 10, process)
    runs.end(process, signal.SIGTERM)
    assert process.returncode == 0


def test_a_port_in_use_is_a_clear_error(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = runs.make_run(folder, "run", f"stream.port={port}")
        refused = sbp("train", "--run", str(run.path))
        assert refused.returncode == 2
        assert "choose another stream.port" in refused.stderr
        refused = sbp("train", "--run", str(run.path), "--metrics-port", str(port))
        assert refused.returncode == 2
        assert "choose another --metrics-port" in refused.stderr


def test_a_loss_that_is_not_a_number_ends_the_run_and_names_the_documents(folder: Path) -> None:
    overrides = runs.settings(folder, "run", "training.learning_rate=1e38", "training.warmup_tokens=0")
    ended = sbp("run", *overrides)
    assert ended.returncode == 2
    assert "Documents of the batch (source:position): real:" in last_words(RunDir(folder / "run"))
    assert "expected finite numbers" in ended.stdout + ended.stderr


def test_a_run_directory_that_cannot_be_written_is_a_clear_error(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    refused = sbp("run", *runs.settings(folder, "file/run"))
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr


def test_without_pairs_real_text_is_trained_to_the_end_and_the_reason_is_said(tmp_path: Path) -> None:
    """Documents that have no word in common: an empty pair table."""
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]
    write_texts(tmp_path, [" ".join(words[k * 12 : k * 12 + 12]) for k in range(50)])
    train_real_text_only(tmp_path, "pairing.threshold=0.9")


def test_a_corpus_of_one_document(tmp_path: Path) -> None:
    texts = (f"A lonely document, number {k}, about nothing else than itself." for k in range(100))
    write_texts(tmp_path, [next(text for text in texts if split_of(document_id(text), 0.1) == "train")])
    status = train_real_text_only(tmp_path)
    assert status["loss"]["heldout_real"] is None


def write_texts(folder: Path, texts: list[str]) -> None:
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def train_real_text_only(folder: Path, *extra: str) -> dict[str, Any]:
    """A run until its tuner has said why there are no pairs, stopped, and then to its end; returns its status."""
    arguments = runs.settings(folder, "run", "data.vocab_size=270", *extra)
    process = runs.spawn(folder / "run.log", "-m", "sbp_services", "run", *arguments)
    runs.wait_for("the run directory", lambda: (folder / "run" / "run.json").exists(), process)
    run = RunDir(folder / "run")

    def tuner_says() -> str:
        return run.read_roles().get("tuner", {}).get("detail") or ""

    runs.wait_for("the tuner gives the reason", lambda: "expected both" in tuner_says(), process)
    before = runs.num_steps(run)
    runs.wait_for("it trains", lambda: runs.num_steps(run) > before + 100, process)
    runs.end(process, signal.SIGTERM)
    assert process.returncode == 0, (folder / "run.log").read_text()[-2000:]
    more = collect(run)["run"]["tokens"] + 20_000
    ended = sbp("run", *arguments, f"training.total_tokens={more}", "--accept-changes", timeout_s=400)
    assert ended.returncode == 0, ended.stderr
    status = collect(run)
    assert status["run"]["state"] == "done"
    assert status["mix"]["trained_tokens"]["synthetic"] == 0
    return status

"""Whole runs, as a user starts them: real processes, sockets, signals and files."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streaming_sbp.rundir import RunDir
from tests.checks.runs import SETTINGS, kill_all
from tests.conftest import tiny_overrides

pytestmark = pytest.mark.processes

# enough of everything to happen within a minute on two cores
RUN = [
    *SETTINGS,
    "training.total_tokens=100000000",  # more than any machine trains before the test ends the run
    "checkpoint.every_tokens=60000",
    "evaluation.every_tokens=60000",
    "mix.synthetic_share=0.2",
    "stream.capacity_documents=64",
    "stream.dead_after_s=3",
]


def start(folder: Path, *extra: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sbp_services", "run", *tiny_overrides(folder), *RUN, *extra]
    log = open(folder / "run.log", "ab")  # noqa: SIM115 - the process keeps it
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def status(folder: Path) -> dict[str, Any]:
    """What `sbp status RUN --json` prints."""
    command = [sys.executable, "-m", "sbp_services", "status", str(folder / "run"), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def wait_until(what: str, happened: Callable[[], Any], process: subprocess.Popen[bytes], folder: Path) -> Any:
    end = time.monotonic() + 150
    while time.monotonic() < end:
        if value := happened():
            return value
        assert process.poll() is None, f"the run ended before: {what}\n{(folder / 'run.log').read_text()[-3000:]}"
        time.sleep(0.3)
    raise AssertionError(f"not within 150 s: {what}\n{(folder / 'run.log').read_text()[-3000:]}")


def role(run: RunDir, name: str) -> dict[str, Any]:
    return run.read_roles().get(name, {})


def trained_synthetic(run: RunDir) -> int:
    return role(run, "trainer").get("facts", {}).get("mix", {}).get("trained_tokens", {}).get("synthetic", 0)


def finish(process: subprocess.Popen[bytes], number: int = signal.SIGINT) -> int:
    process.send_signal(number)
    return process.wait(90)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder for one run, on the session's corpus."""
    (tmp_path / "corpus.jsonl").symlink_to(tiny_folder / "corpus.jsonl")
    yield tmp_path
    kill_all(tmp_path)


def test_kills_interrupt_and_resume_lose_nothing(folder: Path) -> None:
    process = start(folder)
    wait_until("the run directory", (folder / "run" / "run.json").exists, process, folder)
    run = RunDir(folder / "run")
    wait_until("synthetic documents are trained", lambda: trained_synthetic(run) > 3000, process, folder)

    # every role serves its health and metrics
    for name, found in run.read_roles().items():
        if found["state"] == "done":
            continue
        address = f"http://127.0.0.1:{found['metrics_port']}"
        assert urllib.request.urlopen(f"{address}/healthz", timeout=10).status == 200
        assert b"sbp_" in urllib.request.urlopen(f"{address}/metrics", timeout=10).read(), name

    # each says where Prometheus finds it
    for name in ("supervisor", "trainer", "generator-0"):
        (target,) = json.loads((run.prometheus / f"{name}.json").read_text())
        assert target["targets"] == [f"127.0.0.1:{role(run, name)['metrics_port']}"]
        assert target["labels"] == {"run": "run", "role": name.removesuffix("-0"), "name": name}

    # a generator is killed: the run goes on, the generator comes back and its documents are trained
    victim = role(run, "generator-0")["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until("the generator is back", lambda: role(run, "generator-0").get("pid") != victim, process, folder)
    before = trained_synthetic(run)
    wait_until("its documents are trained", lambda: trained_synthetic(run) > before + 3000, process, folder)

    # the trainer is killed: it resumes from its checkpoint, and the ledger still balances
    victim = role(run, "trainer")["pid"]
    os.kill(victim, signal.SIGKILL)

    def is_back() -> bool:
        found = role(run, "trainer")
        return found.get("pid") != victim and bool(found.get("facts", {}).get("ledger"))

    wait_until("the trainer is back", is_back, process, folder)
    starts = [r for r in run.read_records("trainer") if r["event"] == "start"]
    assert starts[-1]["resumed_from"]
    before = trained_synthetic(run)
    wait_until("it goes on", lambda: trained_synthetic(run) > before + 3000, process, folder)

    # Ctrl-C: a clean end with a checkpoint
    assert finish(process) == 0
    stopped = status(folder)
    assert stopped["run"]["state"] == "stopped"
    assert stopped["ledger"]["imbalance"] == 0
    assert stopped["ledger"]["in_flight"] == 0
    assert not any(found["alive"] for found in stopped["roles"].values())
    assert list(run.prometheus.glob("*.json")) == []

    # the same command goes on from there, to the end
    more = stopped["run"]["tokens"] + 150_000
    process = start(folder, f"training.total_tokens={more}", "--accept-changes")
    assert process.wait(150) == 0, (folder / "run.log").read_text()[-3000:]
    starts = [r for r in run.read_records("trainer") if r["event"] == "start"]
    assert starts[-1]["tokens"] == stopped["run"]["tokens"]
    done = status(folder)
    assert done["run"]["state"] == "done"
    assert done["ledger"]["imbalance"] == 0
    assert done["ledger"]["trained"] + done["ledger"]["buffered"] + done["ledger"]["dropped"] == done["ledger"]["sent"]
    assert done["mix"]["realised"] > 0
    assert sum(done["snapshots"]["trained_from"].values()) == done["ledger"]["trained"]
    assert done["ledger"]["trained_by_depth"] == {"1": done["ledger"]["trained"]}
    assert done["loss"]["heldout_real"] < 4.0
    check_journal(run, done)
    check_results(run)


def check_journal(run: RunDir, done: dict[str, Any]) -> None:
    """The journal, read by plain webdataset, holds every accepted document once."""
    import webdataset

    shards = sorted(str(path) for path in run.journal.glob("*.tar"))
    keys = [sample["__key__"] for sample in webdataset.WebDataset(shards, shardshuffle=False)]
    assert len(keys) == len(set(keys)) == done["ledger"]["trained"] + done["ledger"]["buffered"]


def check_results(run: RunDir) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run.path / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = model.generate(**tokenizer("The river", return_tensors="pt"), max_new_tokens=5)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).startswith("The river")
    page = (run.path / "report" / "index.html").read_text()
    assert "<script" not in page
    for command in (["peek", str(run.path), "-n", "2"], ["status", str(run.path)]):
        shown = subprocess.run([sys.executable, "-m", "sbp_services", *command], capture_output=True, timeout=60)
        assert shown.returncode == 0, shown.stderr.decode()
        assert shown.stdout.strip()


def test_two_signals_end_at_once_and_curves_go_on_where_they_were(folder: Path, monkeypatch: Any) -> None:
    """TensorBoard follows across a run that is ended by force; Weights & Biases, without a login, stops nothing."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="extra `tensorboard`"
    )
    every = ["checkpoint.every_tokens=20000", "evaluation.every_tokens=20000"]
    settings = ["telemetry.tensorboard=true", "training.total_tokens=80000", *every]
    if importlib.util.find_spec("wandb"):
        settings.append("telemetry.wandb=a-project")
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setenv("NETRC", str(folder / "none"))
    process = start(folder, *settings)
    wait_until(
        "a checkpoint", lambda: list((folder / "run" / "checkpoints").glob("step-*/manifest.json")), process, folder
    )
    run = RunDir(folder / "run")
    wait_until("curves", lambda: "up to step" in role(run, "tensorboard").get("detail", ""), process, folder)
    process.send_signal(signal.SIGINT)
    wait_until("it is stopping", lambda: role(run, "supervisor").get("state") == "stopping", process, folder)
    assert finish(process) == 128 + signal.SIGINT
    assert "ended at once. Nothing is lost" in (folder / "run.log").read_text()
    stopped = status(folder)
    assert stopped["run"]["state"] == "stopped"
    assert not any(found["alive"] for found in stopped["roles"].values())

    process = start(folder, *settings)
    assert process.wait(300) == 0, (folder / "run.log").read_text()[-3000:]
    assert status(folder)["run"]["state"] == "done"
    deaths = [r for r in run.read_records("supervisor") if r["event"] == "role_died"]
    assert {r["name"] for r in deaths} <= {"wandb"}
    assert all("No API key" in r["reason"] for r in deaths)
    events = accumulator.EventAccumulator(str(run.path / "tensorboard"), size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss_real")]
    assert steps == sorted(set(steps))
    records = run.read_records("trainer")
    assert steps[-1] == records[-1]["step"]
    evaluated = {event.step: event.value for event in events.Scalars("eval/loss")}
    assert evaluated == {r["step"]: pytest.approx(r["heldout_loss"], rel=1e-6) for r in records if r["event"] == "eval"}


def test_a_joint_run_trains_pairs_tunes_nothing_and_can_be_replayed(folder: Path) -> None:
    joint = [
        'synthesizer.mode="joint"',
        "mix.pair_share=0.3",
        'mix.confidence="mask"',
        "synthesizer.max_seed_tokens=60",
        "synthesizer.max_target_tokens=60",
        "gate.min_seed_gain=0.0",
        "training.total_tokens=400000",
    ]
    process = start(folder, *joint)
    assert process.wait(150) == 0, (folder / "run.log").read_text()[-3000:]
    done, run = status(folder), RunDir(folder / "run")
    tokens = done["mix"]["trained_tokens"]
    assert tokens["pairs"] / sum(tokens.values()) == pytest.approx(0.3, abs=0.03)
    assert tokens["synthetic"] > 0
    assert done["ledger"]["imbalance"] == 0
    last = [r for r in run.read_records("trainer") if r["event"] == "train"][-1]
    for source in ("pairs", "synthetic"):  # first documents, and guessed tokens, are context
        assert 0 < last["trained_targets"][source] < 0.9 * last["trained_tokens"][source]
    judged = [r for r in run.read_records("tuner") if r["event"] == "snapshot"]
    assert {r["tuned_tokens"] for r in judged} == {0}
    assert "published" in {r["verdict"] for r in judged}
    replayed = replay(run)
    assert replayed["replay_equal"]
    evaluated = [r["heldout_loss"] for r in run.read_records("trainer") if r["event"] == "eval"]
    assert (replayed["heldout_loss"], replayed["lowest_heldout_loss"]) == (evaluated[-1], min(evaluated))
    what_if = replay(run, "training.learning_rate=1e-5", 'mix.confidence="off"')
    assert what_if["settings"] == ["training.learning_rate=1e-5", 'mix.confidence="off"']
    assert what_if["steps"] == replayed["steps"]
    assert "replay_equal" not in what_if  # nobody expects the same losses
    assert what_if["heldout_loss"] > replayed["heldout_loss"] + 0.1  # it has hardly learnt anything


def replay(run: RunDir, *overrides: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "sbp_services", "train", "--replay", str(run.path), *overrides]
    replayed = subprocess.run(command, capture_output=True, timeout=150, check=True)
    return json.loads(replayed.stdout.splitlines()[-1])


def test_bad_settings_end_with_status_2_and_say_why(folder: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "sbp_services", "run", "mix.sintetic_share=0.2"], capture_output=True, timeout=60
    )
    assert process.returncode == 2
    assert b"did you mean 'synthetic_share'" in process.stderr

"""`sbp export`: the curves of a run, read back with the tools of those who look at them."""

import heapq
import json
import os
import struct
import subprocess
import sys
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from sbp_services.cli import app, main
from streaming_sbp.experiment import history
from streaming_sbp.telemetry.points import PointReader
from tests.unit.run_records import FakeRun, RecordWriter, make_run

TRAIN = {
    "train/loss_real": ("loss", "real"),
    "mix/realised_share": ("realised_share",),
    "train/epoch": ("real_epochs",),
}


@pytest.fixture
def resumed(tmp_path):
    """A run whose trainer fell back to a checkpoint once, and trained 30 s again."""
    run = make_run(tmp_path / "run")
    FakeRun(run, resume_at_s=120).write()
    return run


def export(run, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "sbp_services", "export", "--run", str(run.path), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def value(record, keys):
    for key in keys:
        record = record[key]
    return record


# --- what is a point ---


def test_each_step_has_its_points_once_and_none_is_missing(resumed):
    points = PointReader(resumed).read()
    steps = [at.step for at in points if "train/loss_real" in at.values]
    assert steps == sorted(set(steps))
    told = history.load(resumed)
    lost = 30 * 20_000 // 4096  # steps that were trained twice: their points are those of the first time
    superseded_until = told.resumes[0]["tokens"] // 4096 + lost
    again = {r["step"] for r in told.trains if r["step"] > superseded_until}
    assert again <= set(steps)
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 20  # 2 s are ten
    evaluated = [at.step for at in points if "eval/loss" in at.values]
    assert evaluated == sorted(set(evaluated))
    assert evaluated[-1] == told.evaluations[-1]["step"]


def test_other_roles_have_the_next_step_of_the_trainer(resumed):
    points = PointReader(resumed).read()
    trained = {at.step for at in points if "train/loss_real" in at.values}
    others = [at for at in points if not any(name.startswith(("train/", "eval/")) for name in at.values)]
    assert others
    assert {at.step for at in others} <= trained
    names = {name for at in others for name in at.values}
    assert {"generator-0/tokens_per_second", "tuner/eval_pair_loss", "gate/copied_share", "snapshots/version"} <= names


def test_a_reader_that_is_stopped_at_any_moment_gives_the_same_points(tmp_path):
    """Two runs of the same records; one reader starts anew after each record."""
    run, whole = make_run(tmp_path / "run"), make_run(tmp_path / "whole")
    FakeRun(whole, seconds=120, resume_at_s=80).write()
    roles = [path.stem for path in sorted(whole.records.glob("*.jsonl"))]
    records = heapq.merge(
        *([(role, r) for r in whole.read_records(role)] for role in roles), key=lambda p: p[1]["time"]
    )
    writers, state, found = {}, None, []
    for role, record in records:
        write = writers.setdefault(role, RecordWriter(run, role))
        write(record.pop("time"), record.pop("event"), **record)
        reader = PointReader(run, json.loads(json.dumps(state)) if state else None)
        found += reader.read()
        state = reader.state_dict()
    assert [(at.step, at.values) for at in found] == [(at.step, at.values) for at in PointReader(whole).read()]


def test_every_snapshot_has_its_points(tmp_path):
    """Two between two steps of the trainer, and one after its last."""
    run = make_run(tmp_path / "run")
    trainer, tuner = RecordWriter(run, "trainer"), RecordWriter(run, "tuner")
    trainer(1.0, "train", step=1, tokens=10)
    for version in (1, 2):
        tuner(1.0 + version / 10, "snapshot", version=version, parent_tokens=10 * version, measures={})
    trainer(2.0, "train", step=2, tokens=20)
    trainer(3.0, "finish", step=2, tokens=20)
    tuner(4.0, "snapshot", version=3, parent_tokens=20, measures={})
    versions = [(at.step, at.values["snapshots/version"]) for at in PointReader(run).read() if len(at.values) == 2]
    assert versions == [(2, 1.0), (2, 2.0), (2, 3.0)]


def test_what_is_not_finite_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    record = RecordWriter(run, "trainer")
    record(1.0, "train", step=1, tokens=10, loss={"real": float("nan"), "synthetic": None}, gradient_norm=float("inf"))
    assert PointReader(run).read()[0].values == {"train/num_input_tokens_seen": 10.0}


# --- TensorBoard ---


def scalars(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run.path / "tensorboard"), size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(run):
    curves = {}
    for at in PointReader(run).read():
        for name, number in at.values.items():
            curves.setdefault(name, []).append((at.step, pytest.approx(number, rel=1e-6)))
    return curves


def test_tensorboard_reads_what_was_recorded(resumed):
    pytest.importorskip("tensorboard", reason="extra `tensorboard`")
    done = export(resumed, "--tensorboard")
    assert done.returncode == 0, done.stderr
    curves = scalars(resumed)
    assert curves == expected(resumed)
    records = {r["step"]: r for r in resumed.read_records("trainer")[::-1] if r["event"] == "train"}  # the first time
    for name, keys in TRAIN.items():
        assert curves[name] == [(step, pytest.approx(value(records[step], keys), rel=1e-6)) for step, _ in curves[name]]

    assert export(resumed, "--tensorboard").returncode == 0  # nothing is new
    assert scalars(resumed) == curves

    # killed after it had written, before it noted that: 100 more steps, and the note of before
    noted = (resumed.path / "tensorboard" / "exported.json").read_text()
    record, last = RecordWriter(resumed, "trainer"), records[max(records)]
    for step in range(1, 101):
        more = {key: item for key, item in last.items() if key not in ("time", "event")}
        record(last["time"] + step, "train", **more | {"step": last["step"] + step, "tokens": last["tokens"] + step})
    for _ in range(2):
        (resumed.path / "tensorboard" / "exported.json").write_text(noted)
        assert export(resumed, "--tensorboard").returncode == 0
    assert scalars(resumed) == expected(resumed)
    assert len(scalars(resumed)["train/loss_real"]) == len(curves["train/loss_real"]) + 100


# --- Weights & Biases ---


def wandb_records(content):
    """What a .wandb file holds: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    at, parts = 7, []
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left  # the rest of a block, too short for a record
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def logged(run):
    """(step, name, value) of every process' file."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(run.path.glob("wandb/offline-run-*/run-*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    found.append((record.history.step.num, name, json.loads(item.value_json)))
    return found


def test_wandb_has_what_was_recorded_and_goes_on_without_doubles(resumed):
    pytest.importorskip("wandb", reason="extra `wandb`")
    done = export(resumed, "--wandb", "a-project", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    points = {(at.step, name): number for at in PointReader(resumed).read() for name, number in at.values.items()}
    first = logged(resumed)
    assert {(step, name): number for step, name, number in first} == pytest.approx(points)
    assert len(first) == len(points)

    last = history.load(resumed).trains[-1]
    RecordWriter(resumed, "trainer")(last["time"] + 2, "train", step=last["step"] + 7, tokens=7, learning_rate=0.5)
    assert export(resumed, "--wandb", "a-project", WANDB_MODE="offline").returncode == 0
    new = logged(resumed)[len(first) :]
    assert sorted(new) == [
        (last["step"] + 7, "train/learning_rate", 0.5),
        (last["step"] + 7, "train/num_input_tokens_seen", 7),
    ]
    assert all(resumed.run_id in path.name for path in resumed.path.glob("wandb/offline-run-*"))  # one run for W&B


# --- what is missing ---


@pytest.mark.parametrize(("flag", "name"), [(["--tensorboard"], "tensorboard"), (["--wandb", "p"], "wandb")])
def test_a_missing_package_is_said_at_the_start_with_the_way_out(tmp_path, monkeypatch, capsys, flag, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    settings = [f"run.dir={tmp_path / 'run'}", f"data.dataset={tmp_path / 'data'}"]
    monkeypatch.setattr(sys, "argv", ["sbp", "run", "--preset", "smoke", *settings, *flag])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"pip install 'streaming-sbp[{name}]'" in said
    assert not (tmp_path / "run").exists()


def test_one_of_both_is_expected(resumed):
    for flags in ([], ["--tensorboard", "--wandb", "p"]):
        result = CliRunner().invoke(app, ["export", "--run", str(resumed.path), *flags])
        assert "one of them" in str(result.exception)

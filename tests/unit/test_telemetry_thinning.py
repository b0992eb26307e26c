"""A history of weeks stays within its bound, and says the same before and after it was thinned."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from streaming_sbp.experiment import history
from streaming_sbp.rundir import Recorder
from streaming_sbp.telemetry.records import RecordFollower, read_records
from streaming_sbp.telemetry.status import StatusCollector, collect
from streaming_sbp.telemetry.thinning import ROUTINE, THINNED, thinned
from tests.unit.run_records import FakeRun, make_run

LIMIT = 100_000  # bytes


def write_long_history(record, windows=10_000, every_s=2.0, evaluate_every=100, restart_at=(3_000, 7_000)):
    """A trainer's records over ``windows`` of two seconds, two crashes among them; returns what must be kept."""
    chance, tokens, at, kept = random.Random(1), 0, 1e9, []

    def write(event, **fields):
        record(event, time=round(at, 3), **fields)
        if event not in ROUTINE:
            kept.append((event, fields["tokens"]))

    write("start", tokens=0, resumed_from=None)
    for k in range(windows):
        at += every_s
        tokens += 1_000
        spike = 500.0 if k == windows // 3 else 0.0  # the largest deviation of all, long ago
        write(
            "train",
            tokens=tokens,
            loss={"real": 3.0 + 5.0 / (1 + k / 500) + chance.gauss(0, 0.05), "synthetic": None},
            deviation_tokens=spike + abs(chance.gauss(0, 40)),
            padding_tokens=k,
            gradient_norm=chance.random(),
            phases={"forward_backward": 1.9 * k},
            tokens_per_second=500.0,
        )
        if k % evaluate_every == 0:
            write("eval", tokens=tokens, heldout_loss=3.0 + chance.random(), heldout_bits_per_byte=1.0)
        if k in restart_at:
            at += 300.0  # nothing runs for five minutes
            tokens -= 40_000
            write("start", tokens=tokens, resumed_from="step-1")
    write("finish", tokens=tokens, reason="total_tokens reached")
    return kept


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same history, not thinned and thinned as it was written; the size of the file after each record."""
    folder, sizes = tmp_path_factory.mktemp("both"), []
    whole = make_run(folder / "whole", (f"telemetry.record_bytes={2**30}",))
    bounded = make_run(folder / "bounded", (f"telemetry.record_bytes={LIMIT}",))
    write_long_history(whole.record("trainer"))
    recorder, path = bounded.record("trainer"), bounded.records / "trainer.jsonl"

    def record(event, **fields):
        recorder(event, **fields)
        sizes.append(path.stat().st_size)

    kept = write_long_history(record)
    return whole, bounded, kept, sizes


def test_it_stays_within_the_bound_and_is_thinned_seldom(both):
    whole, _, _, sizes = both
    assert (whole.records / "trainer.jsonl").stat().st_size > 20 * LIMIT
    assert max(sizes) <= LIMIT
    assert 5 < sum(later < earlier for earlier, later in pairwise(sizes)) < 100


def test_nothing_but_routine_is_left_out_and_the_order_stays(both):
    whole, bounded, kept, _ = both
    before, after = whole.read_records("trainer"), bounded.read_records("trainer")
    assert [(r["event"], r["tokens"]) for r in after if r["event"] not in ROUTINE] == kept
    known = {json.dumps(record): k for k, record in enumerate(before)}
    positions = [known[json.dumps({k: v for k, v in record.items() if k != THINNED})] for record in after]
    assert positions == sorted(set(positions))  # each as it was written, once, in order
    assert positions[0] == 0
    assert positions[-20:] == list(range(len(before) - 20, len(before)))  # the newest are all there
    assert sum(record.get(THINNED, 0) for record in after) == len(before) - len(after)


def test_report_and_status_say_the_same(both):
    whole, bounded, _, _ = both
    told, told_whole = history.load(bounded), history.load(whole)
    assert told.evaluations == told_whole.evaluations
    assert (told.trains[0], told.trains[-1]) == (told_whole.trains[0], told_whole.trains[-1])
    for extreme in (min, max):
        assert extreme(r["loss"]["real"] for r in told.trains) == extreme(r["loss"]["real"] for r in told_whole.trains)
    assert max(r["deviation_tokens"] for r in told.trains) == max(r["deviation_tokens"] for r in told_whole.trains)
    assert told.phases == told_whole.phases
    assert told.resumes == told_whole.resumes
    assert told.active_s == pytest.approx(told_whole.active_s, rel=0.001)  # the two pauses are left out of both
    a, b = collect(bounded), collect(whole)
    for part in ("loss", "mix", "throughput", "events", "snapshots"):
        assert a[part] == b[part]
    assert {**a["run"], "id": "", "dir": "", "created": 0} == {**b["run"], "id": "", "dir": "", "created": 0}


def test_old_records_lie_evenly_and_new_ones_close(both):
    _, bounded, _, _ = both
    times = [record["time"] for record in history.load(bounded).trains]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    half = (times[0] + times[-1]) / 2
    old = sorted(gap for gap, begin in zip(gaps, times, strict=False) if begin < half)
    assert old[len(old) // 2] > 20 * gaps[-1]
    assert old[-1] < 4 * old[len(old) // 2] + 300.0  # a pause among them


def test_a_generators_counts_are_those_of_all_its_processes(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, seconds=2_000).write()
    before = history.load(run)
    for path in run.records.glob("*.jsonl"):
        path.write_bytes(thinned(path.read_bytes(), 2**14))
    after = history.load(run)
    assert sum(len(rate.times) for rate in after.rates) < sum(len(rate.times) for rate in before.rates) / 4
    for part in ("sampled", "filtered", "blocked_s", "phases", "evaluations", "events"):
        assert getattr(after, part) == getattr(before, part), part
    assert after.active_s == pytest.approx(before.active_s, rel=0.01)


def test_a_sleep_within_a_process_stays_a_gap(tmp_path):
    record = Recorder(tmp_path / "trainer.jsonl", 2**14)
    for k in range(2_000):
        record("train", time=2.0 * k + (86_400.0 if k >= 1_000 else 0.0), tokens=k)
    times = [r["time"] for r in read_records(tmp_path / "trainer.jsonl")]
    assert {1_998.0, 88_400.0} <= set(times)


# --- who reads while it is thinned ---


@pytest.mark.parametrize("every", [1, 7, 120])  # records between two looks; the newest 136 always stay as they are
def test_a_follower_sees_each_record_once(tmp_path, every):
    path = tmp_path / "trainer.jsonl"
    record, follower, seen = Recorder(path, 2**15), RecordFollower(path), []
    for k in range(3_000):
        record("train", tokens=k)
        if k % every == 0:
            follower = RecordFollower(path, json.loads(json.dumps(follower.state_dict())))  # as after a restart
            seen += follower.read()
    seen += follower.read()
    assert path.stat().st_size <= 2**15
    assert [r["tokens"] for r in seen] == list(range(3_000))


def test_a_follower_that_comes_back_late_misses_only_what_was_left_out(tmp_path):
    path = tmp_path / "trainer.jsonl"
    record, follower = Recorder(path, 2**15), RecordFollower(path)
    for k in range(4_000):
        record("train", time=float(k), tokens=k)
        if k in (100, 3_999):
            last = follower.read()
    assert [r["tokens"] for r in last] == [r["tokens"] for r in read_records(path) if r["tokens"] > 100]


def test_a_live_status_agrees_with_a_new_one(tmp_path):
    run = make_run(tmp_path / "run", (f"telemetry.record_bytes={2**15}",))
    collector, recorder, count = StatusCollector(run), run.record("trainer"), 0

    def record(event, **fields):
        nonlocal count
        recorder(event, **fields)
        count += 1
        if count % 500 == 0:
            collector.collect()

    write_long_history(record, windows=4_000, restart_at=(1_500,))
    assert collector.collect() == collect(run)


# --- crashes ---

WRITER = """
import sys
from pathlib import Path
from streaming_sbp.rundir import Recorder
path, first = Path(sys.argv[1]), int(sys.argv[2])
record = Recorder(path, 2**15)
print("ready", flush=True)
for k in range(first, 10**9):
    record("train", tokens=k, loss={"real": 1.0})
    if k % 50 == 0:
        record("eval", tokens=k, heldout_loss=1.0)
"""


def test_killed_at_any_moment_it_loses_nothing(tmp_path):
    """Kill -9 of a writer that thins a hundred times a second; a reader follows across all its deaths."""
    path, chance, first = tmp_path / "trainer.jsonl", random.Random(3), 0
    follower, seen = RecordFollower(path), []
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.05, 0.3))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        records = read_records(path)
        evaluated = [r["tokens"] for r in records if r["event"] == "eval"]
        newest = max(r["tokens"] for r in records)
        assert evaluated in (list(range(0, newest + 1, 50)), list(range(0, newest, 50)))
        assert newest > first
        first = newest + 1 if newest % 50 else newest  # written again, if its evaluation may be missing
        if evaluated[-1] == newest:
            first = newest + 1
        seen += [r["tokens"] for r in follower.read() if r["event"] == "eval"]
    assert seen == evaluated
    assert path.stat().st_size < 2**15 + 200 * len(evaluated)


def test_a_disk_that_is_full_while_it_thins(tmp_path, monkeypatch):
    path = tmp_path / "trainer.jsonl"
    record = Recorder(path, 2**14)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        for k in range(600):
            record("train", tokens=k)
    assert [r["tokens"] for r in read_records(path)] == list(range(600))  # whole, above its bound
    assert list(tmp_path.iterdir()) == [path]  # and no part of a copy takes room
    for k in range(600, 2_000):
        record("train", tokens=k)
    assert path.stat().st_size <= 2**14

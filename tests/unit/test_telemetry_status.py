import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp.config import ConfigError
from streaming_sbp.files import write_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import StatusCollector, collect, is_alive
from streaming_sbp.telemetry.view import summary_line
from tests.unit.run_records import DIGESTS, SECOND_TOKENS, SHARE, FakeRun, RecordWriter, make_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "status.md"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("ended") / "run")
    FakeRun(run).write()
    return run


def role_file(run, name, **fields):
    write_json(run.roles / f"{name}.json", {"role": name.split("-")[0], "updated": time.time()} | fields)


# --- the documented shape ---


def documented():
    """(section, key) of every table row in docs/status.md; keys of a role have the section "roles"."""
    section, found = "", set()
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## `(\w+)`", line):
            section = heading[1]
            found.add((section, ""))
        elif row := re.match(r"\| `([\w.]+)` \|", line):
            found.add((section, row[1].removeprefix(f"{section}.")))
    return found


def keys_of(status):
    found = {(section, "") for section in status}
    found |= {(section, key) for section in status if section not in ("roles", "events") for key in status[section]}
    return found | {("roles", key) for role in status["roles"].values() for key in role}


def test_every_key_is_documented_and_nothing_else_is(ended, tmp_path):
    assert keys_of(collect(ended)) == documented()
    assert keys_of(collect(make_run(tmp_path / "new"))) == documented()
    assert set(collect(ended)["events"][0]) == {"time", "role", "text", "tone"}
    text = DOCUMENT.read_text(encoding="utf-8")
    for snapshot in (collect(ended)["snapshots"]["newest"], collect(ended)["snapshots"]["serving"]):
        assert all(f"`{key}`" in text for key in snapshot)


def test_a_run_that_never_ran(tmp_path):
    status = collect(make_run(tmp_path / "run"))
    assert status["run"]["state"] == "new"
    assert status["run"]["total_tokens"] == 6_000_000
    assert list(status["roles"]) == ["supervisor", "trainer", "pairer", "tuner", "generator-0", "generator-1"]
    assert all(role["state"] is None and role["alive"] is False for role in status["roles"].values())
    for section, counted in (
        ("ledger", ()),
        ("loss", ("heldout_history",)),
        ("throughput", ("filtered",)),
        ("mix", ("pair_share",)),
    ):
        assert {value for key, value in status[section].items() if key not in counted} == {None}
    assert status["snapshots"] == {
        "published": 0,
        "quarantined": 0,
        "swapped_in": 0,
        "trained_from": None,
        "tuned_tokens": None,
        "compute_share": None,
        "newest": None,
        "newest_quarantined": None,
        "serving": None,
    }
    assert status["events"] == []


# --- figures against those the records were made from ---


def test_an_ended_run(ended):
    status = collect(ended)
    tokens = 150 * 2 * SECOND_TOKENS  # 300 s, a record every 2 s
    assert (status["run"]["state"], status["run"]["tokens"], status["run"]["eta_s"]) == ("done", tokens, None)
    ledger = status["ledger"]
    assert ledger["imbalance"] == 0
    assert ledger["sent"] == ledger["trained"] + ledger["buffered"] + ledger["in_flight"] + ledger["dropped"]
    assert ledger["dropped_by_reason"] == {"malformed": 0, "lost_with_generator": 3}
    assert sum(ledger["trained_by_depth"].values()) == ledger["trained"]
    assert ledger["by_generator"]["generator-0"]["sent"] == ledger["sent"]
    assert status["mix"]["scheduled"] == SHARE
    assert status["mix"]["realised"] == pytest.approx(SHARE, abs=0.001)
    assert sum(status["mix"]["trained_tokens"].values()) == tokens
    assert status["mix"]["truncated_tokens"] == 12
    snapshots = status["snapshots"]
    assert (snapshots["published"], snapshots["quarantined"], snapshots["swapped_in"]) == (3, 1, 3)
    assert snapshots["trained_from"] == {DIGESTS[0]: 400, DIGESTS[2]: 800, DIGESTS[3]: 1200}
    assert snapshots["newest_quarantined"]["parent_tokens"] == 1_500_000
    assert (snapshots["tuned_tokens"], snapshots["compute_share"]) == (960_000, 0.16)
    assert (snapshots["newest"]["version"], snapshots["newest"]["parent_tokens"]) == (3, 4_000_000)
    assert snapshots["newest"]["age_s"] == pytest.approx(300 - (200 + 2 + 33 + 4), abs=2)
    assert status["throughput"]["tokens_per_second"] == pytest.approx(SECOND_TOKENS, rel=1e-3)
    assert status["throughput"]["documents_per_second"] is None  # nobody lives
    history = status["loss"]["heldout_history"]
    assert [tokens for tokens, _ in history] == sorted({tokens for tokens, _ in history})
    assert history[-1][1] == status["loss"]["heldout_real"] < history[0][1]
    assert status["loss"]["heldout_best"] == min(history, key=lambda evaluation: evaluation[1])
    assert [(name, role["restarts"]) for name, role in status["roles"].items() if role["restarts"]] == [
        ("generator-1", 1)
    ]
    assert [event["time"] for event in status["events"]] == sorted(event["time"] for event in status["events"])
    assert status["events"][-1]["text"] == "ended at 6.00M tokens: total_tokens reached"


def test_a_running_run_has_an_eta_and_sums_its_generators(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, seconds=200, finished=False, pid=os.getpid()).write()
    status = collect(run)
    assert status["run"]["state"] == "running"
    assert status["run"]["tokens"] == 200 * SECOND_TOKENS
    assert status["run"]["eta_s"] == pytest.approx((6_000_000 - 200 * SECOND_TOKENS) / SECOND_TOKENS, rel=0.01)
    assert status["throughput"]["documents_per_second"] == pytest.approx(2 * 13.4)
    assert status["throughput"]["filtered"] == {"unfinished": 8, "too_short": 2}
    assert all(role["alive"] for role in status["roles"].values())


def test_after_a_resume_the_figures_are_those_of_the_newer_history(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, resume_at_s=100, finished=False, pid=os.getpid()).write()
    status = collect(run)
    assert status["run"]["tokens"] == (300 - 30) * SECOND_TOKENS
    evaluated = [tokens for tokens, _ in status["loss"]["heldout_history"]]
    assert evaluated == sorted(set(evaluated))  # what was superseded is not there twice
    assert "resumed from step-00000400" in " ".join(event["text"] for event in status["events"])


def test_a_trainer_that_steps_back_has_its_checkpoints_tokens(tmp_path):
    run = make_run(tmp_path / "run")
    record = RecordWriter(run, "trainer")
    record(1.0, "start", tokens=0, resumed_from=None)
    for k in range(1, 6):
        record(1.0 + k, "train", tokens=100 * k, loss={"real": 5.0 - k, "synthetic": None}, real_epochs=0.1 * k)
        record(1.0 + k, "eval", tokens=100 * k, heldout_loss=9.0 - k)
    record(9.0, "start", tokens=200, resumed_from="step-2")
    status = collect(run)
    assert status["run"]["tokens"] == 200
    assert status["loss"]["train_real"] == 3.0
    assert status["loss"]["heldout_history"] == [[100, 8.0], [200, 7.0]]
    assert status["throughput"]["tokens_per_second"] is None  # this process has recorded nothing yet
    assert status["throughput"]["real_epochs"] == pytest.approx(0.2)


def test_one_collector_and_a_new_one_agree(tmp_path):
    run = make_run(tmp_path / "run")
    collector = StatusCollector(run)
    assert collector.collect()["run"]["state"] == "new"
    FakeRun(run, resume_at_s=150).write()
    first, again, fresh = collector.collect(), collector.collect(), collect(run)
    for status in (first, again, fresh):
        status["snapshots"]["newest"].pop("age_s")
        for role in status["roles"].values():
            role.pop("age_s")
    assert first == again == fresh


def test_the_newest_events_are_kept_whatever_role_wrote_them(tmp_path):
    run = make_run(tmp_path / "run")
    generator, tuner = run.record("generator-0"), RecordWriter(run, "tuner")
    for k in range(120):
        tuner(1000.0 + k, "snapshot", verdict="published", digest=f"{k:064x}", version=k + 1, parent_tokens=k)
    generator("swap", digest="a" * 64, version=120, pause_s=0.5)  # now: newer than all, and in the file read first
    events = collect(run)["events"]
    assert len(events) == 20
    assert events[-1]["text"] == "swapped in snapshot v120, pause 0.5 s"
    assert [event["text"] for event in events[:-1]] == [
        f"published snapshot v{k + 1} from {k} tokens" for k in range(101, 120)
    ]


def test_which_snapshot_serves_is_what_the_trainer_announced(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run).write()
    first = {"digest": DIGESTS[0], "version": 1, "parent_tokens": 500_000}
    RecordWriter(run, "trainer")(time.time(), "announced", **first, pinned=True, by="person", reason="pinned")
    (run.roles / "trainer.json").unlink()  # as `sbp run` does when it starts
    status = collect(run)
    assert (status["snapshots"]["serving"], status["snapshots"]["newest"]["version"]) == (first | {"pinned": True}, 3)
    assert "v1 serves, pinned" in summary_line(status)
    role_file(run, "trainer", facts={"snapshots": {"serving": first | {"pinned": False}}})
    assert "v1 serves" in summary_line(collect(run))
    assert "pinned" not in summary_line(collect(run))
    role_file(run, "trainer", facts={"snapshots": {"serving": {"digest": DIGESTS[3], "version": 3, "pinned": False}}})
    assert "serves" not in summary_line(collect(run))


# --- states ---


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"supervisor": "stopped", "trainer": "stopped"}, "stopped"),
        ({"supervisor": "failed", "trainer": "stopped"}, "failed"),
        ({"trainer": "failed"}, "failed"),
        ({"trainer": "running"}, "stopped"),  # killed
        ({"tuner": "failed", "trainer": "stopped"}, "stopped"),
        ({"supervisor": "failed", "trainer": "failed"}, "failed"),
    ],
)
def test_the_state_of_a_run_nobody_works_on(tmp_path, states, expected):
    run = make_run(tmp_path / "run")
    for name, state in states.items():
        role_file(run, name, state=state, pid=2**22 + 1)
    status = collect(run)
    assert status["run"]["state"] == expected
    for name, state in states.items():
        assert status["roles"][name]["state"] == ("dead" if state == "running" else state)


def test_a_trainer_that_failed_is_no_running_run_though_a_generator_waits(tmp_path):
    run = make_run(tmp_path / "run")
    role_file(run, "trainer", state="failed", pid=2**22 + 1)
    role_file(run, "generator-0", state="waiting", pid=os.getpid())
    assert collect(run)["run"]["state"] == "failed"
    role_file(run, "supervisor", state="running", pid=os.getpid(), started=time.time() - 60)  # starts it again
    assert collect(run)["run"]["state"] == "running"


def test_an_exporter_alone_is_no_running_run(tmp_path):
    run = make_run(tmp_path / "run")
    role_file(run, "trainer", state="stopped", pid=2**22 + 1)
    role_file(run, "wandb", role="exporter", state="running", pid=os.getpid())
    assert collect(run)["run"]["state"] == "stopped"


def test_a_process_that_loads_the_program_is_starting(tmp_path):
    run = make_run(tmp_path / "run")
    now = time.time()
    role_file(run, "supervisor", state="running", pid=os.getpid(), started=now - 60)
    record = RecordWriter(run, "supervisor")
    record(now - 3600, "role_started", name="tuner", pid=os.getpid())  # by an earlier one
    record(now, "role_started", name="trainer", pid=os.getpid())
    roles = collect(run)["roles"]
    assert (roles["trainer"]["state"], roles["trainer"]["alive"]) == ("starting", True)
    assert roles["tuner"]["state"] is None


def test_a_trainer_that_was_started_again_is_starting_and_has_no_rate(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, finished=False, pid=os.getpid()).write()
    assert collect(run)["throughput"]["tokens_per_second"] > 0
    now = time.time()
    role_file(run, "supervisor", state="running", pid=os.getpid(), started=now - 60)
    role_file(run, "trainer", state="running", pid=2**22 + 1, updated=now)  # the killed one's last word
    status = collect(run)
    assert status["roles"]["trainer"]["state"] == "dead"
    assert status["run"]["eta_s"] is status["throughput"]["tokens_per_second"] is None
    RecordWriter(run, "supervisor")(now, "role_started", name="trainer", pid=os.getpid())
    status = collect(run)
    assert (status["roles"]["trainer"]["state"], status["roles"]["trainer"]["alive"]) == ("starting", True)
    assert status["roles"]["trainer"]["detail"] == "loading the program"
    assert status["run"]["eta_s"] is status["throughput"]["tokens_per_second"] is None


def test_more_tokens_than_before_make_a_done_run_stopped(tmp_path):
    FakeRun(make_run(tmp_path / "run")).write()
    assert collect(RunDir(tmp_path / "run"))["run"]["state"] == "done"
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("total_tokens = 6000000", "total_tokens = 7000000"))
    assert collect(RunDir(tmp_path / "run"))["run"]["state"] == "stopped"


def test_zombies_and_other_programs_with_the_same_pid_are_not_alive():
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        deadline = time.monotonic() + 20
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive({"pid": child.pid, "updated": time.time()})
    finally:
        child.wait()
    assert is_alive({"pid": os.getpid(), "updated": time.time()})
    assert not is_alive({"pid": os.getpid(), "updated": psutil.Process().create_time() - 60})
    assert not is_alive({"pid": None, "updated": None})
    assert not is_alive({})


# --- what is missing or broken ---


@pytest.mark.parametrize("content", ["", "{", "null", "[1]", '"text"'])
def test_a_role_file_that_a_crash_left_broken(tmp_path, content):
    run = make_run(tmp_path / "run")
    (run.roles / "trainer.json").write_text(content)
    assert collect(run)["roles"]["trainer"]["state"] is None


def test_not_finite_numbers_become_null_and_the_rest_is_json(tmp_path):
    run = make_run(tmp_path / "run")
    record = RecordWriter(run, "trainer")
    record(1.0, "train", tokens=10, loss={"real": float("nan"), "synthetic": float("inf")})
    record(2.0, "eval", tokens=10, heldout_loss=float("nan"))
    status = collect(run)
    assert status["loss"]["train_real"] is status["loss"]["train_synthetic"] is status["loss"]["heldout_real"] is None
    assert status["loss"]["heldout_history"] == [[10, None]]
    assert json.loads(json.dumps(status, allow_nan=False)) == status


def test_a_generator_beyond_the_configured_ones_is_shown(tmp_path):
    run = make_run(tmp_path / "run")
    role_file(run, "generator-7", state="running", pid=os.getpid(), facts={"documents_per_second": 2.5})
    status = collect(run)
    assert list(status["roles"])[-1] == "generator-7"
    assert status["throughput"]["documents_per_second"] == 2.5


# --- the command ---


def test_the_command_prints_the_object(ended):
    result = CliRunner().invoke(app, ["status", str(ended.path), "--json"])
    assert result.exit_code == 0
    assert keys_of(json.loads(result.stdout)) == documented()


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_the_command_on_a_run_whose_first_file_is_damaged(content, tmp_path):
    run = make_run(tmp_path / "run")
    (run.path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json"):
        RunDir(run.path)


def test_the_command_on_something_else(tmp_path):
    result = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "not a run directory" in str(result.exception)

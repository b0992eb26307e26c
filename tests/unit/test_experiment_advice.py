import re
import shlex
from pathlib import Path

import pytest

from streaming_sbp import config as configuration
from streaming_sbp.experiment.advice import repairs, suggest, why_nothing_synthetic
from streaming_sbp.telemetry.status import collect
from tests.unit.run_records import FakeRun, make_run


def advised(run, **changes):
    status = collect(run)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        status[section][name] = value
    return suggest(run, run.config(), status)


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path / "a run")
    FakeRun(run, seconds=300).write()
    return run


def test_every_command_can_be_typed(run):
    """Each one parses, names this run, and its settings are valid."""
    changes = {"mix__realised": 0.1, "snapshots__quarantined": 9, "ledger__imbalance": 1}
    for suggestion in advised(run, **changes):
        program, *arguments = shlex.split(suggestion.command)
        assert program in ("sbp", "tail", "df")
        assert any(str(run.path) in argument for argument in arguments)
        if arguments[0] == "run":
            overrides = [argument for argument in arguments[3:] if not argument.startswith("--")]
            configuration.load(arguments[2], overrides=overrides)


def test_a_good_run(run):
    reasons = [suggestion.reason for suggestion in advised(run)]
    assert reasons == [
        "Train on, twice as long.",
        "See what the synthetic text brings: train as long on real text only, and compare held-out losses.",
        "Read more synthetic documents.",
    ]
    assert "training.total_tokens=12000000 --accept-changes" in advised(run)[0].command


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mix__realised": 0.2}, "Synthesis did not keep up"),
        ({"snapshots__quarantined": 4}, "Most candidates failed the gate"),
        ({"ledger__imbalance": 1}, "The ledger does not balance"),
        ({"run__state": "stopped"}, "Go on from the last checkpoint"),
    ],
)
def test_what_is_wrong_comes_first(run, changes, words):
    assert advised(run, **changes)[0].reason.startswith(words)


def test_nothing_is_said_of_a_new_run(tmp_path):
    assert advised(make_run(tmp_path / "run")) == []


def test_a_failed_role_is_named_with_its_reason(run):
    status = collect(run)
    status["roles"]["tuner"] |= {"state": "failed", "detail": "no pairs"}
    (run.logs / "tuner.log").write_text("no pairs\n")
    first = suggest(run, run.config(), status)[0]
    assert first.reason == "tuner ended: no pairs."
    assert shlex.split(first.command) == ["tail", str(run.logs / "tuner.log")]


@pytest.mark.parametrize("name", ["supervisor", "generator-1", "pairer"])
def test_who_has_no_log_has_something_else_to_read(run, name):
    status = collect(run)
    status["roles"][name]["state"] = "failed"
    program, file = shlex.split(suggest(run, run.config(), status)[0].command)
    assert program == "tail"
    assert Path(file).stat().st_size > 0


@pytest.mark.parametrize("change", [{"mix__realised": 0.2}, {"snapshots__quarantined": 9}])
def test_settings_of_a_run_that_goes_on_are_changed_after_it_was_stopped(run, change):
    for state, stops in (("running", True), ("done", False)):
        first = advised(run, run__state=state, **change)[0]
        assert "--accept-changes" in first.command
        assert first.reason.endswith("Stop the run first (Ctrl-C), then:") == stops


@pytest.mark.parametrize(
    ("trained", "synthetic", "debt", "behind"),
    [
        (3_100_000, 10_000, 20_000, False),  # of 3M to go, 100k are trained
        (3_500_000, 50_000, 100_000, False),
        (3_800_000, 80_000, 160_000, True),
        (3_100_000, 0, 30_000, False),
        (3_800_000, 0, 240_000, True),
        (6_000_000, 0, 0, False),  # the first snapshot came with the end
    ],
)
def test_synthesis_has_time_to_catch_up(run, trained, synthetic, debt, behind):
    """The schedule asks for 0.3 from 3M tokens to 6M."""
    realised = synthetic / (trained - 3_000_000)
    mix = {"mix__scheduled": 0.3, "mix__realised": realised, "mix__trained_tokens": {"synthetic": synthetic}}
    found = advised(run, run__tokens=trained, mix__debt_tokens=debt, mix__forgiven_tokens=0, **mix)
    assert any("did not keep up" in suggestion.reason for suggestion in found) == behind


def test_who_is_silent_or_was_killed_is_said_in_one_line_each(run):
    status = collect(run)
    for name, state, age_s in (
        ("tuner", "running", 99.0),
        ("pairer", "starting", 99.0),
        ("generator-0", "running", 99.0),
        ("trainer", "running", 1.0),
    ):
        status["roles"][name] |= {"state": state, "alive": True, "age_s": age_s}
    status["roles"]["generator-1"]["state"] = "dead"
    reasons = [suggestion.reason for suggestion in repairs(run, run.config(), status)]
    assert reasons == [
        "generator-1: killed.",
        "tuner, generator-0: silent for over 15 s: hangs, or was stopped by somebody.",
    ]


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        (
            "loss",
            {"heldout_real": 5.3, "heldout_best": [2_000_000, 5.0]},
            "Held-out loss is 5.300; it has been 5.000, at 2.00M",
        ),
        ("ledger", {"dropped_by_reason": {"stale": 9, "damaged": 2, "oversized": 0}}, "could not be used: 2 damaged."),
        ("throughput", {"peers": 0}, "No generator is connected"),
    ],
)
def test_what_else_is_wrong(run, section, changes, words):
    status = collect(run)
    status["roles"]["trainer"] |= {"state": "running", "alive": True}
    status["mix"]["current"] = 0.3
    assert repairs(run, run.config(), status) == []
    status[section] |= changes
    found = repairs(run, run.config(), status)
    assert [words in suggestion.reason for suggestion in found] == [True]


def test_a_disk_without_room_for_a_few_checkpoints(run):
    status = collect(run)
    status["run"]["state"] = "running"
    for name, num_bytes in (("step-00000100", 1), ("step-00000200", 10 * 2**40)):
        (run.checkpoints / name / "model").mkdir(parents=True)
        with open(run.checkpoints / name / "model" / "model.safetensors", "wb") as file:
            file.truncate(num_bytes)  # a hole: no disk is needed
    (found,) = repairs(run, run.config(), status)
    assert re.fullmatch(r"The disk is nearly full: .* are free, and a checkpoint has 10\.0 TiB\.", found.reason)
    assert found.command == f"df -h {shlex.quote(str(run.path))}"
    status["run"]["state"] = "done"
    assert repairs(run, run.config(), status) == []


@pytest.mark.parametrize(
    ("quarantined", "state", "detail", "words"),
    [
        (2, "waiting", "for a checkpoint", "the gate refused 2 candidates, the last one for: copied_share = 0.4"),
        (0, "failed", "no vLLM", "the tuner failed: no vLLM"),
        (0, "stopped", "for pairs: the table has 0", "the tuner waited for pairs: the table has 0"),
        (0, "stopped", "tuning step-1", "the tuner had not finished: tuning step-1"),
        (0, None, None, "the tuner was never started"),
    ],
)
def test_why_there_is_no_synthetic_text(run, quarantined, state, detail, words):
    config, status = run.config(), collect(run)
    assert why_nothing_synthetic(config, status) == ""
    refused = {"digest": "a", "parent_tokens": 1, "reasons": ["copied_share = 0.4"]} if quarantined else None
    status["snapshots"] |= {"published": 0, "quarantined": quarantined, "newest_quarantined": refused}
    status["roles"]["tuner"] |= {"state": state, "detail": detail}
    assert why_nothing_synthetic(config, status).startswith(words)

"""`sbp snapshots` on a run directory: the command itself, and what it leaves behind."""

import json
import subprocess
import sys

import pytest

from streaming_sbp.config import ConfigError
from streaming_sbp.files import read_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.synthesizer.manage import Manager, render_listing
from streaming_sbp.synthesizer.snapshots import SnapshotStore
from tests.unit.test_synthesizer_snapshots import publish


@pytest.fixture
def run(tiny_config, tmp_path):
    run = RunDir.open_or_create(tiny_config)
    store = SnapshotStore(run.snapshots)
    run.published = [publish(store, tmp_path, content, 1000 * i) for i, content in enumerate((b"a", b"b", b"c"))]
    store.lease("generator-0-x", run.published[1].digest)
    return run


def sbp(run, *arguments):
    command = [sys.executable, "-m", "sbp_services", "snapshots", str(run.path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_command_lists_pins_and_refuses(run):
    status, output, _ = sbp(run, "--json")
    listing = json.loads(output)
    assert status == 0
    assert [s["serves"] for s in listing["snapshots"]] == [False, False, True]
    assert [s["readers"] for s in listing["snapshots"]] == [[], ["generator-0-x"], []]
    assert listing["snapshots"][0]["measures"] == {"pair_loss": 3.5}
    status, output, _ = sbp(run, "--pin", "1")
    assert status == 0
    assert "serves, pinned" in output
    assert "pinned by a person" in output
    status, _, error = sbp(run, "--pin", "9")
    assert status == 2
    assert "expected a version" in error


def test_facts_are_listed_where_the_truth_is_known(run):
    def headings():
        return [column.header for column in render_listing(Manager(run).listing()).renderables[0].columns]

    assert "true facts" not in headings()
    folder = run.path / "candidate"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"d")
    measures = {"pair_loss": 3.0, "about_seed_share": 0.5, "true_fact_share": 0.25}
    facts = {"parent_checkpoint": "step-1", "parent_tokens": 1, "num_pairs": 1}
    SnapshotStore(run.snapshots).publish(folder, measures=measures, **facts)
    assert headings()[-2:] == ["seed's person", "true facts"]


def test_pin_roll_back_and_quarantine(run):
    first, second, third = (info.digest for info in run.published)
    manager, store = Manager(run), SnapshotStore(run.snapshots)
    assert manager.pin(second[:6]).digest == second
    assert manager.unpin().digest == third
    assert manager.roll_back().digest == second == store.current().digest
    with pytest.raises(ConfigError, match="published before"):
        manager.roll_back("3")
    assert manager.quarantine("2", "it rambles").digest == first
    with pytest.raises(ConfigError, match="first good one"):
        manager.roll_back()
    with pytest.raises(ConfigError, match="no other is good"):
        manager.quarantine("1")
    reason = read_json(run.quarantine / second / "reason.json")
    assert reason["reasons"] == ["it rambles"]
    assert (run.quarantine / second / "model" / "model.safetensors").read_bytes() == b"b" * 1000
    listing = manager.listing()
    assert [s["bad"] for s in listing["snapshots"]] == [False, True, True]
    assert listing["pointer"]["revision"] == 7
    json.dumps(listing)


def test_two_are_compared_measure_by_measure(run):
    assert Manager(run).comparison("1", "3")["measures"] == {"pair_loss": [3.5, 3.5, 0.0]}

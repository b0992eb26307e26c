"""`sbp snapshots` on a run directory: the command itself, and what it leaves behind."""

import json
import shutil
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp.config import ConfigError, Snapshots
from streaming_sbp.files import read_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.synthesizer import pointer
from streaming_sbp.synthesizer.manage import Manager, render_listing
from streaming_sbp.synthesizer.quarantine import Quarantine
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


def refused(run, *arguments):
    """The one line of the error that the command ends with; `main` makes it exit status 2."""
    result = CliRunner().invoke(app, ["snapshots", str(run.path), *arguments])
    assert isinstance(result.exception, ConfigError), result.exception
    assert (result.output, str(result.exception).count("\n")) == ("", 0)
    return str(result.exception)


def shown(manager):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render_listing(manager.listing()))
    return capture.get()


def test_a_damaged_snapshot_is_not_made_to_serve_and_is_listed_as_damaged(run):
    first, second = (info.digest for info in run.published[:2])
    manager, store = Manager(run), SnapshotStore(run.snapshots)
    (run.snapshots / first / "model.safetensors").unlink()
    weights = run.snapshots / second / "model.safetensors"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    before = store.pointer()
    for change in (
        lambda: manager.pin("1"),
        lambda: manager.pin("2"),
        lambda: manager.roll_back("1"),
        manager.roll_back,  # to the second
    ):
        with pytest.raises(ConfigError, match=r"model.safetensors .*no generator can load it, so nothing was changed"):
            change()
    assert store.pointer() == before
    assert manager.pin("3").pinned
    assert [s["missing_files"] for s in manager.listing()["snapshots"]] == [["model.safetensors"], [], []]
    assert "version 1 is damaged, without model.safetensors" in shown(manager)


def test_the_listing_says_why_one_is_bad_and_what_serves_when_it_is_gone(run):
    manager, store = Manager(run), SnapshotStore(run.snapshots)
    store.change("trainer", "relatedness = 0.1", pointer.rolled_back)
    manager.quarantine("1")
    text = shown(manager)
    assert "version 3 is bad, said the trainer: relatedness = 0.1" in text
    assert "version 1 is bad, said the person: quarantined by a person" in text
    (run.snapshots / run.published[1].digest / "manifest.json").write_text("{}")
    assert f"snapshot {run.published[1].digest} is to serve, and is gone or damaged" in shown(manager)
    with pytest.raises(ConfigError, match="gone or damaged; unpin"):
        manager.roll_back()


def test_an_empty_store_is_said_to_be_empty_and_where_snapshots_should_be(run):
    shutil.rmtree(run.snapshots)
    assert shown(Manager(run)).strip().endswith(f"nothing published in {run.snapshots}")
    run.record("tuner")("snapshot", verdict="published", digest="a", version=1)
    assert "the run has published 1: were they removed" in shown(Manager(run)).replace("\n", " ")


def test_a_persons_quarantine_has_no_examples_and_evicts_none_of_the_gates(run, tmp_path):
    quarantine, facts = Quarantine(run.quarantine), {"parent_checkpoint": "step-1", "parent_tokens": 1, "measures": {}}
    for name in "pqr":
        (tmp_path / f"model-{name}").mkdir()
        quarantine.add(tmp_path / f"model-{name}", name, reasons=["poor"], examples=[{"seed": "s"}], **facts)
    Manager(run).quarantine("1")
    kept = {reason["digest"]: reason["by"] for reason in quarantine.list()}
    assert kept == {"p": "gate", "q": "gate", "r": "gate", run.published[0].digest: "person"}
    assert not (run.quarantine / run.published[0].digest / "examples.json").exists()
    assert (run.quarantine / "p" / "examples.json").exists()


@pytest.mark.parametrize("arguments", [("--pin", ""), ("--rollback", "--to", ""), ("--quarantine", "")])
def test_an_empty_name_is_no_snapshot(run, arguments):
    assert "snapshot '': expected a version" in refused(run, *arguments)
    assert SnapshotStore(run.snapshots).pointer().revision == 3


@pytest.mark.parametrize("url", ["foo://x", "gs://bucket/run", "FILE"])
def test_a_store_that_cannot_be_used_is_one_line_of_error(tiny_config, tmp_path, url):
    (tmp_path / "file").write_text("")
    url = url.replace("FILE", str(tmp_path / "file"))
    run = RunDir.open_or_create(tiny_config.model_copy(update={"snapshots": Snapshots(url=url)}))
    assert url in refused(run)

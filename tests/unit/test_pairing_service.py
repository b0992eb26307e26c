"""The pairer's service in this process, and one real signal to a real process."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from sbp_services import cli, pairer
from sbp_services.pairer import PairerService
from streaming_sbp import config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.experiment import plots
from streaming_sbp.files import read_json
from streaming_sbp.pairing.pairs import MadeFrom, PairTable
from streaming_sbp.rundir import RunDir


@pytest.fixture
def run(tiny_config):
    return RunDir.open_or_create(tiny_config)


@pytest.fixture(autouse=True)
def handlers():
    saved = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in saved.items():
        signal.signal(number, handler)


def serve(run):
    service = PairerService(run)
    try:
        return service.main(), service
    finally:
        service.health.close()


def changed(run, *overrides):
    tree = config.apply_overrides(run.config().model_dump(mode="json"), overrides)
    return RunDir.open_or_create(config.build(tree), accept_changes=True)


def pair_records(run):
    return [record for record in run.read_records("pairer") if record["event"] == "pairs"]


def test_it_makes_the_table_once_and_says_what_it_found(run):
    status, service = serve(run)
    assert status == 0
    digest = Dataset.open(run.config().data.dataset).manifest.digest
    table = PairTable.load(run.pairs, digest)
    role = read_json(run.roles / "pairer.json")
    num_paired = len(table.paired_documents())
    assert role["state"] == "done"
    assert role["detail"] == f"{len(table):,} pairs of {num_paired:,} documents"
    assert role["facts"] == {"num_pairs": len(table), "num_paired_documents": num_paired}
    assert service.metrics.value("sbp_pairs") == len(table) > 1000
    assert service.metrics.value("sbp_paired_documents") == num_paired
    record = pair_records(run)[0]
    assert (record["num_pairs"], record["num_paired_documents"]) == (len(table), num_paired)
    assert record["num_heldout_pairs"] == table.heldout.sum()
    assert record["seconds"] >= sum(record["seconds_by_phase"].values()) - 0.01
    statistics = read_json(run.pairs / "statistics.json")
    assert statistics["num_pairs"] == len(table)
    assert record["num_near_duplicate_documents"] == statistics["num_near_duplicate_documents"]
    if plots.AVAILABLE:
        assert (run.pairs / "similarity.png").read_bytes() == plots.similarity(statistics).png


def test_a_second_start_finds_the_table_and_leaves_it_alone(run):
    serve(run)
    before = (run.pairs / "pairs.parquet").stat()
    status, service = serve(run)
    after = (run.pairs / "pairs.parquet").stat()
    assert status == 0
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(pair_records(run)) == 1
    assert service.metrics.value("sbp_pairs") == pair_records(run)[0]["num_pairs"]
    assert read_json(run.roles / "pairer.json")["state"] == "done"


def test_changed_settings_are_named_and_pair_again(run, caplog):
    serve(run)
    run = changed(run, "pairing.max_targets_per_seed=1")
    serve(run)
    assert "max_targets_per_seed: 8 -> 1" in caplog.text
    assert [record["num_pairs"] for record in pair_records(run)][1] < pair_records(run)[0]["num_pairs"] / 4
    assert PairTable.load(run.pairs).made_from.settings["max_targets_per_seed"] == 1


def test_a_table_of_another_data_set_is_made_again(run, caplog):
    serve(run)
    table = PairTable.load(run.pairs)
    foreign = PairTable(table.seed, table.target, table.similarity, table.heldout, MadeFrom("other", {}))
    foreign.save(run.pairs, Dataset.open(run.config().data.dataset).split("train").ids, {})
    serve(run)
    assert "data set: other -> " in caplog.text
    assert PairTable.load(run.pairs).made_from == table.made_from


def test_a_damaged_table_is_made_again(run, caplog):
    serve(run)
    path = run.pairs / "pairs.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    status, _ = serve(run)
    assert status == 0
    assert "damaged pair table" in caplog.text
    assert len(PairTable.load(run.pairs)) == pair_records(run)[1]["num_pairs"]


def test_no_pairs_is_a_warning_with_the_largest_similarities_and_is_not_tried_again(run, caplog):
    run = changed(run, "pairing.threshold=0.999")
    status, _ = serve(run)
    assert status == 0
    largest = read_json(run.pairs / "statistics.json")["similarity"]["largest"]
    assert f"pairing.threshold = 0.999; the largest similarities found: {largest[0]:.3f}" in caplog.text
    assert 0.8 < largest[0] < 0.999
    assert len(PairTable.load(run.pairs)) == 0
    serve(run)
    assert len(pair_records(run)) == 1


def test_no_held_out_pairs_is_a_warning(run, caplog):
    serve(changed(run, "pairing.heldout_share=0.0"))
    assert "no pairs are held out: pairing.heldout_share is 0" in caplog.text


def test_more_pairs_wanted_than_there_are_is_a_warning_with_both_numbers(run, caplog):
    serve(changed(run, "pairing.pairs_per_document=1000"))
    statistics = read_json(run.pairs / "statistics.json")
    wanted, there = statistics["num_documents"] * 1000, statistics["num_pairs_to_choose_from"]
    assert f"asks for {wanted:,} pairs, and there are {there:,} above" in caplog.text
    assert "raise pairing.max_targets_per_seed = 8, or ask for fewer" in caplog.text


def test_a_wish_that_is_met_and_a_cut_that_can_be_had_are_no_warnings(run, caplog):
    serve(changed(run, "pairing.pairs_per_document=2"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_share_that_cannot_be_had_is_a_warning(run, caplog):
    serve(changed(run, "pairing.heldout_share=0.999"))
    assert "pairing.heldout_share = 0.999 cannot be had" in caplog.text


def test_an_embedder_that_cannot_be_found_ends_it_before_any_work(run):
    status, _ = serve(changed(run, "pairing.embedder=no/such/folder"))
    assert status == 2
    assert "no such folder" in read_json(run.roles / "pairer.json")["detail"]
    assert list(run.pairs.iterdir()) == []


def test_a_missing_data_set_leaves_no_run_directory(tmp_path, tiny_config):
    arguments = [f"run.dir={tmp_path / 'new'}", "pairing.embedder=tfidf"]
    missing = CliRunner().invoke(cli.app, ["pair", *arguments, f"data.dataset={tmp_path / 'missing'}"])
    assert "sbp ingest" in str(missing.exception)
    unknown = CliRunner().invoke(
        cli.app, ["pair", arguments[0], "pairing.embedder=no/such/folder", f"data.dataset={tiny_config.data.dataset}"]
    )
    assert "no such folder" in str(unknown.exception)
    assert not (tmp_path / "new").exists()


def test_an_embedder_that_cannot_be_used_is_a_bad_configuration(run, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    status, _ = serve(changed(run, "pairing.embedder=some/model"))
    assert status == 2
    assert "streaming-sbp[embed]" in read_json(run.roles / "pairer.json")["detail"]


def test_a_signal_in_the_middle_leaves_no_table(run, monkeypatch):
    reports = []
    service = PairerService(run)
    note = service._note

    def note_and_signal(progress):
        note(progress)
        reports.append(progress.phase)
        if progress.phase == "search":
            service._signals = 1

    monkeypatch.setattr(service, "_note", note_and_signal)
    assert service.main() == 0
    service.health.close()
    assert read_json(run.roles / "pairer.json")["state"] == "stopped"
    assert "copies" not in reports
    assert PairTable.load(run.pairs) is None
    assert list(run.pairs.iterdir()) == []


def test_progress_says_the_time_left(run, monkeypatch):
    service = PairerService(run)
    service.startup()
    now = [100.0]
    monkeypatch.setattr(pairer.time, "monotonic", lambda: now[0])
    service._note(pairer.PairingProgress("search", 0, 4000, "documents"))
    now[0] += 3.0
    service._note(pairer.PairingProgress("search", 1000, 4000, "documents"))
    assert service._detail == "search: 9.0 s left"
    assert service._progress == {"done": 1000, "total": 4000, "unit": "documents"}
    service.health.close()


@pytest.mark.processes
def test_the_process_stops_at_sigterm(run):
    """A real process that would pair for long, and a real signal."""
    script = (
        "import sys, time; from sbp_services import pairer; from streaming_sbp.pairing import find; "
        "from streaming_sbp.rundir import RunDir; search = find.nearest; "
        "find.nearest = lambda *a, **k: (time.sleep(0.05) or b for _ in range(2000) for b in search(*a, **k)); "
        f"sys.exit(pairer.main(RunDir({str(run.path)!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and "search" not in (read_json(run.roles / "pairer.json") or {}).get("detail", ""):
            time.sleep(0.05)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - started < 5
    finally:
        process.kill()
        process.wait()
    assert json.loads((run.roles / "pairer.json").read_text())["state"] == "stopped"
    assert PairTable.load(run.pairs) is None


@pytest.fixture(autouse=True)
def log_level(caplog):
    caplog.set_level(logging.INFO, logger="sbp")


def test_the_embedder_self_waits_for_a_checkpoint_and_names_it(run):
    service = PairerService(changed(run, "pairing.embedder=self"))
    service.startup()
    service._signals = 1  # so that it does not sleep
    assert service.tick()
    assert (service._state, service._detail) == ("waiting", "for the first checkpoint, to embed with")
    assert PairTable.load(run.pairs) is None
    service.health.close()

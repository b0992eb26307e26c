"""The quality table of a run, from the records that a tuner writes."""

import json

import pytest
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp.experiment import quality, report
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.catalogue import GATE_MEASURES
from tests.unit.run_records import RecordWriter
from tests.unit.test_experiment_report import Page

MEASURES = {
    "repetitive_share": 0.043,
    "real_repetitive_share": 0.018,
    "unrelated_share": 0.25,
    "real_unrelated_share": 0.03,
    "mean_tokens": 96.4,
    "mean_log_prob": -2.5,
}


@pytest.fixture
def run(tiny_config):
    return RunDir.open_or_create(tiny_config)


def write(run, *candidates):
    writer = RecordWriter(run, "tuner")
    for number, (verdict, measures) in enumerate(candidates):
        fields = {"verdict": verdict, "digest": f"digest{number}", "version": number, "parent_tokens": 1000 * number}
        writer(float(number), "snapshot", **fields, measures=measures, reasons=[])


def test_every_row_is_a_measure_of_the_gate():
    assert {row.measure for row in quality.ROWS} <= set(GATE_MEASURES)
    assert {f"real_{row.measure}" for row in quality.ROWS} - set(GATE_MEASURES) == {"real_mean_log_prob"}


def test_the_first_and_the_last_published_snapshot_beside_real_text(run):
    later = MEASURES | {"repetitive_share": 0.026, "non_factual_share": 0.065, "real_non_factual_share": 0.0}
    write(
        run,
        ("quarantined", {"repetitive_share": 0.9}),
        ("published", MEASURES),
        ("published", {"repetitive_share": 0.5}),
        ("published", later),
        ("quarantined", {"repetitive_share": 0.8}),
    )
    found = quality.quality(run)
    assert [snapshot["version"] for snapshot in found["snapshots"]] == [1, 3]
    assert {row["measure"]: (*row["values"], row["real"]) for row in found["rows"]} == {
        "repetitive_share": (0.043, 0.026, 0.018),
        "non_factual_share": (None, 0.065, 0.0),
        "unrelated_share": (0.25, 0.25, 0.03),
        "mean_tokens": (96.4, 96.4, None),
        "mean_log_prob": (-2.5, -2.5, None),
    }
    done = CliRunner().invoke(app, ["snapshots", str(run.path), "--quality", "--json"])
    assert json.loads(done.stdout) == found
    done = CliRunner().invoke(app, ["snapshots", str(run.path), "--quality"])
    assert "documents that repeat themselves" in done.stdout
    assert "2.6 %" in done.stdout
    table = Page(report.build(run)).table("measure", "real text")
    assert table[:2] == [
        ["measure", "v1 at 1.00k", "v3 at 3.00k", "real text"],
        ["documents that repeat themselves", "4.3 %", "2.6 %", "1.8 %"],
    ]
    assert ["log-likelihood, nats per token", "-2.50", "-2.50", "\u2013"] in table


def test_a_run_with_one_snapshot_and_one_with_none(run):
    assert quality.quality(run)["rows"] == []
    assert "no snapshot" in CliRunner().invoke(app, ["snapshots", str(run.path), "--quality"]).stdout
    write(run, ("published", MEASURES))
    assert quality.quality(run)["rows"][0]["values"] == [0.043]

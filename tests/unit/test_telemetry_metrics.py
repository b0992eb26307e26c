"""What a process exports is what the catalogue says, no more and no less."""

import math
import shutil
import subprocess
from itertools import product

import pytest
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from streaming_sbp.telemetry.catalogue import BY_NAME, CATALOGUE, EVERY_ROLE, OWN
from streaming_sbp.telemetry.metrics import Metrics, Totals

every_role = pytest.mark.parametrize("role", EVERY_ROLE)


def exported(metrics):
    """OpenMetrics, as Prometheus reads it: family -> (type, unit, samples)."""
    text = generate_latest(metrics.registry).decode()
    return {f.name: (f.type, f.unit, f.samples) for f in text_string_to_metric_families(text)}


def family(metric):
    return metric.name.removesuffix("_total") if metric.type == "counter" else metric.name


@every_role
def test_a_process_exports_what_the_catalogue_says_of_its_role(role):
    families = exported(Metrics(role))
    known = {family(metric): metric for metric in CATALOGUE if role in metric.roles}
    assert set(families) <= set(known)
    assert {name for name, metric in known.items() if not metric.optional} <= set(families)
    for name, (type_, unit, _) in families.items():
        assert type_ == known[name].type
        assert unit in ("", known[name].unit)


@every_role
def test_every_labelled_series_is_there_as_0_from_the_start_and_there_is_no_created(role):
    families = exported(Metrics(role))
    for metric in OWN:
        if role not in metric.roles or metric.optional:
            continue
        samples = families[family(metric)][2]
        assert not [sample.name for sample in samples if sample.name.endswith("_created")]
        assert {sample.value for sample in samples} == {0.0}
        names = [label for label, _ in metric.labels]
        if metric.type != "histogram":
            expected = set(product(*(values for _, values in metric.labels)))
            assert {tuple(sample.labels[name] for name in names) for sample in samples} == expected


def test_what_is_not_in_the_catalogue_cannot_be_exported():
    metrics = Metrics("trainer")
    for call in (metrics.inc, metrics.set, metrics.observe):
        with pytest.raises(KeyError):
            call("sbp_imagined_total", 1)
    with pytest.raises(KeyError):
        metrics.inc("sbp_generated_tokens_total")  # another role's
    with pytest.raises(ValueError, match="expected one of"):
        metrics.inc("sbp_trained_tokens_total", 1, source="imagined")


def test_an_optional_metric_is_absent_until_it_is_set():
    metrics = Metrics("trainer")
    assert "sbp_peak_flops_per_second" not in exported(metrics)
    metrics.set("sbp_peak_flops_per_second", 2e12)
    metrics.set("sbp_peak_flops_per_second", 1e12)
    assert exported(metrics)["sbp_peak_flops_per_second"][2][0].value == 1e12


def test_names_units_and_buckets_follow_the_rules():
    assert len(BY_NAME) == len(CATALOGUE)
    for metric in CATALOGUE:
        assert (metric.type == "counter") == metric.name.endswith("_total"), metric.name
        assert (metric.type == "histogram") == bool(metric.buckets), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name
        assert metric.help, metric.name
        assert metric.panel.count("/") == 1, metric.name
        assert set(metric.roles) <= set(EVERY_ROLE), metric.name
        for unit in ("seconds", "bytes"):
            if metric.unit == unit:
                assert metric.name.removesuffix("_total").endswith(f"_{unit}"), metric.name
        series = math.prod(len(values) for _, values in metric.labels)
        assert series <= 60, metric.name
    assert all(metric.name.startswith("sbp_") for metric in OWN)


def test_totals_bring_a_counter_up_and_never_down():
    metrics = Metrics("trainer")
    count = Totals(metrics)
    for total in (5, 5, 8):
        count("sbp_trained_tokens_total", total, source="real")
    assert metrics.value("sbp_trained_tokens_total", source="real") == 8
    assert metrics.value("sbp_trained_tokens_total", source="synthetic") == 0


def test_totals_do_not_count_what_they_begin_at():
    metrics = Metrics("trainer")
    count = Totals(metrics)
    count.begin_at("sbp_trained_tokens_total", 1_000_000, source="real")
    count("sbp_trained_tokens_total", 1_000_300, source="real")
    assert metrics.value("sbp_trained_tokens_total", source="real") == 300


@every_role
@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool comes with Prometheus")
def test_promtool_finds_nothing_to_say(role):
    from prometheus_client import generate_latest as plain

    metrics = Metrics(role)
    checked = subprocess.run(["promtool", "check", "metrics"], input=plain(metrics.registry), capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")

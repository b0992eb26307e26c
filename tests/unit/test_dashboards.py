"""Dashboards, rules and documents are what their sources say, and name only metrics and labels that exist."""

import json
import math
import re
import shutil
import subprocess
import time
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="comes with the extra `dev`")

from dashboards.__main__ import as_yaml, made
from dashboards.grafana import ANNOTATIONS
from dashboards.panels import BOARDS
from dashboards.rules import ALERTS, RECORDING, _case, rule_tests, rules
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry import targets
from streaming_sbp.telemetry.catalogue import BY_NAME, CATALOGUE
from streaming_sbp.telemetry.health import HealthServer
from streaming_sbp.telemetry.metrics import Metrics
from tests.checks.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "dashboards" / "grafana").glob("*.json"))
TARGET_LABELS = {"run", "role", "name", "instance", "job"}
OF_PROMETHEUS = {"up", "ALERTS", "scrape_duration_seconds", "scrape_samples_scraped"}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool comes with Prometheus")


def selectors(expr):
    """(metric, label matchers) of each selector in a query."""
    names = r"\b(?:sbp_\w+|process_\w+|up|ALERTS|scrape_\w+)\b"
    return re.findall(rf"({names})(\{{[^}}]*\}})?", re.sub(r"\bsbp:[\w:]+", "", expr))


def metric_of(name):
    """The catalogue's metric behind the name of a series; None for Prometheus' own."""
    if name in OF_PROMETHEUS:
        return None
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return BY_NAME[name] if name in BY_NAME else BY_NAME[base]


def problems_with(expr):
    found = []
    for name, matchers in selectors(expr):
        try:
            metric = metric_of(name)
        except KeyError:
            found.append(f"no metric {name}")
            continue
        known = dict(metric.labels) if metric else {"alertstate": ("firing",)}
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"', matchers):
            if label in TARGET_LABELS:
                continue
            if label not in known:
                found.append(f"{name} has no label {label}")
            elif operator == "=~":
                if not any(re.fullmatch(value, one) for one in known[label]):
                    found.append(f"{name}: no {label} matches {value}")
                if not value.endswith("*"):
                    found += [f"{name}: no {label} {one}" for one in value.split("|") if one not in known[label]]
            elif value not in known[label]:
                found.append(f"{name}: no {label} {value}")
    return found


def queries():
    for board in BOARDS:
        for panel in board.panels:
            yield from (expr for expr, _ in panel.queries)
    yield from (expr for _, expr, _ in ANNOTATIONS)
    yield from (expr for expr, _ in RECORDING.values())
    yield from (alert.expr for alert in ALERTS)


@pytest.mark.parametrize("path", sorted(made()))
def test_what_is_committed_is_what_make_dashboards_writes(path):
    assert (ROOT / path).read_text(encoding="utf-8") == made()[path]


def test_nothing_else_lies_beside():
    assert {str(path.relative_to(ROOT)) for path in FILES} == {name for name in made() if name.endswith(".json")}


def test_queries_name_metrics_and_values_of_the_catalogue():
    assert [problem for expr in queries() for problem in problems_with(expr)] == []
    recorded = {name for expr in queries() for name in re.findall(r"\bsbp:[\w:]+", expr)}
    assert recorded <= set(RECORDING)


def test_wrong_names_in_queries_are_found():
    assert problems_with('sbp_trained_token_total{R, source="real"}') == ["no metric sbp_trained_token_total"]
    assert problems_with('sbp_train_loss{R, source="reel"}') == ["sbp_train_loss: no source reel"]
    assert problems_with('sbp_train_loss{phase="real"}') == ["sbp_train_loss has no label phase"]
    assert problems_with('sbp_gate_measure{measure=~"pair_loss|par_loss"}') == ["sbp_gate_measure: no measure par_loss"]
    assert problems_with("histogram_quantile(0.5, sbp_staleness_tokens_bucket{R})") == []


def test_every_metric_is_on_the_panel_that_the_catalogue_names():
    shown = {f"{board.name}/{panel.title}": panel for board in BOARDS for panel in board.panels}
    for metric in CATALOGUE:
        assert metric.panel in shown, metric.name
        named = [name for expr, _ in shown[metric.panel].queries for name, _ in selectors(expr)]
        assert metric.name in [metric_of(name).name for name in named if metric_of(name)], metric.name


def test_alerts_look_at_the_metrics_of_which_the_catalogue_says_so():
    said = {(metric.name, alert) for metric in CATALOGUE for alert in metric.alerts}
    looked_at = set()
    for alert in ALERTS:
        expr = alert.expr
        for name, (recorded, _) in RECORDING.items():
            expr = expr.replace(name, recorded)
        looked_at |= {(metric_of(name).name, alert.name) for name, _ in selectors(expr) if metric_of(name)}
    assert looked_at == said
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)


def test_every_alert_keeps_the_label_run():
    for alert in ALERTS:
        groups = re.findall(r"\b(?:by|on) \(([^)]*)\)", alert.expr)
        assert groups, alert.name
        assert all("run" in [label.strip() for label in group.split(",")] for group in groups), alert.name


@each_file
def test_ids_and_positions_descriptions_data_source_and_run(path):
    board = json.loads(path.read_text())
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    assert 0 not in ids
    cells = [set(product(range(p["x"], p["x"] + p["w"]), range(p["y"], p["y"] + p["h"]))) for p in places(panels)]
    assert all(not a & b for a, b in combinations(cells, 2))
    assert all(p["x"] + p["w"] <= 24 for p in places(panels))
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "run"]
    assert board["links"]
    assert {annotation["name"] for annotation in board["annotations"]["list"]} == {name for name, _, _ in ANNOTATIONS}
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert len(panel["description"]) > 8, panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert '{run="$run"' in target["expr"] or "{R" in target["expr"], target["expr"]


def places(panels):
    return [panel["gridPos"] for panel in panels]


def test_titles_are_distinct_within_a_dashboard():
    for board in BOARDS:
        titles = [panel.title for panel in board.panels]
        assert len(set(titles)) == len(titles)


@promtool
def test_promtool_accepts_rules_and_example_and_their_cases_pass():
    folder = ROOT / "dashboards"
    for arguments in (["check", "rules", "rules.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(["promtool", "test", "rules", "tests/alerts.yml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Prometheus")
def test_the_prometheus_of_the_check_tells_data_from_an_empty_success(tiny_config, tmp_path):
    run, metrics = RunDir.open_or_create(tiny_config), Metrics("trainer")
    server = HealthServer(metrics.registry, str, str, "127.0.0.1")
    metrics.set("sbp_train_loss", math.nan, source="real")
    targets.announce(run, "trainer", "trainer", "127.0.0.1", server.port)
    with Prometheus(tmp_path, [run.path], rules()) as prometheus:
        end = time.monotonic() + 30
        while not prometheus.query("sbp_steps_total") and time.monotonic() < end:
            time.sleep(0.2)
        (series,) = prometheus.query("sbp_steps_total")
        labels = {"run": "run", "role": "trainer", "name": "trainer", "instance": "run/trainer"}
        assert labels.items() <= series["metric"].items()
        assert prometheus.query("sbp_step_total") == []
        assert prometheus.query('sbp_train_loss{source="real"}') == []  # not a number
        assert prometheus.value('sbp_train_loss{source="synthetic"}') == 0
        assert ("sbp_steps_total", "trainer") in prometheus.exported()
        with pytest.raises(ValueError, match="parse error"):
            prometheus.query("sbp_steps_total{")
    server.close()


@promtool
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_the_cases_of_each_alert_can_fail(alert, tmp_path):
    """With the two cases exchanged, promtool must find fault."""
    swapped = replace(alert, fires=alert.quiet, quiet=alert.fires)
    (tmp_path / "rules.yml").write_text(as_yaml(rules()))
    content = rule_tests("rules.yml")
    content["tests"] = [_case(swapped, swapped.fires, True), _case(swapped, swapped.quiet, False)]
    (tmp_path / "test.yml").write_text(as_yaml(content))
    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout.count(f"alertname: {alert.name}") + done.stderr.count(f"alertname: {alert.name}") == 2

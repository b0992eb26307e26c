"""Panels -> Grafana JSON. The SDK leaves ids out and positions only rows whose width is 24: both are done here."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

from dashboards.panels.base import Board, Panel, resolved

TAG = "streaming-sbp"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
SWAPS = "sum(increase(sbp_snapshot_swaps_total{R}[$__rate_interval])) > 0"
ROLLBACKS = 'max(delta(sbp_snapshot_version{R, role="trainer"}[$__rate_interval])) < 0'
ANNOTATIONS = (("Snapshot swaps", SWAPS, "blue"), ("Rollbacks of snapshots", ROLLBACKS, "red"))
GRID_WIDTH = 24


def board_json(board: Board) -> str:
    builder = (
        dashboard.Dashboard(board.title)
        .uid(f"sbp-{board.name}")
        .description(board.description)
        .tags([TAG])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-3h", "now")
        .refresh("10s")
        .editable()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_run_variable())
        .link(_links())
    )
    for name, expr, colour in ANNOTATIONS:
        builder.annotation(
            dashboard.AnnotationQuery()
            .name(name)
            .datasource(SOURCE)
            .enable(True)
            .icon_color(colour)
            .expr(resolved(expr))
        )
    built = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    built["panels"] = _placed(board)
    return json.dumps(built, indent=1, sort_keys=True) + "\n"


def _run_variable() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("run")
        .label("Run")
        .datasource(SOURCE)
        .query('label_values(up{role!="", run!=""}, run)')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _links() -> dashboard.DashboardLink:
    """To the other dashboards, with the same run and time."""
    return (
        dashboard.DashboardLink("Streaming SBP")
        .type(DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )


def _placed(board: Board) -> list[dict[str, Any]]:
    """Rows and panels with their ids and positions, left to right."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row in board.rows:
        title = dashboard.Row(row.title).id(len(placed) + 1).grid_pos(GridPos(h=1, w=GRID_WIDTH, x=0, y=y))
        placed.append(_as_json(title))
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > GRID_WIDTH:
                x, y, height = 0, y + height, 0
            position = GridPos(h=panel.height, w=panel.width, x=x, y=y)
            placed.append(_as_json(_panel(panel).id(len(placed) + 1).grid_pos(position)))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _as_json(builder: Any) -> dict[str, Any]:
    built: dict[str, Any] = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    return built


def _panel(panel: Panel) -> Any:
    builder = _stat() if panel.kind == "stat" else _timeseries()
    builder.title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE)
    steps = [Threshold(value=value, color=colour) for value, colour in ((None, "green"), *panel.thresholds)]
    builder.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.minimum is not None:
        builder.min(panel.minimum)
    if panel.maximum is not None:
        builder.max(panel.maximum)
    if panel.decimals is not None:
        builder.decimals(panel.decimals)
    if panel.no_value:
        builder.no_value(panel.no_value)
    for number, (expr, legend) in enumerate(panel.queries):
        builder.with_target(
            prometheus.Dataquery()
            .expr(resolved(expr))
            .legend_format(legend or "__auto")
            .ref_id(chr(ord("A") + number))
            .datasource(SOURCE)
        )
    return builder


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .color_mode(common_models.BigValueColorMode.BACKGROUND)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _timeseries() -> timeseries.Panel:
    return (
        timeseries.Panel()
        .line_width(2)
        .fill_opacity(5)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
        )
    )

"""What a panel is, before it is Grafana's."""

from __future__ import annotations

from dataclasses import dataclass, field

RUN = 'run="$run"'  # the dashboards' variable; in queries, `{R}` and `{R, ...}` stand for it


@dataclass(frozen=True)
class Panel:
    """``queries``: (PromQL, legend). ``thresholds``: (from this value on, colour) above green. Width of a row: 24."""

    title: str
    description: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"  # Grafana's name
    kind: str = "timeseries"  # timeseries | stat
    width: int = 8
    height: int = 7
    thresholds: tuple[tuple[float, str], ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    no_value: str = ""


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    name: str
    title: str
    description: str
    rows: tuple[Row, ...] = field(default_factory=tuple)

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


def resolved(expr: str) -> str:
    return " ".join(expr.replace("{R", "{" + RUN).split())


def graph(title: str, description: str, *queries: tuple[str, str], **more: object) -> Panel:
    return Panel(title, description, queries, **more)  # type: ignore[arg-type]


def stat(title: str, description: str, query: str, **more: object) -> Panel:
    options: dict[str, object] = {"width": 4, "height": 4} | more
    return Panel(title, description, ((query, ""),), kind="stat", **options)  # type: ignore[arg-type]


def quantiles(metric: str, prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Median and 99th percentile of what a histogram observed in the last hour."""
    return tuple(
        (f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{R}}[1h])))", f"{prefix}{name}")
        for q, name in ((0.5, "median"), (0.99, "99 %"))
    )

"""docs/metrics.md from the catalogue, docs/runbook.md from the alerts."""

from __future__ import annotations

from dashboards.panels import BOARDS
from dashboards.rules import ALERTS, RECORDING
from streaming_sbp.telemetry.catalogue import CATALOGUE, EVERY_ROLE, GROUPS, Metric

MADE_BY = "<!-- made by `make dashboards`; change {} -->\n"
SEVERITIES = {
    "critical": "a person, now",
    "warning": "a person, today",
    "info": "worth knowing",
}


def metrics_page() -> str:
    parts = [MADE_BY.format("streaming_sbp/telemetry/catalogue.py"), _METRICS_INTRO]
    parts += ["## Dashboards\n", "\n".join(f"- **{b.name}**: {b.description}" for b in BOARDS), "\n"]
    for title, metrics in GROUPS.items():
        parts += [
            f"\n## {title}\n",
            "| metric | type, unit | labels | role | panel | alerts | meaning |\n|---|---|---|---|---|---|---|",
        ]
        parts += [_row(metric) for metric in metrics]
    parts += ["\n## Values of labels\n", "| label | of | values |\n|---|---|---|", *_label_rows()]
    parts += ["\n## Recording rules\n", "| name | what it is | expression |\n|---|---|---|"]
    parts += [f"| `{name}` | {what} | `{expr}` |" for name, (expr, what) in RECORDING.items()]
    return "\n".join(parts) + "\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label, _ in metric.labels)
    roles = "every role" if metric.roles == EVERY_ROLE else ", ".join(metric.roles)
    alerts = ", ".join(f"[{name}](runbook.md#{name.lower()})" for name in metric.alerts)
    kind = f"{metric.type}, {metric.unit}" if metric.unit else metric.type
    buckets = f"; buckets {', '.join(f'{bound:g}' for bound in metric.buckets)}" if metric.buckets else ""
    absent = "; absent where it is not known" if metric.optional else ""
    return f"| `{metric.name}` | {kind} | {labels} | {roles} | {metric.panel} | {alerts} | {metric.help}{buckets}{absent} |"


def _label_rows() -> list[str]:
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for metric in CATALOGUE:
        for label, values in metric.labels:
            rows.setdefault((label, values), []).append(metric.name)
    return [
        f"| `{label}` | {', '.join(f'`{name}`' for name in names)} | {', '.join(f'`{value}`' for value in values)} |"
        for (label, values), names in rows.items()
    ]


def runbook_page() -> str:
    parts = [MADE_BY.format("dashboards/rules.py"), _RUNBOOK_INTRO]
    for severity, reaction in SEVERITIES.items():
        names = [f"[{a.name}](#{a.name.lower()})" for a in ALERTS if a.severity == severity]
        parts.append(f"- **{severity}** ({reaction}): {', '.join(names)}")
    for alert in ALERTS:
        feeds = [f"`{metric.name}`" for metric in CATALOGUE if alert.name in metric.alerts]
        parts += [
            f"\n## {alert.name}\n",
            f"*{alert.severity}*, after {alert.for_}: `{alert.expr}`\n",
            f"**What it means.** {alert.means}\n",
            "**What to look at.**\n" + "\n".join(f"- {text}" for text in alert.look) + "\n",
            "**What to do.**\n" + "\n".join(f"- {text}" for text in alert.do),
        ]
        if feeds:
            parts.append(f"\n[Metrics](metrics.md): {', '.join(feeds)}")
    return "\n".join(parts) + "\n"


_METRICS_INTRO = """# Metrics

Every process serves OpenMetrics at `/metrics`, on a port of its own (0 by default: a free one). It announces the port in `RUN/prometheus/NAME.json`,
a file for Prometheus' `file_sd`, with the labels `run` (name of the run directory), `role` and `name`. `dashboards/prometheus.yml` is an example:

```
prometheus --config.file=dashboards/prometheus.yml
```

Import `dashboards/grafana/*.json` into Grafana; data source and run are variables. `dashboards/rules.yml` has the alerts; [the runbook](runbook.md) says
what each means and what to do. Series of every labelled metric are there as 0 from the start, and labels have closed lists of values, so their number is fixed. A process that ends as it should
takes its file away; one that failed or was killed leaves it, so that Prometheus sees it down.

**Utilisation** (MFU) is `rate(sbp_model_flops_total)` over `sbp_peak_flops_per_second`. A token takes `6 N + 12 L d T` FLOPs (PaLM, Chowdhery et al., 2022, appendix B; `N`
parameters but for an untied input embedding, `L` layers, `d` heads times their width, `T` = `training.sequence_tokens`). Packed documents do not see each other, so they need less than `12 L d T`, and
the figure is a little too high. The peak is not measured: `telemetry.peak_flops` says it for one rank, or there is no such series.
"""

_RUNBOOK_INTRO = """# Runbook

What each alert of `dashboards/rules.yml` means, what to look at, what to do. The thresholds are starting points. `RUN` is the run directory, `NAME` a process
(`trainer`, `generator-0`), `PID` its process id (`sbp status RUN --json`). Killing any process is safe at any time: nothing is trained twice or lost silently.
"""

"""A run watched by a real Prometheus for some minutes: time of scrapes, number of series, alerts.

    python -m benchmarks.watched MINUTES [RUN]

Without RUN, a run of a tiny model is made for it. Ends in one JSON line. ``scrape_p99_ms``: of all scrapes of each
process, one a second. ``up``: the smallest share of scrapes that a process answered. ``fired``: alerts, with the rules
as they are shipped.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dashboards.rules import rules
from tests.checks import runs
from tests.checks.chaos import trained_synthetic
from tests.checks.prometheus import Prometheus

LOOK_EVERY_S = 5.0


def watch(prometheus: Prometheus, run: str, minutes: float) -> dict[str, Any]:
    """``run``: the name of its directory."""
    end, fired = time.monotonic() + 60 * minutes, set()
    while time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)
        fired |= prometheus.firing()
    window = f'{{run="{run}"}}[{round(60 * minutes)}s]'
    in_ms = {name: f"1000 * quantile_over_time({q}, scrape_duration_seconds{window})" for name, q in QUANTILES.items()}
    by_process = {name: by_name(prometheus, expr) for name, expr in in_ms.items()}
    return {
        "minutes": minutes,
        **by_process,
        "series": by_name(prometheus, f"max_over_time(scrape_samples_scraped{window})"),
        "up": min(by_name(prometheus, f"avg_over_time(up{window})").values()),
        "prometheus_series": prometheus.value(f'count({{run="{run}"}})'),
        "fired": sorted(name for name, _ in fired),
    }


QUANTILES = {"scrape_p50_ms": 0.5, "scrape_p99_ms": 0.99}


def by_name(prometheus: Prometheus, expr: str) -> dict[str, float]:
    """Largest value by process."""
    series = prometheus.query(f"max by (name) ({expr})")
    return {s["metric"]["name"]: round(float(s["value"][1]), 3) for s in series}


def main() -> None:
    minutes = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if len(sys.argv) > 2:
            watched = Path(sys.argv[2]).resolve()
            with Prometheus(folder, [watched], rules()) as prometheus:
                result = watch(prometheus, watched.name, minutes)
        else:
            result = watch_own(folder, minutes)
    print(json.dumps(result), flush=True)


def watch_own(folder: Path, minutes: float) -> dict[str, Any]:
    runs.prepare(folder)
    run = runs.make_run(folder, "watched")
    process = runs.spawn(folder / "run.log", "-m", "sbp_services", "run", *runs.settings(folder, "watched"))
    try:
        runs.wait_for("synthetic documents are trained", lambda: trained_synthetic(run) > 500, process)
        with Prometheus(folder, [run.path], rules()) as prometheus:
            return watch(prometheus, "watched", minutes)
    finally:
        runs.end(process, 15)


if __name__ == "__main__":
    main()

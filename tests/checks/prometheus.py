"""A real Prometheus on loopback, for checks: `with Prometheus(folder, runs, rules) as prometheus`."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

READY_WITHIN_S = 30.0
SCRAPE_EVERY_S = 1.0


class Prometheus:
    """Reads every process that the runs announce, once a second. Raises RuntimeError where there is no Prometheus."""

    def __init__(self, folder: Path, runs: list[Path], rules: dict[str, Any] | None = None):
        if not shutil.which("prometheus"):
            raise RuntimeError("no `prometheus` on this machine; on Debian: apt-get install prometheus")
        self._folder, self._runs, self._rules = folder / "prometheus", runs, rules
        self._port = _free_port()

    def __enter__(self) -> Prometheus:
        self._folder.mkdir()
        every = f"{SCRAPE_EVERY_S:g}s"
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {
                    "job_name": "streaming-sbp",
                    "file_sd_configs": [{"files": [f"{run}/prometheus/*.json" for run in self._runs]}],
                    "relabel_configs": [
                        {"source_labels": ["run", "name"], "separator": "/", "target_label": "instance"}
                    ],
                }
            ],
        }
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (self._folder / "rules.yml").write_text(yaml.safe_dump(self._rules or {"groups": []}))
        with open(self._folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + READY_WITHIN_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"prometheus did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query, now, but those that are not a number. Raises ValueError for wrong PromQL."""
        found = self._get("query", query=expr)
        result = [found["result"]] if found["resultType"] == "scalar" else found["result"]
        values = [(series, series["value"] if isinstance(series, dict) else series) for series in result]
        return [series for series, value in values if not math.isnan(float(value[1]))]

    def value(self, expr: str) -> float:
        """Of a query with one series."""
        (series,) = self.query(expr)
        return float(series["value"][1])

    def firing(self) -> set[tuple[str, str]]:
        """(alert, run) of those that fire now."""
        series = self.query('ALERTS{alertstate="firing"}')
        return {(s["metric"]["alertname"], s["metric"].get("run", "")) for s in series}

    def exported(self) -> set[tuple[str, str]]:
        """(name of a series, role) of everything that was ever scraped."""
        series = self._get("series", **{"match[]": '{role!=""}'})
        return {(s["__name__"], s["role"]) for s in series}

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {error.read().decode()}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""The metrics of one process: a registry of its own, every labelled series present as 0 from the start.

What is not in the catalogue (`catalogue.py`) cannot be exported.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from streaming_sbp.telemetry.catalogue import BY_NAME, OWN, Metric

disable_created_metrics()

_TYPES: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Metrics:
    """``role`` is one of `catalogue.EVERY_ROLE`. Raises KeyError for a metric that this role does not export."""

    def __init__(self, role: str):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU, open files
        self._metrics: dict[str, Any] = {}
        self._optional: dict[str, Metric] = {}
        for metric in OWN:
            if role in metric.roles:
                if metric.optional:
                    self._optional[metric.name] = metric
                else:
                    self._metrics[metric.name] = self._make(metric)

    def inc(self, name: str, amount: float = 1, **labels: str) -> None:
        self._series(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._series(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._series(name, labels).observe(value)

    def value(self, name: str, **labels: str) -> float:
        """The current value of a counter or gauge."""
        suffix = "" if name.endswith("_total") or BY_NAME[name].type != "counter" else "_total"
        return self.registry.get_sample_value(name + suffix, labels) or 0.0

    def _make(self, metric: Metric) -> Any:
        options: dict[str, Any] = {"buckets": metric.buckets} if metric.type == "histogram" else {}
        if metric.name.removesuffix("_total").endswith(f"_{metric.unit}"):
            options["unit"] = metric.unit  # OpenMetrics has a unit only where the name ends in it
        help_ = f"{metric.help} ({metric.unit})" if metric.unit else metric.help
        made = _TYPES[metric.type](
            metric.name, help_, [label for label, _ in metric.labels], registry=self.registry, **options
        )
        if metric.labels:
            for values in product(*(values for _, values in metric.labels)):
                made.labels(*values)
        return made

    def _series(self, name: str, labels: dict[str, str]) -> Any:
        if name in self._optional:
            self._metrics[name] = self._make(self._optional.pop(name))
        metric = self._metrics[name]
        known = dict(BY_NAME[name].labels)
        for label, value in labels.items():
            if value not in known[label]:
                raise ValueError(f"{name}: label {label} = {value!r}: expected one of {known[label]}")
        return metric.labels(**labels) if labels else metric


class Totals:
    """Brings counters up to totals that one reporter keeps elsewhere, from 0 on, or from where `begin_at` says.

    A counter tells what its process has done. What a checkpoint restored is not among it: Prometheus would take the
    jump from 0 for work of the last seconds.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._told: dict[tuple[Any, ...], float] = {}

    def begin_at(self, name: str, total: float, **labels: str) -> None:
        self._told[name, *sorted(labels.items())] = total

    def __call__(self, name: str, total: float, **labels: str) -> None:
        key = (name, *sorted(labels.items()))
        if more := total - self._told.get(key, 0.0):
            self._metrics.inc(name, more, **labels)
            self._told[key] = total

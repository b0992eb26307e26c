"""What every process of a run has in common: startup, tick, bounded shutdown.

A service subclasses ``Service`` and writes ``startup()``, ``tick()`` and ``shutdown()``. Signal handlers only set a
flag; the loop looks at it. The first SIGTERM or SIGINT stops after the current tick, the second one at once.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import time
from types import FrameType
from typing import Any

import psutil

from streaming_sbp.config import ConfigError
from streaming_sbp.files import write_json
from streaming_sbp.rundir import RunDir, lock_role
from streaming_sbp.stream.messages import StreamRefused
from streaming_sbp.telemetry import targets
from streaming_sbp.telemetry.health import HealthServer
from streaming_sbp.telemetry.metrics import Metrics

# What torch compiles for bf16 on a CPU, one kernel for each shape, and keeps: 1,024 by default, which take over 600 MiB
# in a generator, whose shapes change at every step. Keeping few costs no time (docs/performance.md).
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS_KEPT = 64
SAY_EVERY_S = 10.0
log = logging.getLogger("sbp")


class Service:
    """One process of a run.

    Attributes: ``run`` (RunDir), ``config``, ``metrics``, ``record`` (appends to RUN/records/NAME.jsonl),
    ``stopping`` (True once a signal came or the parent died). ``tick`` returns False when the work is done.
    """

    role = "service"

    def __init__(self, run: RunDir, name: str | None = None, metrics_port: int = 0):
        self.run = run
        self.name = name or self.role
        self.config = run.config()
        self.metrics = Metrics(self.role)
        self.record = run.record(self.name)
        self.started = psutil.Process().create_time()
        self._signals = 0
        self._parent_pid = int(os.environ.get("SBP_PARENT_PID", "0"))
        self._state, self._detail = "starting", "loading the program"
        self._progress: dict[str, Any] | None = None
        self._facts: dict[str, Any] = {}
        self._store_problem = ""
        self._last_status = self._last_said = 0.0
        self._last_tick = time.monotonic()
        self.health = HealthServer(
            self.metrics.registry, self._healthy, self._ready, self.config.telemetry.host, metrics_port
        )

    # --- what a service writes ---

    def startup(self) -> None: ...

    def tick(self) -> bool:
        raise NotImplementedError

    def shutdown(self) -> None: ...

    def abort(self) -> None:
        """A second signal came: end what would outlive this process, now."""

    # --- what it may use ---

    @property
    def stopping(self) -> bool:
        if self._parent_pid and os.getppid() != self._parent_pid:
            return True  # the supervisor is gone: nobody is left to restart or stop us
        return self._signals > 0

    @property
    def supervised(self) -> bool:
        return bool(self._parent_pid)

    def report(
        self, state: str, detail: str = "", progress: tuple[float, float, str] | None = None, **facts: Any
    ) -> None:
        """Say what the process does now: at most every `telemetry.status_every_s` it reaches RUN/roles/NAME.json.

        ``progress`` is (done, total, unit). ``facts`` are merged into those said before.
        """
        changed = state != self._state
        self._speak(state, detail, changed)
        self._state, self._detail = state, detail
        self._progress = dict(zip(("done", "total", "unit"), progress, strict=True)) if progress else None
        self._facts.update(facts)
        self._last_tick = time.monotonic()
        if changed or time.monotonic() - self._last_status >= self.config.telemetry.status_every_s:
            self._write_status()

    def note_store(self, problem: str) -> None:
        """``problem`` says why the snapshot store cannot be used, "" that it answers; recorded when that changes."""
        if problem:
            self.metrics.inc("sbp_snapshot_store_failures_total")
        if problem and not self._store_problem:
            self.record("store_unavailable", reason=problem)
            log.warning("%s", problem)
        elif self._store_problem and not problem:
            self.record("store_available")
            log.info("the snapshot store answers again")
        self._store_problem = problem

    def sleep(self, seconds: float) -> None:
        """Sleep, but wake for a signal."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def main(self) -> int:
        """Run to the end; returns the exit status."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            lock = lock_role(self.run.path, self.name)
        except ConfigError as error:
            log.error("%s", error)
            return 2
        try:
            return self._run()
        finally:
            os.close(lock)

    def _run(self) -> int:
        self._write_status()
        self._announce()
        try:
            self.startup()
            while not self.stopping and self.tick():
                pass
            done = not self.stopping
            self.report("stopping", self._detail)
            self.shutdown()
            self.report("done" if done else "stopped", self._detail)
            targets.withdraw(self.run, self.name)
            return 0
        except ConfigError as error:
            self.report("failed", str(error))
            log.error("%s", error)
            return 2
        except StreamRefused as error:
            self.report("failed", str(error))
            log.error("%s", error)
            return 1
        except Exception as error:
            self.report("failed", f"{type(error).__name__}: {error}")
            log.exception("%s failed", self.name)
            return 1

    # --- inside ---

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            self.abort()
            os._exit(128 + number)

    def _speak(self, state: str, detail: str, changed: bool) -> None:
        """Started by hand, it says in its terminal what it does: each state, and every few seconds how far it is."""
        if self.supervised or self.role == "supervisor":
            return
        if changed or (detail != self._detail and time.monotonic() - self._last_said >= SAY_EVERY_S):
            self._last_said = time.monotonic()
            log.info("%s %s%s", self.name, state, f": {detail}" if detail else "")

    def _write_status(self) -> None:
        self._last_status = time.monotonic()
        status = {
            "role": self.role,
            "name": self.name,
            "pid": os.getpid(),
            "state": self._state,
            "detail": self._detail,
            "progress": self._progress,
            "metrics_port": self.health.port,
            "started": self.started,
            "updated": time.time(),
            **_resources(),
            "facts": self._facts,
        }
        try:
            write_json(self.run.roles / f"{self.name}.json", status, durable=False)
        except OSError as error:  # a full disk: work goes on, unseen until there is room
            log.warning("the status of %s cannot be written: %s", self.name, error)

    def _announce(self) -> None:
        try:
            targets.announce(self.run, self.role, self.name, self.config.telemetry.host, self.health.port)
        except OSError as error:
            log.warning("Prometheus is not told of %s: %s", self.name, error)

    def _healthy(self) -> str:
        return "" if self._state != "failed" else self._detail

    def _ready(self) -> str:
        return "" if self._state in ("running", "waiting") else f"{self._state}: {self._detail}"


def _resources() -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rss_bytes": psutil.Process().memory_info().rss,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
    }


class _CurrentStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what `sys.stderr` is at the moment: the live view lets lines pass above it, and is not torn."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def set_up_process(threads: int = 1) -> None:
    """Plain log lines with time and level; one torch thread per process, or two cores are oversubscribed."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    for cache in KERNEL_CACHES:
        os.environ.setdefault(cache, str(KERNELS_KEPT))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    handler = _CurrentStderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # which variants it tried, as if they had failed

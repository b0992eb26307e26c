"""Where Prometheus finds the processes of a run: one file of its `file_sd` format for each, RUN/prometheus/NAME.json.

A process writes its own and takes it away when it ends as it should. One that failed or was killed leaves its file, so
that Prometheus sees that it is down.
"""

from __future__ import annotations

import json
import os
import socket

from streaming_sbp.config import ConfigError
from streaming_sbp.files import write_atomically
from streaming_sbp.rundir import RunDir, lock_role

EVERYWHERE = ("0.0.0.0", "::", "")


def announce(run: RunDir, role: str, name: str, host: str, port: int) -> None:
    """Say that ``/metrics`` of this process is at ``host:port``. Raises OSError when the disk is full."""
    address = socket.gethostname() if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    labels = {"run": run.path.resolve().name, "role": role, "name": name}
    run.prometheus.mkdir(exist_ok=True)
    content = json.dumps([{"targets": [f"{address}:{port}"], "labels": labels}], indent=1) + "\n"
    write_atomically(run.prometheus / f"{name}.json", content, durable=False)


def withdraw(run: RunDir, name: str) -> None:
    (run.prometheus / f"{name}.json").unlink(missing_ok=True)


def forget_dead(run: RunDir) -> None:
    """Take away the files of processes that no longer live; a living one holds its lock."""
    for path in run.prometheus.glob("*.json"):
        try:
            os.close(lock_role(run.path, path.stem))
        except ConfigError:
            continue
        path.unlink(missing_ok=True)

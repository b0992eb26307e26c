"""One run as the page sees it: what it shows now, and what is new on its curves. Reads files only; safe to ask at any
time and from any thread, also when the run directory vanishes or is another run by now (`sbp run --fresh`)."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streaming_sbp.experiment import history
from streaming_sbp.experiment.history import RunHistory
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import Status, StatusCollector
from streaming_sbp.webpage import content
from streaming_sbp.webpage.curves import Curves

UNREADABLE = (OSError, ValueError, LookupError)  # vanished, damaged or half-written; ConfigError is a ValueError
FRESH_S = 0.5  # a status this old is shown again: many pages cost as much as one
# Snapshots come from the whole history, which may be long: this share of the time, at most, goes into reading it.
HISTORY_SHARE = 0.05
NUM_DOCUMENTS = 6
DOCUMENTS_EVERY_S = 10.0


class WatchedRun:
    """``name`` is shown; ``chosen``: the user asked for this one.

    Methods raise one of ``UNREADABLE`` when the run cannot be read.
    """

    def __init__(self, path: Path, name: str, chosen: bool = False):
        self.path, self.name, self.chosen = path, name, chosen
        self._lock, self._documents_lock = threading.Lock(), threading.Lock()
        self._of: _Followed | None = None
        self._documents: tuple[str, float, dict[str, Any]] = ("", 0.0, {})

    def look(self, after: str = "") -> dict[str, Any]:
        """Everything the page shows but documents. ``after``: `cursor` of the last look, "" for all of the curves."""
        with self._lock:
            followed = self._follow()
            status = followed.collect()
            return {
                "name": self.name,
                "dir": str(self.path),
                **content.of_status(followed.run, status),
                "snapshots": content.snapshots(followed.history(), status),
                "marks": _marks(followed.history(), followed.curves),
                **_new_points(followed, after),
            }

    def brief(self, oldest_s: float) -> dict[str, Any] | None:
        """One line of the list of runs; None when it is not known by a look that is at most ``oldest_s`` old."""
        with self._lock:
            if self._of is None or time.monotonic() - self._of.looked > oldest_s:
                return None
            return content.brief(self._of.run, self._of.status)

    def look_briefly(self) -> None:
        with self._lock:
            self._follow().collect()

    def documents(self) -> dict[str, Any]:
        """The newest synthetic documents beside their seeds."""
        from streaming_sbp.experiment import peek  # brings torch: only for whoever looks at documents

        with self._documents_lock:
            run = RunDir(self.path)
            run_id, read, found = self._documents
            if run_id != run.run_id or time.monotonic() - read > DOCUMENTS_EVERY_S:
                found = {"documents": [content.document(one) for one in peek.newest(run, NUM_DOCUMENTS)]}
                self._documents = (run.run_id, time.monotonic(), found)
            return found

    def _follow(self) -> _Followed:
        run = RunDir(self.path)
        if self._of is None or self._of.run.run_id != run.run_id:
            self._of = _Followed(run)
        return self._of


class _Followed:
    """What was read of a run so far."""

    def __init__(self, run: RunDir):
        self.run, self.curves = run, Curves(run)
        self.looked = float("-inf")
        self.status: Status = {}
        self._collector = StatusCollector(run)
        self._history: RunHistory | None = None
        self._history_of: object = None
        self._read_again_at = float("-inf")

    def collect(self) -> Status:
        if time.monotonic() - self.looked > FRESH_S:
            self.status = self._collector.collect()
            self.curves.read_new()
            self.looked = time.monotonic()
        return self.status

    def history(self) -> RunHistory:
        """Read again when there is something new about snapshots or starts."""
        snapshots = self.status["snapshots"]
        counts = tuple(snapshots[key] for key in ("published", "quarantined", "swapped_in"))
        now_of = (*counts, len(snapshots["trained_from"] or {}), self.curves.num_starts)
        began = time.monotonic()
        if self._history is None or (now_of != self._history_of and began >= self._read_again_at):
            self._history, self._history_of = history.load(self.run), now_of
            took_s = time.monotonic() - began
            self._read_again_at = began + took_s / HISTORY_SHARE
        return self._history


def _new_points(followed: _Followed, after: str) -> dict[str, Any]:
    run_id, _, cursors = after.partition(".")
    train, _, evaluations = cursors.partition(".") if run_id == followed.run.run_id else ("", "", "")
    parts = {"train": followed.curves.train.since(train), "evaluations": followed.curves.evaluations.since(evaluations)}
    return {
        "cursor": ".".join((followed.run.run_id, *(part.cursor for part in parts.values()))),
        "curves": {name: asdict(part) for name, part in parts.items()},
    }


def _marks(told: RunHistory, curves: Curves) -> list[dict[str, Any]]:
    """Where a snapshot was swapped in, rolled back to, and where the trainer resumed."""
    swaps = [
        {"kind": "swap", "time": s.swapped_time, "tokens": s.swapped_tokens, "version": s.version}
        for s in told.snapshots
        if s.swapped_time is not None
    ]
    resumes = [{"kind": "resume", "time": r["time"], "tokens": r.get("tokens"), "version": None} for r in told.resumes]
    return [*swaps, *({"kind": "rollback", **rollback} for rollback in curves.rollbacks), *resumes]

"""One run as the page sees it: what it shows now, and what is new on its curves. Reads files only; safe to ask at any
time and from any thread, also when the run directory vanishes or is another run by now (`sbp run --fresh`)."""

from __future__ import annotations

import json
import secrets
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streaming_sbp.config import ConfigError
from streaming_sbp.experiment import history, peek
from streaming_sbp.experiment.history import RunHistory
from streaming_sbp.files import read_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import Status, StatusCollector
from streaming_sbp.telemetry.text import one_line
from streaming_sbp.webpage import content
from streaming_sbp.webpage.curves import Curves, number

FRESH_S = 0.5  # a status this old is shown again: many pages cost as much as one
# Snapshots come from the whole history, which may be long: this share of the time, at most, goes into reading it.
HISTORY_SHARE = 0.05
NUM_DOCUMENTS = 6
DOCUMENTS_EVERY_S = 10.0
MOST_MARKS = 200  # of a kind: more of them cannot be told apart on a chart


NUMBERS = ("pid", "updated", "started")  # in what a role says of itself


class Unreadable(Exception):
    """What is wrong with a run that cannot be shown: it vanished, is damaged, or holds what no run writes."""


class WatchedRun:
    """``name`` is shown; ``chosen``: the user asked for this one.

    Methods raise `Unreadable` when the run cannot be read.
    """

    def __init__(self, path: Path, name: str, chosen: bool = False):
        self.path, self.name, self.chosen = path, name, chosen
        self._lock, self._documents_lock = threading.Lock(), threading.Lock()
        self._of: _Followed | None = None
        self._problem, self._failed = "", float("-inf")  # the last time it could not be read
        self._documents: tuple[str, float, dict[str, Any]] = ("", 0.0, {})

    def look(self, after: str = "") -> dict[str, Any]:
        """Everything the page shows but documents. ``after``: `cursor` of the last look, "" for all curves and marks.

        ``marks`` are None while they are those of the cursor.
        """
        with self._lock, self._told():
            followed = self._follow()
            status = followed.collect()
            return {
                "name": self.name,
                "dir": str(self.path),
                **content.of_status(followed.run, status),
                "snapshots": content.snapshots(followed.history(), status),
                **_news(followed, _marks(followed.history(), followed.curves), after),
            }

    def brief(self, oldest_s: float) -> dict[str, Any] | None:
        """One line of the list of runs; None when it is not known by a look that is at most ``oldest_s`` old."""
        with self._lock:
            if self._problem and time.monotonic() - self._failed <= oldest_s:
                raise Unreadable(self._problem)
            if self._of is None or time.monotonic() - self._of.looked > oldest_s:
                return None
            with self._told():
                return content.brief(self._of.run, self._of.status)

    def look_briefly(self) -> None:
        with self._lock, self._told():
            self._follow().collect()

    def documents(self) -> dict[str, Any]:
        """The newest synthetic documents beside their seeds."""
        with self._documents_lock, self._in_words():
            run = RunDir(self.path)
            run_id, read, found = self._documents
            if run_id != run.run_id or time.monotonic() - read > DOCUMENTS_EVERY_S:
                found = {"documents": [content.document(one) for one in peek.newest(run, NUM_DOCUMENTS)]}
                self._documents = (run.run_id, time.monotonic(), found)
            return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What was read of a run that cannot be read is forgotten: half of it is not the run."""
        try:
            with self._in_words():
                yield
        except Unreadable as error:
            self._of = None
            self._problem, self._failed = str(error), time.monotonic()
            raise
        if self._of is not None:
            self._problem = ""

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Whatever is in the files of one run must not take away the others: any exception is its problem."""
        try:
            yield
        except Unreadable:
            raise
        except Exception as error:
            words = one_line(error)
            if not (isinstance(error, OSError | ConfigError) or str(self.path) in words):
                words = _what_no_role_writes(self.path) or f"{self.path}: {type(error).__name__}: {words}"
            raise Unreadable(words) from error

    def _follow(self) -> _Followed:
        run = RunDir(self.path)
        if self._of is None or self._of.run.run_id != run.run_id:
            self._of = _Followed(run)
        return self._of


class _Followed:
    """What was read of a run so far."""

    def __init__(self, run: RunDir):
        self.run, self.curves = run, Curves(run)
        self.id = secrets.token_hex(4)  # of this reading: cursors are of no other
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


def _what_no_role_writes(path: Path) -> str:
    """The first thing in roles that is not what it must be; "" when there is none that we know of.

    Records need no such look: those that are not what they must be are passed over.
    """
    for file in sorted(path.glob("roles/*.json")):
        try:
            said = read_json(file)
        except ValueError:  # a crash cut it short: passed over
            continue
        if not isinstance(said, dict):
            continue
        for name in NUMBERS:
            if not isinstance(said.get(name), int | float | None):
                return one_line(f"{file}: {name} is {json.dumps(said[name])[:40]}, expected a number")
    return ""


def _news(followed: _Followed, marks: list[dict[str, Any]], after: str) -> dict[str, Any]:
    cursors = after.split(".")
    _, train, evaluations, known = cursors if len(cursors) == 4 and cursors[0] == followed.id else ("", "", "", "")
    parts = {"train": followed.curves.train.since(train), "evaluations": followed.curves.evaluations.since(evaluations)}
    digest = f"{zlib.crc32(json.dumps(marks).encode()):x}"
    return {
        "cursor": ".".join((followed.id, *(part.cursor for part in parts.values()), digest)),
        "curves": {name: asdict(part) for name, part in parts.items()},
        "marks": None if digest == known else marks,
    }


def _marks(told: RunHistory, curves: Curves) -> list[dict[str, Any]]:
    """Where a snapshot was swapped in, rolled back to, and where the trainer resumed."""
    swaps = [
        {"kind": "swap", "time": s.swapped_time, "tokens": s.swapped_tokens, "version": s.version}
        for s in told.snapshots
        if s.swapped_time is not None
    ]
    rollbacks = [{"kind": "rollback", **rollback} for rollback in curves.rollbacks]
    resumes = [{"kind": "resume", "time": r["time"], "tokens": r.get("tokens"), "version": None} for r in told.resumes]
    shown = [mark for marks in (swaps, rollbacks, resumes) for mark in _thinned(marks)]
    return [mark | {"time": number(mark["time"]), "tokens": number(mark["tokens"])} for mark in shown]


def _thinned(marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All, or each second, fourth, eighth, ... so that those that were shown mostly stay; and the newest."""
    step = 1
    while len(marks) > step * (MOST_MARKS - 1):
        step *= 2
    return marks if step == 1 else [*marks[:-1:step], marks[-1]]

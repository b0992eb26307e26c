"""How far an ingest is, for whoever draws a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

REPORT_EVERY_S = 0.1


@dataclass(frozen=True)
class IngestProgress:
    phase: str  # "read", "divide", "tokenizer" or "encode"
    done: int
    total: int | None  # None: unknown
    unit: str  # "bytes", "files" or "documents"


class Progress:
    """Calls ``report`` at the begin and end of each phase, and ten times a second at most in between."""

    def __init__(self, report: Callable[[IngestProgress], None] | None):
        self._report = report
        self._phase, self._unit = "", ""
        self._done = 0
        self._total: int | None = None
        self._next = 0.0

    def start(self, phase: str, total: int | None, unit: str) -> None:
        self._phase, self._total, self._unit = phase, total, unit
        self._done = 0
        self._tell()

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() >= self._next:
            self._tell()

    def finish(self) -> None:
        """The phase is over: what was counted is all there was."""
        self._total = self._done if self._total is None else self._total
        self._done = self._total
        self._tell()

    def _tell(self) -> None:
        self._next = time.monotonic() + REPORT_EVERY_S
        if self._report is not None:
            done = self._done if self._total is None else min(self._done, self._total)
            self._report(IngestProgress(self._phase, done, self._total, self._unit))

"""RUN/steps.jsonl: for every step what was decided, what was trained and what came out; one line a step, append-only.

With it a trainer that crashed trains the steps since its checkpoint again exactly as before, instead of living them
anew; `sbp train --replay` repeats a whole run; `sbp trace` names the documents of a step.

A line: ``{"step", "digest" of the batch, "loss" by source, "started_at", "availability", perhaps "passed_over"}``; see
`batches.Decisions`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming_sbp.files import AppendLog
from streaming_sbp.training.batches import Decisions


@dataclass(frozen=True)
class PastStep:
    step: int  # 1, 2, ...
    digest: str
    loss: dict[str, float | None]  # nats per target token, by source
    decisions: Decisions

    @classmethod
    def parse(cls, line: bytes) -> PastStep | None:
        """None for a line that a crash cut short."""
        try:
            raw: dict[str, Any] = json.loads(line)
            return cls(raw["step"], raw["digest"], raw["loss"], Decisions.of(raw))
        except (ValueError, KeyError, TypeError):
            return None

    def line(self) -> bytes:
        fields = {"step": self.step, "digest": self.digest, "loss": self.loss, **self.decisions.state()}
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def read_steps(path: Path, after: int = 0) -> Iterator[PastStep]:
    """The steps after number ``after``, in order, up to the first line that is missing or damaged."""
    expected = None
    try:
        with open(path, "rb") as file:
            for line in file:
                found = PastStep.parse(line) if line.endswith(b"\n") else None
                if found is None or (expected is not None and found.step != expected):
                    return
                expected = found.step + 1
                if found.step > after:
                    yield found
    except FileNotFoundError:
        return


class StepLog:
    """The log of a run that goes on after step ``after``: first it may have steps to repeat, then it takes new."""

    def __init__(self, path: Path, after: int):
        self._path, self._next = path, after + 1
        self._past = read_steps(path, after)
        self._log: AppendLog | None = None
        self._look_ahead()

    @property
    def to_repeat(self) -> PastStep | None:
        """What the next step was, if it was trained before."""
        return self._ahead

    def repeated(self) -> None:
        """The next step was trained again."""
        self._next += 1
        self._look_ahead()

    def forget(self) -> None:
        """The past cannot be repeated: steps from the next on are written anew."""
        self._past = iter(())
        self._look_ahead()

    def append(self, digest: str, loss: Mapping[str, float | None], decisions: Decisions) -> None:
        assert self._log is not None, "there are steps to repeat"
        self._log.append(PastStep(self._next, digest, dict(loss), decisions).line())
        self._next += 1

    def sync(self) -> None:
        """Make it durable: before the checkpoint that follows from it is."""
        if self._log is not None:
            self._log.sync()

    def _look_ahead(self) -> None:
        self._ahead = next(self._past, None)
        if self._ahead is not None and self._ahead.step != self._next:
            self._ahead = None  # the log begins later than the checkpoint
        if self._ahead is None and self._log is None:
            self._log = AppendLog(self._path)
            self._log.truncate(_end_of(self._path, self._next))


def _end_of(path: Path, step: int) -> int:
    """Where the lines before ``step`` end: what follows is superseded, or was cut short by a crash."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            found = PastStep.parse(line) if line.endswith(b"\n") else None
            if found is None or found.step >= step:
                break
            end += len(line)
    return end

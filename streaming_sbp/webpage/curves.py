"""A run's curves, of bounded size however long the run is, and followed: a page fetches what is new.

A table holds at most ``2 * limit`` rows: when it is full, each two neighbours become one, and from then on a row stands
for twice as many records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.records import Record, RecordFollower

Rule = Literal["mean", "last"]  # how neighbours become one; what is None does not count
Number = int | float | None
LIMIT = 1000  # rows after neighbours were joined: a chart is about as many pixels wide
TRAIN: dict[str, Rule] = {
    "time": "last",
    "tokens": "last",
    "loss_real": "mean",
    "loss_synthetic": "mean",
    "loss_pairs": "mean",
    "scheduled_share": "last",
    "realised_share": "last",
    "tokens_per_second": "mean",
    "sent": "last",
    "trained": "last",
    "waiting": "last",
    "dropped": "last",
}
EVALUATIONS: dict[str, Rule] = {
    "time": "last",
    "tokens": "last",
    "heldout_loss": "mean",
    "question_accuracy": "mean",
}
LEDGER = {"sent": "sent", "trained": "trained", "waiting": "buffered", "dropped": "dropped"}  # column: term


@dataclass(frozen=True)
class Part:
    """What a reader lacks: its rows from number ``start`` on are to be replaced by ``columns``.

    ``cursor`` is what it says next time.
    """

    cursor: str
    start: int
    columns: dict[str, list[Number]]


class Table:
    """Columns of numbers, `tokens` among them; rows may be taken back from the end, when a trainer resumes."""

    def __init__(self, rules: Mapping[str, Rule], limit: int = LIMIT):
        self._rules, self._limit = rules, limit
        self._rows: list[list[Number]] = []
        self._open: list[list[Number]] = []  # records of the last row, which is not complete
        self._records_a_row = 1
        self._edition = 0  # counts the changes of rows that were complete

    def add(self, row: Mapping[str, Number]) -> None:
        self._open.append([row.get(name) for name in self._rules])
        if len(self._open) < self._records_a_row:
            return
        self._rows.append(self._joined(self._open))
        self._open = []
        if len(self._rows) == 2 * self._limit:
            self._rows = [self._joined(self._rows[i : i + 2]) for i in range(0, len(self._rows), 2)]
            self._records_a_row *= 2
            self._edition += 1

    def forget_beyond(self, tokens: int) -> None:
        """Take back the rows that end at more trained tokens."""
        at = list(self._rules).index("tokens")
        kept = [row for row in self._rows if (row[at] or 0) <= tokens]
        self._open = [row for row in self._open if (row[at] or 0) <= tokens]
        if len(kept) < len(self._rows):
            self._rows = kept
            self._edition += 1

    def since(self, cursor: str) -> Part:
        """``cursor``: of the last part, or "" for all rows. One that does not fit gets all rows, too."""
        edition, _, count = cursor.partition("-")
        fits = edition == str(self._edition) and count.isdecimal() and len(count) < 10
        start = min(int(count), len(self._rows)) if fits else 0
        rows = self._rows[start:] + ([self._joined(self._open)] if self._open else [])
        columns = {name: [row[i] for row in rows] for i, name in enumerate(self._rules)}
        return Part(f"{self._edition}-{len(self._rows)}", start, columns)

    def _joined(self, rows: Iterable[list[Number]]) -> list[Number]:
        columns = zip(*rows, strict=True)
        return [_join(column, rule) for column, rule in zip(columns, self._rules.values(), strict=True)]


class Curves:
    """What the trainer of one run recorded."""

    def __init__(self, run: RunDir, limit: int = LIMIT):
        self._follower = RecordFollower(run.records / "trainer.jsonl")
        self.train, self.evaluations = Table(TRAIN, limit), Table(EVALUATIONS, limit)
        self.rollbacks: list[dict[str, Any]] = []  # when an earlier snapshot was made to serve: time, tokens, version
        self.num_starts = 0
        self._tokens = 0
        self._version: int | None = None

    def read_new(self) -> None:
        for record in self._follower.read():
            self._add(record)

    def _add(self, record: Record) -> None:
        event = record["event"]
        if event == "start":
            self._start(record.get("tokens") or 0)
        elif event == "train":
            self._tokens = record.get("tokens") or 0
            self.train.add(_train_row(record))
        elif event == "eval":
            self.evaluations.add({name: number(record.get(name)) for name in EVALUATIONS})
        elif event == "announced":
            self._announced(record)

    def _start(self, tokens: int) -> None:
        self.num_starts += 1
        self._tokens = tokens
        self.train.forget_beyond(tokens)
        self.evaluations.forget_beyond(tokens)

    def _announced(self, record: Record) -> None:
        version = record.get("version")
        if isinstance(version, int) and self._version is not None and version < self._version:
            self.rollbacks.append({"time": record["time"], "tokens": self._tokens, "version": version})
        self._version = version


def _train_row(record: Record) -> dict[str, Number]:
    row = {name: number(record.get(name)) for name in TRAIN}
    row |= {f"loss_{source}": number(loss) for source, loss in (record.get("loss") or {}).items()}
    return row | {name: number((record.get("ledger") or {}).get(term)) for name, term in LEDGER.items()}


def number(value: Any) -> Number:
    """Rounded to what a chart can show, so that an answer is small."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.12g}" if abs(value) >= 1e6 else f"{value:.6g}")


def _join(values: Iterable[Number], rule: Rule) -> Number:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return known[-1] if rule == "last" or len(known) == 1 else number(sum(known) / len(known))

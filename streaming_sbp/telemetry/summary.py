"""What the records of each role add up to, kept record by record, so that a live view never reads a record twice."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from streaming_sbp.telemetry.records import Record, is_superseded
from streaming_sbp.telemetry.text import duration, one_line, quantity

KEPT_RECORDS = 256  # of the trainer: minutes of a rate, and enough to step back to a checkpoint
KEPT_EVENTS = 50


class TrainerSummary:
    """Where the trainer is, by its records; a resume steps back to the tokens of its checkpoint."""

    def __init__(self) -> None:
        self.tokens: int | None = None
        self.finished_tokens: int | None = None  # of a clean end that no start has followed
        self.evaluations: list[Record] = []
        self._trains: deque[Record] = deque(maxlen=KEPT_RECORDS)
        self._started: float = 0.0

    def add(self, record: Record) -> None:
        event = record["event"]
        if event == "start":
            self._step_back(record)
        elif event == "train":
            self._trains.append(record)
        elif event == "eval":
            self.evaluations.append(record)
        if event in ("start", "train", "eval", "finish"):
            self.tokens = record.get("tokens", self.tokens)
            self.finished_tokens = self.tokens if event == "finish" else None

    def newest(self, key: str) -> Any:
        """The newest value of a field of `train` that is not null."""
        return next((record[key] for record in reversed(self._trains) if record.get(key) is not None), None)

    def newest_loss(self, source: str) -> float | None:
        losses = (record.get("loss", {}).get(source) for record in reversed(self._trains))
        return next((loss for loss in losses if loss is not None), None)

    def tokens_per_second(self, records: int = 30) -> float | None:
        """Over the last records of this process, evaluations and checkpoints included."""
        recent = [record for record in self._trains if record["time"] >= self._started][-records:]
        if len(recent) < 2 or recent[-1]["time"] <= recent[0]["time"]:
            return None
        return (recent[-1]["tokens"] - recent[0]["tokens"]) / (recent[-1]["time"] - recent[0]["time"])

    def _step_back(self, start: Record) -> None:
        self._started = start["time"]
        self._trains = deque((r for r in self._trains if not is_superseded(r, start)), maxlen=KEPT_RECORDS)
        self.evaluations = [record for record in self.evaluations if not is_superseded(record, start)]


class SnapshotSummary:
    """Published and quarantined by the tuner, announced by the trainer, swapped in by generators."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.newest: Record | None = None
        self.newest_quarantined: Record | None = None
        self.announced: Record | None = None
        self.swapped_in: set[str] = set()

    def add(self, record: Record) -> None:
        if record["event"] == "snapshot":
            self.verdicts[record.get("verdict", "")] += 1
            if record.get("verdict") == "published":
                self.newest = record
            else:
                self.newest_quarantined = record
        elif record["event"] == "announced":
            self.announced = record
        elif record["event"] == "swap":
            self.swapped_in.add(record.get("digest", ""))


class RestartSummary:
    """How often the supervisor started each role again after it had died."""

    def __init__(self) -> None:
        self.restarts: Counter[str] = Counter()
        self.started: dict[str, Record] = {}  # the last time, by name
        self._died: set[str] = set()

    def add(self, record: Record) -> None:
        name = record.get("name", "")
        if record["event"] == "role_started":
            self.started[name] = record
        if record["event"] == "role_died" and record.get("restart_in_s") is not None:
            self._died.add(name)
        elif record["event"] == "role_started" and name in self._died:
            self._died.discard(name)
            self.restarts[name] += 1


@dataclass(frozen=True)
class Event:
    """Something worth a line to the reader. ``tone`` is good, bad or plain."""

    time: float
    role: str
    text: str
    tone: str = "plain"


class EventSummary:
    """The last events of all roles. Records come role by role, so the newest are not those that were added last."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def add(self, role: str, record: Record) -> None:
        event = describe(role, record)
        if event is None:
            return
        self._events.append(event)
        if len(self._events) >= 2 * KEPT_EVENTS:
            self._events = self.newest(KEPT_EVENTS)

    def newest(self, count: int) -> list[Event]:
        """``count`` at most, oldest first."""
        return sorted(self._events, key=lambda event: event.time)[-count:]


def describe(role: str, record: Record) -> Event | None:
    """The record as one line of text, or None when it is routine."""
    writer = _DESCRIPTIONS.get(record["event"])
    said = writer(record) if writer else None
    return Event(record["time"], role, one_line(said[0]), said[1]) if said else None


def _snapshot(record: Record) -> tuple[str, str]:
    parent = quantity(record.get("parent_tokens"))
    if record.get("verdict") == "published":
        said = f"published snapshot v{record.get('version')} from {parent} tokens"
        if record.get("serves", True):
            return said, "good"
        why = "another one is pinned" if record.get("pinned") else "it was found bad before"
        return f"{said}; it does not serve: {why}", "plain"
    reasons = "; ".join(map(str, record.get("reasons") or ())) or "no reason recorded"
    return f"quarantined a snapshot from {parent} tokens: {reasons}", "bad"


def _died(record: Record) -> tuple[str, str]:
    wait_s = record.get("restart_in_s")
    what_next = f"restart in {duration(wait_s)}"
    if wait_s is None:
        what_next = f"no restart: {record['reason']}" if record.get("reason") else "no restart"
    return f"{record.get('name')} died ({exit_text(record.get('exit_code'))}), {what_next}", "bad"


def exit_text(exit_code: int | None) -> str:
    if exit_code is None:
        return "exit status unknown"
    return f"signal {-exit_code}" if exit_code < 0 else f"exit status {exit_code}"


def _start(record: Record) -> tuple[str, str] | None:
    if not record.get("resumed_from"):
        return None
    return f"resumed from {record['resumed_from']} at {quantity(record.get('tokens'))} tokens", "good"


def _swap(record: Record) -> tuple[str, str]:
    return f"swapped in snapshot v{record.get('version')}, pause {duration(record.get('pause_s'))}", "good"


def _announced(record: Record) -> tuple[str, str] | None:
    """What the tuner publishes has an event of its own."""
    if record.get("by") not in ("trainer", "person"):
        return None
    return f"snapshot v{record.get('version')} serves, as the {record['by']} says: {record.get('reason')}", "plain"


def _drift(record: Record) -> tuple[str, str]:
    reasons = "; ".join(map(str, record.get("reasons") or ())) or "no reason recorded"
    action = str(record.get("action")).replace("_", " ")
    return f"drift of snapshot {str(record.get('snapshot'))[:8]}, {action}: {reasons}", "bad"


_DESCRIPTIONS = {
    "snapshot": _snapshot,
    "role_died": _died,
    "role_started": lambda r: (f"{r.get('name')} started (pid {r.get('pid')})", "plain"),
    "role_killed": lambda r: (f"{r.get('name')} did not stop in time and was killed", "bad"),
    "run_finished": lambda r: (f"run ended: {r.get('reason')}", "plain"),
    "start": _start,
    "finish": lambda r: (f"ended at {quantity(r.get('tokens'))} tokens: {r.get('reason')}", "plain"),
    "checkpoint_failed": lambda r: (f"checkpoint failed: {r.get('reason')}", "bad"),
    "swap": _swap,
    "swap_failed": lambda r: (f"could not load a snapshot: {r.get('reason')}", "bad"),
    "announced": _announced,
    "drift": _drift,
    "store_unavailable": lambda r: (f"no answer of the {r.get('reason')}", "bad"),
    "store_available": lambda r: ("the snapshot store answers again", "good"),
    "history_changed": lambda r: (f"steps could not be repeated as they were: {r.get('reason')}", "bad"),
}

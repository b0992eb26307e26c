"""A run's records as points of curves, for TensorBoard and Weights & Biases: each step once, whatever was restarted.

Names follow the Hugging Face trainer (``train/``, ``eval/``); the x axis is the optimizer step, and the trained tokens
are a curve beside it. Records of roles that know no step (generators, tuner) belong to the next step that the trainer
records, or to its last. After a crash the trainer trains the steps since its checkpoint again, exactly as before: those
have their points already, and get no others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.records import Record, RecordFollower

_TRAIN = {
    "tokens": "train/num_input_tokens_seen",
    "real_epochs": "train/epoch",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "scheduled_share": "mix/scheduled_share",
    "realised_share": "mix/realised_share",
    "deviation_tokens": "mix/deviation_tokens",
    "debt_tokens": "mix/debt_tokens",
    "forgiven_tokens": "mix/forgiven_tokens",
    "loss": "train/loss",
    "ledger": "ledger/documents",
    "received": "received/measure",
}
_EVAL = {
    "tokens": "eval/num_input_tokens_seen",
    "heldout_loss": "eval/loss",
    "heldout_bits_per_byte": "eval/bits_per_byte",
    "question_accuracy": "eval/question_accuracy",
    "question_loss": "eval/question_loss",
    "question_rank": "eval/question_rank",
}
_TUNING = {"train_loss": "tuner/loss", "pair_loss": "tuner/eval_pair_loss"}
_SNAPSHOT = {"version": "snapshots/version", "parent_tokens": "snapshots/parent_tokens", "measures": "gate/measure"}
_THROUGHPUT = ("documents_per_second", "tokens_per_second", "blocked_s")


@dataclass(frozen=True)
class Points:
    """What is known at one optimizer step. ``time``: Unix time."""

    step: int
    time: float
    values: dict[str, float]


class PointReader:
    """Reads what is new in a run's records. ``state``: of an earlier reader, whose points are not given again."""

    def __init__(self, run: RunDir, state: Mapping[str, Any] | None = None):
        self._run = run
        state = state or {}
        self._followers = {name: self._follower(name, seen) for name, seen in state.get("followers", {}).items()}
        self._steps: dict[str, int] = {"train": 0, "eval": -1} | state.get("steps", {})  # that have their points
        self._held: list[tuple[str, Record]] = [(role, record) for role, record in state.get("held", ())]
        self._finished: bool = state.get("finished", False)  # the trainer records no further step

    @property
    def step(self) -> int:
        """The last one that has all its points."""
        return self._steps["train"]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able. Save it once the points that were read are where they belong."""
        followers = {name: follower.state_dict() for name, follower in self._followers.items()}
        return {
            "followers": followers,
            "steps": dict(self._steps),
            "held": list(self._held),
            "finished": self._finished,
        }

    def read(self) -> list[Points]:
        """Of the steps that the trainer has recorded since the last call, ascending."""
        found: list[Points] = []
        for role, record in self._new_records():
            step = record.get("step")
            if role == "trainer" and record["event"] in ("start", "finish"):
                self._finished = record["event"] == "finish"
            if role == "trainer" and record["event"] in self._steps and isinstance(step, int):
                if step > self._steps[record["event"]]:
                    self._steps[record["event"]] = step
                    if record["event"] == "train":
                        found += self._let_go(step, record["time"])
                    found.append(Points(step, record["time"], _values(role, record)))
            elif record["event"] in ("tuning", "snapshot", "throughput"):
                self._held.append((role, record))
            if self._finished:
                found += self._let_go(self.step, record["time"])
        return found

    def _let_go(self, step: int, time: float) -> Iterator[Points]:
        """What is held, at this step: the last value of each curve, but of snapshots every one."""
        values: dict[str, float] = {}
        for role, record in self._held:
            found = _values(role, record)
            if record["event"] == "snapshot" and "snapshots/parent_tokens" in values:
                yield Points(step, time, values)
                values = {}
            values |= found
        self._held = []
        if values:
            yield Points(step, time, values)

    def _new_records(self) -> Iterator[tuple[str, Record]]:
        """Of all roles by time; each role's own in the order in which it wrote them, whatever its clock did."""
        for path in self._run.records.glob("*.jsonl"):
            self._followers.setdefault(path.stem, self._follower(path.stem, None))
        new = [[(name, record) for record in follower.read()] for name, follower in sorted(self._followers.items())]
        return heapq.merge(*new, key=lambda item: item[1]["time"])

    def _follower(self, name: str, seen: Mapping[str, Any] | None) -> RecordFollower:
        return RecordFollower(self._run.records / f"{name}.jsonl", seen)


def _values(role: str, record: Record) -> dict[str, float]:
    names = {"train": _TRAIN, "eval": _EVAL, "tuning": _TUNING, "snapshot": _SNAPSHOT}.get(record["event"])
    if names is None:
        names = {key: f"{role}/{key}" for key in _THROUGHPUT}
    return {name: value for key, prefix in names.items() for name, value in _named(prefix, record.get(key))}


def _named(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """A number under its name; of several by key, each under ``name`` with its key: train/loss_real, gate/pair_loss."""
    if isinstance(value, dict):
        group, _, noun = name.partition("/")
        for key, number in value.items():
            yield from _named(f"{group}/{noun}_{key}" if noun == "loss" else f"{group}/{key}", number)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield name, float(value)

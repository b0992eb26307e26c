"""A run's records as one history: what the report tells and draws. Superseded records are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from streaming_sbp.files import read_json
from streaming_sbp.pairing.pairs import STATISTICS_NAME
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.records import Record, read_records, without_superseded
from streaming_sbp.telemetry.summary import Event, describe
from streaming_sbp.telemetry.thinning import THINNED

LONGEST_GAP_S = 30.0  # every role records more often while it runs: a longer gap is time in which nothing ran


@dataclass(frozen=True)
class Snapshot:
    """One candidate of the tuner, and what became of it. None where it did not happen."""

    digest: str
    version: int | None
    verdict: str
    reasons: tuple[str, ...]
    parent_tokens: int | None
    time: float
    measures: dict[str, float]
    num_pairs: int | None
    tuned_tokens: int | None
    tune_s: float | None
    gate_s: float | None
    swapped_time: float | None
    swapped_tokens: float | None  # trained tokens when the first generator swapped it in
    pause_s: float | None  # of that swap
    first_trained_tokens: int | None
    trained_documents: int | None


@dataclass(frozen=True)
class Rates:
    """Tokens per second of one role at ``times`` (Unix)."""

    role: str
    times: np.ndarray
    tokens_per_second: np.ndarray


@dataclass(frozen=True)
class RunHistory:
    trains: list[Record]
    evaluations: list[Record]
    snapshots: list[Snapshot]
    resumes: list[Record]  # `start` records after the first
    rates: list[Rates]
    phases: dict[str, float]  # seconds of the trainer by phase, all its processes together
    filtered: dict[str, dict[str, int]]  # generator -> reason -> documents, all its processes together
    sampled: dict[str, int]  # generator -> documents, all its processes together
    blocked_s: dict[str, float]  # generator -> time without credit
    events: list[Event]
    times: np.ndarray  # of all records of all roles, sorted; of those that were thinned out, about when they were
    pairs: dict[str, Any]  # RUN/pairs/statistics.json; empty while there is none

    def active_minutes(self, times: np.ndarray) -> np.ndarray:
        """Minutes since the start, time in which nothing ran left out."""
        if not len(self.times):
            return np.zeros(len(times))
        active_s = np.concatenate([[0.0], np.cumsum(np.minimum(np.diff(self.times), LONGEST_GAP_S))])
        return np.interp(times, self.times, active_s) / 60.0

    @property
    def active_s(self) -> float:
        return float(self.active_minutes(self.times[-1:])[0] * 60) if len(self.times) else 0.0


def load(run: RunDir) -> RunHistory:
    """Everything the records of ``run`` say; empty lists where they say nothing."""
    by_role = {path.stem: read_records(path) for path in sorted(run.records.glob("*.jsonl"))}
    whole_trainer = by_role.get("trainer", [])
    trainer = without_superseded(whole_trainer)
    generators = {name: records for name, records in by_role.items() if name.startswith("generator")}
    facts = run.read_roles().get("trainer", {}).get("facts", {})
    supervisor = by_role.get("supervisor", [])
    throughput = {
        name: [process[-1] for process in throughput_by_process(records, supervisor, name)]
        for name, records in generators.items()
    }
    return RunHistory(
        trains=_of(trainer, "train"),
        evaluations=_of(trainer, "eval"),
        snapshots=_snapshots(by_role, trainer, facts.get("snapshots", {}).get("trained_from") or {}),
        resumes=_of(trainer, "start")[1:],
        rates=_rates(whole_trainer, by_role.get("tuner", []), generators),
        phases=_phases(whole_trainer),
        filtered={name: _sum_of_dicts(r.get("filtered") or {} for r in ends) for name, ends in throughput.items()},
        sampled={name: sum(r.get("documents") or 0 for r in ends) for name, ends in throughput.items()},
        blocked_s={name: sum(r.get("blocked_s") or 0.0 for r in ends) for name, ends in throughput.items()},
        events=_events(by_role),
        times=np.sort(np.concatenate([np.zeros(0), *map(_times, by_role.values())])),
        pairs=read_json(run.pairs / STATISTICS_NAME) or {},
    )


def fingerprints(run: RunDir) -> dict[str, str]:
    """Of the documents it is trained on (see Manifest); empty before it starts, and in a run of an earlier version."""
    starts = _of(run.read_records("trainer"), "start")
    return starts[-1].get("fingerprints", {}) if starts else {}


def tokens_at(trains: list[Record], unix_times: Sequence[float | None]) -> list[float | None]:
    """Trained tokens at each time, between two records linearly; None for a time that is None."""
    if not trains:
        return [None] * len(unix_times)
    known = [time for time in unix_times if time is not None]
    found = iter(np.interp(known, [r["time"] for r in trains], [r["tokens"] for r in trains]))
    return [None if time is None else float(next(found)) for time in unix_times]


def _of(records: list[Record], event: str) -> list[Record]:
    return [record for record in records if record["event"] == event]


def _times(records: list[Record]) -> np.ndarray:
    """When a role recorded something; records that were thinned out lay evenly between those that were kept."""
    times = [np.array([record["time"] for record in records], dtype=np.float64)]
    before: dict[str, float] = {}  # by event
    for record in records:
        event, time = record["event"], record["time"]
        if THINNED in record and event in before:
            times.append(np.linspace(before[event], time, record[THINNED] + 2)[1:-1])
        before[event] = time
    return np.concatenate(times)


def _snapshots(by_role: dict[str, list[Record]], trainer: list[Record], trained: dict[str, int]) -> list[Snapshot]:
    swaps = sorted((r for records in by_role.values() for r in _of(records, "swap")), key=lambda r: r["time"])
    first_swap = {r.get("digest"): r for r in reversed(swaps)}
    first_trained = {r.get("snapshot"): r.get("tokens") for r in reversed(_of(trainer, "first_trained"))}
    candidates = _of(by_role.get("tuner", []), "snapshot")
    swap_of = [first_swap.get(r.get("digest") or "", {}) if r.get("verdict") == "published" else {} for r in candidates]
    swapped_tokens = tokens_at(_of(trainer, "train"), [swap.get("time") for swap in swap_of])
    found = []
    for record, swap, tokens in zip(candidates, swap_of, swapped_tokens, strict=True):
        digest = record.get("digest") or ""
        found.append(
            Snapshot(
                digest=digest,
                version=record.get("version"),
                verdict=record.get("verdict") or "unknown",
                reasons=tuple(map(str, record.get("reasons") or ())),
                parent_tokens=record.get("parent_tokens"),
                time=record["time"],
                measures=record.get("measures") or {},
                num_pairs=record.get("num_pairs"),
                tuned_tokens=record.get("tuned_tokens"),
                tune_s=record.get("tune_s"),
                gate_s=record.get("gate_s"),
                swapped_time=swap.get("time"),
                swapped_tokens=tokens,
                pause_s=swap.get("pause_s"),
                first_trained_tokens=first_trained.get(digest),
                trained_documents=trained.get(digest),
            )
        )
    return found


def _rates(trainer: list[Record], tuner: list[Record], generators: dict[str, list[Record]]) -> list[Rates]:
    sources = [("trainer", _of(trainer, "train"))]
    sources += [(name, _of(records, "throughput")) for name, records in generators.items()]
    rates = [_rate(name, [r for r in records if r.get("tokens_per_second") is not None]) for name, records in sources]
    tuning = _of(tuner, "tuning")
    steps = [
        (now["time"], (now["tuned_tokens"] - before["tuned_tokens"]) / (now["time"] - before["time"]))
        for before, now in pairwise(tuning)
        if now.get("parent_tokens") == before.get("parent_tokens")
        and now.get("tuned_tokens", 0) > before.get("tuned_tokens", 0)
        and now["time"] > before["time"]
    ]
    rates.append(Rates("tuner", np.array([t for t, _ in steps]), np.array([rate for _, rate in steps])))
    return [rate for rate in rates if len(rate.times)]


def _rate(role: str, records: list[Record]) -> Rates:
    return Rates(
        role, np.array([r["time"] for r in records]), np.array([float(r["tokens_per_second"]) for r in records])
    )


def _phases(trainer: list[Record]) -> dict[str, float]:
    """The clock of phases starts at zero in every process, and its time was spent even if its steps were superseded."""
    last_of_process: list[dict[str, float]] = []
    for record in trainer:
        if record["event"] == "start" or not last_of_process:
            last_of_process.append({})
        if record["event"] == "train":
            last_of_process[-1] = record.get("phases") or {}
    return _sum_of_dicts(last_of_process)


def by_process(records: Iterable[Record], count: str, starts: Sequence[float] = ()) -> list[list[Record]]:
    """Records with a cumulative ``count``, those of each process together.

    A new process began where the supervisor says so (``starts``, Unix times), and where the count falls: a generator
    may be started by hand.
    """
    processes: list[list[Record]] = []
    for record in records:
        if processes and not _is_of_another_process(record, processes[-1][-1], count, starts):
            processes[-1].append(record)
        else:
            processes.append([record])
    return processes


def throughput_by_process(records: list[Record], supervisor: list[Record], name: str) -> list[list[Record]]:
    """The `throughput` records of a generator; ``supervisor``: its records, which know of restarts."""
    return by_process(_of(records, "throughput"), "documents", _starts(supervisor, name))


def _is_of_another_process(record: Record, before: Record, count: str, starts: Sequence[float]) -> bool:
    fell = (record.get(count) or 0) < (before.get(count) or 0)
    return fell or any(before["time"] < start <= record["time"] for start in starts)


def _starts(supervisor: list[Record], name: str) -> list[float]:
    """When the supervisor started the role of this name."""
    return [record["time"] for record in _of(supervisor, "role_started") if record.get("name") == name]


def _sum_of_dicts(dicts: Any) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for item in dicts:
        for key, value in item.items():
            total[key] = total.get(key, 0) + value
    return total


def _events(by_role: dict[str, list[Record]]) -> list[Event]:
    found = (describe(role, record) for role, records in by_role.items() for record in records)
    return sorted((event for event in found if event), key=lambda event: event.time)

"""`sbp status`: one JSON-able object that says where a run stands. Described key by key in docs/status.md.

Made from RUN/roles/*.json (what each process says of itself) and RUN/records/*.jsonl (what happened); nothing is asked
of the processes, so it works while they run, after the end, and after any of them was killed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import psutil

from streaming_sbp.config import Config
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.records import Record, RecordFollower
from streaming_sbp.telemetry.summary import EventSummary, RestartSummary, SnapshotSummary, TrainerSummary

Status = dict[str, Any]
ENDED = ("stopped", "done", "failed")  # states after which a process is meant to be gone
LEDGER = (
    "sent",
    "trained",
    "buffered",
    "in_flight",
    "dropped",
    "imbalance",
    "dropped_by_reason",
    "by_generator",
    "trained_by_depth",
)
MIX = {
    "scheduled": "scheduled_share",
    "current": "current_share",
    "realised": "realised_share",
    "deviation_tokens": "deviation_tokens",
    "debt_tokens": "debt_tokens",
    "forgiven_tokens": "forgiven_tokens",
    "truncated_tokens": "truncated_tokens",
    "trained_tokens": "trained_tokens",
}
# A process that started later than its status file was written is another program with the same pid. The kernel gives
# start times to the second.
PID_REUSE_SLACK_S = 2.0
NUM_EVENTS = 20
NUM_EVALUATIONS = 40
SILENT_AFTER_S = 15.0  # a living process that has not written its status for so long hangs, or is stopped
LOADS_WITHIN_S = 120.0  # libraries, data set and model of a process that starts


def collect(run: RunDir) -> Status:
    """Where the run stands now. Every documented key is present; what does not exist yet is None."""
    return StatusCollector(run).collect()


class StatusCollector:
    """Collects again and again, and reads each record once."""

    def __init__(self, run: RunDir):
        self._run = run
        self._followers: dict[str, RecordFollower] = {}
        self._trainer = TrainerSummary()
        self._snapshots = SnapshotSummary()
        self._restarts = RestartSummary()
        self._events = EventSummary()

    def collect(self) -> Status:
        config = self._run.config()
        self._read_new_records()
        files = self._run.read_roles()
        roles = {name: self._role(files.get(name, {})) for name in _role_names(config, files)}
        self._note_starting(roles, files)
        for name, role in roles.items():
            role["restarts"] = self._restarts.restarts[name]
        trainer = files.get("trainer", {}).get("facts", {})
        status = {
            "run": self._run_part(config, roles, trainer),
            "ledger": self._ledger(trainer),
            "mix": self._mix(config, trainer),
            "snapshots": self._snapshots_part(trainer, files.get("tuner", {}).get("facts", {})),
            "loss": self._loss(trainer),
            "throughput": self._throughput(trainer, files, roles),
            "roles": roles,
            "events": [asdict(event) for event in self._events.newest(NUM_EVENTS)],
        }
        return _finite(status)

    # --- what there is to read ---

    def _read_new_records(self) -> None:
        for path in sorted(self._run.records.glob("*.jsonl")):
            follower = self._followers.setdefault(path.stem, RecordFollower(path))
            for record in follower.read():
                self._events.add(path.stem, record)
                self._snapshots.add(record)
                if path.stem == "trainer":
                    self._trainer.add(record)
                elif path.stem == "supervisor":
                    self._restarts.add(record)

    # --- the parts of the object ---

    def _run_part(self, config: Config, roles: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        total = config.training.total_tokens
        tokens = self._trainer.tokens if self._trainer.tokens is not None else facts.get("tokens")
        state = _run_state(roles, tokens, done=(self._trainer.finished_tokens or 0) >= total)
        rate = self._rate(roles, facts)
        left_tokens = None if tokens is None or state != "running" else max(0, total - tokens)
        return {
            "id": self._run.run_id,
            "dir": str(self._run.path),
            "state": state,
            "created": self._run.created,
            "tokens": tokens,
            "total_tokens": total,
            "eta_s": left_tokens / rate if left_tokens is not None and rate else None,
        }

    def _ledger(self, facts: dict[str, Any]) -> dict[str, Any]:
        source = facts.get("ledger") or self._trainer.newest("ledger") or {}
        return {term: source.get(term) for term in LEDGER}

    def _mix(self, config: Config, facts: dict[str, Any]) -> dict[str, Any]:
        said = facts.get("mix")
        mix = {key: said.get(key) if said else self._trainer.newest(field) for key, field in MIX.items()}
        return mix | {"pair_share": config.mix.pair_share}

    def _snapshots_part(self, trainer: dict[str, Any], tuner: dict[str, Any]) -> dict[str, Any]:
        return {
            "published": self._snapshots.verdicts["published"],
            "quarantined": self._snapshots.verdicts["quarantined"],
            "swapped_in": len(self._snapshots.swapped_in),
            "trained_from": trainer.get("snapshots", {}).get("trained_from"),
            "tuned_tokens": tuner.get("tuned_tokens"),
            "compute_share": tuner.get("compute_share"),
            "newest": self._newest_snapshot(),
            "newest_quarantined": self._newest_quarantined(),
            "serving": self._serving_snapshot(trainer),
        }

    def _newest_snapshot(self) -> dict[str, Any] | None:
        record = self._snapshots.newest
        if record is None:
            return None
        kept = {key: record.get(key) for key in ("digest", "version", "parent_tokens", "measures")}
        return kept | {"age_s": max(0.0, time.time() - record["time"])}

    def _newest_quarantined(self) -> dict[str, Any] | None:
        record = self._snapshots.newest_quarantined
        return None if record is None else {key: record.get(key) for key in ("digest", "parent_tokens", "reasons")}

    def _serving_snapshot(self, facts: dict[str, Any]) -> dict[str, Any] | None:
        said = facts.get("snapshots", {}).get("serving") or self._snapshots.announced
        return said and {key: said.get(key) for key in ("digest", "version", "parent_tokens", "pinned")}

    def _loss(self, facts: dict[str, Any]) -> dict[str, Any]:
        said, evaluations = facts.get("loss", {}), self._trainer.evaluations
        last = evaluations[-1] if evaluations else {}
        return {
            "train_real": _first(said.get("train_real"), self._trainer.newest_loss("real")),
            "train_synthetic": _first(said.get("train_synthetic"), self._trainer.newest_loss("synthetic")),
            "heldout_real": _first(last.get("heldout_loss"), said.get("heldout_real")),
            "heldout_bits_per_byte": _first(last.get("heldout_bits_per_byte"), said.get("heldout_bits_per_byte")),
            "question_accuracy": _first(last.get("question_accuracy"), said.get("question_accuracy")),
            "heldout_history": [[e.get("tokens"), e.get("heldout_loss")] for e in evaluations[-NUM_EVALUATIONS:]],
            "heldout_best": _best(evaluations),
        }

    def _throughput(
        self, facts: dict[str, Any], files: dict[str, dict[str, Any]], roles: dict[str, Any]
    ) -> dict[str, Any]:
        alive = [files[name].get("facts", {}) for name in files if roles[name]["alive"]]
        filtered = [
            file.get("facts", {})["filtered"] for file in files.values() if file.get("facts", {}).get("filtered")
        ]
        rates = [said["documents_per_second"] for said in alive if said.get("documents_per_second") is not None]
        return {
            "tokens_per_second": self._rate(roles, facts),
            "documents_per_second": sum(rates) if rates else None,
            "filtered": dict(sum(map(Counter, filtered), Counter())),
            "data_wait_share": facts.get("data_wait_share"),
            "staleness_tokens": facts.get("staleness_tokens"),
            "peers": facts.get("peers"),
            "real_epochs": _first(facts.get("real_epochs"), self._trainer.newest("real_epochs")),
        }

    def _rate(self, roles: dict[str, Any], facts: dict[str, Any]) -> float | None:
        """Tokens per second; None while the trainer of an unfinished run is down or loads, for then it trains none."""
        if roles["trainer"]["state"] in ("dead", "failed", "starting"):
            return None
        return _first(self._trainer.tokens_per_second(), facts.get("tokens_per_second"))

    def _role(self, said: dict[str, Any]) -> dict[str, Any]:
        alive = is_alive(said)
        state = said.get("state")
        updated = said.get("updated")
        return {
            "role": said.get("role"),
            "pid": said.get("pid"),
            "state": state if alive or state is None or state in ENDED else "dead",
            "detail": said.get("detail"),
            "progress": said.get("progress"),
            "metrics_port": said.get("metrics_port"),
            "alive": alive,
            "age_s": None if updated is None else max(0.0, time.time() - updated),
            "rss_bytes": said.get("rss_bytes"),
            "peak_rss_bytes": said.get("peak_rss_bytes"),
            "cpu_seconds": said.get("cpu_seconds"),
        }

    def _note_starting(self, roles: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
        """A process that the supervisor has started, and that is loading its libraries, cannot speak yet."""
        if not roles["supervisor"]["alive"]:
            return
        since = files["supervisor"].get("started") or 0.0
        for name, record in self._restarts.started.items():
            if name not in roles or record["time"] < since - PID_REUSE_SLACK_S:
                continue
            said = {"pid": record.get("pid"), "updated": record["time"], "state": "starting"}
            if name not in files or (files[name].get("pid") != said["pid"] and is_alive(said)):
                roles[name] |= self._role(said | {"detail": "loading the program"})


def is_alive(role: dict[str, Any]) -> bool:
    """Whether the process that wrote this role file still runs: not a zombie, and no other program with its pid."""
    pid, updated = role.get("pid"), role.get("updated")
    if pid is None or updated is None:
        return False
    try:
        process = psutil.Process(pid)
        started, state = process.create_time(), process.status()
    except psutil.Error:
        return False
    return state not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) and started <= updated + PID_REUSE_SLACK_S


def is_silent(role: dict[str, Any]) -> bool:
    """Of a role in the status object: it lives, and has not said anything for too long."""
    patience_s = LOADS_WITHIN_S if role["state"] == "starting" else SILENT_AFTER_S
    return role["alive"] and role["state"] not in ENDED and (role["age_s"] or 0) > patience_s


def which_serves(snapshots: dict[str, Any]) -> str:
    """Which snapshot serves; "" where it is simply the newest."""
    serving, newest = snapshots["serving"], snapshots["newest"]
    if serving is None or not (serving["pinned"] or (newest and newest["digest"] != serving["digest"])):
        return ""
    return f"v{serving['version']} serves" + (", pinned" if serving["pinned"] else "")


def _role_names(config: Config, files: dict[str, Any]) -> list[str]:
    """The roles this run is made of, started or not, then any others that ever ran."""
    expected = ["supervisor", "trainer", "pairer", "tuner", *(f"generator-{k}" for k in range(config.generator.count))]
    return expected + sorted(set(files) - set(expected))


def _run_state(roles: dict[str, Any], tokens: int | None, done: bool) -> str:
    if roles["trainer"]["state"] == "failed" and not roles["supervisor"]["alive"]:
        return "failed"  # and nobody will start it again
    if any(role["alive"] and role["state"] not in ENDED for role in roles.values() if role["role"] != "exporter"):
        return "stopping" if roles["supervisor"]["alive"] and roles["supervisor"]["state"] == "stopping" else "running"
    if done:
        return "done"
    if tokens is None and all(role["state"] is None for role in roles.values()):
        return "new"
    return "failed" if "failed" in (roles["supervisor"]["state"], roles["trainer"]["state"]) else "stopped"


def _best(evaluations: list[Record]) -> list[Any] | None:
    """Tokens and loss of the evaluation with the lowest held-out loss."""
    known = [e for e in evaluations if e.get("heldout_loss") is not None and math.isfinite(e["heldout_loss"])]
    best = min(known, key=lambda e: e["heldout_loss"], default=None)
    return None if best is None else [best.get("tokens"), best["heldout_loss"]]


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON: they become None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

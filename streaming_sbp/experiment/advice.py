"""What to try next: what a run's figures suggest, each with the command that does it."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass

from streaming_sbp.config import Config
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import SILENT_AFTER_S, Status, is_silent
from streaming_sbp.telemetry.text import counted, decimal, duration, quantity, size, whole

NOTICEABLE_SHARE = 0.02  # a realised share further below its schedule means that synthesis did not keep up ...
SETTLED_SHARE = 0.2  # ... once so much of the schedule is over: generators begin late, and the mix pays that back
ROOM_FOR_CHECKPOINTS = 3
RISEN = 1.05  # of the lowest held-out loss: the bound of the alert SbpHeldoutLossRising
UNUSABLE = ("malformed", "oversized", "out_of_vocabulary", "damaged")  # reasons of a drop that are nobody's choice


@dataclass(frozen=True)
class Suggestion:
    reason: str
    command: str


def suggest(run: RunDir, config: Config, status: Status) -> list[Suggestion]:
    """The most urgent first."""
    config_argument = shlex.quote(str(run.path / "config.toml"))
    suggestions = repairs(run, config, status)
    if status["run"]["state"] in ("stopped", "failed"):
        suggestions.append(Suggestion("Go on from the last checkpoint.", f"sbp run --config {config_argument}"))
    if status["run"]["state"] == "done":
        longer = f"training.total_tokens={2 * config.training.total_tokens} --accept-changes"
        suggestions.append(Suggestion("Train on, twice as long.", f"sbp run --config {config_argument} {longer}"))
    if status["run"]["tokens"] and config.mix.synthetic_share:
        control = shlex.quote(f"run.dir={run.path}-real-only") + " mix.synthetic_share=0 generator.count=0"
        reason = "See what the synthetic text brings: train as long on real text only, and compare held-out losses."
        suggestions.append(Suggestion(reason, f"sbp run --config {config_argument} {control}"))
    if status["mix"]["realised"]:
        suggestions.append(
            Suggestion("Read more synthetic documents.", f"sbp peek {shlex.quote(str(run.path))} -n 20 --seed 1")
        )
    return suggestions


def repairs(run: RunDir, config: Config, status: Status) -> list[Suggestion]:
    """What is wrong now, the most urgent first; empty when nothing is."""
    run_argument, config_argument = shlex.quote(str(run.path)), shlex.quote(str(run.path / "config.toml"))
    snapshots = status["snapshots"]
    found = _about_processes(run, config, status) + _about_documents(status, run_argument)
    if status["run"]["state"] == "running" and (full := _nearly_full(run)) is not None:
        found.append(Suggestion(full, f"df -h {run_argument}"))
    if (risen := _risen(status)) is not None:
        found.append(Suggestion(risen, f"sbp snapshots {run_argument}"))
    stop = " Stop the run first (Ctrl-C), then:" if status["run"]["state"] in ("running", "stopping") else ""
    if _is_behind(status):
        more = f"generator.count={config.generator.count + 1} --accept-changes"
        reason = f"Synthesis did not keep up with the schedule: add a generator, or lower mix.synthetic_share.{stop}"
        found.append(Suggestion(reason, f"sbp run --config {config_argument} {more}"))
    if snapshots["quarantined"] > snapshots["published"]:
        more = f"synthesizer.tuning_tokens={2 * config.synthesizer.tuning_tokens} --accept-changes"
        reason = f"Most candidates failed the gate (see the timeline for the measures): tune longer, or later.{stop}"
        found.append(Suggestion(reason, f"sbp run --config {config_argument} {more}"))
    return found


def why_nothing_synthetic(config: Config, status: Status) -> str:
    """Why no snapshot has been published; empty when one has."""
    snapshots, tuner = status["snapshots"], status["roles"]["tuner"]
    if snapshots["published"]:
        return ""
    if config.synthesizer.mode == "off":
        return 'synthesizer.mode = "off": real text only'
    if (refused := snapshots["newest_quarantined"]) is not None:
        count = counted(snapshots["quarantined"], "candidate")
        return f"the gate refused {count}, the last one for: {'; '.join(refused['reasons'] or ())}"
    doing = tuner["detail"] or "nothing"
    if tuner["state"] == "failed":
        return f"the tuner failed: {doing}"
    if tuner["state"] is None:
        return "the tuner was never started"
    return f"the tuner waited {doing}" if doing.startswith("for ") else f"the tuner had not finished: {doing}"


def _is_behind(status: Status) -> bool:
    """Whether the mix has less synthetic text than the schedule asked for, and had the time to catch up."""
    mix, run = status["mix"], status["run"]
    if not mix["scheduled"] or mix["realised"] is None or mix["scheduled"] - mix["realised"] <= NOTICEABLE_SHARE:
        return False
    if mix["realised"]:
        since_first_snapshot = (mix["trained_tokens"] or {}).get("synthetic", 0) / mix["realised"]
    else:  # whatever the schedule asked for is late
        since_first_snapshot = ((mix["debt_tokens"] or 0) + (mix["forgiven_tokens"] or 0)) / mix["scheduled"]
    schedule_tokens = run["total_tokens"] - (run["tokens"] or 0) + since_first_snapshot
    return since_first_snapshot > SETTLED_SHARE * schedule_tokens


def _about_processes(run: RunDir, config: Config, status: Status) -> list[Suggestion]:
    roles = status["roles"]
    found = [
        Suggestion(f"{name} ended: {role['detail'] or 'no reason given'}.", f"tail {_last_words(run, name)}")
        for name, role in roles.items()
        if role["state"] == "failed"
    ]
    for problem, names in (
        ("killed", [name for name, role in roles.items() if role["state"] == "dead"]),
        (
            f"silent for over {duration(SILENT_AFTER_S)}: hangs, or was stopped by somebody",
            [name for name, role in roles.items() if is_silent(role)],
        ),
    ):
        if names:
            words = " ".join(_last_words(run, name) for name in names)
            found.append(Suggestion(f"{', '.join(names)}: {problem}.", f"tail {words}"))
    training = status["roles"]["trainer"]["state"] == "running"
    if training and status["mix"]["current"] and status["throughput"]["peers"] == 0:
        start = f"sbp generate --run {shlex.quote(str(run.path))} --index {config.generator.count}"
        found.append(Suggestion("No generator is connected: what is late is made up by real text.", start))
    return found


def _last_words(run: RunDir, name: str) -> str:
    """Only what the supervisor starts has a log: not the supervisor itself, nor what was started by hand."""
    log, records = run.logs / f"{name}.log", run.records / f"{name}.jsonl"
    return shlex.quote(str(next((path for path in (log, records) if path.exists()), run.roles / f"{name}.json")))


def _about_documents(status: Status, run_argument: str) -> list[Suggestion]:
    ledger, found = status["ledger"], []
    if ledger["imbalance"]:
        found.append(Suggestion("The ledger does not balance: a defect.", f"sbp status {run_argument} --json"))
    dropped = ledger["dropped_by_reason"] or {}
    unusable = {reason: dropped[reason] for reason in UNUSABLE if dropped.get(reason)}
    if unusable:
        reasons = ", ".join(f"{whole(count)} {reason.replace('_', ' ')}" for reason, count in unusable.items())
        reason = f"Documents that could not be used: {reasons}."
        found.append(Suggestion(reason, f"sbp status {run_argument} --json"))
    return found


def _nearly_full(run: RunDir) -> str | None:
    """A disk without room for a few checkpoints like the newest one."""
    newest = max(run.checkpoints.glob("step-*"), default=None)
    try:
        needed = sum(path.lstat().st_size for path in newest.rglob("*")) if newest else 0
        free = shutil.disk_usage(run.path).free
    except OSError:  # pruned while we looked
        return None
    if free >= ROOM_FOR_CHECKPOINTS * needed:
        return None
    return f"The disk is nearly full: {size(free)} are free, and a checkpoint has {size(needed)}."


def _risen(status: Status) -> str | None:
    now, best = status["loss"]["heldout_real"], status["loss"]["heldout_best"]
    if now is None or best is None or now <= RISEN * best[1]:
        return None
    return f"Held-out loss is {decimal(now)}; it has been {decimal(best[1])}, at {quantity(best[0])} tokens."

"""What to try next: what a run's figures suggest, each with the command that does it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from streaming_sbp.config import Config
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import Status

NOTICEABLE_SHARE = 0.02  # a realised share further below its schedule means that synthesis did not keep up


@dataclass(frozen=True)
class Suggestion:
    reason: str
    command: str


def suggest(run: RunDir, config: Config, status: Status) -> list[Suggestion]:
    """The most urgent first."""
    run_argument, config_argument = shlex.quote(str(run.path)), shlex.quote(str(run.path / "config.toml"))
    suggestions = _repairs(config, status, run_argument, config_argument)
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
        suggestions.append(Suggestion("Read more synthetic documents.", f"sbp peek {run_argument} -n 20 --seed 1"))
    return suggestions


def _repairs(config: Config, status: Status, run_argument: str, config_argument: str) -> list[Suggestion]:
    mix, snapshots, found = status["mix"], status["snapshots"], []
    for name, role in status["roles"].items():
        if role["state"] in ("failed", "dead"):
            reason = f"{name} ended: {role['detail'] or 'killed'}."
            found.append(Suggestion(reason, f"tail {run_argument}/logs/{name}.log"))
    if status["ledger"]["imbalance"]:
        found.append(Suggestion("The ledger does not balance: a defect.", f"sbp status {run_argument} --json"))
    if mix["scheduled"] and mix["realised"] is not None and mix["scheduled"] - mix["realised"] > NOTICEABLE_SHARE:
        more = f"generator.count={config.generator.count + 1} --accept-changes"
        reason = "Synthesis did not keep up with the schedule: add a generator, or lower mix.synthetic_share."
        found.append(Suggestion(reason, f"sbp run --config {config_argument} {more}"))
    if snapshots["quarantined"] > snapshots["published"]:
        more = f"synthesizer.tuning_tokens={2 * config.synthesizer.tuning_tokens} --accept-changes"
        reason = "Most candidates failed the gate (see the timeline for the measures): tune longer, or later."
        found.append(Suggestion(reason, f"sbp run --config {config_argument} {more}"))
    return found

"""`sbp train --replay RUN`: trains a run again, from its journal and its log of steps, and compares every step.

With settings of the training, `sbp train --replay RUN training.dropout=0.1`, it is another run on the same documents in
the same order: what would have come of them? Neither tuner nor generators are needed, and no other stream blurs it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sbp_services.service import Service
from streaming_sbp import config as configuration
from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.telemetry.catalogue import PHASES
from streaming_sbp.training.batches import CannotRepeat
from streaming_sbp.training.build import build_trainer
from streaming_sbp.training.evaluation import Evaluation, Evaluator
from streaming_sbp.training.history import PastStep, read_steps
from streaming_sbp.training.loop import PhaseClock, Step
from streaming_sbp.training.model import choose_device
from streaming_sbp.training.world import World

# Settings on which it depends which documents are in a batch: replayed with others it would be another stream.
FIXED = frozenset({"training.total_tokens", "training.sequence_tokens", "training.batch_sequences"})
FREE = frozenset({"mix.confidence", "mix.min_confidence"})
FREE_SECTIONS = ("model", "training", "evaluation")


@dataclass
class Comparison:
    """How the replay compares with the run; a difference is named by the first step that has it."""

    logged: int = 0  # steps of the run
    steps: int = 0  # of them, trained again
    first_other_batch: int | None = None
    first_other_loss: int | None = None
    losses: list[dict[str, float | None]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, past: PastStep, step: Step) -> None:
        self.steps += 1
        if past.digest != step.batch.digest() and self.first_other_batch is None:
            self.first_other_batch = past.step
        if past.loss != step.losses and self.first_other_loss is None:
            self.first_other_loss = past.step
        self.losses.append(step.losses)

    @property
    def different(self) -> bool:
        return self.first_other_batch is not None or self.first_other_loss is not None

    @property
    def equal(self) -> bool:
        """Every step of the run was trained again, and is the same."""
        return 0 < self.steps == self.logged and not self.different

    def as_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "logged_steps": self.logged,
            "replay_equal": self.equal,
            "first_other_batch": self.first_other_batch,
            "first_other_loss": self.first_other_loss,
            **self._evaluated(),
        }

    def as_what_if(self, overrides: Sequence[str]) -> dict[str, Any]:
        """For a replay with other settings, of which nobody expects the same losses."""
        return {"steps": self.steps, "logged_steps": self.logged, **self._evaluated(), "settings": list(overrides)}

    def _evaluated(self) -> dict[str, float]:
        """At the end, and the lowest held-out loss on the way; empty where there are no held-out documents."""
        if not self.evaluations:
            return {}
        lowest = min(found.heldout.loss for found in self.evaluations)
        return {**self.evaluations[-1].record(), "lowest_heldout_loss": lowest}


class ReplayService(Service):
    """Writes into a run directory of its own; the run that is replayed is only read."""

    role = "replayer"

    def __init__(self, run: RunDir, original: RunDir, overrides: Sequence[str] = (), metrics_port: int = 0):
        super().__init__(run, metrics_port=metrics_port)
        self._original = original
        self._overrides = overrides
        self.comparison = Comparison()

    def startup(self) -> None:
        self.report("starting", "reading the data set and building the model")
        self._past = list(read_steps(self._original.steps))
        if not self._past or self._past[0].step != 1:
            raise ConfigError(f"{self._original.steps}: expected a log of steps from the first on; nothing to replay")
        self.comparison.logged = len(self._past)
        dataset = Dataset.open(self.config.data.dataset)
        device = choose_device(self.config.training.device)
        journal = Journal(self._original.journal)
        if journal.first:
            raise ConfigError(f"{self._original.journal}: documents before {journal.first} were pruned; cannot replay")
        self.trainer = build_trainer(
            self.config, dataset, journal, self._original.pairs, device, PhaseClock(PHASES), World()
        )
        self._evaluator = Evaluator(dataset, self.config, device)

    def tick(self) -> bool:
        if self.comparison.steps == len(self._past):
            return False
        past = self._past[self.comparison.steps]
        try:
            step = self.trainer.step(past.decisions)
        except CannotRepeat as error:
            raise ConfigError(f"{self._original.journal}: step {past.step} cannot be trained again: {error}") from None
        assert step is not None, "decisions were given, so nothing is waited for"
        self.comparison.add(past, step)
        self.record("replayed", step=past.step, loss=step.losses, digest=step.batch.digest())
        if self.trainer.passed(self.config.evaluation.every_tokens, step) or past is self._past[-1]:
            self._evaluate()
        progress = (past.step, len(self._past), "steps")
        self.report("running", f"step {past.step}: {self._so_far()}", progress)
        return True

    def _so_far(self) -> str:
        if not self._overrides:
            return "different so far" if self.comparison.different else "equal so far"
        found = self.comparison.evaluations
        return f"held-out loss {found[-1].heldout.loss:.3f}" if found else "trained with other settings"

    def _evaluate(self) -> None:
        found = self._evaluator(self.trainer.model)
        if found is not None:
            self.comparison.evaluations.append(found)
            trained = self.trainer.trained
            self.record("eval", step=trained.steps, tokens=trained.total_tokens, **found.record())

    def shutdown(self) -> None:
        self.record("finish", **self.outcome())

    def outcome(self) -> dict[str, Any]:
        return self.comparison.as_what_if(self._overrides) if self._overrides else self.comparison.as_json()


def replay(original: RunDir, out: Path | None, overrides: Sequence[str] = (), metrics_port: int = 0) -> int:
    """Prints the comparison as one JSON line, the last. Returns the exit status.

    It is 0 when every batch and loss is the same, else 1; with ``overrides``, ``section.key=value``, when every step
    was trained. Raises ConfigError for settings that change which documents are trained, and when ``out`` (by default
    RUN-replay) is something else than a replay.
    """
    _check(overrides)
    settings = original.config()
    torch.set_num_threads(settings.training.cpu_threads)
    target = out or original.path.with_name(f"{original.path.name}-replay")
    if (target / "replay_of.json").exists():
        shutil.rmtree(target)
    elif target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target}: exists and is not a replay; choose another folder with --out")
    where = f"run.dir={json.dumps(str(target))}"
    run = RunDir.open_or_create(configuration.load(original.path / "config.toml", overrides=[*overrides, where]))
    (target / "replay_of.json").write_text(json.dumps({"run": str(original.path), "run_id": original.run_id}))
    service = ReplayService(run, original, overrides, metrics_port)
    if status := service.main():
        return status
    found = service.comparison
    print(json.dumps(service.outcome()), flush=True)
    return int(found.steps != found.logged if overrides else not found.equal)


def _check(overrides: Sequence[str]) -> None:
    keys = [override.partition("=")[0].strip() for override in overrides]
    refused = [key for key in keys if key in FIXED or not (key in FREE or key.partition(".")[0] in FREE_SECTIONS)]
    if refused:
        raise ConfigError(
            f"--replay with {', '.join(refused)}: expected settings that leave the documents of each batch as they "
            f"were: of {', '.join(FREE_SECTIONS)} (but {', '.join(sorted(FIXED))}), and {', '.join(sorted(FREE))}"
        )

"""`sbp train --replay RUN`: trains a run again, from its journal and its log of steps, and compares every step."""

from __future__ import annotations

import json
import shutil
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
from streaming_sbp.training.history import PastStep, read_steps
from streaming_sbp.training.loop import PhaseClock, Step
from streaming_sbp.training.model import choose_device
from streaming_sbp.training.world import World


@dataclass
class Comparison:
    """How the replay compares with the run; a difference is named by the first step that has it."""

    logged: int = 0  # steps of the run
    steps: int = 0  # of them, trained again
    first_other_batch: int | None = None
    first_other_loss: int | None = None
    losses: list[dict[str, float | None]] = field(default_factory=list)

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
        }


class ReplayService(Service):
    """Writes into a run directory of its own; the run that is replayed is only read."""

    role = "replayer"

    def __init__(self, run: RunDir, original: RunDir, metrics_port: int = 0):
        super().__init__(run, metrics_port=metrics_port)
        self._original = original
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
        progress = (past.step, len(self._past), "steps")
        so_far = "different" if self.comparison.different else "equal"
        self.report("running", f"step {past.step}: {so_far} so far", progress)
        return True

    def shutdown(self) -> None:
        self.record("finish", **self.comparison.as_json())


def replay(original: RunDir, out: Path | None, metrics_port: int = 0) -> int:
    """Prints the comparison as one JSON line, the last; exit status 0 when every batch and loss is the same, else 1.

    Raises ConfigError when ``out`` (by default RUN-replay) is something else than a replay.
    """
    settings = original.config()
    torch.set_num_threads(settings.training.cpu_threads)
    target = out or original.path.with_name(f"{original.path.name}-replay")
    if (target / "replay_of.json").exists():
        shutil.rmtree(target)
    elif target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target}: exists and is not a replay; choose another folder with --out")
    overrides = [f"run.dir={json.dumps(str(target))}"]
    run = RunDir.open_or_create(configuration.load(original.path / "config.toml", overrides=overrides))
    (target / "replay_of.json").write_text(json.dumps({"run": str(original.path), "run_id": original.run_id}))
    service = ReplayService(run, original, metrics_port)
    if status := service.main():
        return status
    print(json.dumps(service.comparison.as_json()), flush=True)
    return 0 if service.comparison.equal else 1

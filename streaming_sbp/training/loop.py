"""The training loop: next batch, forward, backward, step, count. What each means lives in the modules it calls."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.stream.journal import Journal
from streaming_sbp.training.batches import IGNORED, Batch, BatchStream, Decisions
from streaming_sbp.training.mixer import REAL, SYNTHETIC
from streaming_sbp.training.model import token_losses
from streaming_sbp.training.optim import build_optimizer, learning_rate, set_learning_rate
from streaming_sbp.training.world import World


class NonFiniteLoss(ConfigError):
    """The loss of a batch is NaN or infinite; the message names its documents. To try again would not help."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did. Losses are means in nats per target token, None where a source had no target."""

    batch: Batch
    losses: dict[str, float | None]
    learning_rate: float
    gradient_norm: float
    skipped: bool = False  # the loss was not finite


class PhaseClock:
    """Seconds by phase since the process started."""

    def __init__(self, phases: tuple[str, ...]):
        self.seconds = dict.fromkeys(phases, 0.0)
        self._mark = time.monotonic()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        self.seconds["other"] += started - self._mark
        try:
            yield
        finally:
            self._mark = time.monotonic()
            self.seconds[phase] += self._mark - started


class Trained:
    """What has been trained, by source, generator, snapshot and depth; part of the checkpoint."""

    def __init__(self) -> None:
        self.steps = 0
        self.tokens: Counter[str] = Counter({REAL: 0, SYNTHETIC: 0})
        self.documents: Counter[str] = Counter({REAL: 0, SYNTHETIC: 0})
        self.by_generator: Counter[str] = Counter()
        self.by_snapshot: Counter[str] = Counter()
        self.by_depth: Counter[str] = Counter()  # synthetic documents
        self.targets: Counter[str] = Counter({REAL: 0, SYNTHETIC: 0})  # tokens that the loss counts
        self.padding_tokens = 0

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens.values())

    def add(self, batch: Batch, journal: Journal) -> list[int]:
        """Count a trained batch; returns the journal positions of the documents that it finished."""
        self.steps += 1
        self.padding_tokens += batch.num_padding_tokens
        finished = batch.finished(SYNTHETIC)
        for name in batch.source_names:
            self.tokens[name] += batch.num_tokens(name)
            self.documents[name] += len(batch.finished(name))
            self.targets[name] += batch.num_targets(name)
        for position in finished:
            entry = journal.entry(position)
            self.by_generator[entry.generator] += 1
            self.by_snapshot[entry.header.snapshot] += 1
            self.by_depth[str(entry.header.depth)] += 1
        return finished

    def state_dict(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, Counter(value) if isinstance(value, dict) else value)


class Trainer:
    """Model, optimizer and batches. ``step`` returns None when there is no batch yet (policy ``wait``).

    With more than one rank, every rank makes the same global batch and trains its rows of it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: BatchStream,
        journal: Journal,
        training: config.Training,
        device: torch.device,
        clock: PhaseClock,
        world: World | None = None,
    ):
        model.to(device)  # type: ignore[arg-type]
        self.world = world or World()
        self._rows = self.world.rows(training.batch_sequences)
        self.model, self.batches, self.trained, self.clock = model, batches, Trained(), clock
        self._journal, self._training, self._device = journal, training, device
        self.optimizer = build_optimizer(self.model, training)
        self.model.train()

    @property
    def done(self) -> bool:
        return self.trained.total_tokens >= self._training.total_tokens

    def passed(self, every_tokens: int, step: Step) -> bool:
        """Whether ``step``, the last one, crossed a multiple of ``every_tokens``, or is the last of the run."""
        after = self.trained.total_tokens
        before = after - sum(step.batch.num_tokens(name) for name in step.batch.source_names)
        return self.done or after // every_tokens > before // every_tokens

    def step(self, decisions: Decisions | None = None) -> Step | None:
        """One optimizer step; with ``decisions``, the one that was made with them. Raises CannotRepeat."""
        with self.clock("data_wait"):
            batch = self.batches.next(decisions)
        if batch is None:
            return None
        if self.world.leads:
            self.world.broadcast(batch.decisions.state())
        with self.clock("forward_backward"):
            losses = self._forward_backward(batch)
        with self.clock("optimizer"):
            done = self._optimize(batch, losses)
        self.trained.add(batch, self._journal)
        return done

    def follow(self) -> bool:
        """A rank that does not lead: train the step that the first rank trains. False when that has ended."""
        decisions = self.world.broadcast()
        if decisions is None:
            return False
        self.step(Decisions.of(decisions))
        return True

    def end(self) -> None:
        """Tell the other ranks that there is no further step."""
        if self.world.leads:
            self.world.broadcast(None)

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.trained.state_dict(), "batches": self.batches.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trained.load_state_dict(state["trained"])
        self.batches.load_state_dict(state["batches"])

    def _forward_backward(self, batch: Batch) -> dict[str, float | None]:
        """Accumulate the gradient of the weighted mean loss over the global batch's targets, over this rank's rows.

        The losses returned are plain means over the targets of each source.
        """
        whole = float(batch.weights[:, 1:].double().sum())
        counts = [int(_targets_of(batch, i).sum()) for i in range(len(batch.source_names))]
        sums = torch.zeros(len(counts), dtype=torch.float64)
        size = self._training.micro_batch_sequences or len(self._rows)
        for first in range(self._rows.start, self._rows.stop, size):
            part = batch.part(first, min(first + size, self._rows.stop))
            losses = token_losses(self.model, part, self._device, self._training.precision)
            ((losses * part.weights[:, 1:].to(self._device)).sum() / max(whole, 1.0)).backward()
            kept = losses.detach().to("cpu", torch.float64)
            for i in range(len(counts)):
                sums[i] += kept[_targets_of(part, i)].sum()
        self.world.sum_([sums, *(p.grad for p in self.model.parameters() if p.grad is not None)])
        means = zip(batch.source_names, sums.tolist(), counts, strict=True)
        return {name: total / count if count else None for name, total, count in means}

    def _optimize(self, batch: Batch, losses: dict[str, float | None]) -> Step:
        rate = learning_rate(self._training, self.trained.total_tokens)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._training.gradient_clip))
        finite = math.isfinite(norm) and all(loss is None or math.isfinite(loss) for loss in losses.values())
        if not finite and self._training.on_non_finite == "stop":
            raise NonFiniteLoss(self._describe(batch, losses, norm))
        if finite:
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(batch, losses, rate, norm, skipped=not finite)

    def _describe(self, batch: Batch, losses: dict[str, float | None], norm: float) -> str:
        documents = ", ".join(sorted({f"{p.source}:{p.position}" for row in batch.rows for p in row}))
        return (
            f"step {self.trained.steps + 1}: loss {losses}, gradient norm {norm}: expected finite numbers. "
            f"Documents of the batch (source:position): {documents}. Lower training.learning_rate, set "
            'training.precision = "fp32", or go on past such batches with training.on_non_finite = "skip"'
        )


def _targets_of(batch: Batch, source_index: int) -> torch.Tensor:
    """Which of the ``[rows, sequence_tokens - 1]`` losses are targets of this source."""
    return (batch.labels[:, 1:] != IGNORED) & (batch.source_ids[:, 1:] == source_index)

"""Tune a checkpoint on pairs: cross entropy of the target given the seed, ``p(d2 | d1)``.

Several pairs share a row, masked from each other by restarting position ids (training/model.py says why that needs
``use_cache=False`` and no attention mask). Labels are -100 on everything but the target and its ``<eos>``.
`tune` is an iterator, one optimizer step at a time, so that its caller stays in control.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from transformers import PreTrainedModel

from streaming_sbp import config
from streaming_sbp.config import Config
from streaming_sbp.synthesizer.prompt import Pairs
from streaming_sbp.training.batches import IGNORED, Batch, collate
from streaming_sbp.training.dropout import add_dropout
from streaming_sbp.training.mixer import PAIRS
from streaming_sbp.training.model import token_losses
from streaming_sbp.training.optim import build_optimizer, set_learning_rate
from streaming_sbp.training.packing import Packer
from streaming_sbp.training.sources import PairSource

FINAL_LEARNING_RATE_RATIO = 0.1


@dataclass(frozen=True)
class TuningProgress:
    """After one optimizer step; step 0 is the evaluation before the first. Losses in nats per target token."""

    step: int
    tuned_tokens: int  # that passed through the model in training, without padding
    train_loss: float | None  # of this step's batch; None at step 0
    pair_loss: float | None  # held-out; None when this step did not evaluate
    best_pair_loss: float
    best_step: int


def next_tuning(settings: Config, num_published: int) -> Config:
    """The configuration of the next tuning: after the first published snapshot `synthesizer.refresh_tokens` counts."""
    synthesizer = settings.synthesizer
    if not num_published or not synthesizer.refresh_tokens:
        return settings
    refreshed = synthesizer.model_copy(update={"tuning_tokens": synthesizer.refresh_tokens})
    return settings.model_copy(update={"synthesizer": refreshed})


def budget(settings: config.Synthesizer) -> int:
    """Tokens of one tuning that pass through the model in training."""
    return {"tuned": settings.tuning_tokens, "joint": settings.polish_tokens}.get(settings.mode, 0)


class TuningDiverged(RuntimeError):
    """The loss or the gradient is not finite. The model holds the weights of that step."""


class PairLoss:
    """Mean cross entropy of held-out targets: always the same packed rows."""

    def __init__(self, pairs: Pairs, row_tokens: int, batch_tokens: int, pad_id: int):
        if not len(pairs):
            raise ValueError("held-out pairs: got none; expected at least one, raise pairing.heldout_share")
        packer, source = Packer(config.Packing(), row_tokens), PairSource(pairs, seed=0)
        for position in range(len(pairs)):
            packer.add(PAIRS, position, source.num_tokens(position))
        packer.flush()
        rows = list(packer.closed)
        size = max(1, batch_tokens // row_tokens)
        self._batches = [
            collate(rows[i : i + size], {PAIRS: source}, row_tokens, pad_id) for i in range(0, len(rows), size)
        ]

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, device: torch.device, precision: str) -> float:
        was_training = model.training
        model.eval()
        total, targets = 0.0, 0
        for batch in self._batches:
            total += float(token_losses(model, batch, device, precision).double().sum())
            targets += int((batch.labels != IGNORED).sum())
        model.train(was_training)
        return total / targets


def tune(
    model: PreTrainedModel, pairs: Pairs, pair_loss: PairLoss, config: Config, pad_id: int, device: torch.device
) -> Iterator[TuningProgress]:
    """Train ``model`` (fp32, on ``device``) in place; when the iterator ends, it holds the best weights.

    Ends at `budget`, which may be none at all, or after `synthesizer.patience` evaluations without a
    better held-out loss.
    Raises TuningDiverged.
    """
    settings, precision = config.synthesizer, config.training.precision
    optimizer = build_optimizer(
        model,
        config.training.model_copy(
            update={"learning_rate": settings.learning_rate, "weight_decay": settings.weight_decay}
        ),
    )
    best = _Best(model, pair_loss(model, device, precision))
    yield TuningProgress(0, 0, None, best.loss, best.loss, 0)
    if not budget(settings):
        model.eval()
        return
    torch.manual_seed(config.run.seed)  # of dropout
    add_dropout(model, settings.dropout, "synthesizer.dropout")
    model.train()
    tuned_tokens = 0
    for step, batch in enumerate(pair_batches(pairs, settings, pad_id, config.run.seed), start=1):
        set_learning_rate(optimizer, _learning_rate(settings, step, tuned_tokens))
        train_loss = _step(model, optimizer, batch, device, precision, config.training.gradient_clip)
        tuned_tokens += batch.num_tokens(PAIRS)
        spent = tuned_tokens >= budget(settings)
        found = None
        if spent or step % settings.evaluate_every_steps == 0:
            found = pair_loss(model, device, precision)
            best.offer(model, found, step)
        yield TuningProgress(step, tuned_tokens, train_loss, found, best.loss, best.step)
        if spent or best.num_worse >= settings.patience:
            break
    best.restore(model)


def pair_batches(pairs: Pairs, settings: config.Synthesizer, pad_id: int, seed: int) -> Iterator[Batch]:
    """Packed batches of about `synthesizer.batch_tokens` for ever: every pair once an epoch, reshuffled each epoch."""
    row_tokens = settings.longest_pair_tokens
    num_rows = max(1, settings.batch_tokens // row_tokens)
    packer, source = Packer(config.Packing(num_open_bins=2 * num_rows), row_tokens), PairSource(pairs, seed)
    for position in count():
        packer.add(PAIRS, position, source.num_tokens(position))
        while len(packer.closed) >= num_rows:
            rows = [packer.closed.popleft() for _ in range(num_rows)]
            yield collate(rows, {PAIRS: source}, row_tokens, pad_id)


class _Best:
    """The weights with the lowest held-out loss so far."""

    def __init__(self, model: PreTrainedModel, loss: float):
        self.loss, self.step, self.num_worse = loss, 0, 0
        self._weights = _copy(model)

    def offer(self, model: PreTrainedModel, loss: float, step: int) -> None:
        if loss < self.loss:
            self.loss, self.step, self.num_worse = loss, step, 0
            self._weights = _copy(model)
        else:
            self.num_worse += 1

    def restore(self, model: PreTrainedModel) -> None:
        model.load_state_dict(self._weights)
        model.eval()


def _copy(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    device: torch.device,
    precision: str,
    gradient_clip: float,
) -> float:
    """One optimizer step on the mean loss over all targets of the batch; returns that loss."""
    losses = token_losses(model, batch, device, precision)
    loss = losses.sum() / (batch.labels != IGNORED).sum()
    loss.backward()
    value = float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip))
    if not (math.isfinite(norm) and math.isfinite(value)):
        raise TuningDiverged(
            f"tuning: loss {value}, gradient norm {norm}: expected finite numbers; lower synthesizer.learning_rate"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def _learning_rate(settings: config.Synthesizer, step: int, tuned_tokens: int) -> float:
    """Linear warm-up over `warmup_steps`, then linear to a tenth at the end of the budget."""
    warmup = min(1.0, step / (settings.warmup_steps + 1))
    left = 1.0 - min(1.0, tuned_tokens / budget(settings))
    return settings.learning_rate * warmup * (FINAL_LEARNING_RATE_RATIO + (1.0 - FINAL_LEARNING_RATE_RATIO) * left)

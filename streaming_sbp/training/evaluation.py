"""What a model in training knows: loss on held-out real documents, always the same ones, and questions on facts."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from streaming_sbp import config
from streaming_sbp.data.dataset import Dataset, Split
from streaming_sbp.training.batches import IGNORED, Batch, collate
from streaming_sbp.training.mixer import REAL
from streaming_sbp.training.model import token_losses
from streaming_sbp.training.packing import Packer
from streaming_sbp.training.questions import Answers, QuestionSet
from streaming_sbp.training.sources import RealSource

log = logging.getLogger("sbp")


@dataclass(frozen=True)
class HeldoutLoss:
    loss: float  # mean cross entropy, nats per token
    bits_per_byte: float  # total cross entropy in bits over the UTF-8 bytes of the same documents


class HeldoutSet:
    """The first held-out documents, in a fixed order, that fill ``evaluation.heldout_sequences`` sequences.

    A tiny corpus may have none: then there is nothing to evaluate.
    """

    def __init__(self, split: Split, bos_id: int, eos_id: int, pad_id: int, settings: config.Config):
        self.num_bytes = 0
        self._batches: list[Batch] = []
        if not len(split):
            log.warning("the held-out split is empty: no held-out loss; raise data.heldout_share, or add text")
            return
        source = RealSource(split, bos_id, eos_id, seed=0)
        sequence_tokens = settings.training.sequence_tokens
        packer = Packer(config.Packing(num_open_bins=settings.evaluation.heldout_sequences), sequence_tokens)
        room = settings.evaluation.heldout_sequences * sequence_tokens
        for position in range(len(split)):
            room -= source.num_tokens(position)
            if room < 0 and position > 0:
                break
            packer.add(REAL, position, source.num_tokens(position))
            self.num_bytes += int(split.num_bytes[source.document(position)])
        packer.flush()
        rows = list(packer.closed)
        size = settings.training.micro_batch_sequences or settings.training.batch_sequences
        self._batches = [
            collate(rows[i : i + size], {REAL: source}, sequence_tokens, pad_id) for i in range(0, len(rows), size)
        ]

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, device: torch.device, precision: str) -> HeldoutLoss | None:
        if not self._batches:
            return None
        was_training = model.training
        model.eval()
        total, targets = 0.0, 0
        for batch in self._batches:
            total += float(token_losses(model, batch, device, precision).double().sum())
            targets += int((batch.labels[:, 1:] != IGNORED).sum())
        model.train(was_training)
        return HeldoutLoss(total / targets, total / math.log(2) / max(self.num_bytes, 1))


@dataclass(frozen=True)
class Evaluation:
    heldout: HeldoutLoss
    answers: Answers | None  # None where no truth is known

    def record(self) -> dict[str, Any]:
        """Its part of an `eval` record."""
        found = {"heldout_loss": self.heldout.loss, "heldout_bits_per_byte": self.heldout.bits_per_byte}
        return found | (self.answers.record() if self.answers else {})


class Evaluator:
    """As section `evaluation` says. Changes nothing of the model, nor of what is random in its training."""

    def __init__(self, dataset: Dataset, settings: config.Config, device: torch.device):
        tokenizer = dataset.tokenizer()
        special_ids = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
        self._heldout = HeldoutSet(dataset.split("heldout"), *special_ids, settings)
        self._questions = QuestionSet.of_dataset(dataset, tokenizer, settings.evaluation.questions)
        self._device, self._precision = device, settings.training.precision

    def __call__(self, model: PreTrainedModel) -> Evaluation | None:
        """None when there are no held-out documents."""
        heldout = self._heldout.evaluate(model, self._device, self._precision)
        answers = self._questions.ask(model, self._device, self._precision) if self._questions else None
        return None if heldout is None else Evaluation(heldout, answers)

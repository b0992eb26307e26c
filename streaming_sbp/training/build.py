"""A trainer from a configuration, a data set and a journal: the same for training, for further ranks and for replay."""

from __future__ import annotations

import torch
from transformers.utils import logging as transformers_logging

from streaming_sbp.config import Config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.stream.journal import Journal
from streaming_sbp.training.batches import BatchStream
from streaming_sbp.training.loop import PhaseClock, Trainer
from streaming_sbp.training.mixer import REAL, SYNTHETIC, Mixer
from streaming_sbp.training.model import build_model
from streaming_sbp.training.packing import Packer
from streaming_sbp.training.sources import RealSource, SyntheticSource
from streaming_sbp.training.world import World


def build_batches(settings: Config, dataset: Dataset, journal: Journal) -> BatchStream:
    tokenizer, training = dataset.tokenizer(), settings.training
    return BatchStream(
        {
            REAL: RealSource(dataset.split("train"), tokenizer.bos_id, tokenizer.eos_id, settings.run.seed),
            SYNTHETIC: SyntheticSource(journal, tokenizer.bos_id, tokenizer.eos_id),
        },
        Mixer(settings.mix),
        Packer(settings.packing, training.sequence_tokens),
        training.batch_sequences,
        training.sequence_tokens,
        tokenizer.pad_id,
    )


def build_trainer(
    settings: Config, dataset: Dataset, journal: Journal, device: torch.device, clock: PhaseClock, world: World
) -> Trainer:
    transformers_logging.disable_progress_bar()  # a bar for each checkpoint that is written
    model = build_model(settings.model, dataset.tokenizer(), settings.run.seed)
    batches = build_batches(settings, dataset, journal)
    return Trainer(model, batches, journal, settings.training, device, clock, world)

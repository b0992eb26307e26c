"""A trainer from a configuration, a data set and a journal: the same for training, for further ranks and for replay."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from streaming_sbp.config import Config, ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.pairing.pairs import PairTable
from streaming_sbp.stream.journal import Journal
from streaming_sbp.synthesizer.prompt import Prompter, training_pairs
from streaming_sbp.training.batches import BatchStream
from streaming_sbp.training.dropout import add_dropout
from streaming_sbp.training.loop import PhaseClock, Trainer
from streaming_sbp.training.mixer import PAIRS, REAL, SYNTHETIC, Mixer
from streaming_sbp.training.model import build_model
from streaming_sbp.training.packing import Packer
from streaming_sbp.training.sources import PairSource, RealSource, Source, SyntheticSource
from streaming_sbp.training.world import World


def build_batches(settings: Config, dataset: Dataset, journal: Journal, pairs: Path) -> BatchStream:
    """``pairs``: the folder of the pair table. Raises ConfigError when pairs are to be trained, and there are none."""
    tokenizer, training, mix = dataset.tokenizer(), settings.training, settings.mix
    train, bos_id, eos_id = dataset.split("train"), tokenizer.bos_id, tokenizer.eos_id
    sources: dict[str, Source] = {
        REAL: RealSource(train, bos_id, eos_id, settings.run.seed),
        SYNTHETIC: SyntheticSource(journal, bos_id, eos_id, tokenizer.vocab_size, mix, train),
    }
    if mix.pair_share > 0:
        sources[PAIRS] = _pair_source(pairs, settings, dataset, tokenizer)
    return BatchStream(
        sources,
        Mixer(
            mix,
            {PAIRS: mix.pair_share} if mix.pair_share > 0 else None,
            _epoch_tokens(dataset),
            training.total_tokens,
        ),
        Packer(settings.packing, training.sequence_tokens),
        training.batch_sequences,
        training.sequence_tokens,
        tokenizer.pad_id,
        group_by_seed=settings.packing.group_by_seed,
    )


def build_trainer(
    settings: Config,
    dataset: Dataset,
    journal: Journal,
    pairs: Path,
    device: torch.device,
    clock: PhaseClock,
    world: World,
) -> Trainer:
    transformers_logging.disable_progress_bar()  # a bar for each checkpoint that is written
    model = build_model(settings.model, dataset.tokenizer(), settings.run.seed)
    add_dropout(model, settings.training.dropout, "training.dropout")
    batches = build_batches(settings, dataset, journal, pairs)
    return Trainer(model, batches, journal, settings.training, device, clock, world)


def _epoch_tokens(dataset: Dataset) -> int:
    """Of all training documents once, each with <bos> and <eos>."""
    split = dataset.split("train")
    return int(split.num_tokens.sum()) + 2 * len(split)


def _pair_source(folder: Path, settings: Config, dataset: Dataset, tokenizer: Tokenizer) -> PairSource:
    table = PairTable.load(folder, dataset.manifest.digest)
    if table is None:
        raise ConfigError(f"{folder}: mix.pair_share = {settings.mix.pair_share:g} needs pairs; run `sbp pair`")
    prompter = Prompter(tokenizer, settings.synthesizer)
    pairs = training_pairs(table, dataset.split("train"), prompter)
    if not len(pairs):
        raise ConfigError(f"{folder}: the table has no pairs for training; lower pairing.threshold, and pair again")
    return PairSource(pairs, settings.run.seed, both=settings.mix.pair_loss == "both")

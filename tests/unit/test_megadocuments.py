"""`packing.group_by_seed`: a seed document and its synthetic relatives in one sequence, seeing each other."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_sbp import config
from streaming_sbp.config import Config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import DocumentHeader, SamplingSettings
from streaming_sbp.stream.shards import AcceptedDocument
from streaming_sbp.synthesizer.seeds import SeedOrder
from streaming_sbp.training.batches import BatchStream, collate
from streaming_sbp.training.build import build_batches
from streaming_sbp.training.mixer import REAL, SYNTHETIC
from streaming_sbp.training.model import build_model
from streaming_sbp.training.packing import NO_GROUP, Bin, Packer, Piece

TARGETS = 3
MIXED_UP = 40  # documents of the journal come in another order within so many


def settings_of(tiny: Config, *, group: bool, share: float = 0.7) -> Config:
    changes = {
        "packing": config.Packing(num_open_bins=24, group_by_seed=group),
        "mix": tiny.mix.model_copy(update={"synthetic_share": share}),
        "training": tiny.training.model_copy(update={"sequence_tokens": 256, "batch_sequences": 2}),
    }
    return tiny.model_copy(update=changes)


def journal_of(folder: Path, dataset: Dataset, count: int = 1500) -> Journal:
    """What a generator with `targets_per_seed` sends: relatives near each other, not side by side."""
    train = dataset.split("train")
    order, rng = SeedOrder(len(train), 0, targets_per_seed=TARGETS), np.random.default_rng(0)
    documents = []
    for seq in range(count):
        size = int(rng.integers(10, 40))
        seed = train.ids[order.document(seq)]
        header = DocumentHeader(seed, "d" * 32, 0, SamplingSettings(1.0, 0.9, 0), -1.0, size, 5, seq)
        tokens = rng.integers(10, 300, size).astype("<u2")
        documents.append(AcceptedDocument("g", "s", seq, header, tokens, np.zeros(size, "u1")))
    turn = np.argsort(np.arange(count) + rng.uniform(0, MIXED_UP, count))
    journal = Journal(folder, writable=True)
    journal.append([documents[i] for i in turn])
    return journal


def stream(settings: Config, journal: Journal, *, start: bool = True) -> BatchStream:
    made = build_batches(settings, Dataset.open(settings.data.dataset), journal, Path("none"))
    if start:
        made.start_schedule()
    return made


def test_relatives_stand_beside_their_seed_document(tiny_config, tmp_path):
    settings = settings_of(tiny_config, group=True)
    dataset = Dataset.open(settings.data.dataset)
    journal = journal_of(tmp_path, dataset)
    batches, ids = stream(settings, journal), dataset.split("train").ids
    real = batches.sources[REAL]
    beside: list[bool] = []
    for _ in range(60):
        batch = batches.next()
        assert batch
        for row in batch.rows:
            for group in Bin(256, list(row)).segments():
                seeds = [ids[real.document(p.position)] for p in group if p.source == REAL]
                relatives = [journal.entry(p.position).header.seed_id for p in group if p.source == SYNTHETIC]
                assert len(set(seeds + relatives)) == 1
                if relatives:
                    assert [p.source for p in group] == [REAL] * len(seeds) + [SYNTHETIC] * len(relatives)
                    beside += [bool(seeds)] * len(relatives)
    assert len(beside) > 500
    assert np.mean(beside[100:]) > 0.8


def test_the_share_is_kept_and_real_text_is_read_equally_often(tiny_config, tmp_path):
    settings = settings_of(tiny_config, group=True, share=0.6)
    batches = stream(settings, journal_of(tmp_path, Dataset.open(settings.data.dataset)))
    trained: Counter[int] = Counter()
    real = batches.sources[REAL]
    for _ in range(80):
        trained.update(real.document(position) for position in batches.next().finished(REAL))
    assert batches.mixer.realised_share == pytest.approx(0.6, abs=0.01)
    waiting = sum(piece.source == REAL for piece in batches.packer.pieces())
    size = len(Dataset.open(settings.data.dataset).split("train"))
    assert real.epochs == pytest.approx((trained.total() + waiting) / size)
    assert real.epochs > real.cursor / size  # some came out of turn
    assert max(trained.values()) <= 2 * real.epochs + 2


def test_a_resumed_stream_and_one_that_follows_the_decisions_make_the_same_batches(tiny_config, tmp_path):
    settings = settings_of(tiny_config, group=True)
    journal = journal_of(tmp_path, Dataset.open(settings.data.dataset))
    whole = stream(settings, journal)
    expected = [whole.next() for _ in range(45)]
    resumed, found = stream(settings, journal), []
    for _ in range(3):
        found += [resumed.next().digest() for _ in range(15)]
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = stream(settings, journal, start=False)
        resumed.load_state_dict(state)
    assert found == [batch.digest() for batch in expected]
    replayed = stream(settings, journal, start=False)
    assert [replayed.next(batch.decisions).digest() for batch in expected] == found


def test_every_synthetic_document_is_trained_once(tiny_config, tmp_path):
    settings = settings_of(tiny_config, group=True)
    batches = stream(settings, journal_of(tmp_path, Dataset.open(settings.data.dataset)))
    finished: list[int] = []
    for _ in range(60):
        finished += batches.next().finished(SYNTHETIC)
    waiting = [piece.position for piece in batches.packer.pieces() if piece.source == SYNTHETIC]
    assert sorted(finished + waiting) == list(range(batches.sources[SYNTHETIC].cursor))


def test_with_another_corpus_what_waits_stands_alone(tiny_config, tmp_path):
    """Groups are numbers of documents: of the old corpus."""
    settings = settings_of(tiny_config, group=True)
    batches = stream(settings, journal_of(tmp_path, Dataset.open(settings.data.dataset)))
    batches.next()
    assert batches.packer.group_without_seed() != NO_GROUP
    batches.forget_waiting(REAL, 0)
    assert batches.packer.group_without_seed() == NO_GROUP


def test_a_model_sees_the_seed_document_from_its_relative_and_nothing_else(tiny_config, tmp_path):
    settings = settings_of(tiny_config, group=True)
    dataset = Dataset.open(settings.data.dataset)
    sources = stream(settings, journal_of(tmp_path, dataset)).sources
    real, synthetic = sources[REAL], sources[SYNTHETIC]
    lengths = [real.num_tokens(0), synthetic.num_tokens(0), synthetic.num_tokens(1)]
    model = build_model(settings.model, dataset.tokenizer(), 0)

    def logits(groups: tuple[int, int, int], change: int) -> torch.Tensor:
        """Of the second and third document, with one token of the first or second another one."""
        pieces = [
            Piece(name, position, 0, length, True, group)
            for name, position, length, group in zip(
                (REAL, SYNTHETIC, SYNTHETIC), (0, 0, 1), lengths, groups, strict=True
            )
        ]
        batch = collate([Bin(sum(lengths), pieces)], sources, sum(lengths), 0)
        if change >= 0:
            batch.input_ids[0, change] = 9
        with torch.no_grad():
            found = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        return found[0, lengths[0] :]

    second, third = slice(0, lengths[1]), slice(lengths[1], None)
    plain, changed = logits((7, 7, NO_GROUP), -1), logits((7, 7, NO_GROUP), 2)
    assert not torch.allclose(plain[second], changed[second], atol=1e-4)
    assert torch.allclose(plain[third], changed[third], atol=1e-5)
    plain, changed = logits((NO_GROUP,) * 3, -1), logits((NO_GROUP,) * 3, 2)
    assert torch.allclose(plain[second], changed[second], atol=1e-5)
    plain, changed = logits((7, 8, 8), -1), logits((7, 8, 8), 2)  # neighbours of different groups
    assert torch.allclose(plain, changed, atol=1e-5)


@given(
    documents=st.lists(st.tuples(st.integers(1, 250), st.integers(-1, 6)), min_size=1, max_size=150),
    num_open_bins=st.integers(1, 8),
)
def test_groups_of_any_size_lose_and_repeat_nothing(documents, num_open_bins):
    packer = Packer(config.Packing(num_open_bins=num_open_bins), 100)
    for position, (length, group) in enumerate(documents):
        packer.add(REAL if position % 3 else SYNTHETIC, position, length, group)
    packer.flush()
    tokens: Counter[int] = Counter()
    for row in packer.closed:
        assert 0 < sum(piece.length for piece in row.pieces) <= 100
        for piece in row.pieces:
            tokens[piece.position] += piece.length
    assert tokens == {position: length for position, (length, _) in enumerate(documents)}

"""What a source gives beside tokens: which of them are targets, and how much each counts."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from streaming_sbp import config
from streaming_sbp.config import Config, ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.pairing.pairs import PairTable, made_from
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.shards import AcceptedDocument
from streaming_sbp.synthesizer import confidence
from streaming_sbp.synthesizer.prompt import PairSequence
from streaming_sbp.training import guesses
from streaming_sbp.training.batches import IGNORED, collate
from streaming_sbp.training.build import build_batches
from streaming_sbp.training.mixer import PAIRS, REAL, SYNTHETIC
from streaming_sbp.training.model import token_losses
from streaming_sbp.training.packing import Bin, Piece
from streaming_sbp.training.sources import PairSource, SyntheticSource
from tests.unit.test_stream_journal import document
from tests.unit.test_training import CPU, make_trainer

BOS, EOS = 1, 2
VOCABULARY = 70_000


def with_mix(settings: Config, **mix: object) -> Config:
    mode = "joint" if mix.get("pair_share") else "tuned"
    return settings.model_copy(
        update={
            "mix": settings.mix.model_copy(update=mix),
            "synthesizer": settings.synthesizer.model_copy(
                update={"mode": mode, "max_seed_tokens": 48, "max_target_tokens": 48}
            ),
        }
    )


def synthetic_source(folder: Path, log_probs: list[float], **mix: object) -> SyntheticSource:
    plain = document(0, len(log_probs))
    certainty = confidence.quantised(np.array(log_probs))
    journal = Journal(folder, writable=True)
    journal.append([AcceptedDocument("g", "s", 0, plain.header, plain.tokens, certainty)])
    return SyntheticSource(journal, BOS, EOS, VOCABULARY, config.Mix(**mix))


def collated(source: SyntheticSource, capacity: int = 16):
    piece = Piece(SYNTHETIC, 0, 0, source.num_tokens(0), True)
    return collate([Bin(capacity, [piece])], {SYNTHETIC: source}, capacity, 0)


@pytest.mark.parametrize("nats", [0.0, 0.3, 2.3, 7.0, 15.0])
def test_a_probability_survives_the_byte_within_three_percent(nats):
    stored = confidence.probabilities(confidence.quantised(np.array([-nats])))
    assert stored[0] == pytest.approx(math.exp(-nats), rel=0.032)


def test_guessed_tokens_are_context_and_no_targets(tmp_path):
    log_probs = [math.log(p) for p in (0.9, 0.05, 0.5, 0.01)]
    source = synthetic_source(tmp_path, log_probs, confidence="mask", min_confidence=0.1)
    batch, tokens = collated(source), source.tokens(0).tolist()
    assert batch.input_ids[0, :6].tolist() == tokens
    expected = [IGNORED, tokens[1], IGNORED, tokens[3], IGNORED, tokens[5]]  # <eos> is always one
    assert batch.labels[0, :6].tolist() == expected
    assert batch.weights[0].tolist() == [0, 1, 0, 1, 0, 1, *[0] * 10]
    assert batch.num_targets(SYNTHETIC) == 3


def test_weights_fall_with_the_probability(tmp_path):
    log_probs = [math.log(p) for p in (0.9, 0.05, 0.1, 0.01)]
    source = synthetic_source(tmp_path, log_probs, confidence="weights", min_confidence=0.1)
    weights = collated(source).weights[0, 1:6].numpy()
    assert weights == pytest.approx([1.0, 0.5, 1.0, 0.1, 1.0], rel=0.04)


RELATIVE = config.Mix(confidence="relative", min_confidence=0.5)


def relative_source(folder: Path, num_documents: int) -> SyntheticSource:
    """Documents of two tokens: 5, which is sure (p = 0.9) in 9 of 10, and 6, which never is (p = 0.1)."""
    rng, journal = np.random.default_rng(0), Journal(folder, writable=True)
    plain = document(0, 2)
    for k in range(num_documents):
        first = 0.9 if rng.random() < 0.9 else 0.2
        certainty = confidence.quantised(np.log([first, 0.1]))
        tokens = np.array([5, 6], dtype=plain.tokens.dtype)
        journal.append([AcceptedDocument("g", "s", k, plain.header, tokens, certainty)])
    return SyntheticSource(journal, BOS, EOS, 8, RELATIVE)


def test_relative_confidence_masks_what_is_unusual_for_a_token_and_not_what_is_unlikely(tmp_path, monkeypatch):
    monkeypatch.setattr(guesses, "BLOCK_DOCUMENTS", 32)
    source = relative_source(tmp_path, 150)
    sure = np.array([source._journal.confidence(k)[0] < 16 for k in range(150)])
    weights = np.array([source.target_weights(k) for k in range(150)])
    assert weights[:32].all()  # nothing is known yet
    assert np.array_equal(weights[32:, 1] == 1, sure[32:])
    assert 0.02 < (weights[32:, 1] == 0).mean() < 0.2
    assert weights[:, 2].all()  # p = 0.1, as always
    again = SyntheticSource(Journal(tmp_path), BOS, EOS, 8, RELATIVE)  # a resume asks in the middle
    assert np.array_equal(again.target_weights(140), weights[140])


def test_what_relative_confidence_compares_with_is_not_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(guesses, "BLOCK_DOCUMENTS", 32)
    monkeypatch.setattr(guesses, "NUM_BLOCKS", 2)
    source = relative_source(tmp_path, 150)
    assert [source.first_needed(p) for p in (0, 31, 70, 128, 140)] == [0, 0, 0, 64, 64]
    expected = source.target_weights(140)
    source._journal.prune(source.first_needed(140))
    kept = SyntheticSource(Journal(tmp_path), BOS, EOS, 8, RELATIVE)
    assert np.array_equal(kept.target_weights(140), expected)
    assert synthetic_source(tmp_path / "other", [0.0] * 4, confidence="mask").first_needed(140) == 140


COMMON, WORDING, VALUES = 3, 4, range(10, 17)


def test_what_usually_is_in_the_seed_document_and_is_not_was_guessed(tmp_path, monkeypatch):
    """Documents are a common word, which all seed documents have, a value of the seed document's, and free wording."""
    monkeypatch.setattr(guesses, "BLOCK_DOCUMENTS", 32)
    rng, journal, plain = np.random.default_rng(0), Journal(tmp_path, writable=True), document(0, 3)
    values = rng.choice(VALUES, 150)
    seeds = [np.array([COMMON, value]) for value in values]
    another, sure = rng.random(150) < 0.2, rng.random(150) < 0.5
    for k in range(150):
        value = VALUES[(values[k] - 10 + 3) % 7] if another[k] else values[k]
        certainty = confidence.quantised(np.log([0.05, 0.95 if sure[k] else 0.6, 0.05]))
        tokens = np.array([COMMON, value, WORDING], dtype=plain.tokens.dtype)
        journal.append([AcceptedDocument("g", "s", k, plain.header, tokens, certainty)])

    grounded = config.Mix(confidence="grounded", min_confidence=0.9)
    weights = np.array([guesses.TargetWeights(journal, grounded, 20, seeds.__getitem__)(k) for k in range(150)])
    assert weights[:32].all()  # nothing is known yet
    assert weights[:, [0, 2]].all()  # as unlikely as they are: no seed document decides them
    assert np.array_equal(weights[64:, 1] == 0, (another & ~sure)[64:])
    assert 5 < (weights[64:, 1] == 0).sum() < 25

    unknown = guesses.TargetWeights(journal, grounded, 20, lambda position: None)
    assert unknown(140).all()
    assert unknown.first_needed(140) == 0
    monkeypatch.setattr(guesses, "NUM_BLOCKS", 2)
    assert unknown.first_needed(140) == 64  # what the weights are made of is not pruned


def test_a_document_is_compared_with_the_real_one_that_its_header_names(tiny_config, tmp_path, monkeypatch):
    """Every document is a copy of its seed document, but for two that name another, and one that names none we have."""
    monkeypatch.setattr(guesses, "BLOCK_DOCUMENTS", 32)
    settings = with_mix(tiny_config, synthetic_share=0.5, confidence="grounded", min_confidence=1.0)
    dataset, journal = Dataset.open(settings.data.dataset), Journal(tmp_path / "journal", writable=True)
    real = dataset.split("train")
    named = [*real.ids[:98], real.ids[0], "of another corpus"]
    named[70] = real.ids[0]
    for k, seed_id in enumerate(named):
        tokens = real.tokens(k)
        header = msgspec.structs.replace(document(k, 1).header, seed_id=seed_id, num_tokens=len(tokens))
        certainty = np.full(len(tokens), 16, dtype=np.uint8)  # p = 0.37
        journal.append([AcceptedDocument("g", "s", k, header, tokens, certainty)])
    source = build_batches(settings, dataset, journal, tmp_path).sources[SYNTHETIC]
    masked = [k for k in range(100) if not source.target_weights(k).all()]
    assert masked == [70, 98]


def test_without_confidence_every_token_counts(tmp_path):
    batch = collated(synthetic_source(tmp_path, [-9.0] * 4))
    assert batch.num_targets(SYNTHETIC) == 5
    assert set(batch.weights[0, 1:6].tolist()) == {1.0}


def test_the_gradient_is_that_of_the_weighted_mean(tiny_config, tmp_path):
    settings = with_mix(tiny_config, synthetic_share=0.9, confidence="weights", min_confidence=0.5)
    trainer = make_trainer(settings, tmp_path / "journal", precision="fp32", micro_batch_sequences=1)
    rng = np.random.default_rng(0)
    documents = [document(k, 40) for k in range(60)]
    vocabulary = Dataset.open(settings.data.dataset).tokenizer().vocab_size
    Journal(tmp_path / "journal", writable=True).append(
        [
            AcceptedDocument(
                "g", "s", k, d.header, d.tokens % vocabulary, confidence.quantised(-rng.exponential(2.0, 40))
            )
            for k, d in enumerate(documents)
        ]
    )
    trainer.batches.sources[SYNTHETIC].look_again()
    trainer.batches.start_schedule()
    while (batch := trainer.batches.next()).num_targets(SYNTHETIC) == 0:
        pass
    assert 0 < float(batch.weights[batch.weights > 0].min()) < 0.9
    trainer._forward_backward(batch)
    found = [p.grad.clone() for p in trainer.model.parameters()]
    trainer.optimizer.zero_grad()
    losses, weights = token_losses(trainer.model, batch, CPU, "fp32"), batch.weights[:, 1:]
    ((losses * weights).sum() / weights.sum()).backward()
    for gradient, parameter in zip(found, trainer.model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-6)


# --- pairs as a source ---


def pairs_of(count: int) -> list[PairSequence]:
    return [PairSequence(np.array([BOS, 10 + k, 3, 20 + k, EOS]), 3, 0, 0, k, k + 1) for k in range(count)]


@pytest.mark.parametrize(("both", "targets"), [(False, [0, 0, 0, 1, 1]), (True, [0, 1, 1, 1, 1])])
def test_the_second_document_of_a_pair_is_learnt_or_both(both, targets):
    source = PairSource(pairs_of(3), seed=0, both=both)
    batch = collate([Bin(8, [Piece(PAIRS, 0, 0, 5, True)])], {PAIRS: source}, 8, 0)
    assert batch.weights[0, :5].tolist() == targets
    assert batch.input_ids[0, :5].tolist() == source.pair(0).tokens.tolist()


def test_every_pair_comes_once_an_epoch_in_another_order():
    source = PairSource(pairs_of(20), seed=0)
    epochs = [[source.pair(20 * e + i).seed for i in range(20)] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert epochs[0] != epochs[1]


def write_table(settings: Config, folder: Path, num_heldout: int = 30) -> PairTable:
    dataset = Dataset.open(settings.data.dataset)
    train = dataset.split("train")
    seed = np.arange(len(train) - 1, dtype=np.int64)
    table = PairTable(
        seed,
        seed + 1,
        np.full(len(seed), 0.9, np.float32),
        np.arange(len(seed)) < num_heldout,
        made_from(dataset, settings.pairing, settings.run.seed),
    )
    table.save(folder, train.ids, {})
    return table


def test_pairs_are_a_third_of_the_mix_by_tokens_and_held_out_ones_are_never_trained(tiny_config, tmp_path):
    settings = with_mix(tiny_config, pair_share=0.3, synthetic_share=0.2)
    table = write_table(settings, tmp_path / "pairs")
    journal = Journal(tmp_path / "journal", writable=True)
    journal.append([document(k, 40) for k in range(400)])
    batches = build_batches(settings, Dataset.open(settings.data.dataset), journal, tmp_path / "pairs")
    batches.start_schedule()
    tokens, seeds = {REAL: 0, SYNTHETIC: 0, PAIRS: 0}, set()
    source = batches.sources[PAIRS]
    for _ in range(60):
        batch = batches.next()
        for name in tokens:
            tokens[name] += batch.num_tokens(name)
        seeds |= {source.pair(position).seed for position in batch.finished(PAIRS)}
    total = sum(tokens.values())
    assert tokens[PAIRS] / total == pytest.approx(0.3, abs=0.03)
    assert tokens[SYNTHETIC] / total == pytest.approx(0.2, abs=0.03)
    assert batches.mixer.realised_shares[PAIRS] == pytest.approx(0.3, abs=0.03)
    assert seeds
    assert not seeds & set(table.seed[table.heldout].tolist())


def test_pairs_without_a_table_are_an_error(tiny_config, tmp_path):
    settings = with_mix(tiny_config, pair_share=0.3)
    dataset, journal = Dataset.open(settings.data.dataset), Journal(tmp_path / "journal")
    with pytest.raises(ConfigError, match="needs pairs"):
        build_batches(settings, dataset, journal, tmp_path / "pairs")


def test_a_pair_that_is_longer_than_a_sequence_is_an_error():
    with pytest.raises(ConfigError, match="a pair to fit into a sequence"):
        config.build({"mix": {"pair_share": 0.2}, "synthesizer": {"mode": "joint", "max_seed_tokens": 400}})


def test_joint_mode_and_a_pair_share_belong_together():
    for tree in ({"synthesizer": {"mode": "joint"}}, {"mix": {"pair_share": 0.2}}):
        with pytest.raises(ConfigError, match="exactly when the trainer learns pairs"):
            config.build(tree)

"""The gate, with a good candidate and sabotaged ones; each must fail by the measure that is about its fault."""

import json
import math

import numpy as np
import pytest
import torch

from streaming_sbp import config
from streaming_sbp.synthesizer.engines.base import Sampled, Sampling
from streaming_sbp.synthesizer.engines.transformers import TransformersEngine
from streaming_sbp.synthesizer.gate import decide
from streaming_sbp.synthesizer.prompt import Mismatched, Prompter
from streaming_sbp.synthesizer.quality import TrialBatch, measure_trial, sample_trial
from streaming_sbp.synthesizer.quarantine import KEEP_LAST, NUM_EXAMPLES, Quarantine
from streaming_sbp.synthesizer.tuning import PairLoss, tune
from streaming_sbp.telemetry.metrics import GATE_MEASURES
from tests.unit.synthesizer_models import (
    FIRST_WORD,
    NUM_TOPICS,
    make_model,
    make_tokenizer,
    topic_documents,
    topic_pairs,
    tuning_config,
)

CPU = torch.device("cpu")
GENERATOR = config.Generator(batch_size=16, min_new_tokens=4, max_new_tokens=40, precision="fp32")


class Bench:
    """Judges a model as the tuner does."""

    def __init__(self, folder):
        self.tokenizer = make_tokenizer()
        self.prompter = Prompter(self.tokenizer, tuning_config().synthesizer)
        pairs, row_tokens = topic_pairs(self.prompter, 64, 100), self.prompter.longest_pair_tokens
        self.judge = PairLoss(pairs, row_tokens, 1024, 0)
        self.unrelated = PairLoss(Mismatched(pairs), row_tokens, 1024, 0)
        self.engine = TransformersEngine(CPU, "fp32", 16, self.tokenizer)
        self.folder = folder
        self.untuned_loss = self.judge(self.new_model(), CPU, "fp32")

    def new_model(self):
        return make_model(self.tokenizer.vocab_size, hidden_size=64)

    def tuned(self, target=None, tokens=60_000):
        model = self.new_model()
        pairs = topic_pairs(self.prompter, 400, 5, target)
        judge = PairLoss(topic_pairs(self.prompter, 32, 6, target), self.prompter.longest_pair_tokens, 1024, 0)
        for _ in tune(model, pairs, judge, tuning_config(tuning_tokens=tokens), 0, CPU):
            pass
        return model

    def measure(self, model):
        model.save_pretrained(self.folder)
        self.engine.load(self.folder)
        rng = np.random.default_rng(0)
        seeds = [topic_documents(i % NUM_TOPICS, rng, 10) for i in range(48)]
        real = [topic_documents(i % NUM_TOPICS, rng, 14) for i in range(48)]
        trial = sample_trial(
            self.engine, seeds, [self.prompter.prompt(seed) for seed in seeds], Sampling.of(GENERATOR), 1
        )
        losses = {
            "pair_loss": self.judge(model, CPU, "fp32"),
            "untuned_pair_loss": self.untuned_loss,
            "unrelated_pair_loss": self.unrelated(model, CPU, "fp32"),
        }
        return losses | measure_trial(trial, real, GENERATOR)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("candidate"))


@pytest.fixture(scope="module")
def good(bench):
    return bench.measure(bench.tuned())


def faults(verdict):
    return [reason.split(" ")[0] for reason in verdict.reasons]


def test_a_good_candidate_is_published(good):
    verdict = decide(good, None, config.Gate(), "tuned")
    assert verdict.published, verdict.reasons
    assert str(verdict) == "published"
    assert set(good) == set(GATE_MEASURES)
    assert all(math.isfinite(value) for value in good.values())
    assert good["unrelated_pair_loss"] > good["pair_loss"] + 1.0  # it uses the seed document
    assert good["mean_tokens"] == pytest.approx(good["real_mean_tokens"], rel=0.5)
    assert good["mean_log_prob"] == pytest.approx(-math.log(4), abs=0.5)


def test_random_weights_fail_by_their_pair_loss(bench, good):
    random = bench.measure(make_model(bench.tokenizer.vocab_size, seed=9, hidden_size=64))
    assert "pair_loss" in faults(decide(random, good["pair_loss"], config.Gate(), "tuned"))
    assert "pair_loss" in faults(decide(bench.measure(bench.new_model()), None, config.Gate(), "tuned"))


def test_a_candidate_that_repeats_itself_fails_by_repetition(bench, good):
    def repeating(seed_doc):
        return np.tile(seed_doc[:2], 9)

    measures = bench.measure(bench.tuned(repeating))
    assert "repetitive_share" in faults(decide(measures, good["pair_loss"], config.Gate(), "tuned"))
    assert measures["distinct_ngrams"] < 0.5 * measures["real_distinct_ngrams"]


def test_a_candidate_that_says_the_same_to_every_seed_fails_by_duplicates(bench, good):
    measures = bench.measure(bench.tuned(lambda seed_doc: FIRST_WORD + np.arange(15)))
    assert "duplicate_share" in faults(decide(measures, good["pair_loss"], config.Gate(), "tuned"))


def test_a_candidate_that_ends_at_once_fails_as_empty(bench, good):
    measures = bench.measure(bench.tuned(lambda seed_doc: seed_doc[:1]))
    assert "empty_share" in faults(decide(measures, good["pair_loss"], config.Gate(), "tuned"))


def test_a_candidate_that_never_ends_fails_as_unfinished(bench, good):
    rng = np.random.default_rng(3)
    measures = bench.measure(bench.tuned(lambda seed_doc: rng.permutation(np.repeat(seed_doc, 20))[:60]))  # all cut
    assert "unfinished_share" in faults(decide(measures, good["pair_loss"], config.Gate(), "tuned"))


def test_copies_of_the_seed_fail_as_copied():
    rng = np.random.default_rng(0)
    seeds = [rng.integers(0, 5000, 60) for _ in range(40)]
    copies = [
        Sampled(np.concatenate([rng.integers(0, 5000, 9), seed[20:50]]), np.zeros(39), True) for seed in seeds[:8]
    ]
    others = [Sampled(rng.integers(0, 5000, 39), np.zeros(39), True) for _ in seeds[8:]]
    measures = measure_trial(TrialBatch(seeds, copies + others), seeds, config.Generator())
    assert measures["copied_share"] == pytest.approx(8 / 40)
    losses = {"pair_loss": 1.0, "untuned_pair_loss": 2.0}
    assert faults(decide(losses | measures, None, config.Gate(), "tuned")) == ["copied_share"]


@pytest.mark.parametrize(
    ("pair_loss", "serving", "published"),
    [(3.0, None, True), (4.0, None, False), (3.01, 3.0, True), (3.05, 3.0, False), (math.nan, 3.0, False)],
)
def test_pair_loss_is_compared_with_the_serving_snapshot_or_the_untuned_checkpoint(pair_loss, serving, published, good):
    measures = good | {"pair_loss": pair_loss, "untuned_pair_loss": 3.9}
    assert decide(measures, serving, config.Gate(), "tuned").published == published


def test_every_reason_is_spelled_out_with_value_and_bound(good):
    verdict = decide(good | {"repetitive_share": 0.5, "duplicate_share": 0.2}, None, config.Gate(), "tuned")
    assert verdict.reasons == (
        "repetitive_share = 0.500: expected at most 0.25 (gate.max_repetitive_share)",
        "duplicate_share = 0.200: expected at most 0.1 (gate.max_duplicate_share)",
    )
    assert str(verdict) == "quarantined"


def test_quarantine_keeps_the_last_few_with_reason_and_ten_examples(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine")
    for i in range(KEEP_LAST + 2):
        model = tmp_path / "model"
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"weights")
        quarantine.add(
            model,
            f"digest{i}",
            parent_checkpoint=f"step-{i}",
            parent_tokens=1000 * i,
            reasons=["pair_loss = 9: expected less"],
            measures={"pair_loss": 9.0},
            examples=[{"seed": "a", "document": "b"}] * 30,
        )
        assert not model.exists()
    kept = quarantine.list()
    assert [reason["digest"] for reason in kept] == [f"digest{i}" for i in range(2, KEEP_LAST + 2)]
    newest = tmp_path / "quarantine" / kept[-1]["digest"]
    assert json.loads((newest / "reason.json").read_text())["reasons"] == ["pair_loss = 9: expected less"]
    assert len(json.loads((newest / "examples.json").read_text())) == NUM_EXAMPLES
    assert (newest / "model" / "model.safetensors").exists()


def test_the_first_joint_snapshot_must_use_its_seed_document(bench, good):
    assert decide(good, None, config.Gate(), "joint").published
    measures = good | {"unrelated_pair_loss": good["pair_loss"] - 0.01}
    assert faults(decide(measures, None, config.Gate(), "joint")) == ["pair_loss"]
    assert decide(measures, good["pair_loss"], config.Gate(), "joint").published  # a later one: not worse than serving

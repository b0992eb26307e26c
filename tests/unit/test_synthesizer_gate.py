"""The gate, with a good candidate and sabotaged ones; each must fail by the measure that is about its fault."""

import json
import math

import numpy as np
import pytest

from streaming_sbp import config
from streaming_sbp.synthesizer.engines.base import Sampled
from streaming_sbp.synthesizer.gate import BOUNDS, EXCESS, RATIOS, Verdict, decide
from streaming_sbp.synthesizer.quality import TrialBatch, measure_trial
from streaming_sbp.synthesizer.quarantine import KEEP_LAST, NUM_EXAMPLES, Quarantine
from streaming_sbp.synthesizer.reference import Reference
from streaming_sbp.telemetry.catalogue import GATE_MEASURES, GATE_REASONS, TRUTH_MEASURES
from tests.checks.sabotage import SABOTAGE, Bench, Corpus, faults
from tests.unit.synthesizer_models import FIRST_WORD


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("candidate"))


@pytest.fixture(scope="module")
def good(bench):
    return bench.measure(bench.tuned())


def test_a_good_candidate_is_published(good):
    verdict = decide(good, None, config.Gate(), "tuned")
    assert verdict.published, verdict.reasons
    assert str(verdict) == "published"
    assert set(good) == {name for name in GATE_MEASURES if not name.endswith(TRUTH_MEASURES)}
    assert all(math.isfinite(value) for value in good.values())
    assert good["unrelated_pair_loss"] > good["pair_loss"] + 1.0  # it uses the seed document
    assert good["mean_tokens"] == pytest.approx(good["real_mean_tokens"], rel=0.5)
    assert good["mean_log_prob"] == pytest.approx(-math.log(4), abs=0.5)


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_sabotaged_candidate_fails_by_the_measure_that_is_about_it(name, bench, good):
    make, measure = SABOTAGE[name]
    assert measure in faults(bench.measure(make(bench)), good["pair_loss"])


def test_an_untuned_checkpoint_fails_by_its_pair_loss(bench):
    assert "pair_loss" in faults(bench.measure(bench.new_model()))


def test_a_candidate_that_says_the_same_to_every_seed_fails_by_duplicates(bench, good):
    measures = bench.measure(bench.tuned(lambda seed_doc: FIRST_WORD + np.arange(15)))
    assert "duplicate_share" in faults(measures, good["pair_loss"])


def test_a_candidate_that_ends_at_once_fails_as_empty(bench, good):
    measures = bench.measure(bench.tuned(lambda seed_doc: seed_doc[:1]))
    assert "empty_share" in faults(measures, good["pair_loss"])


def test_a_candidate_that_never_ends_fails_as_unfinished(bench, good):
    rng = np.random.default_rng(3)
    measures = bench.measure(bench.tuned(lambda seed_doc: rng.permutation(np.repeat(seed_doc, 20))[:60]))  # all cut
    assert "unfinished_share" in faults(measures, good["pair_loss"])


def test_copies_of_the_seed_and_of_the_corpus_are_measured_apart():
    """Of 40 documents, 8 have most of their seed in them and 6 most of another corpus document."""
    rng = np.random.default_rng(0)
    corpus = Corpus(100, 60, 0)
    corpus.documents = [rng.integers(0, 5000, 60) for _ in range(100)]
    reference = Reference.build(corpus, [], [], 5000, 2**20, 0.5)
    seeds = corpus.documents[:40]
    copied = [seed[20:50] for seed in seeds[:8]] + [other[10:40] for other in corpus.documents[50:56]]
    copies = [Sampled(np.concatenate([rng.integers(0, 5000, 9), span]), np.zeros(39), True) for span in copied]
    others = [Sampled(rng.integers(0, 5000, 39), np.zeros(39), True) for _ in seeds[14:]]
    measures = measure_trial(TrialBatch(seeds, copies + others), seeds, config.Generator(), reference)
    assert measures["copied_share"] == pytest.approx(8 / 40)
    assert measures["corpus_copied_share"] == pytest.approx(14 / 40)
    assert measures["corpus_13gram_share"] == pytest.approx(14 / 40 * (30 - 12) / (39 - 12))
    assert measures["longest_corpus_span"] == 30
    assert measures["real_duplicate_share"] == measures["real_repetitive_share"] == 0.0
    assert measures["sent_documents"] == 32  # a generator would not have sent the copies of seeds
    assert measures["sent_corpus_13gram_share"] == pytest.approx(6 / 32 * (30 - 12) / (39 - 12))
    losses = {"pair_loss": 1.0, "untuned_pair_loss": 2.0}
    assert faults(losses | measures) == ["copied_share", "corpus_13gram_share", "corpus_copied_share"]


@pytest.mark.parametrize("measure", EXCESS)
def test_what_real_text_copies_is_allowed(measure, good):
    measures = good | {measure: 0.3}
    assert faults(measures) == [measure]
    assert faults(measures | {f"real_{measure}": 0.25}) == []


@pytest.mark.parametrize(("measure", "setting"), [ratio for ratio in RATIOS if ratio[0] not in TRUTH_MEASURES])
def test_bounds_relative_to_real_text(measure, setting, good):
    real, ratio = good[f"real_{measure}"], getattr(config.Gate(), setting)
    sign = 1 if setting.startswith("min_") else -1
    assert faults(good | {measure: real * ratio + sign * 0.01}) == []
    assert faults(good | {measure: real * ratio - sign * 0.01}) == [measure]
    assert faults(good | {measure: math.nan}) == [measure]


@pytest.mark.parametrize(
    ("pair_loss", "serving", "published"),
    [(3.0, None, True), (4.0, None, False), (3.01, 3.0, True), (3.05, 3.0, False), (math.nan, 3.0, False)],
)
def test_pair_loss_is_compared_with_the_serving_snapshot_or_the_untuned_checkpoint(pair_loss, serving, published, good):
    measures = good | {"pair_loss": pair_loss, "untuned_pair_loss": 3.9}
    found = None if serving is None else {"pair_loss": serving}
    assert decide(measures, found, config.Gate(), "tuned").published == published


@pytest.mark.parametrize(
    ("pair_loss", "serving", "settings", "bound"),
    [
        (0.65, {"pair_loss": 0.61, "unrelated_pair_loss": 1.61}, {}, 0.63),
        (0.65, {"pair_loss": 0.61, "unrelated_pair_loss": 1.61}, {"max_seed_gain_loss": 0.1}, None),  # up to 0.71
        (0.72, {"pair_loss": 0.61, "unrelated_pair_loss": 1.61}, {"max_seed_gain_loss": 0.1}, 0.71),
        (0.65, {"pair_loss": 0.61, "unrelated_pair_loss": 0.71}, {"max_seed_gain_loss": 0.1}, 0.63),  # less than 0.02
        (0.65, {"pair_loss": 0.61, "unrelated_pair_loss": 0.50}, {"max_seed_gain_loss": 0.1}, 0.63),  # it gains nothing
        (0.65, {"pair_loss": 0.61}, {"max_seed_gain_loss": 0.1}, 0.63),  # an older snapshot, where nobody measured it
    ],
)
def test_a_later_snapshot_may_lose_a_part_of_what_seed_documents_are_worth(pair_loss, serving, settings, bound, good):
    verdict = decide(good | {"pair_loss": pair_loss}, serving, config.Gate(**settings), "tuned")
    assert [failure.bound for failure in verdict.failures] == ([] if bound is None else [pytest.approx(bound)])
    if bound == 0.71:
        assert "gate.max_seed_gain_loss" in verdict.reasons[0]


def test_every_reason_is_spelled_out_with_value_and_bound(good):
    verdict = decide(good | {"repetitive_share": 0.5, "duplicate_share": 0.2}, None, config.Gate(), "tuned")
    assert verdict.reasons == [
        "repetitive_share = 0.500: expected at most 0.25 (gate.max_repetitive_share)",
        "duplicate_share = 0.200: expected at most 0.1 (gate.max_duplicate_share)",
    ]
    assert [(f.measure, f.value, f.bound) for f in verdict.failures] == [
        ("repetitive_share", 0.5, 0.25),
        ("duplicate_share", 0.2, 0.1),
    ]
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


def test_the_first_joint_snapshot_must_use_its_seed_document(good):
    assert not faults(good, None, "joint")
    measures = good | {"unrelated_pair_loss": good["pair_loss"] - 0.01}
    assert faults(measures, None, "joint") == ["pair_loss"]
    assert not faults(measures, good["pair_loss"], "joint")  # a later one: not worse than the serving one


def test_reasons_are_counted_by_measures_of_the_closed_list(good):
    bad = good | {"pair_loss": math.nan, "copied_share": 0.9, "mean_tokens": 0.0, "relatedness_lift": -1.0}
    verdict = decide(bad, None, config.Gate(), "tuned")
    assert verdict.measures == ["pair_loss", "copied_share", "relatedness_lift", "mean_tokens"]
    assert [failure.measure for failure in verdict.failures] == [*verdict.measures]
    for failure in verdict.failures[1:]:
        assert failure.value == bad[failure.measure] != failure.bound
    unusable = Verdict.unusable("the loss is not finite: copied_share = 3")
    assert (unusable.measures, unusable.reasons) == (["failed"], ["the loss is not finite: copied_share = 3"])
    assert not unusable.published
    assert Verdict(()).measures == []
    assert {*BOUNDS, *EXCESS, *(measure for measure, _ in RATIOS), "pair_loss", "failed"} == set(GATE_REASONS)

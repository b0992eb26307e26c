"""How true documents are: on texts whose facts were put there one by one, and through gate, tuner and monitors."""

import time

import numpy as np
import pytest

from sbp_services.pairer import PairerService
from streaming_sbp import config
from streaming_sbp.data.concepts import grammar
from streaming_sbp.data.concepts.world import World
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.ingest import ingest
from streaming_sbp.rundir import RunDir
from streaming_sbp.synthesizer.gate import decide
from streaming_sbp.synthesizer.quality import SentDocument, ValuedDocument, measure_sent, value_of
from streaming_sbp.synthesizer.reference import Reference, sample_of
from streaming_sbp.synthesizer.truth import Truth
from streaming_sbp.telemetry.catalogue import SENT_MEASURES, TRUTH_MEASURES
from tests.conftest import tiny_overrides
from tests.unit.test_synthesizer_tuner import serve, snapshot_records, waits_for, write_checkpoint


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    settings = config.load(
        overrides=[
            *tiny_overrides(folder),
            "data.source=concepts",
            "data.difficulty=tiny",
            "data.inputs=[]",
            "data.vocab_size=1024",
        ]
    )
    ingest(settings.data)
    return settings


@pytest.fixture(scope="module")
def dataset(settings):
    return Dataset.open(settings.data.dataset)


@pytest.fixture(scope="module")
def truth(dataset):
    return Truth.of_dataset(dataset)


@pytest.fixture(scope="module")
def encode(dataset):
    tokenizer = dataset.tokenizer()
    return lambda text: np.array(tokenizer.encode(text))


def say(concept, *facts):
    """Facts (attribute, value) about a person, as a document would."""
    return " ".join(grammar.say(attribute, 0, concept.name, "", value) for attribute, value in facts)


@pytest.fixture(scope="module")
def people(dataset):
    """Two people, and of each the true facts and as many false ones."""
    world, found = World.of_dataset(dataset), []
    for concept in list(world.concepts.values())[:2]:
        true = [(fact.attribute, fact.value) for fact in concept.facts]
        false = [(a, next(v for v in world.values[a] if v != value)) for a, value in true]
        found.append((concept, true, false))
    return found


def test_facts_are_counted_one_by_one(truth, encode, people):
    (person, true, false), (other, others_true, _) = people
    assert len(true) == 4
    seed = encode(say(person, *true[:2]))

    def values(text):
        return truth.values(encode(text), seed)

    assert values(say(person, *true[:3], false[3])) == {
        "about_seed_share": 1.0,
        "non_factual_share": 1.0,
        "true_fact_share": 3 / 4,
        "true_new_fact_share": 1 / 2,
        "expressed_fact_share": 3 / 4,
        "new_facts": 2.0,
    }
    assert values(say(person, *true[:2])) == {
        "about_seed_share": 1.0,
        "non_factual_share": 0.0,
        "true_fact_share": 1.0,
        "expressed_fact_share": 1 / 2,
        "new_facts": 0.0,
    }
    assert values(say(other, *others_true[:2]) + " " + say(person, true[0])) == {
        "about_seed_share": 0.0,
        "non_factual_share": 0.0,
        "true_fact_share": 1.0,
        "true_new_fact_share": 1.0,
        "expressed_fact_share": 1 / 4,
        "new_facts": 2.0,
    }
    nothing = {"about_seed_share": 0.0, "expressed_fact_share": 0.0, "new_facts": 0.0}
    assert values("nobody could remember so calm a winter.") == nothing
    assert truth.values(encode(say(person, *true)), encode("no one."))["about_seed_share"] == 0.0


def test_means_are_over_the_documents_that_have_a_measure(truth, encode, people):
    (person, true, false), _ = people
    seed = encode(say(person, *true[:2]))
    documents = [encode(text) for text in (say(person, *true), say(person, false[0]), "it rained.")]
    measures = truth.measures(documents, [seed] * 3)
    assert measures["true_fact_share"] == 1 / 2
    assert measures["true_new_fact_share"] == 1 / 2
    assert measures["about_seed_share"] == pytest.approx(2 / 3)
    assert measures["new_facts"] == 1.0
    assert truth.measures([], []) == {}


def test_views_of_the_data_set_are_true(truth, dataset):
    documents = dataset.split("train")
    groups = {}
    for i, origin in enumerate(documents.origins):
        groups.setdefault(origin.rpartition("/")[0], []).append(documents.tokens(i))
    views = [group for group in groups.values() if len(group) > 1][:100]
    measures = truth.measures([group[1] for group in views], [group[0] for group in views])
    assert (measures["true_fact_share"], measures["non_factual_share"], measures["about_seed_share"]) == (1.0, 0.0, 1.0)
    assert measures["expressed_fact_share"] == pytest.approx(3 / 4, abs=0.05)  # 2, 3 or 4 of 4 facts


def test_another_corpus_has_no_truth(tiny_config, tiny_folder):
    assert Truth.of_dataset(Dataset.open(tiny_config.data.dataset)) is None


def test_what_is_received_is_measured_where_the_truth_is_known(truth, dataset, encode, people):
    (person, true, false), _ = people
    corpus, tokenizer = dataset.split("train"), dataset.tokenizer()
    pairs = [(encode(say(person, *true[:2])), encode(say(person, *true[1:])))]
    heldout = sample_of(dataset.split("heldout"), 96, 0)
    known, unknown = (
        Reference.build(corpus, heldout, pairs, tokenizer.vocab_size, 2**20, 0.5, each) for each in (truth, None)
    )
    assert known.real["real_true_fact_share"] == 1.0
    assert known.real["real_new_facts"] == 2.0
    assert set(known.real) - set(unknown.real) == {f"real_{measure}" for measure in TRUTH_MEASURES}
    documents = [SentDocument(encode(text), pairs[0][0], -1.0) for text in (say(person, *true, false[0]), "it rained.")]
    sent = measure_sent([value_of(document, known) for document in documents])
    assert set(sent.means) == set(SENT_MEASURES)
    assert (sent.means["true_fact_share"], sent.counts["true_fact_share"]) == (4 / 5, 1)
    assert sent.means["expressed_fact_share"] == 1 / 2
    without = measure_sent([value_of(document, unknown) for document in documents])
    assert set(without.means) == set(SENT_MEASURES) - set(TRUTH_MEASURES) == set(measure_sent([]).means)
    started = time.process_time()
    for _ in range(100):
        truth.values(documents[0].tokens, documents[0].seed)
    assert time.process_time() - started < 0.1  # a millisecond each: the trainer looks at 16 every two seconds


def test_a_synthesizer_that_lies_or_says_little_fails_where_the_gate_asks_for_facts():
    gate = config.Gate(min_true_fact_ratio=0.8, min_expressed_fact_ratio=0.5)
    real = {"real_true_fact_share": 1.0, "real_expressed_fact_share": 0.7}

    def faults(measures, gate=gate):
        return decide(HARMLESS | measures, None, gate, "tuned").measures

    assert faults(real | {"true_fact_share": 0.81, "expressed_fact_share": 0.36}) == []
    assert faults(real | {"true_fact_share": 0.79, "expressed_fact_share": 0.36}) == ["true_fact_share"]
    assert faults(real | {"true_fact_share": 0.81, "expressed_fact_share": 0.34}) == ["expressed_fact_share"]
    assert faults(real | {"expressed_fact_share": 0.5}) == ["true_fact_share"]  # it states nothing
    assert faults({}) == []  # nobody knows the truth
    assert faults(real | {"true_fact_share": 0.0, "expressed_fact_share": 0.0}, config.Gate()) == []


HARMLESS = {
    "pair_loss": 1.0,
    "untuned_pair_loss": 2.0,
    **dict.fromkeys(("repetitive_share", "copied_share", "duplicate_share", "empty_share", "unfinished_share"), 0.0),
    **dict.fromkeys(("corpus_13gram_share", "real_corpus_13gram_share"), 0.1),
    **dict.fromkeys(("corpus_copied_share", "real_corpus_copied_share"), 0.1),
    **dict.fromkeys(("relatedness_lift", "real_relatedness_lift"), 0.5),
    **dict.fromkeys(("distinct_ngrams", "real_distinct_ngrams"), 0.5),
    **dict.fromkeys(("mean_tokens", "real_mean_tokens"), 50.0),
}


def test_the_tuner_measures_facts_of_its_candidates_beside_real_text(settings, tmp_path):
    changes = [
        f'run.dir="{tmp_path / "run"}"',
        "synthesizer.tuning_tokens=20000",
        "synthesizer.idle_s=0.05",
        "gate.trial_documents=16",
        "telemetry.status_every_s=0.05",
    ]
    run = RunDir.open_or_create(config.build(config.apply_overrides(settings.model_dump(mode="json"), changes)))
    assert PairerService(run).main() == 0
    write_checkpoint(run, 10, 5000)
    serve(run, waits_for("at least 5,001"))
    (record,) = snapshot_records(run)
    measures = record["measures"]
    assert measures["real_true_fact_share"] == 1.0
    assert measures["real_expressed_fact_share"] == pytest.approx(3 / 4, abs=0.1)
    assert 0.0 <= measures["about_seed_share"] < 0.5  # nothing has been learnt
    assert measures["real_about_seed_share"] > 0.7


def test_a_share_that_few_documents_have_is_no_drift_by_chance():
    """Measures of few documents are compared with the error of so few."""
    from streaming_sbp.synthesizer.monitor import drifts

    def window(num_with, share):
        values = [{**dict.fromkeys(set(SENT_MEASURES) - {"distinct_ngrams"} - set(TRUTH_MEASURES), 1.0)}] * 64
        values = [
            v | ({"true_fact_share": float(i % 10 < share * 10)} if i < num_with else {}) for i, v in enumerate(values)
        ]
        return measure_sent([ValuedDocument(np.arange(5), v) for v in values])

    gate = {f"sent_{name}": value for name, value in window(0, 0).means.items()} | {"sent_documents": 60.0}
    gate |= {"sent_true_fact_share": 0.9}
    assert drifts(window(60, 0.9), gate, 0.1) == {}
    assert list(drifts(window(60, 0.2), gate, 0.1)) == ["true_fact_share"]
    assert drifts(window(12, 0.5), gate, 0.1) == {}  # four standard errors of 12 are 0.6
    assert drifts(window(5, 0.0), gate, 0.1) == {}
    gate.pop("sent_true_fact_share")
    assert drifts(window(60, 0.2), gate, 0.1) == {}

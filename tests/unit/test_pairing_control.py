"""The random-pair control beside the related pairs it is made from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_sbp import config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.ingest import ingest
from streaming_sbp.pairing.control import random_targets, similarities
from streaming_sbp.pairing.embed import TfidfEmbedder, stack
from streaming_sbp.pairing.find import find_pairs
from streaming_sbp.pairing.pairs import made_from
from streaming_sbp.pairing.truth import agreement

RANDOM = config.Pairing(relation="random")


@pytest.fixture(scope="module", params=["concepts", "topics"])
def dataset(request, tmp_path_factory, tiny_folder):
    """One with held-out groups, and one whose held-out pairs are neighbourhoods of the training split."""
    if request.param == "topics":
        return Dataset.open(tiny_folder / "data")
    folder = tmp_path_factory.mktemp("control")
    ingest(config.Data(dataset=str(folder / "set"), source="concepts", difficulty="tiny", vocab_size=512))
    return Dataset.open(folder / "set")


@pytest.fixture(scope="module")
def related(dataset):
    return find_pairs(dataset, config.Pairing(), 0)


@pytest.fixture(scope="module")
def control(dataset):
    return find_pairs(dataset, RANDOM, 0)


def num_times_target(found, num_documents):
    return np.bincount(found.table.target[~found.table.heldout], minlength=num_documents)


def documents_of(found, heldout):
    chosen = found.table.heldout == heldout
    return {*found.table.seed[chosen].tolist(), *found.table.target[chosen].tolist()}


def test_every_seed_document_keeps_its_number_of_pairs_on_its_side_of_the_cut(dataset, related, control):
    for heldout in (True, False):
        before, after = (found.table.seed[found.table.heldout == heldout] for found in (related, control))
        np.testing.assert_array_equal(after, before)
    assert control.statistics["num_without_unrelated_target_dropped"] == 0
    assert control.statistics["num_heldout_pairs"] == related.statistics["num_heldout_pairs"] > 0


def test_no_target_is_the_document_itself_a_related_one_or_there_twice(dataset, related, control):
    table, documents, tokenizer = control.table, dataset.pairable(), dataset.tokenizer()
    pairs = set(zip(table.seed.tolist(), table.target.tolist(), strict=True))
    assert len(pairs) == len(table)
    assert not any(seed == target for seed, target in pairs)
    assert not pairs & set(zip(related.table.seed.tolist(), related.table.target.tolist(), strict=True))
    texts = [tokenizer.decode(documents.tokens(i)) for i in range(len(documents))]
    vectors = stack(TfidfEmbedder(384, 2**17, 0), [texts], len(texts))
    np.testing.assert_allclose(table.similarity, (vectors[table.seed] * vectors[table.target]).sum(1), atol=1e-5)
    assert table.similarity.max() <= config.Pairing().threshold


def test_the_cut_is_that_of_the_related_pairs(related, control):
    """Else a control would be judged on, or trained on, other documents."""
    for heldout in (True, False):
        assert documents_of(control, heldout) <= documents_of(related, heldout)
    assert not documents_of(control, True) & documents_of(control, False)


def test_targets_are_drawn_about_as_often_as_they_were_related(dataset, related, control):
    before, after = (num_times_target(found, len(dataset.pairable())) for found in (related, control))
    seen = before > 0
    assert np.abs(after - before)[seen].mean() < 1.2 * np.sqrt(before[seen]).mean()
    assert not after[~seen].any()


def test_on_the_concept_corpus_nothing_is_left_of_the_relation(dataset, control):
    if dataset.manifest.source != "concepts":
        pytest.skip("there is no truth")
    assert agreement(control.table, dataset, 8).precision < 0.01


def test_another_seed_draws_others_and_the_key_says_which(dataset, control):
    again, other = find_pairs(dataset, RANDOM, 0), find_pairs(dataset, RANDOM, 1)
    np.testing.assert_array_equal(again.table.target, control.table.target)
    assert (other.table.target != control.table.target).mean() > 0.9
    assert again.table.made_from == made_from(dataset, RANDOM, 0) != made_from(dataset, config.Pairing(), 0)


def test_a_pair_without_an_unrelated_target_is_left_out_and_counted():
    seed, target = np.array([0, 1, 2, 2]), np.array([1, 0, 0, 3])
    heldout = np.array([True, True, False, False])
    drawn, similarity = random_targets(seed, target, heldout, np.eye(4, dtype=np.float32), 0.5, 0)
    assert drawn[:2].tolist() == [1, 0]
    assert sorted(drawn[2:].tolist()) == [0, 3]
    assert similarity.tolist() == [0.0] * 4
    drawn, similarity = random_targets(seed, target, heldout, np.ones((4, 1), dtype=np.float32), 0.5, 0)
    assert drawn.tolist() == [-1] * 4
    assert similarity.tolist() == [-1.0] * 4


@settings(deadline=None)  # on a busy machine
@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 2**32), st.floats(-0.2, 0.9))
def test_the_rules_hold_for_any_table(num_documents, num_pairs, seed_number, threshold):
    rng = np.random.default_rng(seed_number)
    vectors = rng.normal(size=(num_documents, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[rng.random(num_documents) < 0.3] = 0.0  # nothing is known of them: as similar to itself as to others
    seed = np.sort(rng.integers(num_documents, size=num_pairs))
    target, heldout = rng.integers(num_documents, size=num_pairs), rng.random(num_pairs) < 0.3
    drawn, similarity = random_targets(seed, target, heldout, vectors, threshold, seed_number)
    found = drawn >= 0
    assert len({*zip(seed[found].tolist(), drawn[found].tolist(), strict=True)}) == found.sum()
    assert (drawn != seed)[found].all()
    assert (similarity[found] <= threshold).all()
    np.testing.assert_allclose(similarity[found], similarities(vectors, seed[found], drawn[found]))
    for held in (True, False):
        assert {*drawn[found & (heldout == held)].tolist()} <= {*target[heldout == held].tolist()}

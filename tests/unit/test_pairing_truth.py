"""Pairs of the concept corpus against its truth, calibration, held-out groups."""

import numpy as np
import pytest

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.ingest import ingest
from streaming_sbp.pairing.find import find_pairs
from streaming_sbp.pairing.heldout import cut_groups
from streaming_sbp.pairing.pairs import PairTable
from streaming_sbp.pairing.truth import agreement, concepts


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    ingest(config.Data(dataset=str(folder / "set"), source="concepts", difficulty="easy", vocab_size=1024))
    return Dataset.open(folder / "set")


@pytest.fixture(scope="module")
def found(dataset):
    return find_pairs(dataset, config.Pairing(), 0)


def test_the_default_pairs_agree_with_the_truth(dataset, found):
    agreed = agreement(found.table, dataset, config.Pairing().max_targets_per_seed)
    assert agreed.precision >= 0.95
    assert agreed.recall >= 0.95
    assert agreed.num_findable == 4000 * 3


def test_precision_and_recall_are_those_of_counting_pair_by_pair(dataset, found):
    about = [origin.rpartition("/")[0] for origin in dataset.pairable().origins]
    keep = np.random.default_rng(0).random(len(found.table)) < 0.5
    wrong = np.arange(500), np.arange(500)[::-1] + 1000
    seed = np.concatenate([found.table.seed[keep], wrong[0]])
    table = table_of(seed, np.concatenate([found.table.target[keep], wrong[1]]))
    right = sum(about[i] == about[j] for i, j in zip(table.seed.tolist(), table.target.tolist(), strict=True))
    agreed = agreement(table, dataset, 2)
    assert agreed.precision == right / len(table) < 0.95
    assert agreed.recall == right / (4000 * 2)


def table_of(seed, target):
    return PairTable(seed, target, np.ones(len(seed), np.float32), np.zeros(len(seed), bool))


def test_the_concepts_are_those_that_the_source_names(dataset):
    _, named = np.unique([origin.rpartition("/")[0] for origin in dataset.pairable().origins], return_inverse=True)
    read = concepts(dataset)
    assert len({*zip(read.tolist(), named.tolist(), strict=True)}) == len(set(read.tolist())) == 1000


def test_held_out_pairs_are_those_of_held_out_concepts_and_no_others(dataset, found):
    num_training = len(dataset.split("train"))
    table = found.table
    assert ((table.seed >= num_training) == table.heldout).all()
    assert ((table.target >= num_training) == table.heldout).all()
    assert 0.05 < table.heldout.mean() < 0.15
    assert found.statistics["num_pairs_across_the_cut_dropped"] < 0.01 * len(table)


@pytest.mark.parametrize("wanted", [0.5, 2.0, 4.0])
def test_a_calibrated_threshold_gives_the_pairs_that_were_asked_for(dataset, found, wanted):
    calibrated = find_pairs(dataset, config.Pairing(pairs_per_document=wanted, threshold=0.9), 0)
    num_documents = len(dataset.pairable())
    assert abs(len(calibrated.table) - wanted * num_documents) <= 20
    threshold = calibrated.statistics["threshold"]
    assert calibrated.table.similarity.min() > threshold
    by_threshold = find_pairs(dataset, config.Pairing(threshold=threshold), 0)
    assert len(by_threshold.table) == len(calibrated.table)


def test_more_pairs_than_there_are_is_all_of_them(dataset):
    most = find_pairs(dataset, config.Pairing(pairs_per_document=100.0, max_targets_per_seed=3), 0)
    assert most.statistics["threshold"] == 0.0
    assert np.bincount(most.table.seed).max() == 3


def test_a_held_out_document_with_a_copy_in_training_judges_nothing():
    seed, target = np.array([0, 3, 4, 5, 0]), np.array([1, 4, 3, 6, 5])
    group = np.array([0, 1, 2, 3, 4, 5, 1])  # document 6 is a copy of document 1
    found = cut_groups(seed, target, group, num_training=3)
    assert found.training.tolist() == [True, False, False, False, False]
    assert found.heldout.tolist() == [False, True, True, False, False]


def test_another_source_has_no_truth(tiny_folder, found):
    with pytest.raises(ConfigError, match="expected 'concepts'"):
        agreement(found.table, Dataset.open(tiny_folder / "data"), 8)

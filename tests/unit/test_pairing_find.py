"""The whole search, on real ingested data sets of a few topics."""

import json
import random
import sys
from dataclasses import asdict

import numpy as np
import pytest

from streaming_sbp import config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.ingest import ingest
from streaming_sbp.pairing import find
from streaming_sbp.pairing.embed import TfidfEmbedder, stack
from streaming_sbp.pairing.find import find_pairs
from streaming_sbp.pairing.pairs import made_from
from streaming_sbp.pairing.statistics import NUM_RANDOM_PAIRS
from tests.conftest import sentences

RELATIONS = ("related", "random")


@pytest.fixture(scope="module")
def dataset(tiny_folder):
    return Dataset.open(tiny_folder / "data")


@pytest.fixture(scope="module")
def found(dataset):
    return find_pairs(dataset, config.Pairing(), 0)


def texts_of(dataset):
    documents, tokenizer = dataset.split("train"), dataset.tokenizer()
    return [tokenizer.decode(documents.tokens(i)) for i in range(len(documents))]


def make_dataset(folder, texts):
    with open(folder / "corpus.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    settings = config.Data(
        dataset=str(folder / "data"),
        source="jsonl",
        inputs=(str(folder / "corpus.jsonl"),),
        vocab_size=300,
        heldout_share=0.0,
    )
    ingest(settings)
    return Dataset.open(folder / "data")


def test_pairs_are_about_the_same_topic(dataset, found):
    topics = np.array([text.split("The ")[1].split()[0] for text in texts_of(dataset)])
    table = found.table
    same = topics[table.seed] == topics[table.target]
    assert same.mean() > 0.99
    by_chance = np.mean([np.mean(topics == topic) for topic in topics])
    assert by_chance < 0.2
    assert len(table) > 5 * len(topics)


def test_the_rules_of_the_table(dataset, found):
    table, settings = found.table, config.Pairing()
    pairs = list(zip(table.seed.tolist(), table.target.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert all(seed != target for seed, target in pairs)
    assert max(max(pair) for pair in pairs) < len(dataset.split("train"))
    assert (table.similarity > settings.threshold).all()
    assert np.bincount(table.seed).max() == settings.max_targets_per_seed
    assert table.seed.tolist() == sorted(table.seed)
    for seed in np.unique(table.seed):
        assert (np.diff(table.similarity[table.seed == seed]) <= 0).all()
    dtypes = [array.dtype for array in (table.seed, table.target, table.similarity, table.heldout)]
    assert dtypes == [np.int64, np.int64, np.float32, np.bool_]


def test_no_document_of_a_held_out_pair_is_in_a_training_pair(found):
    table = found.table
    ends = {
        heldout: {*table.seed[table.heldout == heldout].tolist(), *table.target[table.heldout == heldout].tolist()}
        for heldout in (True, False)
    }
    assert not ends[True] & ends[False]
    assert 0 < len(ends[True]) <= 0.05 * 376
    assert table.heldout.sum() >= 10


def test_the_same_arguments_find_the_same_pairs(dataset, found):
    again = find_pairs(dataset, config.Pairing(), 0)
    for name in ("seed", "target", "similarity", "heldout"):
        np.testing.assert_array_equal(getattr(again.table, name), getattr(found.table, name))
    assert again.table.made_from == found.table.made_from == made_from(dataset, config.Pairing(), 0)
    assert made_from(dataset, config.Pairing(), 1) != found.table.made_from
    assert made_from(dataset, config.Pairing(threshold=0.4), 0) != found.table.made_from


def test_a_higher_threshold_and_fewer_targets_leave_fewer_pairs(dataset, found):
    strict = find_pairs(dataset, config.Pairing(threshold=0.86, max_targets_per_seed=2), 0).table
    assert 0 < len(strict) < len(found.table)
    assert strict.similarity.min() > 0.86
    assert np.bincount(strict.seed).max() == 2


def test_statistics_add_up(dataset, found):
    statistics, table = found.statistics, found.table
    assert json.loads(json.dumps(statistics)) == statistics
    assert statistics["num_documents"] == len(dataset.split("train"))
    assert statistics["num_pairs"] == len(table) == sum(statistics["similarity"]["kept_pairs"])
    assert statistics["num_heldout_pairs"] == table.heldout.sum()
    with_pair = len({*table.seed.tolist(), *table.target.tolist()})
    assert statistics["num_documents_with_pair"] == with_pair
    assert statistics["num_documents_without_pair"] == statistics["num_documents"] - with_pair
    by_targets = {int(n): count for n, count in statistics["num_documents_by_num_targets"].items()}
    assert sum(by_targets.values()) == statistics["num_documents"]
    assert sum(n * count for n, count in by_targets.items()) == len(table)
    assert sum(statistics["similarity"]["all_neighbours"]) == 16 * statistics["num_documents"]
    assert statistics["hubs"][0]["num_pairs"] == max(np.bincount(table.target))
    assert statistics["hubs"][0]["id"] == dataset.split("train").ids[statistics["hubs"][0]["document"]]
    assert list(statistics["seconds"]) == ["duplicates", "embed", "search", "copies", "heldout"]
    assert statistics["missing_because"] == ""


def test_random_pairs_show_where_the_similarities_of_all_pairs_lie(dataset, found):
    texts = texts_of(dataset)
    vectors = stack(TfidfEmbedder(384, 2**17, 0), [texts], len(texts))
    similarity = (vectors @ vectors.T)[~np.eye(len(texts), dtype=bool)]
    told = found.statistics["similarity"]
    assert sum(told["random_pairs"]) == NUM_RANDOM_PAIRS
    counts = np.histogram(similarity.clip(0, 1), told["bin_edges"])[0]
    np.testing.assert_allclose(np.array(told["random_pairs"]) / NUM_RANDOM_PAIRS, counts / len(similarity), atol=0.01)
    for level, value in told["random_pairs_quantiles"].items():
        assert value == pytest.approx(np.quantile(similarity, float(level)), abs=0.02)


def words(rng, vocabulary, count):
    return " ".join(rng.choice(vocabulary, count))


def test_one_of_several_copies_is_paired_with_related_documents(tmp_path):
    rng = np.random.default_rng(0)
    vocabulary = ["river", "stone", "water", "boat", "delta", "bridge", "fish", "reed"]
    related = [words(rng, vocabulary, 40) for _ in range(4)]
    original = words(rng, vocabulary, 60)
    copies = [f"{original} {word}" for word in ("once", "twice", "thrice")]
    dataset = make_dataset(tmp_path, [original, *copies, *related])
    found = find_pairs(dataset, config.Pairing(max_targets_per_seed=4, heldout_share=0.0, threshold=0.3), 0)
    assert found.statistics["num_documents_without_vector"] == 0
    is_copy = np.array([text.startswith(original) for text in texts_of(dataset)])
    assert is_copy.sum() == 4
    table = found.table
    assert found.statistics["num_near_duplicate_documents"] == 3
    first = int(np.flatnonzero(is_copy)[0])
    assert np.bincount(table.seed, minlength=8).tolist() == [4 if i == first or not is_copy[i] else 0 for i in range(8)]
    assert not {*np.flatnonzero(is_copy)[1:].tolist()} & {*table.target.tolist()}
    without = find_pairs(dataset, config.Pairing(near_duplicate_jaccard=1.0, heldout_share=0.0, threshold=0.3), 0)
    assert without.statistics["num_near_duplicate_documents"] == 0


def test_documents_without_a_known_word_are_never_paired(tmp_path):
    dataset = make_dataset(tmp_path, ["12 34", "56 78", "12 34 56", "the river bends", "the river bends north"])
    found = find_pairs(dataset, config.Pairing(threshold=0.0, near_duplicate_jaccard=1.0), 0)
    texts = texts_of(dataset)
    assert {texts[i] for i in found.table.paired_documents()} == {"the river bends", "the river bends north"}
    assert found.statistics["num_documents_without_vector"] == 3


@pytest.mark.parametrize("texts", [["alone"], ["river stone", "bread salt"], ["1 2", "3 4"]])
def test_corpora_without_pairs_give_an_empty_table(tmp_path, texts):
    found = find_pairs(make_dataset(tmp_path, texts), config.Pairing(), 0)
    assert len(found.table) == 0
    assert found.statistics["num_documents_without_pair"] == len(texts)
    assert found.statistics["missing_because"].startswith("no pairs: ")
    found.table.save(tmp_path / "pairs", ["x"] * len(texts), found.statistics)


def test_two_related_documents_are_a_pair_in_both_orders_and_none_can_be_held_out(tmp_path):
    found = find_pairs(
        make_dataset(tmp_path, ["river stone water boat", "boat water stone reed"]), config.Pairing(threshold=0.3), 0
    )
    assert sorted(zip(found.table.seed.tolist(), found.table.target.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert not found.table.heldout.any()
    assert "held out: no two pairs have all their documents apart" in found.statistics["missing_because"]


@pytest.mark.parametrize("wish", [1e-9, 0.001, 0.004])
def test_a_wish_for_fewer_pairs_than_one_gives_the_most_similar(dataset, wish):
    found = find_pairs(dataset, config.Pairing(pairs_per_document=wish), 0)
    assert 0 < len(found.table) <= 4  # those that are as similar come with it
    assert found.statistics["num_pairs_wanted"] == max(1, round(wish * found.statistics["num_documents"]))
    assert round(float(found.table.similarity.min()), 4) == found.statistics["similarity"]["largest"][0]


def test_copies_are_the_reason_when_all_pairs_are_copies(dataset, monkeypatch):
    monkeypatch.setattr(find, "find_copies", lambda shingles, seed, *others: np.ones(len(seed), dtype=bool))
    found = find_pairs(dataset, config.Pairing(), 0)
    count = found.statistics["num_candidates_above_threshold"]
    assert len(found.table) == 0
    why = found.statistics["missing_because"]
    assert f"of {count:,} candidates" in why
    assert f"{found.statistics['num_near_duplicate_pairs']:,} are of near-duplicates (raise pairing.near_dup" in why


def about_topics(folder, num_topics, num_documents=400):
    rng, topics = random.Random(0), ("river", "engine", "bread", "violin", "comet")[:num_topics]
    return make_dataset(
        folder,
        [f"Note {i}. {sentences(topics[i % num_topics], rng, rng.randint(2, 6))}" for i in range(num_documents)],
    )


def test_random_pairs_whose_held_out_documents_are_of_one_topic_say_so(tmp_path):
    dataset = about_topics(tmp_path, 5)
    related, control = (find_pairs(dataset, config.Pairing(relation=kind), 0) for kind in RELATIONS)
    lost = related.statistics["num_heldout_pairs"]
    assert lost > 10
    assert control.statistics["num_heldout_pairs"] == 0
    why = control.statistics["missing_because"]
    assert why.startswith(f"no pairs are held out: {lost} have no unrelated target among the documents held out (raise")
    assert "raise pairing.heldout_share" in why


def test_random_pairs_of_one_topic_name_the_missing_unrelated_targets(tmp_path):
    dataset = about_topics(tmp_path, 1, 100)
    related, control = (find_pairs(dataset, config.Pairing(relation=kind, threshold=0.01), 0) for kind in RELATIONS)
    assert len(control.table) == 0
    lost = len(related.table)
    assert control.statistics["num_without_unrelated_target_dropped"] == lost
    assert f"{lost:,} have no unrelated target (raise the threshold, 0.01, " in control.statistics["missing_because"]


def test_a_share_that_leaves_no_training_pairs_is_told(dataset):
    found = find_pairs(dataset, config.Pairing(heldout_share=0.999), 0)
    assert found.statistics["fewest_held_out"]
    assert 1 <= found.table.heldout.sum() <= 2
    assert not find_pairs(dataset, config.Pairing(), 0).statistics["fewest_held_out"]


def test_a_model_that_cannot_be_loaded_is_found_before_the_work(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    seen = []
    with pytest.raises(config.ConfigError, match="some/model"):
        find_pairs(dataset, config.Pairing(embedder="some/model"), 0, seen.append)
    assert not seen


def test_progress_is_told_phase_by_phase_and_may_end_the_search(dataset):
    seen = []
    find_pairs(dataset, config.Pairing(), 0, seen.append)
    assert list(dict.fromkeys(progress.phase for progress in seen)) == [
        "duplicates",
        "embed",
        "search",
        "copies",
        "heldout",
    ]
    for phase in ("duplicates", "embed", "search", "copies"):
        steps = [asdict(progress) for progress in seen if progress.phase == phase]
        assert steps[0]["done"] == 0
        assert steps[-1]["done"] == steps[-1]["total"] > 0

    def stop(progress):
        if progress.phase == "search":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_pairs(dataset, config.Pairing(), 0, stop)

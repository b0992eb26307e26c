"""Neighbourhoods that are held out as a whole: closed, bounded, the same in any order; people on concepts."""

import itertools
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data import neighbourhoods
from streaming_sbp.data.concepts.world import World
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.documents import document_id
from streaming_sbp.data.ingest import ingest
from streaming_sbp.data.neighbourhoods import COSINE, MAX_DOCUMENTS
from streaming_sbp.data.spool import Batch
from streaming_sbp.data.tfidf import counter, num_documents_with, weigh
from streaming_sbp.pairing.find import find_pairs
from streaming_sbp.training.sources import RealSource


def batches(texts, size=50):
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        yield Batch([document_id(text) for text in part], part, [""] * len(part))


def find(folder, texts, share, size=50):
    return neighbourhoods.find(batches(texts, size), len(texts), share, folder)


def families(rng, num_families, size, num_own=6):
    """Texts of families: each has words of its own, said beside words of everybody."""
    common = [f"{a}{b}" for a in "bcdfg" for b in ("alo", "emi", "upo", "ore")]
    texts = []
    for _ in range(num_families):
        own = ["".join(rng.choice(list("hjklmnprstvwz"), 7)) for _ in range(num_own)]
        for _ in range(size):
            texts.append(" ".join([*rng.permutation(own), *rng.choice(common, 6)]))
    return texts


@pytest.fixture(scope="module")
def people():
    """Views of the people of a world, as plain text, and whom each is about."""
    world = World("easy", 3)
    texts = {world.view(concept, k): concept.name for concept in world.concepts.values() for k in range(4)}
    order = np.random.default_rng(0).permutation(len(texts))
    items = list(texts.items())
    return dict(items[i] for i in order)


@pytest.fixture(scope="module")
def dataset(people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    with open(folder / "people.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in people)
    ingest(settings_of(folder))
    return Dataset.open(folder / "set")


def settings_of(folder, name="set", **changes):
    defaults = {"heldout_share": 0.0, "vocab_size": 600, "heldout_neighbourhoods_share": 0.03}
    inputs = (str(folder / "people.jsonl"),)
    return config.Data(dataset=str(folder / name), source="jsonl", inputs=inputs, **{**defaults, **changes})


def texts_of(dataset, split):
    documents, tokenizer = dataset.split(split), dataset.tokenizer()
    return [tokenizer.decode(documents.tokens(i)) for i in range(len(documents))]


def test_no_document_of_a_neighbourhood_is_near_one_outside(people, tmp_path):
    texts = list(people)
    found = find(tmp_path, texts, 0.05)
    number = {document_id(text): i for i, text in enumerate(texts)}
    counts = counter(neighbourhoods.HASHED_TERMS).transform(texts)
    vectors = weigh(counts, num_documents_with(counts), len(texts))
    assert 0.04 * len(texts) < sum(map(len, found)) <= 0.05 * len(texts)
    for ids in found:
        members = [number[id] for id in ids]
        assert 2 <= len(members) <= MAX_DOCUMENTS
        near = (vectors[members] @ vectors.T).toarray() > COSINE
        assert {*np.flatnonzero(near.any(axis=0)).tolist()} == {*members}
    assert len({id for ids in found for id in ids}) == sum(map(len, found))


def test_the_order_of_the_input_and_its_batches_change_nothing(tmp_path):
    texts = families(np.random.default_rng(0), 200, 4)
    found = find(tmp_path, texts, 0.1)
    again = find(tmp_path, texts[::-1], 0.1, size=7)
    assert [sorted(ids) for ids in found] == [sorted(ids) for ids in again]
    assert list(tmp_path.iterdir()) == []


def test_families_are_found_whole_and_single_documents_are_left(tmp_path):
    rng = np.random.default_rng(1)
    texts, alone = families(rng, 100, 4), families(rng, 400, 1)
    family = {document_id(text): i // 4 for i, text in enumerate(texts)}
    found = find(tmp_path, texts + alone, 0.1)
    assert all(len(ids) == 4 and len({family[id] for id in ids}) == 1 for ids in found)
    assert 60 < 4 * len(found) <= 80


def test_a_hub_takes_no_one(tmp_path):
    """One family with more documents than a neighbourhood may have, beside small ones."""
    rng = np.random.default_rng(2)
    large, small = families(rng, 1, 10 * MAX_DOCUMENTS), families(rng, 100, 4)
    found = find(tmp_path, large + small, 0.1)
    members = {id for ids in found for id in ids}
    assert members
    assert not members & {document_id(text) for text in large}


def test_a_chain_is_one_neighbourhood_or_none(tmp_path):
    """Each document is near the next only: it is held out as a whole, or, where it is too long, not at all."""

    def chain(length, key):
        links = [[f"{key}{chr(97 + i // 26)}{chr(97 + i % 26)}{c}" for c in "wxyz"] for i in range(length + 1)]
        return [" ".join(links[i] + links[i + 1]) for i in range(length)]

    whole = [chain(5, "".join(key)) for key in np.random.default_rng(0).choice(list("bcdfghjk"), (60, 6))]
    found = find(tmp_path, [text for texts in whole for text in texts], 0.2)
    of_chain = {frozenset(document_id(text) for text in texts) for texts in whole}
    assert found
    assert {frozenset(ids) for ids in found} <= of_chain
    assert find(tmp_path, chain(300, "qqqq"), 0.2) == []


@pytest.mark.parametrize("num_documents", [0, 1, 300])
def test_a_small_corpus_keeps_its_documents(tmp_path, num_documents):
    assert find(tmp_path, families(np.random.default_rng(3), num_documents, 1), 0.05) == []


def test_memory_does_not_grow_with_the_text(tmp_path):
    rng = np.random.default_rng(5)
    words = ["".join(rng.choice(list("abcdefghijklmno"), 6)) for _ in range(400)]

    def peak(num_words):
        made = (" ".join(rng.choice(words, num_words)) for _ in range(1000))
        tracemalloc.start()
        try:
            parts = iter(lambda: list(itertools.islice(made, 50)), [])
            stream = (Batch([document_id(text) for text in part], part, [""] * len(part)) for part in parts)
            neighbourhoods.find(stream, 1000, 0.05, tmp_path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # what is imported and cached once
    assert peak(2000) - peak(1000) < 1000 * 1000 * 7 / 4


def test_whole_people_are_held_out_of_the_training_documents(people, dataset):
    held, trained = (
        Counter(people[text] for text in texts_of(dataset, split)) for split in ("heldout_groups", "train")
    )
    assert not {*held} & {*trained}
    assert set(held.values()) == {4}
    assert 0.02 * len(people) < sum(held.values()) <= 0.03 * len(people)
    assert sum(held.values()) + sum(trained.values()) == len(people)
    assert dataset.manifest.num_documents["heldout_groups"] == sum(held.values())


def test_the_trainer_never_reads_a_held_out_document(dataset):
    held, trained, tokenizer = dataset.split("heldout_groups"), dataset.split("train"), dataset.tokenizer()
    source = RealSource(trained, tokenizer.bos_id, tokenizer.eos_id, 0)
    read = {tuple(source.tokens(position)[1:-1].tolist()) for position in range(2 * len(trained))}
    members = {tuple(held.tokens(i).tolist()) for i in range(len(held))}
    assert len(members) > 50
    assert len(read) == len(trained)
    assert not members & read


def test_held_out_pairs_are_those_of_the_neighbourhoods(people, dataset):
    table, documents, tokenizer = (
        find_pairs(dataset, config.Pairing(), 0).table,
        dataset.pairable(),
        dataset.tokenizer(),
    )
    num_training = len(dataset.split("train"))
    assert table.heldout.sum() > 100
    assert ((table.seed >= num_training) == table.heldout).all()
    assert ((table.target >= num_training) == table.heldout).all()
    about = [people[tokenizer.decode(documents.tokens(i))] for i in range(len(documents))]
    same = [about[i] == about[j] for i, j in zip(table.seed[table.heldout], table.target[table.heldout], strict=True)]
    assert np.mean(same) > 0.98


def test_a_part_is_judged_by_the_neighbourhoods_of_the_whole(dataset):
    ingest(settings_of(dataset.path.parent, "part", max_train_documents=500))
    part = Dataset.open(dataset.path.parent / "part")
    assert part.split("heldout_groups").ids == dataset.split("heldout_groups").ids
    assert len(part.split("train")) == 500
    assert {*part.split("train").ids} < {*dataset.split("train").ids}


def test_share_0_holds_out_nothing_and_share_1_says_what_to_lower(dataset):
    folder = dataset.path.parent
    summary = ingest(settings_of(folder, "none", heldout_neighbourhoods_share=0.0))
    assert list(summary.manifest.num_documents) == ["train", "heldout"]
    (folder / "few").mkdir()
    with open(folder / "few" / "people.jsonl", "w") as file:
        for text in families(np.random.default_rng(4), 20, 4):
            file.write(json.dumps({"text": text}) + "\n")
    with pytest.raises(
        ConfigError, match=r"only held-out documents are left .*data\.heldout_neighbourhoods_share = 1\.0"
    ):
        ingest(settings_of(folder / "few", heldout_neighbourhoods_share=1.0))

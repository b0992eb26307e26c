"""What sampled documents are compared with, beside a slow computation."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_sbp.synthesizer.corpus_index import NGRAM, CorpusIndex
from streaming_sbp.synthesizer.filters import ngrams
from streaming_sbp.synthesizer.reference import Reference
from streaming_sbp.synthesizer.relatedness import TermWeights
from tests.checks.sabotage import Corpus

documents = st.lists(st.lists(st.integers(0, 1), max_size=30).map(np.array), min_size=1, max_size=6)


def build(found, max_bytes=2**20):
    return CorpusIndex.build(found, sum(map(len, found)), max_bytes)


@given(corpus=documents, other=st.lists(st.integers(0, 1), max_size=40).map(np.array))
def test_the_share_is_that_of_a_search_through_all_13_grams(corpus, other):
    known = {gram for tokens in corpus for gram in ngrams(tokens, NGRAM)}
    grams = ngrams(other, NGRAM)
    expected = sum(gram in known for gram in grams) / len(grams) if grams else 0.0
    index = build(corpus)
    assert len(index) == len(known)
    assert index.share(other) == pytest.approx(expected)


def test_a_shorter_document_and_the_empty_corpus_share_nothing():
    assert build([np.arange(12)]).share(np.arange(12)) == 0.0
    assert build([np.zeros(0, int)]).share(np.arange(40)) == 0.0
    assert build([np.arange(40)]).longest_span(np.arange(12), lambda i: np.arange(40)) == 0


def test_the_longest_span_is_found_in_the_document_that_has_it():
    rng = np.random.default_rng(0)
    corpus = [rng.integers(0, 2**16, 200) for _ in range(50)]
    made = np.concatenate([corpus[3][:20], [1], corpus[41][50:97], [2], corpus[7][:15]])
    assert build(corpus).longest_span(made, lambda i: corpus[i]) == 47


def test_a_corpus_larger_than_the_memory_allowed_is_sampled_and_the_share_estimated():
    rng = np.random.default_rng(0)
    corpus = [rng.integers(0, 2**16, 500) for _ in range(400)]
    index = build(corpus, max_bytes=400_000)
    assert index.zero_bits == 3
    assert 0.8 < index.num_bytes / (400 * 488 / 8 * 12) < 1.2
    half = [np.concatenate([corpus[i][:250], rng.integers(0, 2**16, 250)]) for i in range(100)]
    assert np.mean([index.share(tokens) for tokens in half]) == pytest.approx((250 - 12) / 488, abs=0.02)
    assert min(index.longest_span(tokens, lambda i: corpus[i]) for tokens in half) == 250


def test_relatedness_is_the_cosine_of_tfidf():
    corpus = [np.array([0, 1, 1]), np.array([0, 2]), np.array([0, 3, 3, 3])]
    terms = TermWeights.fit(corpus, 5)
    idf = [math.log(4 / 4) + 1, *[math.log(4 / 2) + 1] * 3, math.log(4 / 1) + 1]
    assert terms.idf.tolist() == pytest.approx(idf)

    def vector(tokens):
        weights = np.array([(1 + math.log(tokens.count(i))) * idf[i] if i in tokens else 0.0 for i in range(5)])
        return weights / np.linalg.norm(weights)

    a, b = [0, 1, 1], [1, 4, 4, 4]
    both = [np.array(a), np.array(b)]
    found = terms.related(both, [both[1], both[1]], both)
    assert found.each.tolist() == pytest.approx([vector(a) @ vector(b), 1.0])
    own = terms.related(both, both, both)
    assert own.lift == pytest.approx(1.0 - vector(a) @ vector(b))
    assert found.unrelated_share == 0.5  # the first is the other document, to which its seed is unrelated
    assert own.unrelated_share == 0.0
    assert terms.related([], [], both).mean == 0.0
    assert terms.related([np.zeros(0, int)], [both[0]], both).mean == 0.0
    alone = terms.related([both[1]], [both[0]], [both[0]])
    assert (alone.lift, alone.unrelated_share) == (alone.mean, 0.0)  # nothing to compare with but the seed itself


def test_what_is_written_without_a_seed_is_unrelated_in_19_of_20_cases():
    rng = np.random.default_rng(0)
    corpus, seeds = ([rng.integers(0, 500, 80) for _ in range(400)] for _ in range(2))
    terms = TermWeights.fit(corpus, 500)
    assert terms.related(corpus, seeds, seeds).unrelated_share == pytest.approx(0.95, abs=0.04)
    half = [np.concatenate([seed[:40], other[:40]]) for seed, other in zip(seeds, corpus, strict=True)]
    mixed = [*half[:100], *corpus[100:]]
    assert terms.related(mixed, seeds, seeds).unrelated_share == pytest.approx(0.75 * 0.95, abs=0.04)


def test_seeds_that_are_relatives_of_each_other_are_not_what_real_text_is_compared_with():
    """Held-out pairs are of few neighbourhoods: here of one, which is a twentieth of the corpus."""
    rng = np.random.default_rng(0)
    corpus = Corpus(400, 60, 0)
    families = [rng.integers(0, 2000, 40) for _ in range(20)]
    corpus.documents = [np.concatenate([families[i % 20], rng.integers(0, 2000, 20)]) for i in range(400)]
    pairs = [(corpus.documents[i], corpus.documents[j]) for i in range(0, 120, 20) for j in range(0, 120, 20) if i != j]
    made = Reference.build(corpus, [], pairs, 2000, 2**20, 0.5)
    assert made.real["real_unrelated_share"] == 0.0
    assert made.real["real_relatedness_lift"] > 0.9 * made.real["real_relatedness"] - 0.1
    documents = [target for _, target in pairs]
    assert made.related(documents, [corpus.documents[i] for i in range(1, 31)]).unrelated_share > 0.8
    measured = made.related(documents, [seed for seed, _ in pairs]).measures()  # as synthetic documents are
    assert measured == {name: made.real[f"real_{name}"] for name in measured}


def test_it_is_read_back_as_it_was_written_and_of_another_data_set_not_at_all(tmp_path):
    corpus = Corpus(50, 30, 0)
    made = Reference.build(corpus, corpus.documents[:5], [(corpus.tokens(0), corpus.tokens(8))], 60, 2**20, 0.5)
    assert made.real["real_corpus_13gram_share"] == 1.0
    assert made.real["real_copied_share"] == 0.0
    copy = Reference.build(corpus, [], [(corpus.tokens(0), corpus.tokens(0))], 60, 2**20, 0.5)
    assert copy.real["real_copied_share"] == 1.0
    folder = tmp_path / "reference"
    made.save(folder, "digest")
    made.save(folder, "digest")
    read = Reference.load(folder, "digest", corpus)
    assert read.real == made.real
    assert read.copying(corpus.documents[:9], 0.5) == made.copying(corpus.documents[:9], 0.5)
    assert Reference.load(folder, "another", corpus) is None
    facts = json.loads((folder / "reference.json").read_text())
    (folder / "reference.json").write_text(json.dumps(facts | {"format_version": 1}))
    assert Reference.load(folder, "digest", corpus) is None
    made.save(folder, "digest")
    (folder / "hashes.npy").write_bytes(b"damaged")
    assert Reference.load(folder, "digest", corpus) is None
    assert Reference.load(tmp_path / "nothing", "digest", corpus) is None

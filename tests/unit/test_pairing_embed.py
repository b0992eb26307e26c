"""Embedders: norms, determinism, tiny corpora, and what is said when a model cannot be used."""

import importlib.util
import math
import sys
import types
from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data.tfidf import IDF_POWER
from streaming_sbp.pairing import embed
from streaming_sbp.pairing.embed import (
    SentenceEmbedder,
    TfidfEmbedder,
    make_embedder,
    most_frequent,
    stack,
    unit_rows,
)
from streaming_sbp.pairing.embedders import require_embedder

TEXTS = [
    "the river carries the stone",
    "a river holds the winter stone",
    "bread and salt and bread",
    "salt of the bread",
    "one violin",
    "1234 !!",
]


def embed_all(embedder, batches):
    return stack(embedder, batches, sum(map(len, batches)))


def tfidf_cosines(texts):
    """Plain Python: sublinear term frequency, a power of the log of rarity, words of two letters or more."""
    words = [[word for word in text.split() if len(word) > 1 and word.isalpha()] for text in texts]
    num_with = Counter(word for document in words for word in set(document))
    idf = {word: math.log(1 + len(texts) / count) ** IDF_POWER for word, count in num_with.items()}
    vectors = [{w: (1 + math.log(n)) * idf[w] for w, n in Counter(document).items()} for document in words]
    norms = [math.sqrt(sum(value**2 for value in vector.values())) or 1.0 for vector in vectors]
    return [
        [sum(a[w] * b.get(w, 0.0) for w in a) / (norms[i] * norms[j]) for j, b in enumerate(vectors)]
        for i, a in enumerate(vectors)
    ]


def test_with_as_many_dimensions_as_documents_inner_products_are_those_of_tfidf():
    vectors = embed_all(TfidfEmbedder(64, 1000, seed=0), [TEXTS[:2], [], TEXTS[2:]])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, tfidf_cosines(TEXTS), atol=1e-5)


def test_norms_are_one_and_a_document_without_words_has_a_zero_vector():
    vectors = embed_all(TfidfEmbedder(3, 1000, seed=0), [TEXTS])
    assert vectors.shape == (len(TEXTS), 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1)[[0, 1, 2, 3]], 1.0, rtol=1e-5)
    assert not vectors[-1].any()


@pytest.mark.parametrize("seed", [0, 7, -1, 2**40])
def test_the_same_seed_gives_the_same_vectors(seed):
    first, second = (embed_all(TfidfEmbedder(3, 1000, seed), [TEXTS]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_projection_fitted_on_a_sample_is_applied_to_every_document(monkeypatch):
    rng = np.random.default_rng(0)
    topics = [["river", "stone", "water", "boat"], ["bread", "salt", "oven", "flour"]]
    texts = [" ".join(rng.choice(topics[i % 2], 6)) for i in range(60)]
    monkeypatch.setattr(embed, "SVD_FIT_DOCUMENTS", 20)
    vectors = embed_all(TfidfEmbedder(2, 1000, seed=0), [texts])
    similarity = vectors @ vectors.T
    same = np.equal.outer(np.arange(60) % 2, np.arange(60) % 2)
    assert similarity[same].mean() > 0.7
    assert similarity[~same].max() < 0.3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dimensions", [1, 16])
@pytest.mark.parametrize("texts", [[], [""], ["river"], ["river bread salt"], ["river", "river"], ["123", "!"]])
def test_tiny_corpora(texts, dimensions):
    vectors = embed_all(TfidfEmbedder(dimensions, 1000, seed=0), [texts])
    assert len(vectors) == len(texts)
    expected = [1.0 if "river" in text else 0.0 for text in texts]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), expected, rtol=1e-5)


def test_only_the_most_frequent_terms_are_kept():
    counts = sparse.csr_matrix(np.array([[1, 0, 5, 0, 2], [1, 0, 0, 3, 2], [0, 0, 0, 1, 2]], dtype=np.float32))
    assert most_frequent(counts, 10).toarray().tolist() == [[1, 5, 0, 2], [1, 0, 3, 2], [0, 0, 1, 2]]
    assert most_frequent(counts, 2).toarray().tolist() == [[1, 2], [1, 2], [0, 2]]


def test_rows_that_cannot_be_normalised_become_zero():
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [0, 0], [0, 0]], rtol=1e-6)
    assert rows.dtype == np.float32


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pairing\.embedder = \"some/model\".*pip install 'streaming-sbp\[embed\]'"):
        make_embedder(config.Pairing(embedder="some/model"), seed=0)


@pytest.mark.parametrize("name", ["no/such/folder", "./model", "/model", "two words", "~", "org/"])
def test_a_name_that_can_be_no_embedder_is_refused(name):
    with pytest.raises(ConfigError, match="no such folder; expected"):
        require_embedder(name)


def test_a_known_name_a_folder_and_a_name_on_the_hub_are_taken(monkeypatch, tmp_path):
    for name in ("tfidf", "self"):
        require_embedder(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name in (str(tmp_path), "all-MiniLM-L6-v2", "BAAI/bge-small-en-v1.5"):
        require_embedder(name)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "BAAI/bge-small-en-v1.5"])
def test_a_missing_package_is_noticed_without_loading_anything(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'streaming-sbp\[embed\]'"):
        require_embedder(name)


def fake_sentence_transformers(monkeypatch):
    class Model:
        def __init__(self, name):
            if name == "broken":
                raise OSError("no such folder")

        def encode(self, texts, convert_to_numpy, show_progress_bar):
            return np.array([[len(text), 1.0] for text in texts], dtype=np.float64)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Model
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_a_model_that_cannot_be_loaded_is_named(monkeypatch):
    fake_sentence_transformers(monkeypatch)
    with pytest.raises(ConfigError, match=r"\"broken\": cannot be loaded: OSError: no such folder; expected"):
        make_embedder(config.Pairing(embedder="broken"), seed=0)


def test_a_sentence_model_gives_unit_vectors_in_order(monkeypatch):
    fake_sentence_transformers(monkeypatch)
    embedder = make_embedder(config.Pairing(embedder="fine"), seed=0)
    assert isinstance(embedder, SentenceEmbedder)
    vectors = embed_all(embedder, [["aaa"], ["", "a"]])
    np.testing.assert_allclose(vectors, unit_rows(np.array([[3.0, 1.0], [0.0, 1.0], [1.0, 1.0]])), rtol=1e-6)

"""The embedder "self", with a real model and the tokenizer of a real data set."""

import numpy as np
import pytest

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.pairing.embed import make_embedder, stack
from streaming_sbp.pairing.pooling import rarity, whiten
from streaming_sbp.training.model import build_model

TEXTS = ["The river carries the stone.", "", "The comet paints the glass.", "The loom. " * 200]


@pytest.fixture
def folder(tiny_config, tmp_path):
    tokenizer = Dataset.open(tiny_config.data.dataset).tokenizer()
    build_model(tiny_config.model, tokenizer, 0).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_batches_do_not_matter_and_norms_are_one_or_zero(folder):
    embedder = make_embedder(config.Pairing(embedder="self"), 0, folder)
    together = stack(embedder, [TEXTS], 4)
    apart = stack(embedder, [TEXTS[:1], [], TEXTS[1:]], 4)
    np.testing.assert_allclose(together, apart, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), [1, 0, 1, 1], atol=1e-5)


def test_without_a_checkpoint_it_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r'"self": no checkpoint to embed with'):
        make_embedder(config.Pairing(embedder="self"), 0)
    with pytest.raises(ConfigError, match="cannot be loaded as the model to embed with"):
        make_embedder(config.Pairing(embedder="self"), 0, tmp_path / "none")


def test_rare_tokens_weigh_more():
    weights = rarity([[1, 1, 1, 2], [1, 1]], 4)
    np.testing.assert_allclose(weights, [1.0, 1e-3 / (1e-3 + 5 / 6), 1e-3 / (1e-3 + 1 / 6), 1.0], rtol=1e-5)


def test_whitening_takes_out_what_all_have_in_common_and_evens_the_directions():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(2000, 3))
    seen = signal * [30.0, 3.0, 1.0] + 100.0
    known = np.arange(2000) != 7
    found = whiten(seen, known)
    assert not found[7].any()
    exact = signal / np.linalg.norm(signal, axis=1, keepdims=True)
    np.testing.assert_allclose((found @ found.T)[:5, :5], (exact @ exact.T)[:5, :5], atol=0.15)

"""The vLLM engine, by the same rules as the other one; skipped where vLLM is not installed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.synthesizer.engines import make_engine
from streaming_sbp.synthesizer.engines.base import Sampling, generate
from streaming_sbp.synthesizer.engines.vllm import VllmEngine
from tests.unit.synthesizer_models import chi_square_p, exact_documents, make_model

IDS = SimpleNamespace(pad_id=0, bos_id=1, eos_id=2, sep_id=3, vocab_size=24)
MODEL_VOCAB = 32
FORBIDDEN = [IDS.pad_id, IDS.bos_id, IDS.sep_id, *range(IDS.vocab_size, MODEL_VOCAB)]
PROMPTS = [[1, 5, 9, 3], [1, 7, 3], [1], [1, 12, 4, 4, 8, 11, 20, 6, 3]]


def make(seed=0, **options):
    """Heads of 32, the smallest that vLLM's attention takes on a CPU."""
    settings = {"hidden_size": 128, "tie_word_embeddings": False, "initializer_range": 0.09} | options
    return make_model(MODEL_VOCAB, seed=seed, **settings)


def test_without_vllm_the_error_says_what_to_install():
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"streaming-sbp\[vllm\]"):
            make_engine(config.Generator(engine="vllm", device="cpu"), IDS)
    else:
        assert isinstance(make_engine(config.Generator(engine="vllm", device="cpu"), IDS), VllmEngine)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        make(seed).save_pretrained(folder / str(seed))
    return folder


@pytest.fixture(scope="module")
def serving(folders):
    pytest.importorskip("vllm")
    return VllmEngine(torch.device("cpu"), "fp32", 64, IDS)


@pytest.fixture
def engine(serving, folders) -> VllmEngine:
    serving.load(folders / "0")
    return serving


def documents(engine, max_new_tokens=20, seed=5):
    return [d.tokens.tolist() for d in generate(engine, PROMPTS, Sampling(max_new_tokens=max_new_tokens), seed)]


def test_log_probs_are_those_of_a_separate_forward_pass(engine):
    for prompt, document in zip(PROMPTS, generate(engine, PROMPTS, Sampling(0.8, 0.9, 9, 40), 1), strict=True):
        assert len(document.tokens) == 40 or document.finished
        ids = torch.tensor([[*prompt, *document.tokens.tolist()]])
        with torch.no_grad():
            log_probs = make().forward(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        expected = log_probs[torch.arange(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt) :]].numpy()
        np.testing.assert_allclose(document.log_probs, expected, atol=2e-3)


def test_whole_documents_follow_the_distribution_of_the_plain_definition(engine):
    sampling, prompt = Sampling(1.2, 0.8, 9, max_new_tokens=2), PROMPTS[0]
    expected = exact_documents(make(), prompt, sampling, FORBIDDEN, IDS.eos_id)
    assert {finished for _, finished in expected} == {True, False}
    assert chi_square_p(generate(engine, [prompt] * 3000, sampling, 3), expected) > 1e-3


def test_special_tokens_and_ids_beyond_the_tokenizer_are_never_sampled(engine):
    sampled = generate(engine, PROMPTS * 20, Sampling(temperature=2.0, max_new_tokens=40), 0)
    found = set(np.concatenate([document.tokens for document in sampled]).tolist())
    assert found == set(range(4, IDS.vocab_size))


def test_the_same_seed_gives_the_same_documents(engine):
    assert documents(engine) == documents(engine) != documents(engine, seed=6)


def test_a_caller_may_stop(engine):
    before = documents(engine, seed=9)
    stream = engine.stream(PROMPTS, Sampling(max_new_tokens=200), 5)
    next(stream)
    stream.close()
    assert not engine._llm.llm_engine.has_unfinished_requests()
    assert documents(engine, seed=9) == before


def test_a_swap_replaces_the_weights_in_place(engine, folders):
    before, serving = documents(engine), engine._llm
    engine.load(folders / "1")
    other = documents(engine)
    engine.load(folders / "0")
    assert engine._llm is serving
    assert documents(engine) == before != other


@pytest.mark.parametrize("damage", ["missing", "truncated", "small vocabulary", "other shape"])
def test_a_failed_load_leaves_the_old_weights_serving(damage, engine, tmp_path):
    before = documents(engine)
    models = {"small vocabulary": lambda: make_model(12), "other shape": lambda: make(num_layers=3)}
    models.get(damage, lambda: make(1))().save_pretrained(tmp_path)
    weights = Path(tmp_path / "model.safetensors")
    if damage == "missing":
        weights.unlink()
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"safetensors|tokenizer|incomplete|invalid|another shape"):
        engine.load(tmp_path)
    assert documents(engine) == before


def test_weights_that_are_not_finite_are_an_error(engine, folders, tmp_path):
    model = make(1)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    model.save_pretrained(tmp_path)
    engine.load(tmp_path)
    with pytest.raises(FloatingPointError, match="finite"):
        documents(engine)
    engine.load(folders / "0")
    assert len(documents(engine)) == len(PROMPTS)


def test_prompts_that_do_not_fit_are_an_error(engine):
    with pytest.raises(ValueError, match="max_position_embeddings = 512"):
        generate(engine, [[1] * 400], Sampling(max_new_tokens=200), 0)

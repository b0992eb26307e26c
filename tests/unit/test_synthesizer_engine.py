from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from streaming_sbp.synthesizer.engines.base import Sampling, generate
from streaming_sbp.synthesizer.engines.sampling import sample
from streaming_sbp.synthesizer.engines.transformers import TransformersEngine
from tests.unit.synthesizer_models import chi_square_p, exact_documents, make_model, make_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def random_prompts(tokenizer, lengths, seed=0):
    rng = np.random.default_rng(seed)
    words = (rng.integers(10, tokenizer.vocab_size, n - 2).tolist() for n in lengths)
    return [[tokenizer.bos_id, *found, tokenizer.sep_id] for found in words]


def engine_of(model, tokenizer, folder, precision="fp32", num_rows=64, device=CPU):
    model.save_pretrained(folder)
    engine = TransformersEngine(device, precision, num_rows, tokenizer)
    engine.load(folder)
    return engine


def plain_log_probs(model, prompt, tokens):
    """From one separate forward pass of transformers' own attention and cache-free code."""
    ids = torch.tensor([[*prompt, *tokens.tolist()]])
    with torch.no_grad():
        log_probs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    return log_probs[torch.arange(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt) :]].numpy()


# --- the distribution of one token ---


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (1.0, 0.9, 0), (0.7, 0.9, 0), (1.5, 0.5, 12), (1.0, 0.05, 0), (1.0, 1.0, 5), (0.05, 0.9, 0)],
)
def test_sampled_tokens_follow_the_distribution_of_the_transformers_warpers(temperature, top_p, top_k):
    num_draws, forbidden = 60_000, torch.tensor([0, 3])
    logits = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 2
    generator = torch.Generator().manual_seed(2)
    sampling = Sampling(temperature, top_p, top_k)
    tokens, log_probs = sample(logits.expand(num_draws, -1), sampling, forbidden, generator)

    warped = logits.index_fill(0, forbidden, float("-inf"))[None].double()
    warped = TemperatureLogitsWarper(temperature)(None, warped)
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    expected = warped[0].softmax(-1).numpy() * num_draws
    found = torch.bincount(tokens, minlength=64).numpy()
    assert found[expected == 0].sum() == 0
    possible = expected > 0
    if possible.sum() > 1:
        rare = possible & (expected < 5)
        pooled = [*found[possible & ~rare], found[rare].sum()], [*expected[possible & ~rare], expected[rare].sum()]
        keep = np.array(pooled[1]) > 0
        assert chisquare(np.array(pooled[0])[keep], np.array(pooled[1])[keep]).pvalue > 1e-3
    torch.testing.assert_close(log_probs, logits.log_softmax(-1)[tokens])


def test_logits_that_are_not_finite_are_an_error_and_not_an_endless_loop():
    logits = torch.zeros(4, 16)
    logits[2, 5] = float("nan")
    with pytest.raises(FloatingPointError, match="finite"):
        sample(logits, Sampling(top_p=0.9), torch.tensor([0]), torch.Generator().manual_seed(0))


# --- whole documents ---

TINY = SimpleNamespace(pad_id=0, bos_id=1, eos_id=2, sep_id=3, vocab_size=14)


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (1.0, 0.9, 0), (1.4, 0.8, 7)])
def test_whole_documents_follow_the_distribution_of_the_plain_definition(temperature, top_p, top_k, device, tmp_path):
    """Through cache, refills and dropped rows, among documents of other prompts, against full forward passes."""
    model = make_model(20, seed=3, tie_word_embeddings=False, initializer_range=0.25)
    model.save_pretrained(tmp_path)
    engine = TransformersEngine(device, "fp32", 512, TINY)
    engine.load(tmp_path)
    sampling = Sampling(temperature, top_p, top_k, max_new_tokens=3)
    prompts = [[1, 5, 9, 3], [1, 7, 3], [1], [1, 12, 4, 4, 8, 11, 3]]
    forbidden = [TINY.pad_id, TINY.bos_id, TINY.sep_id, *range(TINY.vocab_size, 20)]
    sampled = generate(engine, prompts * 6000, sampling, seed=11)
    for k, prompt in enumerate(prompts):
        expected = exact_documents(model, prompt, sampling, forbidden, TINY.eos_id)
        assert sum(expected.values()) == pytest.approx(1)
        assert {finished for _, finished in expected} == {True, False}
        assert chi_square_p(sampled[k :: len(prompts)], expected) > 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_log_probs_are_those_of_a_separate_forward_pass(family, num_kv_heads, device, tokenizer, tmp_path):
    model = make_model(tokenizer.vocab_size, family=family, num_kv_heads=num_kv_heads)
    engine = engine_of(model, tokenizer, tmp_path, num_rows=3, device=device)
    prompts = [[tokenizer.bos_id], *random_prompts(tokenizer, [3, 130, 2, 64, 65, 66, 20])]
    sampled = generate(engine, prompts, Sampling(0.8, 0.9, 0, max_new_tokens=90), seed=1)
    for prompt, document in zip(prompts, sampled, strict=True):
        assert len(document.tokens) == 90 or document.finished
        expected = plain_log_probs(model, prompt, document.tokens)
        np.testing.assert_allclose(document.log_probs, expected, atol=2e-4)


def test_bf16_log_probs_stay_close_to_fp32(device, tokenizer, tmp_path):
    model = make_model(tokenizer.vocab_size, hidden_size=64, num_layers=3)
    engine = engine_of(model, tokenizer, tmp_path, precision="bf16", device=device)
    prompts = random_prompts(tokenizer, [40, 70, 10])
    for prompt, document in zip(prompts, generate(engine, prompts, Sampling(max_new_tokens=60), 0), strict=True):
        difference = np.abs(document.log_probs - plain_log_probs(model, prompt, document.tokens))
        assert difference.mean() < 0.02  # a third of the sixteenth of a nat that the stream carries
        assert difference.max() < 0.2


@pytest.mark.parametrize("num_rows", [1, 4, 64])
def test_rows_that_end_at_different_times_do_not_disturb_the_others(num_rows, device, tokenizer, tmp_path):
    """Greedy, so that each document can be compared with transformers' generate() on its prompt alone."""
    model = make_model(tokenizer.vocab_size, seed=5, tie_word_embeddings=False, initializer_range=0.15)
    prompts = random_prompts(tokenizer, [10, 100, 30, 64, 65, 5, 140, 70, 12, 33])
    never = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.sep_id]
    without_end = [_greedy(model, prompt, 80, suppress=[*never, tokenizer.eos_id]) for prompt in prompts]
    # The end is a token that these documents reach at very different times, or never.
    reached = {t: [d.index(t) for d in without_end if t in d] for t in {t for d in without_end for t in d}}
    eos_id = max(reached, key=lambda t: len(set(reached[t])))
    ids = SimpleNamespace(pad_id=never[0], bos_id=never[1], sep_id=never[2], eos_id=eos_id, vocab_size=260)
    model.save_pretrained(tmp_path)
    engine = TransformersEngine(device, "fp32", num_rows, ids)
    engine.load(tmp_path)
    engine._forbidden = torch.tensor([*never, tokenizer.eos_id], device=device)
    sampled = generate(engine, prompts, Sampling(top_k=1, max_new_tokens=80), seed=0)
    assert len({len(document.tokens) for document in sampled}) >= 4
    for document, whole in zip(sampled, without_end, strict=True):
        expected = whole[: whole.index(eos_id)] if eos_id in whole else whole
        assert document.tokens.tolist() == expected
        assert document.finished == (eos_id in whole)


def _greedy(model, prompt, num_tokens, suppress):
    output = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=num_tokens, suppress_tokens=suppress, eos_token_id=None
    )
    return output[0, len(prompt) :].tolist()


def test_special_tokens_and_ids_beyond_the_tokenizer_are_never_sampled(tokenizer, tmp_path):
    model = make_model(tokenizer.vocab_size + 60)
    engine = engine_of(model, tokenizer, tmp_path)
    sampled = generate(engine, random_prompts(tokenizer, [5] * 64), Sampling(temperature=3.0, max_new_tokens=60), 0)
    found = set(np.concatenate([document.tokens for document in sampled]).tolist())
    assert len(found) > 200
    assert not found & {tokenizer.pad_id, tokenizer.bos_id, tokenizer.sep_id, tokenizer.eos_id}
    assert max(found) < tokenizer.vocab_size


def test_the_same_seed_gives_the_same_documents(device, tokenizer, tmp_path):
    engine = engine_of(make_model(tokenizer.vocab_size), tokenizer, tmp_path, device=device)
    prompts = random_prompts(tokenizer, [9, 30])
    documents = [
        [d.tokens.tolist() for d in generate(engine, prompts, Sampling(max_new_tokens=20), seed)] for seed in (1, 1, 2)
    ]
    assert documents[0] == documents[1] != documents[2]


def test_documents_come_as_they_end_and_a_caller_may_stop(tokenizer, tmp_path):
    engine = engine_of(make_model(tokenizer.vocab_size), tokenizer, tmp_path, num_rows=4)
    prompts, sampling = random_prompts(tokenizer, [8] * 12), Sampling(temperature=2.0, max_new_tokens=100)
    whole = generate(engine, prompts, sampling, 5)
    stream = engine.stream(prompts, sampling, 5)
    found = {}
    while len(found) < 6:
        found.update(next(stream))
    stream.close()
    assert len(found) < 12
    for i, document in found.items():
        assert document.tokens.tolist() == whole[i].tokens.tolist()
    again = generate(engine, prompts, sampling, 5)
    assert [d.tokens.tolist() for d in again] == [d.tokens.tolist() for d in whole]


def test_a_swap_replaces_the_weights_in_place(device, tokenizer, tmp_path):
    prompts, sampling = random_prompts(tokenizer, [9, 30]), Sampling(max_new_tokens=20)
    engine = engine_of(make_model(tokenizer.vocab_size, seed=0), tokenizer, tmp_path / "a", device=device)
    module = engine._model
    other = engine_of(make_model(tokenizer.vocab_size, seed=1), tokenizer, tmp_path / "b", device=device)
    before = generate(engine, prompts, sampling, 0)
    engine.load(tmp_path / "b")
    assert engine._model is module
    for mine, expected, old in zip(
        generate(engine, prompts, sampling, 0), generate(other, prompts, sampling, 0), before, strict=True
    ):
        assert mine.tokens.tolist() == expected.tokens.tolist() != old.tokens.tolist()


def test_a_model_of_another_shape_replaces_the_module(tokenizer, tmp_path):
    engine = engine_of(make_model(tokenizer.vocab_size), tokenizer, tmp_path / "a")
    make_model(tokenizer.vocab_size, num_layers=3).save_pretrained(tmp_path / "b")
    engine.load(tmp_path / "b")
    assert engine._model.config.num_hidden_layers == 3
    assert len(generate(engine, random_prompts(tokenizer, [5]), Sampling(max_new_tokens=4), 0)) == 1


@pytest.mark.parametrize("damage", ["missing", "truncated", "small vocabulary"])
def test_a_failed_load_leaves_the_old_weights_serving(damage, tokenizer, tmp_path):
    engine = engine_of(make_model(tokenizer.vocab_size), tokenizer, tmp_path / "a")
    prompts, sampling = random_prompts(tokenizer, [9]), Sampling(max_new_tokens=20)
    before = generate(engine, prompts, sampling, 0)[0].tokens.tolist()
    make_model(tokenizer.vocab_size if damage != "small vocabulary" else 100, seed=1).save_pretrained(tmp_path / "b")
    weights = tmp_path / "b" / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"safetensors|tokenizer|header|incomplete|invalid"):
        engine.load(tmp_path / "b")
    assert generate(engine, prompts, sampling, 0)[0].tokens.tolist() == before


def test_prompts_that_do_not_fit_are_an_error(tokenizer, tmp_path):
    engine = engine_of(make_model(tokenizer.vocab_size), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="max_position_embeddings = 512"):
        generate(engine, random_prompts(tokenizer, [400]), Sampling(max_new_tokens=200), 0)


def test_a_sliding_window_is_refused_and_not_ignored(tokenizer, tmp_path):
    model = make_model(
        tokenizer.vocab_size, family="qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=0
    )
    engine = engine_of(model, tokenizer, tmp_path)
    with pytest.raises(ValueError, match="sliding_window = 16"):
        generate(engine, random_prompts(tokenizer, [40]), Sampling(max_new_tokens=4), 0)

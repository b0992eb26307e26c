"""A tokenizer and tiny models for the synthesizer's tests, and a task that only the seed document can solve."""

import numpy as np
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from streaming_sbp import config
from streaming_sbp.data import tokenizer as tokenizers
from streaming_sbp.synthesizer.prompt import Prompter

NUM_TOPICS, WORDS_PER_TOPIC, FIRST_WORD = 8, 4, 20


def make_tokenizer():
    return tokenizers.train(iter([["a small tokenizer of bytes"]]), vocab_size=260)


def make_model(vocab_size, seed=0, family="llama", hidden_size=32, num_layers=2, num_kv_heads=2, **options):
    torch.manual_seed(seed)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[family]
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": num_kv_heads,
        "head_dim": hidden_size // 4,
        "intermediate_size": 2 * hidden_size,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return model_class(config_class(**(settings | options))).eval()


def exact_documents(model, prompt, sampling, forbidden, eos_id):
    """Probability of every document that sampling can give, by the plain definition.

    One full forward pass for each beginning: temperature, then top-k, then top-p over sorted probabilities, as in "The
    Curious Case of Neural Text Degeneration" (Holtzman et al. 2020), section 3.1. Keys are (tokens, finished).
    """
    found, open_ones = {}, {(): 1.0}
    for _ in range(sampling.max_new_tokens):
        beginnings, open_ones = open_ones, {}
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *beginning] for beginning in beginnings])
            logits = model(input_ids=ids, use_cache=False).logits[:, -1].double()
        for (beginning, probability), row in zip(beginnings.items(), logits, strict=True):
            row[forbidden] = -torch.inf
            probs, order = (row / sampling.temperature).softmax(-1).sort(descending=True)
            if sampling.top_k:
                probs = probs[: sampling.top_k] / probs[: sampling.top_k].sum()
            size = int((probs.cumsum(-1) - probs < sampling.top_p).sum())
            probs = probs[:size] / probs[:size].sum()
            for token, p in zip(order.tolist(), probs.tolist(), strict=False):
                if p and token == eos_id:
                    found[beginning, True] = probability * p
                elif p:
                    open_ones[(*beginning, token)] = probability * p
    return found | {(document, False): p for document, p in open_ones.items()}


def chi_square_p(sampled, expected):
    """p-value of documents `Sampled` under probabilities ``expected``; those expected fewer than 5 times are pooled."""
    counts = dict.fromkeys(expected, 0)
    for document in sampled:
        counts[tuple(document.tokens.tolist()), document.finished] += 1  # KeyError: it can never be sampled
    wanted = np.array([expected[key] * len(sampled) for key in counts])
    got, rare = np.array(list(counts.values())), wanted < 5
    pools = [(got[~rare], wanted[~rare])] + ([(got[rare].sum(), wanted[rare].sum())] if rare.any() else [])
    got, wanted = (np.hstack(part) for part in zip(*pools, strict=True))
    return chisquare(got, wanted).pvalue


def topic_documents(topic, rng, num_tokens):
    """Words of one topic; each topic has its own."""
    return FIRST_WORD + topic * WORDS_PER_TOPIC + rng.integers(0, WORDS_PER_TOPIC, num_tokens)


def topic_pairs(prompter: Prompter, num_pairs, seed, target=None):
    """Pairs that share a topic: the best loss with the seed is ln 4, the best without it ln 32."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(num_pairs):
        topic = int(rng.integers(NUM_TOPICS))
        seed_doc = topic_documents(topic, rng, int(rng.integers(4, 12)))
        target_doc = topic_documents(topic, rng, int(rng.integers(8, 20))) if target is None else target(seed_doc)
        pairs.append(prompter.pair(seed_doc, target_doc))
    return pairs


def tuning_config(**synthesizer):
    settings = {
        "max_seed_tokens": 16,
        "max_target_tokens": 32,
        "tuning_tokens": 60_000,
        "batch_tokens": 1024,
        "learning_rate": 1e-2,
        "evaluate_every_steps": 10,
        "patience": 3,
    }
    return config.build({"synthesizer": settings | synthesizer, "training": {"precision": "fp32"}})

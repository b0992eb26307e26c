"""A tokenizer and tiny models for the synthesizer's tests, and a task that only the seed document can solve."""

import numpy as np
import torch
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

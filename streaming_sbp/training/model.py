"""The model to train: a Hugging Face causal LM from a configuration, and its loss on packed batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.training.batches import IGNORED, Batch

_FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config}
CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # names of what multiplies bf16: x86-64, x86-64, ARM64


def choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device = "cuda": no CUDA device found; use "auto" or "cpu"')
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> str:
    """ "bf16" or "fp32". "auto" is bf16 where the hardware multiplies it; a CPU that only emulates it is several times
    slower with it than in fp32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    found = torch.cpu.get_capabilities()
    return "bf16" if any(found.get(name) for name in CPU_BF16) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Of a forward pass, with ``precision`` as in the configuration."""
    enabled = choose_precision(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def build_model(model: config.Model, tokenizer: Tokenizer, seed: int) -> PreTrainedModel:
    """Random weights from ``seed``, fp32."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(_hf_config(model, tokenizer), attn_implementation="sdpa")


def token_losses(model: PreTrainedModel, batch: Batch, device: torch.device, precision: str) -> torch.Tensor:
    """Cross entropy in nats of each target, fp32 ``[rows, sequence_tokens - 1]``; 0 where there is no target.

    ``use_cache=False`` and no attention mask: only then do restarting position ids mask documents from each other.
    """
    input_ids, position_ids = batch.input_ids.to(device), batch.position_ids.to(device)
    labels = batch.labels.to(device)
    with autocast(device, precision):
        logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape[0], -1)


def flops_per_token(model: PreTrainedModel, sequence_tokens: int) -> float:
    """FLOPs of one token, forward and backward: 6 x parameters + 12 x layers x width x sequence length.

    PaLM (Chowdhery et al., 2022), appendix B, with attention over whole sequences: packed documents need less, so the
    utilisation made of it is a little too high. Input embeddings are looked up, so they count only where they are the
    output matrix as well.
    """
    settings = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not settings.tie_word_embeddings:
        parameters -= sum(parameter.numel() for parameter in model.get_input_embeddings().parameters())
    heads = settings.num_attention_heads
    head_dim = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    return 6.0 * parameters + 12.0 * settings.num_hidden_layers * heads * head_dim * sequence_tokens


def _hf_config(model: config.Model, tokenizer: Tokenizer) -> PretrainedConfig:
    special: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    if model.config:
        try:
            return AutoConfig.from_pretrained(model.config, **special)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model.config = {model.config!r}: no Hugging Face configuration there: {error}"
            ) from None
    return _FAMILIES[model.family](
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.hidden_size // model.num_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=model.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_word_embeddings,
        attention_dropout=model.attention_dropout,
        **special,
    )

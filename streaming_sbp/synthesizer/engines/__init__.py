"""Sampling engines: each loads a snapshot's folder and samples documents. `make_engine` chooses by configuration."""

from __future__ import annotations

import importlib.util

from streaming_sbp import config
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.synthesizer.engines.base import Engine, missing_vllm


def require_engine(generator: config.Generator) -> None:
    """Raises ConfigError when the engine's package is not installed. Loads nothing."""
    if generator.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise missing_vllm("the package vllm is not installed")


def make_engine(generator: config.Generator, tokenizer: Tokenizer) -> Engine:
    """Raises ConfigError when the engine's package is not installed, or cannot be imported."""
    from streaming_sbp.training.model import choose_device, choose_precision

    device = choose_device(generator.device)
    precision = choose_precision(generator.precision, device)
    require_engine(generator)
    if generator.engine == "vllm":
        from streaming_sbp.synthesizer.engines.vllm import VllmEngine

        return VllmEngine(device, precision, generator.batch_size, tokenizer)
    from streaming_sbp.synthesizer.engines.transformers import TransformersEngine

    return TransformersEngine(device, precision, generator.batch_size, tokenizer)

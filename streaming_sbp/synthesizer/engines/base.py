"""What every sampling engine does: load a Hugging Face folder, continue prompts, say how likely each token was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from streaming_sbp import config
from streaming_sbp.config import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How to sample. Ties at the edge of ``top_p`` or ``top_k`` are kept."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    max_new_tokens: int = 192

    @classmethod
    def of(cls, generator: config.Generator) -> Sampling:
        return cls(generator.temperature, generator.top_p, generator.top_k, generator.max_new_tokens)


@dataclass(frozen=True)
class Sampled:
    """One continuation, without ``<eos>``.

    ``log_probs`` (float32, one per token) are under the plain distribution: untempered, untruncated, all tokens.
    ``finished``: ``<eos>`` was sampled; otherwise it was cut at ``max_new_tokens``.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    finished: bool


class Engine(Protocol):
    def load(self, folder: Path) -> None:
        """Serve the model in ``folder``. When that raises, what was served before still is."""

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """One continuation for each prompt, as (index of the prompt, continuation).

        Yields every few steps what ended since (often nothing), so that the caller can do other things; a caller that
        stops iterating abandons the rest. The same arguments give the same documents. ``<pad>``, ``<bos>`` and
        ``<sep>`` are never sampled. Raises FloatingPointError for logits that are not finite.
        """


def missing_vllm(problem: str) -> ConfigError:
    return ConfigError(
        f"generator.engine = \"vllm\": {problem}; install the extra: pip install 'streaming-sbp[vllm]' (on a "
        'processor: docs/dependencies.md), or use "transformers"'
    )


def check_lengths(prompts: Sequence[Sequence[int]], sampling: Sampling, limit: int) -> None:
    """Raises ValueError for prompts that are too short, or do not fit into ``limit`` tokens with what is sampled."""
    shortest, longest = min(map(len, prompts), default=0), max(map(len, prompts), default=0)
    if shortest < 1 or longest + sampling.max_new_tokens > limit + 1:
        raise ValueError(
            f"{len(prompts)} prompts of {shortest} to {longest} tokens and {sampling.max_new_tokens} new ones: "
            f"expected some of 1 or more, and together at most max_position_embeddings = {limit}; shorten "
            "prompts or max_new_tokens"
        )


def generate(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Sampled]:
    """One continuation for each prompt, in their order; see `Engine.stream`."""
    found = dict(chain.from_iterable(engine.stream(prompts, sampling, seed)))
    return [found[i] for i in range(len(prompts))]

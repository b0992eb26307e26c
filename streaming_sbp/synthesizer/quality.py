"""Measures of a candidate, on a trial batch: documents sampled from fixed seed documents with a fixed RNG seed.

The measures of the paper's quality table that need no judge: documents that repeat themselves, duplicates, copying from
the seed; and what says whether a synthesizer is usable at all: documents without an end, or with nothing in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from streaming_sbp import config
from streaming_sbp.synthesizer.engines.base import Engine, Sampled, Sampling
from streaming_sbp.synthesizer.filters import copied_span, document_key, ngrams, repetition

DISTINCT_NGRAM = 3
# GATE_MEASURES in telemetry/metrics.py lists all measures. Three of them come from tuning, not from here, in nats per
# held-out target token: pair_loss of the candidate, untuned_pair_loss of the model before tuning, and
# unrelated_pair_loss of the candidate given seed documents of other pairs: what the seed document is worth to it.


@dataclass(frozen=True)
class TrialBatch:
    """``seeds`` and ``documents`` belong together; ``seeds`` are token ids without special tokens."""

    seeds: Sequence[np.ndarray]
    documents: Sequence[Sampled]


def sample_trial(
    engine: Engine,
    seeds: Sequence[np.ndarray],
    prompts: Sequence[list[int]],
    sampling: Sampling,
    seed: int,
    go_on: Callable[[], bool] = lambda: True,
) -> TrialBatch | None:
    """One document for each prompt; None when ``go_on``, asked every few steps, says no.

    Raises FloatingPointError (see Engine).
    """
    found: dict[int, Sampled] = {}
    for ended in engine.stream(prompts, sampling, seed):
        found.update(ended)
        if not go_on():
            return None
    return TrialBatch(seeds, [found[i] for i in range(len(prompts))])


def measure_trial(trial: TrialBatch, real: Sequence[np.ndarray], generator: config.Generator) -> dict[str, float]:
    """The measures of a trial batch; ``real`` are as many real documents, cut to the same longest length.

    Shares are of documents, but ``distinct_ngrams`` and ``real_distinct_ngrams`` (of the n-grams of all documents).
    ``mean_log_prob`` is per sampled token, under the plain distribution.
    """
    documents = [document.tokens for document in trial.documents]
    finished = [document.finished for document in trial.documents]
    num_tokens = sum(map(len, documents))
    log_probs = sum(float(document.log_probs.sum()) for document in trial.documents)
    spans = [copied_span(tokens, seed) for tokens, seed in zip(documents, trial.seeds, strict=True)]
    return {
        "repetitive_share": _share(repetition(tokens) > generator.max_repetition for tokens in documents),
        "copied_share": _share(span > generator.max_copied_span for span in spans),
        "duplicate_share": 1.0 - len({document_key(tokens) for tokens in documents}) / len(documents),
        "empty_share": _share(
            end and len(tokens) < generator.min_new_tokens for tokens, end in zip(documents, finished, strict=True)
        ),
        "unfinished_share": _share(not end for end in finished),
        "mean_tokens": num_tokens / len(documents),
        "real_mean_tokens": sum(map(len, real)) / len(real),
        **_distinct(documents, real),
        "mean_log_prob": log_probs / max(num_tokens, 1),
    }


def _distinct(documents: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> dict[str, float]:
    """Distinct n-grams of both texts, over equally many n-grams (the share falls with the amount of text)."""
    synthetic = list(chain.from_iterable(ngrams(tokens, DISTINCT_NGRAM) for tokens in documents))
    reference = list(chain.from_iterable(ngrams(tokens, DISTINCT_NGRAM) for tokens in real))
    size = min(len(synthetic), len(reference))
    return {
        "distinct_ngrams": len(set(synthetic[:size])) / max(size, 1),
        "real_distinct_ngrams": len(set(reference[:size])) / max(size, 1),
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)

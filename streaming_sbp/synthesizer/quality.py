"""Measures of a candidate, on a trial batch: documents sampled from fixed seed documents with a fixed RNG seed.

The measures of the paper's quality table that need no judge: documents that repeat themselves, duplicates, copying from
the seed and from the corpus, relatedness to the seed; where the truth is known, facts (`truth.py`); what says whether a
synthesizer is usable at all: documents without an end, or with nothing in them; and beside them what real text measures
(``real_...``). ``sent_...`` are of those trial documents that a generator would have sent: `monitor.py` compares with
them what the trainer receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from streaming_sbp import config
from streaming_sbp.synthesizer.engines.base import Engine, Sampled, Sampling
from streaming_sbp.synthesizer.filters import DocumentFilter, copied_share, duplicate_share, ngrams, repetition
from streaming_sbp.synthesizer.reference import Reference
from streaming_sbp.telemetry.catalogue import SENT_MEASURES, TRUTH_MEASURES

DISTINCT_NGRAM = 3
# GATE_MEASURES in telemetry/catalogue.py lists all measures. Three of them come from tuning, not from here, in nats per
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


def measure_trial(
    trial: TrialBatch, real: Sequence[np.ndarray], generator: config.Generator, reference: Reference
) -> dict[str, float]:
    """The measures of a trial batch; ``real`` are as many real documents, cut to the same longest length.

    Shares are of documents, but ``distinct_ngrams`` and ``real_distinct_ngrams`` (of the n-grams of all documents) and
    ``corpus_13gram_share`` (of the runs of 13 tokens of each document, then the mean). ``mean_log_prob`` is per sampled
    token, under the plain distribution; ``relatedness``, see `relatedness.py`; ``longest_corpus_span`` in tokens.
    """
    documents = [document.tokens for document in trial.documents]
    finished = [document.finished for document in trial.documents]
    num_tokens = sum(map(len, documents))
    log_probs = sum(float(document.log_probs.sum()) for document in trial.documents)
    sent = measure_sent([value_of(document, reference) for document in _would_be_sent(trial, generator)])
    return {
        "repetitive_share": _share(repetition(tokens) > generator.max_repetition for tokens in documents),
        "real_repetitive_share": _share(repetition(tokens) > generator.max_repetition for tokens in real),
        "copied_share": copied_share(documents, trial.seeds, generator.max_copied_span),
        "duplicate_share": duplicate_share(documents),
        "real_duplicate_share": duplicate_share(real),
        "empty_share": _share(
            end and len(tokens) < generator.min_new_tokens for tokens, end in zip(documents, finished, strict=True)
        ),
        "unfinished_share": _share(not end for end in finished),
        "mean_tokens": num_tokens / len(documents),
        "real_mean_tokens": sum(map(len, real)) / len(real),
        **_distinct(documents, real),
        "mean_log_prob": log_probs / max(num_tokens, 1),
        **reference.copying(documents, generator.max_copied_span),
        **reference.related(documents, trial.seeds).measures(),
        **(reference.truth.measures(documents, trial.seeds) if reference.truth else {}),
        **reference.real,
        "sent_documents": float(sent.num_documents),
        **{f"sent_{name}": value for name, value in sent.means.items()},
    }


# --- what is sent ---


@dataclass(frozen=True)
class SentDocument:
    """``tokens`` and ``seed``: token ids without special tokens. ``log_prob``: mean per token, plain distribution."""

    tokens: np.ndarray
    seed: np.ndarray
    log_prob: float


@dataclass(frozen=True)
class SentMeasures:
    """``means``: by measure, those of SENT_MEASURES in telemetry/catalogue.py that are known. ``deviations``: standard
    deviation between documents; ``counts``: documents that have the measure (not each states facts). Both not of
    ``distinct_ngrams``, which belongs to all of them together."""

    num_documents: int
    means: dict[str, float]
    deviations: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True)
class ValuedDocument:
    """``values``: of each measure that it has, but ``distinct_ngrams``."""

    tokens: np.ndarray
    values: dict[str, float]


def value_of(document: SentDocument, reference: Reference) -> ValuedDocument:
    """The cheap measures: those that are taken of what the trainer receives, too."""
    values = {
        "repetition": repetition(document.tokens),
        "corpus_13gram_share": reference.index.share(document.tokens),
        "mean_tokens": float(len(document.tokens)),
        "mean_log_prob": document.log_prob,
        "relatedness": float(reference.terms.cosines([document.tokens], [document.seed])[0]),
    }
    if reference.truth:
        values |= reference.truth.values(document.tokens, document.seed)
    return ValuedDocument(document.tokens, values)


def measure_sent(documents: Sequence[ValuedDocument], num_distinct: int | None = None) -> SentMeasures:
    """Means over the documents that have each measure; ``distinct_ngrams`` of the first ``num_distinct`` of them.

    Without documents all are 0, but those of TRUTH_MEASURES, which are absent.
    """
    values = {
        name: np.array([document.values[name] for document in documents if name in document.values])
        for name in SENT_MEASURES
        if name != "distinct_ngrams"
    }
    values = {name: found for name, found in values.items() if len(found)}
    always = {} if documents else dict.fromkeys(set(SENT_MEASURES) - set(TRUTH_MEASURES), 0.0)
    means = {name: float(found.mean()) for name, found in values.items()}
    deviations = {name: float(found.std()) for name, found in values.items()}
    counts = {name: len(found) for name, found in values.items()}
    distinct = distinct_share([document.tokens for document in documents[:num_distinct]])
    return SentMeasures(len(documents), always | means | {"distinct_ngrams": distinct}, deviations, counts)


def distinct_share(documents: Sequence[np.ndarray]) -> float:
    """Distinct n-grams over all n-grams of these documents together; 0 without any. It falls with their number."""
    grams = list(chain.from_iterable(ngrams(tokens, DISTINCT_NGRAM) for tokens in documents))
    return len(set(grams)) / max(len(grams), 1)


def _would_be_sent(trial: TrialBatch, generator: config.Generator) -> list[SentDocument]:
    filter_ = DocumentFilter(generator)
    return [
        SentDocument(document.tokens, seed, float(document.log_probs.mean()))
        for document, seed in zip(trial.documents, trial.seeds, strict=True)
        if not filter_.reason(document, seed)
    ]


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

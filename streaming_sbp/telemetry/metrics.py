"""Every metric of the system: one catalogue. What is not in it cannot be exported.

A process makes one ``Metrics(role)``: a registry of its own, every labelled series present as 0 from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

disable_created_metrics()

SOURCES = ("real", "synthetic", "pairs")
PHASES = ("data_wait", "forward_backward", "optimizer", "evaluate", "checkpoint", "other")
# The closed list of reasons for which a synthetic document is not trained (ledger term `dropped`).
DROP_REASONS = (
    "malformed",  # cannot be decoded
    "oversized",  # more tokens than stream.max_document_tokens
    "out_of_vocabulary",  # a token id that the tokenizer does not have
    "stale",  # its snapshot is more than stream.max_staleness_tokens behind
    "lost_with_generator",  # sent, but its generator died before it arrived
    "damaged",  # accepted, and damaged on disk before it was trained
    "rolled_back",  # accepted, and its snapshot was rolled back from, or quarantined, before its turn came
)
# Why a generator does not send a sampled document.
FILTER_REASONS = ("unfinished", "too_short", "repetitive", "copied", "duplicate")
# Why a handshake is refused.
REFUSAL_REASONS = ("protocol_version", "wrong_run", "wrong_tokenizer", "wrong_role", "too_many_peers", "malformed")
# Why a connection is not made: `stream.keys.EVENTS` says what each one means.
HANDSHAKE_FAILURE_REASONS = ("auth", "protocol", "no_detail")
# How true documents are, only where that is known; streaming_sbp/synthesizer/truth.py says what each one is.
TRUTH_MEASURES = (
    "about_seed_share",
    "non_factual_share",
    "true_fact_share",
    "true_new_fact_share",
    "expressed_fact_share",
    "new_facts",
)
# What is measured of the documents that generators send, and of those trial documents that they would have sent.
SENT_MEASURES = (
    "repetition",
    "corpus_13gram_share",
    "distinct_ngrams",
    "mean_tokens",
    "mean_log_prob",
    "relatedness",
    *TRUTH_MEASURES,
)
# What the gate measures of a candidate; streaming_sbp/synthesizer/quality.py says what each one is.
GATE_MEASURES = (
    "pair_loss",
    "untuned_pair_loss",
    "unrelated_pair_loss",
    "repetitive_share",
    "real_repetitive_share",
    "copied_share",
    "real_copied_share",
    "duplicate_share",
    "real_duplicate_share",
    "empty_share",
    "unfinished_share",
    "mean_tokens",
    "real_mean_tokens",
    "distinct_ngrams",
    "real_distinct_ngrams",
    "mean_log_prob",
    "corpus_13gram_share",
    "real_corpus_13gram_share",
    "corpus_copied_share",
    "real_corpus_copied_share",
    "longest_corpus_span",
    "relatedness",
    "real_relatedness",
    "relatedness_lift",
    "real_relatedness_lift",
    "unrelated_share",
    "real_unrelated_share",
    *TRUTH_MEASURES,
    *(f"real_{measure}" for measure in TRUTH_MEASURES),
    "sent_documents",
    *(f"sent_{measure}" for measure in SENT_MEASURES),
)
LEDGER_TERMS = ("sent", "trained", "buffered", "in_flight", "dropped", "imbalance")


@dataclass(frozen=True)
class Metric:
    name: str
    type: str  # counter | gauge | histogram
    help: str
    roles: tuple[str, ...]
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (label, all its values)
    buckets: tuple[float, ...] = ()


_SOURCE = (("source", SOURCES),)
_TRAINER = ("trainer",)
_TUNER = ("tuner",)
_GENERATOR = ("generator",)
_PAUSES_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

CATALOGUE: tuple[Metric, ...] = (
    # trainer: progress and loss
    Metric(
        "sbp_trained_tokens_total", "counter", "Tokens that passed through the model in training", _TRAINER, _SOURCE
    ),
    Metric("sbp_trained_documents_total", "counter", "Documents fully trained", _TRAINER, _SOURCE),
    Metric("sbp_trained_targets_total", "counter", "Tokens that the loss counted", _TRAINER, _SOURCE),
    Metric("sbp_steps_total", "counter", "Optimizer steps", _TRAINER),
    Metric("sbp_target_tokens", "gauge", "Tokens at which the run ends", _TRAINER),
    Metric("sbp_train_loss", "gauge", "Mean cross entropy of the last step, nats per token", _TRAINER, _SOURCE),
    Metric("sbp_heldout_loss", "gauge", "Mean cross entropy on held-out real documents, nats per token", _TRAINER),
    Metric("sbp_heldout_bits_per_byte", "gauge", "Held-out real loss in bits per byte of text", _TRAINER),
    Metric("sbp_question_accuracy", "gauge", "Questions on known facts that the model answers rightly, 0..1", _TRAINER),
    Metric("sbp_question_loss", "gauge", "Nats of the right answer to a question on a known fact, its mean", _TRAINER),
    Metric("sbp_learning_rate", "gauge", "Learning rate of the last step", _TRAINER),
    Metric("sbp_gradient_norm", "gauge", "L2 norm of the gradient before clipping", _TRAINER),
    Metric("sbp_non_finite_steps_total", "counter", "Steps skipped for a loss that is not finite", _TRAINER),
    Metric("sbp_phase_seconds_total", "counter", "Trainer's time by phase", _TRAINER, (("phase", PHASES),)),
    Metric("sbp_last_step_timestamp_seconds", "gauge", "Unix time of the last optimizer step", _TRAINER),
    Metric("sbp_real_epochs", "gauge", "How often the real documents have been read", _TRAINER),
    # trainer: mix
    Metric(
        "sbp_mix_scheduled_share",
        "gauge",
        "Share of tokens since the first snapshot that the schedule asked of each source",
        _TRAINER,
        _SOURCE,
    ),
    Metric(
        "sbp_mix_current_share", "gauge", "Share of tokens that the schedule asks of each source now", _TRAINER, _SOURCE
    ),
    Metric("sbp_mix_realised_share", "gauge", "Share of trained tokens since the first snapshot", _TRAINER, _SOURCE),
    Metric("sbp_mix_debt_tokens", "gauge", "Synthetic tokens that fallbacks owe", _TRAINER),
    Metric("sbp_mix_forgiven_tokens_total", "counter", "Synthetic tokens written off", _TRAINER),
    Metric(
        "sbp_mix_deviation_tokens",
        "gauge",
        "Tokens mixed minus tokens scheduled while all sources had data",
        _TRAINER,
        _SOURCE,
    ),
    Metric(
        "sbp_mix_starved_documents_total",
        "counter",
        "Documents taken from real text since synthetic was late",
        _TRAINER,
    ),
    Metric("sbp_padding_tokens_total", "counter", "Padding in packed sequences", _TRAINER),
    # trainer: stream and ledger
    Metric(
        "sbp_ledger_documents",
        "gauge",
        "Terms of the conservation ledger; imbalance must be 0",
        _TRAINER,
        (("term", LEDGER_TERMS),),
    ),
    Metric("sbp_dropped_documents", "gauge", "Ledger term `dropped` by reason", _TRAINER, (("reason", DROP_REASONS),)),
    Metric("sbp_stream_received_documents_total", "counter", "Documents accepted from generators", _TRAINER),
    Metric("sbp_stream_received_bytes_total", "counter", "Bytes of accepted documents", _TRAINER),
    Metric("sbp_stream_duplicates_total", "counter", "Documents received again and recognised", _TRAINER),
    Metric("sbp_stream_peers", "gauge", "Generators connected", _TRAINER),
    Metric("sbp_stream_dead_peers_total", "counter", "Generators that fell silent", _TRAINER),
    Metric("sbp_stream_credit_documents", "gauge", "Credit granted and not yet used", _TRAINER),
    Metric("sbp_stream_refusals_total", "counter", "Handshakes refused", _TRAINER, (("reason", REFUSAL_REASONS),)),
    Metric(
        "sbp_stream_handshake_failures_total",
        "counter",
        "Connections refused before any message: unknown key, no keys, no peer of this protocol",
        _TRAINER,
        (("reason", HANDSHAKE_FAILURE_REASONS),),
    ),
    Metric("sbp_stream_malformed_total", "counter", "Messages that could not be decoded, ignored", _TRAINER),
    Metric("sbp_stream_buffered_documents", "gauge", "Queue depth: accepted, not yet mixed", _TRAINER),
    Metric("sbp_journal_bytes", "gauge", "Size of the journal on disk", _TRAINER),
    Metric("sbp_journal_paused", "gauge", "1 while no credit is granted: disk full, or journal.max_bytes", _TRAINER),
    Metric(
        "sbp_journal_write_seconds",
        "histogram",
        "Writing and fsyncing one group of documents",
        _TRAINER,
        buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    ),
    Metric(
        "sbp_journal_errors_total",
        "counter",
        "Groups that could not be written (the documents are sent again)",
        _TRAINER,
    ),
    Metric("sbp_receiver_cpu_seconds_total", "counter", "CPU time of the receiver's thread", _TRAINER),
    Metric(
        "sbp_staleness_tokens",
        "histogram",
        "Trainer's age of the snapshot that wrote a trained document, tokens",
        _TRAINER,
        buckets=(1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8, 1e9, 1e10),
    ),
    Metric(
        "sbp_synthetic_measure",
        "gauge",
        "What was measured of received documents of the newest snapshot, a sample; NaN: not known",
        _TRAINER,
        (("measure", SENT_MEASURES),),
    ),
    Metric(
        "sbp_synthetic_drifts_total",
        "counter",
        "Measures of a snapshot's documents that left what the gate had measured; held-out losses worse after a swap",
        _TRAINER,
        (("measure", (*SENT_MEASURES, "heldout_loss")),),
    ),
    Metric("sbp_snapshot_rollbacks_total", "counter", "Snapshots that the trainer went back from", _TRAINER),
    Metric("sbp_trained_snapshots", "gauge", "Distinct snapshots whose documents have been trained", _TRAINER),
    # trainer: checkpoints
    Metric("sbp_checkpoints_total", "counter", "Checkpoints completed", _TRAINER),
    Metric("sbp_checkpoint_failures_total", "counter", "Checkpoints that failed", _TRAINER),
    Metric(
        "sbp_checkpoint_blocked_seconds",
        "histogram",
        "Time a checkpoint keeps the step waiting",
        _TRAINER,
        buckets=_PAUSES_S,
    ),
    Metric(
        "sbp_history_changes_total",
        "counter",
        "Resumes whose steps since the checkpoint could not be repeated as they were",
        _TRAINER,
    ),
    Metric("sbp_checkpoint_tokens", "gauge", "Trained tokens in the newest checkpoint", _TRAINER),
    # tuner
    Metric("sbp_tuning_tokens_total", "counter", "Tokens that passed through the synthesizer in tuning", _TUNER),
    Metric("sbp_tuning_pair_loss", "gauge", "Held-out pair loss of the candidate, nats per token", _TUNER),
    Metric("sbp_snapshots_published_total", "counter", "Snapshots that passed the gate", _TUNER),
    Metric("sbp_snapshots_quarantined_total", "counter", "Candidates that the gate refused", _TUNER),
    Metric(
        "sbp_snapshot_parent_tokens", "gauge", "Trained tokens of the checkpoint behind the newest snapshot", _TUNER
    ),
    Metric(
        "sbp_gate_measure",
        "gauge",
        "Measures of the last candidate; NaN: not known",
        _TUNER,
        (
            (
                "measure",
                GATE_MEASURES,
            ),
        ),
    ),
    # generator
    Metric("sbp_generated_documents_total", "counter", "Documents sampled", _GENERATOR),
    Metric("sbp_generated_tokens_total", "counter", "Tokens sampled", _GENERATOR),
    Metric(
        "sbp_filtered_documents_total",
        "counter",
        "Sampled documents not sent",
        _GENERATOR,
        (("reason", FILTER_REASONS),),
    ),
    Metric("sbp_sent_documents_total", "counter", "Documents handed to the stream", _GENERATOR),
    Metric("sbp_unacknowledged_documents", "gauge", "Documents sent and not yet acknowledged", _GENERATOR),
    Metric("sbp_resent_documents_total", "counter", "Documents sent again", _GENERATOR),
    Metric("sbp_generator_blocked_seconds_total", "counter", "Time without credit", _GENERATOR),
    Metric("sbp_snapshot_swaps_total", "counter", "Snapshots swapped in", _GENERATOR),
    Metric("sbp_snapshot_swap_seconds", "histogram", "Pause of generation for a swap", _GENERATOR, buckets=_PAUSES_S),
    Metric(
        "sbp_snapshot_load_failures_total",
        "counter",
        "Snapshots that could not be loaded; the old one serves on",
        _GENERATOR,
    ),
    Metric("sbp_snapshot_serving_parent_tokens", "gauge", "Trained tokens behind the snapshot that serves", _GENERATOR),
    # pairer
    Metric("sbp_pairs", "gauge", "Pairs in the table", ("pairer",)),
    Metric("sbp_paired_documents", "gauge", "Documents with at least one pair", ("pairer",)),
    # supervisor
    Metric(
        "sbp_role_restarts_total",
        "counter",
        "Processes restarted after they died",
        ("supervisor",),
        (("role", ("pairer", "trainer", "tuner", "generator")),),
    ),
    Metric(
        "sbp_role_up",
        "gauge",
        "Processes that run",
        ("supervisor",),
        (("role", ("pairer", "trainer", "tuner", "generator")),),
    ),
)

BY_NAME = {metric.name: metric for metric in CATALOGUE}
_TYPES: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Metrics:
    """The metrics of one process. ``role`` is one of pairer, trainer, tuner, generator, supervisor."""

    def __init__(self, role: str):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU, open files
        self._metrics: dict[str, Any] = {}
        for metric in CATALOGUE:
            if role in metric.roles:
                self._metrics[metric.name] = self._make(metric)

    def inc(self, name: str, amount: float = 1, **labels: str) -> None:
        self._series(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._series(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._series(name, labels).observe(value)

    def value(self, name: str, **labels: str) -> float:
        """The current value of a counter or gauge."""
        suffix = "" if name.endswith("_total") or BY_NAME[name].type != "counter" else "_total"
        return self.registry.get_sample_value(name + suffix, labels) or 0.0

    def _make(self, metric: Metric) -> Any:
        options: dict[str, Any] = {"buckets": metric.buckets} if metric.type == "histogram" else {}
        made = _TYPES[metric.type](
            metric.name, metric.help, [label for label, _ in metric.labels], registry=self.registry, **options
        )
        if metric.labels:
            for values in product(*(values for _, values in metric.labels)):
                made.labels(*values)
        return made

    def _series(self, name: str, labels: dict[str, str]) -> Any:
        metric = self._metrics[name]
        known = dict(BY_NAME[name].labels)
        for label, value in labels.items():
            if value not in known[label]:
                raise ValueError(f"{name}: label {label} = {value!r}: expected one of {known[label]}")
        return metric.labels(**labels) if labels else metric


class Totals:
    """Brings counters up to totals that one reporter keeps elsewhere, from 0 on."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._told: dict[tuple[Any, ...], float] = {}

    def __call__(self, name: str, total: float, **labels: str) -> None:
        key = (name, *sorted(labels.items()))
        if more := total - self._told.get(key, 0.0):
            self._metrics.inc(name, more, **labels)
            self._told[key] = total

"""The catalogue: every metric of the system, what it means, who exports it, the panel it is on, the alerts it feeds.

``docs/metrics.md`` is made from it; the dashboards, the rules and what processes export are checked against it.
Names have the prefix ``sbp_`` and base units; labels have closed lists of values, so the number of series is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROCESS_KINDS = ("pairer", "trainer", "tuner", "generator", "exporter")  # what the supervisor keeps alive
EVERY_ROLE = (*PROCESS_KINDS, "supervisor", "follower", "replayer")

SOURCES = ("real", "synthetic", "pairs")
MAX_DEPTH = 4  # of a synthetic document: 1 + that of its seed document; a real one has 0
DEPTHS = tuple(map(str, range(1, MAX_DEPTH + 1)))
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
# Which measure a candidate was refused for; "failed": its tuning diverged, or it cannot be sampled from.
GATE_REASONS = (
    "pair_loss",
    "repetitive_share",
    "copied_share",
    "duplicate_share",
    "empty_share",
    "unfinished_share",
    "corpus_13gram_share",
    "corpus_copied_share",
    "relatedness_lift",
    "distinct_ngrams",
    "mean_tokens",
    "true_fact_share",
    "expressed_fact_share",
    "failed",
)
LEDGER_TERMS = ("sent", "trained", "buffered", "in_flight", "dropped", "imbalance")


@dataclass(frozen=True)
class Metric:
    name: str
    type: str  # counter | gauge | histogram
    unit: str  # of the value; "" where it is a plain number
    help: str
    roles: tuple[str, ...]  # that export it
    panel: str  # "dashboard/Title of the panel"
    alerts: tuple[str, ...] = ()  # that look at it
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (label, all its values)
    buckets: tuple[float, ...] = ()
    optional: bool = False  # not known in every run: absent until it is set


def _counter(name: str, unit: str, help: str, roles: tuple[str, ...], panel: str, **more: Any) -> Metric:
    return Metric(name, "counter", unit, help, roles, panel, **more)


def _gauge(name: str, unit: str, help: str, roles: tuple[str, ...], panel: str, **more: Any) -> Metric:
    return Metric(name, "gauge", unit, help, roles, panel, **more)


def _histogram(name: str, unit: str, help: str, roles: tuple[str, ...], panel: str, **more: Any) -> Metric:
    return Metric(name, "histogram", unit, help, roles, panel, **more)


_SOURCE = (("source", SOURCES),)
_KIND = (("kind", PROCESS_KINDS),)
_TRAINER = ("trainer",)
_TUNER = ("tuner",)
_GENERATOR = ("generator",)
_SUPERVISOR = ("supervisor",)
_PAUSES_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_WRITES_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_SAVES_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_AGES_TOKENS = (1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8, 1e9, 1e10)

TRAINING: tuple[Metric, ...] = (
    _counter(
        "sbp_trained_tokens_total",
        "tokens",
        "Tokens that passed through the model in training, in this process",
        _TRAINER,
        "training/Tokens per second",
        labels=_SOURCE,
    ),
    _gauge(
        "sbp_run_trained_tokens",
        "tokens",
        "Tokens that the run has trained, across restarts",
        _TRAINER,
        "overview/Progress",
        alerts=("SbpCheckpointOverdue",),
    ),
    _counter(
        "sbp_trained_documents_total",
        "documents",
        "Documents fully trained",
        _TRAINER,
        "training/Documents per second",
        labels=_SOURCE,
    ),
    _counter(
        "sbp_trained_synthetic_documents_total",
        "documents",
        "Synthetic documents fully trained, by depth: 2 and more were seeded by synthetic ones",
        _TRAINER,
        "training/Synthetic documents by depth",
        labels=(("depth", DEPTHS),),
    ),
    _counter(
        "sbp_trained_targets_total",
        "tokens",
        "Tokens that the loss counted",
        _TRAINER,
        "training/Share of tokens that are targets",
        labels=_SOURCE,
    ),
    _counter("sbp_steps_total", "steps", "Optimizer steps", _TRAINER, "training/Steps per second"),
    _gauge("sbp_target_tokens", "tokens", "Tokens at which the run ends", _TRAINER, "overview/Progress"),
    _gauge(
        "sbp_train_loss",
        "nats per token",
        "Mean cross entropy of the last step",
        _TRAINER,
        "training/Loss by source",
        alerts=("SbpLossNotFinite",),
        labels=_SOURCE,
    ),
    _gauge(
        "sbp_heldout_loss",
        "nats per token",
        "Mean cross entropy on held-out real documents",
        _TRAINER,
        "training/Loss by source",
        alerts=("SbpHeldoutLossRising", "SbpLossNotFinite"),
    ),
    _gauge(
        "sbp_heldout_compression_ratio",
        "ratio",
        "Bytes to which the model would compress held-out real text over the bytes of that text: bits per byte / 8",
        _TRAINER,
        "training/Held-out bits per byte",
    ),
    _gauge(
        "sbp_question_accuracy",
        "ratio",
        "Questions on facts of the training documents that are answered rightly, where the truth is known",
        _TRAINER,
        "training/Facts known",
        optional=True,
    ),
    _gauge(
        "sbp_question_loss",
        "nats",
        "Nats of the right answer to such a question, the mean",
        _TRAINER,
        "training/Facts known",
        optional=True,
    ),
    _gauge("sbp_learning_rate", "", "Learning rate of the last step", _TRAINER, "training/Learning rate"),
    _gauge("sbp_gradient_norm", "", "L2 norm of the gradient before clipping", _TRAINER, "training/Gradient norm"),
    _counter(
        "sbp_non_finite_steps_total",
        "steps",
        "Steps skipped for a loss or a gradient that is not finite",
        _TRAINER,
        "training/Steps that were not finite",
        alerts=("SbpLossNotFinite",),
    ),
    _counter(
        "sbp_phase_seconds_total",
        "seconds",
        "Trainer's time by phase",
        _TRAINER,
        "training/Time by phase",
        alerts=("SbpTrainerWaitsForData",),
        labels=(("phase", PHASES),),
    ),
    _counter(
        "sbp_model_flops_total",
        "FLOPs",
        "Arithmetic that training needs by formula: (6 x parameters + 12 x layers x width x sequence length) a token",
        _TRAINER,
        "training/Arithmetic per second",
    ),
    _gauge(
        "sbp_peak_flops_per_second",
        "FLOP/s",
        "Peak of the trainer's hardware, all ranks: telemetry.peak_flops",
        _TRAINER,
        "training/Model FLOPs utilisation",
        optional=True,
    ),
    _gauge(
        "sbp_last_step_timestamp_seconds",
        "Unix time",
        "Last optimizer step; before the first one, when training began",
        _TRAINER,
        "overview/Since the last step",
        alerts=("SbpTrainerStuck",),
    ),
    _gauge(
        "sbp_real_epochs",
        "epochs",
        "How often the real documents have been read",
        _TRAINER,
        "training/Real epochs",
        alerts=("SbpRealTextRepeated",),
    ),
    _counter("sbp_padding_tokens_total", "tokens", "Padding in packed sequences", _TRAINER, "training/Padding"),
)

MIX: tuple[Metric, ...] = (
    _gauge(
        "sbp_mix_scheduled_share",
        "ratio",
        "Share of tokens since the first snapshot that the schedule asked of each source",
        _TRAINER,
        "training/Synthetic share",
        alerts=("SbpMixBehindSchedule",),
        labels=_SOURCE,
    ),
    _gauge(
        "sbp_mix_current_share",
        "ratio",
        "Share of tokens that the schedule asks of each source now",
        _TRAINER,
        "training/Synthetic share",
        alerts=("SbpNoGenerators",),
        labels=_SOURCE,
    ),
    _gauge(
        "sbp_mix_realised_share",
        "ratio",
        "Share of trained tokens since the first snapshot",
        _TRAINER,
        "training/Synthetic share",
        alerts=("SbpMixBehindSchedule",),
        labels=_SOURCE,
    ),
    _gauge("sbp_mix_debt_tokens", "tokens", "Synthetic tokens that fallbacks owe", _TRAINER, "training/Mix debt"),
    _counter("sbp_mix_forgiven_tokens_total", "tokens", "Synthetic tokens written off", _TRAINER, "training/Mix debt"),
    _gauge(
        "sbp_mix_deviation_tokens",
        "tokens",
        "Tokens mixed minus tokens scheduled while all sources had data",
        _TRAINER,
        "training/Deviation from the schedule",
        labels=_SOURCE,
    ),
    _counter(
        "sbp_mix_starved_documents_total",
        "documents",
        "Documents taken from real text since synthetic was late",
        _TRAINER,
        "training/Documents that stood in",
    ),
)

CHECKPOINTS: tuple[Metric, ...] = (
    _counter("sbp_checkpoints_total", "checkpoints", "Checkpoints completed", _TRAINER, "training/Checkpoints"),
    _counter(
        "sbp_checkpoint_failures_total",
        "checkpoints",
        "Checkpoints that failed",
        _TRAINER,
        "training/Checkpoints",
        alerts=("SbpCheckpointFailed",),
    ),
    _histogram(
        "sbp_checkpoint_blocked_seconds",
        "seconds",
        "Time a checkpoint keeps the step waiting",
        _TRAINER,
        "training/Checkpoint time",
        buckets=_PAUSES_S,
    ),
    _histogram(
        "sbp_checkpoint_seconds",
        "seconds",
        "Time from the beginning of a checkpoint until it is complete on disk",
        _TRAINER,
        "training/Checkpoint time",
        buckets=_SAVES_S,
    ),
    _gauge(
        "sbp_checkpoint_tokens",
        "tokens",
        "Trained tokens in the newest checkpoint",
        _TRAINER,
        "training/Tokens since the checkpoint",
        alerts=("SbpCheckpointOverdue",),
    ),
    _gauge(
        "sbp_checkpoint_interval_tokens",
        "tokens",
        "Tokens between checkpoints: checkpoint.every_tokens",
        _TRAINER,
        "training/Tokens since the checkpoint",
        alerts=("SbpCheckpointOverdue", "SbpTunerStalled"),
    ),
    _gauge(
        "sbp_checkpoint_timestamp_seconds",
        "Unix time",
        "When the newest checkpoint was completed; before the first one, when training began",
        _TRAINER,
        "training/Checkpoint age",
    ),
    _counter(
        "sbp_history_changes_total",
        "resumes",
        "Resumes whose steps since the checkpoint could not be repeated as they were",
        _TRAINER,
        "training/Resumes that changed the history",
        alerts=("SbpHistoryChanged",),
    ),
)

STREAM: tuple[Metric, ...] = (
    _gauge(
        "sbp_ledger_documents",
        "documents",
        "Terms of the conservation ledger; imbalance must be 0",
        _TRAINER,
        "stream/Ledger",
        alerts=("SbpLedgerImbalance",),
        labels=(("term", LEDGER_TERMS),),
    ),
    _gauge(
        "sbp_dropped_documents",
        "documents",
        "Ledger term `dropped` by reason",
        _TRAINER,
        "stream/Dropped by reason",
        alerts=("SbpDocumentsUnusable",),
        labels=(("reason", DROP_REASONS),),
    ),
    _counter(
        "sbp_stream_received_documents_total",
        "documents",
        "Documents accepted from generators",
        _TRAINER,
        "stream/Documents received per second",
    ),
    _counter(
        "sbp_stream_received_bytes_total",
        "bytes",
        "Bytes of accepted documents",
        _TRAINER,
        "stream/Bytes received per second",
    ),
    _counter(
        "sbp_stream_duplicates_total",
        "documents",
        "Documents received again and recognised",
        _TRAINER,
        "stream/Repetitions and junk",
    ),
    _gauge(
        "sbp_stream_peers",
        "generators",
        "Generators connected",
        _TRAINER,
        "stream/Peers",
        alerts=("SbpNoGenerators",),
    ),
    _counter("sbp_stream_dead_peers_total", "generators", "Generators that fell silent", _TRAINER, "stream/Peers"),
    _gauge(
        "sbp_stream_credit_documents",
        "documents",
        "Credit granted and not yet used",
        _TRAINER,
        "stream/Buffer and credit",
    ),
    _counter(
        "sbp_stream_refusals_total",
        "handshakes",
        "Handshakes refused",
        _TRAINER,
        "stream/Refused handshakes",
        alerts=("SbpHandshakeRefused",),
        labels=(("reason", REFUSAL_REASONS),),
    ),
    _counter(
        "sbp_stream_handshake_failures_total",
        "connections",
        "Connections refused before any message: unknown key, no keys, no peer of this protocol",
        _TRAINER,
        "stream/Failed connections",
        alerts=("SbpUnauthenticatedPeer",),
        labels=(("reason", HANDSHAKE_FAILURE_REASONS),),
    ),
    _counter(
        "sbp_stream_malformed_total",
        "messages",
        "Messages that could not be decoded, ignored",
        _TRAINER,
        "stream/Repetitions and junk",
    ),
    _gauge(
        "sbp_stream_buffered_documents",
        "documents",
        "Queue depth: accepted, not yet mixed",
        _TRAINER,
        "stream/Buffer and credit",
    ),
    _gauge("sbp_journal_bytes", "bytes", "Size of the journal on disk", _TRAINER, "stream/Journal size"),
    _gauge(
        "sbp_journal_paused",
        "0 or 1",
        "1 while no credit is granted: disk full, or journal.max_bytes",
        _TRAINER,
        "stream/Journal pauses and errors",
        alerts=("SbpJournalPaused",),
    ),
    _histogram(
        "sbp_journal_write_seconds",
        "seconds",
        "Writing and fsyncing one group of documents",
        _TRAINER,
        "stream/Journal write time",
        buckets=_WRITES_S,
    ),
    _counter(
        "sbp_journal_fsync_seconds_total",
        "seconds",
        "Time in fsync of the journal's files",
        _TRAINER,
        "stream/Journal time in fsync",
    ),
    _counter(
        "sbp_journal_errors_total",
        "groups",
        "Groups that could not be written (they are kept, and tried again)",
        _TRAINER,
        "stream/Journal pauses and errors",
    ),
    _counter(
        "sbp_receiver_cpu_seconds_total",
        "seconds",
        "CPU time of the receiver's thread",
        _TRAINER,
        "stream/Receiver CPU",
    ),
    _histogram(
        "sbp_staleness_tokens",
        "tokens",
        "Trainer's age of the snapshot that wrote a trained document",
        _TRAINER,
        "stream/Staleness of trained documents",
        buckets=_AGES_TOKENS,
    ),
)

SYNTHESIZER: tuple[Metric, ...] = (
    _gauge(
        "sbp_snapshot_version",
        "version",
        "Newest snapshot, 0 before the first: announced (trainer), published (tuner), serving (generator)",
        ("trainer", "tuner", "generator"),
        "synthesizer/Snapshot version by role",
        alerts=("SbpGeneratorBehind",),
    ),
    _gauge(
        "sbp_snapshot_age_tokens",
        "tokens",
        "Tokens trained since the checkpoint behind the announced snapshot; before the first snapshot, all of them",
        _TRAINER,
        "synthesizer/Snapshot age",
        alerts=("SbpTunerStalled",),
    ),
    _gauge(
        "sbp_synthetic_measure",
        "",
        "What was measured of received documents of the newest snapshot, a sample; NaN: not known",
        _TRAINER,
        "synthesizer/Received documents",
        labels=(("measure", SENT_MEASURES),),
    ),
    _counter(
        "sbp_synthetic_drifts_total",
        "findings",
        "Measures of a snapshot's documents that left what the gate had measured; held-out losses worse after a swap",
        _TRAINER,
        "synthesizer/Drifts and rollbacks",
        alerts=("SbpSyntheticDrift",),
        labels=(("measure", (*SENT_MEASURES, "heldout_loss")),),
    ),
    _counter(
        "sbp_snapshot_rollbacks_total",
        "snapshots",
        "Snapshots that the trainer went back from",
        _TRAINER,
        "synthesizer/Drifts and rollbacks",
        alerts=("SbpSnapshotRolledBack",),
    ),
    _counter(
        "sbp_snapshot_store_failures_total",
        "questions",
        "Questions that the snapshot store did not answer; they are asked again",
        ("trainer", "tuner", "generator"),
        "synthesizer/Snapshot store",
        alerts=("SbpSnapshotStoreUnavailable",),
    ),
    _gauge(
        "sbp_trained_snapshots",
        "snapshots",
        "Distinct snapshots whose documents have been trained",
        _TRAINER,
        "synthesizer/Snapshots trained from",
    ),
    _counter(
        "sbp_tuning_tokens_total",
        "tokens",
        "Tokens that passed through the synthesizer in tuning",
        _TUNER,
        "synthesizer/Tuning tokens per second",
    ),
    _gauge(
        "sbp_tuning_pair_loss",
        "nats per token",
        "Held-out pair loss of the candidate",
        _TUNER,
        "synthesizer/Pair loss",
    ),
    _counter(
        "sbp_snapshots_published_total",
        "snapshots",
        "Snapshots that passed the gate",
        _TUNER,
        "synthesizer/Verdicts of the gate",
        alerts=("SbpGateFailing",),
    ),
    _counter(
        "sbp_snapshots_quarantined_total",
        "snapshots",
        "Candidates that the gate refused",
        _TUNER,
        "synthesizer/Verdicts of the gate",
        alerts=("SbpGateFailing", "SbpTunerStalled"),
    ),
    _counter(
        "sbp_gate_reasons_total",
        "reasons",
        "Measures for which candidates were refused; one candidate may have several",
        _TUNER,
        "synthesizer/Why candidates were refused",
        labels=(("measure", GATE_REASONS),),
    ),
    _gauge(
        "sbp_snapshot_parent_tokens",
        "tokens",
        "Trained tokens of the checkpoint behind the newest snapshot",
        _TUNER,
        "synthesizer/Tokens behind the snapshots",
    ),
    _gauge(
        "sbp_gate_measure",
        "",
        "Measures of the last candidate; NaN: not known",
        _TUNER,
        "synthesizer/Gate: documents against real text",
        labels=(("measure", GATE_MEASURES),),
    ),
    _counter(
        "sbp_generated_documents_total",
        "documents",
        "Documents sampled",
        _GENERATOR,
        "synthesizer/Documents by fate",
    ),
    _counter(
        "sbp_generated_tokens_total",
        "tokens",
        "Tokens sampled",
        _GENERATOR,
        "synthesizer/Generated tokens per second",
    ),
    _counter(
        "sbp_filtered_documents_total",
        "documents",
        "Sampled documents not sent",
        _GENERATOR,
        "synthesizer/Documents by fate",
        labels=(("reason", FILTER_REASONS),),
    ),
    _counter(
        "sbp_sent_documents_total",
        "documents",
        "Documents handed to the stream",
        _GENERATOR,
        "synthesizer/Documents by fate",
    ),
    _gauge(
        "sbp_unacknowledged_documents",
        "documents",
        "Documents sent and not yet acknowledged",
        _GENERATOR,
        "synthesizer/Unacknowledged documents",
    ),
    _counter(
        "sbp_resent_documents_total",
        "documents",
        "Documents sent again",
        _GENERATOR,
        "synthesizer/Unacknowledged documents",
    ),
    _counter(
        "sbp_generator_busy_seconds_total",
        "seconds",
        "Time of sampling",
        _GENERATOR,
        "synthesizer/Generator time",
    ),
    _counter(
        "sbp_generator_blocked_seconds_total",
        "seconds",
        "Time without credit",
        _GENERATOR,
        "synthesizer/Generator time",
    ),
    _counter(
        "sbp_snapshot_swaps_total",
        "snapshots",
        "Snapshots swapped in",
        _GENERATOR,
        "synthesizer/Swaps",
    ),
    _histogram(
        "sbp_snapshot_swap_seconds",
        "seconds",
        "Pause of generation for a swap",
        _GENERATOR,
        "synthesizer/Swap pause",
        buckets=_PAUSES_S,
    ),
    _counter(
        "sbp_snapshot_load_failures_total",
        "snapshots",
        "Snapshots that could not be loaded; the old one serves on",
        _GENERATOR,
        "synthesizer/Swaps",
        alerts=("SbpSnapshotNotLoaded",),
    ),
    _gauge(
        "sbp_snapshot_serving_parent_tokens",
        "tokens",
        "Trained tokens behind the snapshot that serves",
        _GENERATOR,
        "synthesizer/Tokens behind the snapshots",
    ),
    _gauge("sbp_pairs", "pairs", "Pairs in the table", ("pairer", "tuner"), "synthesizer/Pairs"),
    _gauge(
        "sbp_paired_documents",
        "documents",
        "Documents with at least one pair",
        ("pairer", "tuner"),
        "synthesizer/Pairs",
    ),
)

PROCESSES: tuple[Metric, ...] = (
    _counter(
        "sbp_role_restarts_total",
        "processes",
        "Processes restarted after they died",
        _SUPERVISOR,
        "processes/Restarts",
        alerts=("SbpRoleRestarts",),
        labels=_KIND,
    ),
    _gauge(
        "sbp_role_up",
        "processes",
        "Processes that run",
        _SUPERVISOR,
        "processes/Processes that run",
        alerts=("SbpRoleDown",),
        labels=_KIND,
    ),
    _gauge(
        "sbp_role_wanted",
        "processes",
        "Processes that should run: all but those that are done",
        _SUPERVISOR,
        "processes/Processes that run",
        alerts=("SbpRoleDown",),
        labels=_KIND,
    ),
    _gauge(
        "sbp_role_silent_seconds",
        "seconds",
        "How long the most silent process that runs has not rewritten its status",
        _SUPERVISOR,
        "processes/Silence",
        alerts=("SbpRoleSilent",),
        labels=_KIND,
    ),
    _gauge(
        "sbp_disk_free_bytes",
        "bytes",
        "Free space on the file system of the run directory",
        _SUPERVISOR,
        "processes/Disk space",
        alerts=("SbpDiskFillsUp",),
    ),
    _gauge(
        "sbp_memory_available_bytes",
        "bytes",
        "Memory of the machine that is available",
        _SUPERVISOR,
        "processes/Available memory",
        alerts=("SbpMemoryLow",),
    ),
    _gauge(
        "sbp_memory_total_bytes",
        "bytes",
        "Memory of the machine",
        _SUPERVISOR,
        "processes/Available memory",
        alerts=("SbpMemoryLow",),
    ),
)

# Made by prometheus_client's ProcessCollector, under the names that every Prometheus client uses. Linux only.
STANDARD: tuple[Metric, ...] = (
    _counter(
        "process_cpu_seconds_total", "seconds", "User and system CPU time", EVERY_ROLE, "processes/CPU", optional=True
    ),
    _gauge(
        "process_resident_memory_bytes",
        "bytes",
        "Resident memory",
        EVERY_ROLE,
        "processes/Resident memory",
        optional=True,
    ),
    _gauge(
        "process_virtual_memory_bytes", "bytes", "Virtual memory", EVERY_ROLE, "processes/Virtual memory", optional=True
    ),
    _gauge("process_open_fds", "files", "Open file descriptors", EVERY_ROLE, "processes/Open files", optional=True),
    _gauge(
        "process_max_fds", "files", "Limit of open file descriptors", EVERY_ROLE, "processes/Open files", optional=True
    ),
    _gauge(
        "process_start_time_seconds",
        "Unix time",
        "When the process started",
        EVERY_ROLE,
        "processes/Uptime",
        optional=True,
    ),
)

GROUPS = {
    "Training": TRAINING,
    "Mix": MIX,
    "Checkpoints": CHECKPOINTS,
    "Stream and ledger": STREAM,
    "Synthesizer": SYNTHESIZER,
    "Processes": PROCESSES,
    "Every process": STANDARD,
}
OWN: tuple[Metric, ...] = (*TRAINING, *MIX, *CHECKPOINTS, *STREAM, *SYNTHESIZER, *PROCESSES)
CATALOGUE: tuple[Metric, ...] = (*OWN, *STANDARD)
BY_NAME = {metric.name: metric for metric in CATALOGUE}

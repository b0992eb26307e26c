"""Pairs, tuner, gate, snapshots, generators, and what their documents are like."""

from dashboards.panels.base import Board, Row, graph, quantiles

PER_SECOND = "[$__rate_interval]"


def gate(*measures: str) -> tuple[str, str]:
    names = "|".join(measures)
    return (f'max by (measure) (sbp_gate_measure{{R, measure=~"{names}"}})', "{{measure}}")


BOARD = Board(
    "synthesizer",
    "Streaming SBP / synthesizer",
    "Which snapshots there are, why others were refused, what generators make of them.",
    (
        Row(
            "Snapshots",
            (
                graph(
                    "Snapshot version by role",
                    "Published by the tuner, announced by the trainer, served by each generator. It falls on a "
                    "rollback.",
                    ("max by (role, name) (sbp_snapshot_version{R})", "{{name}}"),
                    minimum=0,
                ),
                graph(
                    "Snapshot age",
                    "Tokens trained since the checkpoint behind the announced snapshot.",
                    ("max(sbp_snapshot_age_tokens{R})", "age"),
                    minimum=0,
                ),
                graph(
                    "Tokens behind the snapshots",
                    "Trained tokens of the checkpoint behind the newest snapshot, and behind the one that serves.",
                    ("max(sbp_snapshot_parent_tokens{R})", "newest"),
                    ("max by (name) (sbp_snapshot_serving_parent_tokens{R})", "{{name}}"),
                    minimum=0,
                ),
                graph(
                    "Verdicts of the gate",
                    "Since the tuner's process started.",
                    ("sum(sbp_snapshots_published_total{R})", "published"),
                    ("sum(sbp_snapshots_quarantined_total{R})", "quarantined"),
                    minimum=0,
                ),
                graph(
                    "Why candidates were refused",
                    "By the measure that was out of bounds; one candidate may have several.",
                    ("sum by (measure) (sbp_gate_reasons_total{R})", "{{measure}}"),
                    minimum=0,
                ),
                graph(
                    "Snapshot store",
                    "Questions that it did not answer: it cannot be reached, read or written. They are asked again.",
                    ("sum by (name) (sbp_snapshot_store_failures_total{R})", "{{name}}"),
                    minimum=0,
                ),
                graph(
                    "Snapshots trained from",
                    "Distinct snapshots whose documents have been trained.",
                    ("max(sbp_trained_snapshots{R})", "snapshots"),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Tuning and gate",
            (
                graph(
                    "Tuning tokens per second",
                    "Tokens that pass through the synthesizer in tuning.",
                    (f"sum(rate(sbp_tuning_tokens_total{{R}}{PER_SECOND}))", "tokens"),
                    minimum=0,
                ),
                graph(
                    "Pair loss",
                    "On held-out pairs, nats per token: of the tuning that is under way, and what the gate compared.",
                    ("max(sbp_tuning_pair_loss{R} > 0)", "tuning"),
                    gate("pair_loss", "untuned_pair_loss", "unrelated_pair_loss"),
                ),
                graph(
                    "Gate: shares of bad documents",
                    "Of the last candidate's trial documents.",
                    gate("repetitive_share", "copied_share", "duplicate_share", "empty_share", "unfinished_share"),
                    unit="percentunit",
                    minimum=0,
                ),
                graph(
                    "Gate: documents against real text",
                    "Distinct n-grams of the last candidate's documents, and of real text.",
                    gate("distinct_ngrams", "real_distinct_ngrams"),
                    minimum=0,
                ),
                graph(
                    "Gate: copying from the corpus",
                    "13-grams shared with the corpus, documents copied from it; and the same of held-out real text.",
                    gate(
                        "corpus_13gram_share",
                        "real_corpus_13gram_share",
                        "corpus_copied_share",
                        "real_corpus_copied_share",
                    ),
                    unit="percentunit",
                    minimum=0,
                ),
                graph(
                    "Gate: relatedness to the seed",
                    "And of real pairs; the lift is what is above that of unrelated documents.",
                    gate("relatedness", "real_relatedness", "relatedness_lift", "real_relatedness_lift"),
                ),
                graph(
                    "Gate: length",
                    "Mean tokens of the last candidate's documents, and of real text.",
                    gate("mean_tokens", "real_mean_tokens", "longest_corpus_span"),
                    minimum=0,
                ),
                graph(
                    "Pairs",
                    "In the table, and documents with at least one, as the tuner reads it (the pairer ends soon).",
                    ("max(sbp_pairs{R})", "pairs"),
                    ("max(sbp_paired_documents{R})", "documents"),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Generators",
            (
                graph(
                    "Generated tokens per second",
                    "By generator.",
                    (f"sum by (name) (rate(sbp_generated_tokens_total{{R}}{PER_SECOND}))", "{{name}}"),
                    minimum=0,
                ),
                graph(
                    "Documents by fate",
                    "Per second: sampled, sent, and not sent, by reason.",
                    (f"sum(rate(sbp_generated_documents_total{{R}}{PER_SECOND}))", "sampled"),
                    (f"sum(rate(sbp_sent_documents_total{{R}}{PER_SECOND}))", "sent"),
                    (f"sum by (reason) (rate(sbp_filtered_documents_total{{R}}{PER_SECOND}))", "{{reason}}"),
                    minimum=0,
                ),
                graph(
                    "Generator time",
                    "Share of the time in sampling, and waiting for credit. Waiting is no fault: the trainer takes "
                    "what it needs.",
                    (f"sum by (name) (rate(sbp_generator_busy_seconds_total{{R}}{PER_SECOND}))", "{{name}} samples"),
                    (f"sum by (name) (rate(sbp_generator_blocked_seconds_total{{R}}{PER_SECOND}))", "{{name}} waits"),
                    unit="percentunit",
                    minimum=0,
                ),
                graph(
                    "Unacknowledged documents",
                    "Sent and not yet on the trainer's disk; sent again so far.",
                    ("sum by (name) (sbp_unacknowledged_documents{R})", "{{name}}"),
                    ("sum(sbp_resent_documents_total{R})", "sent again"),
                    minimum=0,
                ),
                graph(
                    "Swaps",
                    "Snapshots swapped in, and those that could not be loaded.",
                    ("sum by (name) (sbp_snapshot_swaps_total{R})", "{{name}}"),
                    ("sum(sbp_snapshot_load_failures_total{R})", "not loaded"),
                    minimum=0,
                ),
                graph(
                    "Swap pause",
                    "How long a generator stands still for a swap.",
                    *quantiles("sbp_snapshot_swap_seconds"),
                    unit="s",
                ),
            ),
        ),
        Row(
            "What arrives",
            (
                graph(
                    "Received documents",
                    "A sample of what arrived of the newest snapshot: shares and ratios.",
                    (
                        "max by (measure) (sbp_synthetic_measure"
                        '{R, measure=~"repetition|corpus_13gram_share|distinct_ngrams|relatedness"})',
                        "{{measure}}",
                    ),
                ),
                graph(
                    "Received against the gate",
                    "Each measure of what arrives minus the same measure of the trial documents that would have been "
                    "sent. Far from 0 is a drift (gate.max_drift).",
                    (
                        "max by (measure) (sbp_synthetic_measure{R}) - on (measure) max by (measure) "
                        '(label_replace(sbp_gate_measure{R, measure=~"sent_.*"}, "measure", "$1", "measure", '
                        '"sent_(.*)"))',
                        "{{measure}}",
                    ),
                ),
                graph(
                    "Length and log probability",
                    "Mean tokens of received documents, and their mean log probability by token.",
                    (
                        'max by (measure) (sbp_synthetic_measure{R, measure=~"mean_tokens|mean_log_prob"})',
                        "{{measure}}",
                    ),
                ),
                graph(
                    "Drifts and rollbacks",
                    "What the trainer found in received documents or in the held-out loss, and the snapshots it went "
                    "back from.",
                    ("sum by (measure) (sbp_synthetic_drifts_total{R})", "{{measure}}"),
                    ("sum(sbp_snapshot_rollbacks_total{R})", "rollbacks"),
                    minimum=0,
                ),
            ),
        ),
    ),
)

"""The trainer: losses, speed, mix, checkpoints."""

from dashboards.panels.base import Board, Row, graph, quantiles

PER_SECOND = "[$__rate_interval]"

BOARD = Board(
    "training",
    "Streaming SBP / training",
    "Losses by source, where the trainer's time goes, what it mixes, its checkpoints.",
    (
        Row(
            "Losses",
            (
                graph(
                    "Loss by source",
                    "Mean cross entropy in nats per token: of the last step by source, and on held-out real documents.",
                    ("max by (source) (sbp_train_loss{R} > 0)", "trained {{source}}"),
                    ("max(sbp_heldout_loss{R} > 0)", "held-out real"),
                ),
                graph(
                    "Held-out gap",
                    "Held-out loss minus loss on trained real text (nats per token). Growing: memorisation.",
                    ("sbp:heldout_gap:nats{R}", "gap"),
                ),
                graph(
                    "Held-out bits per byte",
                    "The held-out loss over the bytes of its text: comparable between tokenizers.",
                    ("8 * max(sbp_heldout_compression_ratio{R} > 0)", "held-out real"),
                ),
                graph(
                    "Gradient norm",
                    "L2 norm before clipping. A rise that stays often comes before a loss that is not finite.",
                    ("max(sbp_gradient_norm{R})", "norm"),
                ),
                graph("Learning rate", "Of the last step.", ("max(sbp_learning_rate{R})", "rate"), unit="sci"),
                graph(
                    "Steps that were not finite",
                    "Skipped, since the process started. With training.on_non_finite = stop the run ends instead.",
                    ("sum(sbp_non_finite_steps_total{R})", "skipped"),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Speed",
            (
                graph(
                    "Tokens per second",
                    "Tokens that pass through the model, by source.",
                    (f"sum by (source) (rate(sbp_trained_tokens_total{{R}}{PER_SECOND}))", "{{source}}"),
                    minimum=0,
                ),
                graph(
                    "Time by phase",
                    "Seconds of each second that the trainer spends in each phase.",
                    (f"sum by (phase) (rate(sbp_phase_seconds_total{{R}}{PER_SECOND}))", "{{phase}}"),
                    unit="percentunit",
                    minimum=0,
                ),
                graph(
                    "Data wait",
                    "Share of the trainer's time in which it waits for a batch. It should stay below 1 %.",
                    ("max(sbp:data_wait:share5m{R})", "waiting"),
                    unit="percentunit",
                    minimum=0,
                ),
                graph(
                    "Tokens per second by phase",
                    "Tokens over the seconds of each phase: what the trainer would reach if it did only that.",
                    (
                        f"sum(rate(sbp_trained_tokens_total{{R}}{PER_SECOND})) / on () group_right () "
                        "sum by (phase) (rate(sbp_phase_seconds_total"
                        '{R, phase=~"data_wait|forward_backward|optimizer"}'
                        f"{PER_SECOND}) > 0)",
                        "{{phase}}",
                    ),
                ),
                graph(
                    "Arithmetic per second",
                    "FLOP/s by formula: (6 x parameters + 12 x layers x width x sequence length) for each token.",
                    (f"sum(rate(sbp_model_flops_total{{R}}{PER_SECOND}))", "model"),
                    unit="flops",
                ),
                graph(
                    "Model FLOPs utilisation",
                    "Arithmetic per second over telemetry.peak_flops of all ranks; empty where that is not set.",
                    (
                        f"sum(rate(sbp_model_flops_total{{R}}{PER_SECOND})) / max(sbp_peak_flops_per_second{{R}})",
                        "MFU",
                    ),
                    unit="percentunit",
                    minimum=0,
                    no_value="telemetry.peak_flops is not set",
                ),
                graph(
                    "Steps per second",
                    "Optimizer steps.",
                    (f"sum(rate(sbp_steps_total{{R}}{PER_SECOND}))", "steps"),
                ),
                graph(
                    "Documents per second",
                    "Documents trained to their last token, by source.",
                    (f"sum by (source) (rate(sbp_trained_documents_total{{R}}{PER_SECOND}))", "{{source}}"),
                ),
                graph(
                    "Synthetic documents by depth",
                    "Synthetic documents trained per second: depth 1 was seeded by a real document, depth 2 by one of "
                    "depth 1, and so on (generator.second_round_share).",
                    (f"sum by (depth) (rate(sbp_trained_synthetic_documents_total{{R}}{PER_SECOND}))", "{{depth}}"),
                    minimum=0,
                ),
                graph(
                    "Facts known",
                    "Questions on facts of the training documents that the model answers rightly, among all values of "
                    "the attribute; and the nats of the right answer. Only where the truth is known (concept corpus).",
                    ("max(sbp_question_accuracy{R})", "answered rightly"),
                    ("max(sbp_question_loss{R})", "nats of the right answer"),
                    minimum=0,
                    no_value="nobody knows the truth of this text",
                ),
                graph(
                    "Real epochs",
                    "How often the real documents have been read. Up to four times, repeated text is about as good as "
                    "new (Muennighoff et al., 2023); after that synthetic text should take a larger share.",
                    ("max(sbp_real_epochs{R})", "epochs"),
                    minimum=0,
                ),
                graph(
                    "Padding",
                    "Padding over all positions of packed sequences.",
                    (
                        f"sum(rate(sbp_padding_tokens_total{{R}}{PER_SECOND})) / "
                        f"(sum(rate(sbp_padding_tokens_total{{R}}{PER_SECOND})) + "
                        f"sum(rate(sbp_trained_tokens_total{{R}}{PER_SECOND})))",
                        "padding",
                    ),
                    unit="percentunit",
                    minimum=0,
                ),
                graph(
                    "Share of tokens that are targets",
                    "Targets of the loss over tokens, by source. mix.confidence lowers that of synthetic text.",
                    (
                        f"sum by (source) (rate(sbp_trained_targets_total{{R}}{PER_SECOND})) / "
                        f"(sum by (source) (rate(sbp_trained_tokens_total{{R}}{PER_SECOND})) > 0)",
                        "{{source}}",
                    ),
                    unit="percentunit",
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Mix",
            (
                graph(
                    "Synthetic share",
                    "Of tokens: asked for since the first snapshot, asked for now, and trained.",
                    ('max(sbp_mix_scheduled_share{R, source="synthetic"})', "scheduled"),
                    ('max(sbp_mix_current_share{R, source="synthetic"})', "scheduled now"),
                    ('max(sbp_mix_realised_share{R, source="synthetic"})', "realised"),
                    unit="percentunit",
                    minimum=0,
                ),
                graph(
                    "Mix debt",
                    "Synthetic tokens that real text has stood in for: owed now, and written off in the last hour.",
                    ("max(sbp_mix_debt_tokens{R})", "owed"),
                    ("sum(increase(sbp_mix_forgiven_tokens_total{R}[1h]))", "written off in an hour"),
                    minimum=0,
                ),
                graph(
                    "Deviation from the schedule",
                    "Tokens mixed minus tokens scheduled while all sources had data: at most one document.",
                    ("max by (source) (sbp_mix_deviation_tokens{R})", "{{source}}"),
                ),
                graph(
                    "Documents that stood in",
                    "Real documents taken since synthetic ones were late, per second.",
                    (f"sum(rate(sbp_mix_starved_documents_total{{R}}{PER_SECOND}))", "documents"),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Checkpoints",
            (
                graph(
                    "Checkpoints",
                    "Completed and failed, since the process started.",
                    ("sum(sbp_checkpoints_total{R})", "completed"),
                    ("sum(sbp_checkpoint_failures_total{R})", "failed"),
                    minimum=0,
                ),
                graph(
                    "Checkpoint time",
                    "How long a checkpoint takes until it is on disk, and how long the step waits for its copy.",
                    *quantiles("sbp_checkpoint_seconds", "complete, "),
                    *quantiles("sbp_checkpoint_blocked_seconds", "step waits, "),
                    unit="s",
                ),
                graph(
                    "Checkpoint age",
                    "Seconds since the newest checkpoint was completed.",
                    ("max(time() - sbp_checkpoint_timestamp_seconds{R})", "age"),
                    unit="s",
                ),
                graph(
                    "Tokens since the checkpoint",
                    "What a crash now would have to train again, beside checkpoint.every_tokens.",
                    ("max(sbp_run_trained_tokens{R}) - max(sbp_checkpoint_tokens{R})", "since"),
                    ("max(sbp_checkpoint_interval_tokens{R})", "checkpoint.every_tokens"),
                ),
                graph(
                    "Resumes that changed the history",
                    "Resumes after which the steps since the checkpoint could not be repeated as they were.",
                    ("sum(sbp_history_changes_total{R})", "resumes"),
                    minimum=0,
                ),
            ),
        ),
    ),
)

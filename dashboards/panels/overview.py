"""Ten seconds: is it training, is it helping, what is the mix, is anything lost, what will break next."""

from dashboards.panels.base import Board, Row, graph, stat

TRAINED = "max(sbp_run_trained_tokens{R})"
RATE = "sum(rate(sbp_trained_tokens_total{R}[$__rate_interval]))"

BOARD = Board(
    "overview",
    "Streaming SBP / overview",
    "One run in ten seconds; the other dashboards say why.",
    (
        Row(
            "Is it training?",
            (
                stat(
                    "Alerts firing",
                    "How many alerts of this run fire now. docs/runbook.md says what each one means and what to do.",
                    'count(ALERTS{R, alertstate="firing"}) or vector(0)',
                    thresholds=((1, "red"),),
                ),
                stat(
                    "Since the last step",
                    "Seconds since the last optimizer step. Longer than a few steps: evaluation, a checkpoint, or it "
                    "is stuck.",
                    "time() - max(last_over_time(sbp_last_step_timestamp_seconds{R}[1h]))",
                    unit="s",
                    thresholds=((60, "orange"), (300, "red")),
                    decimals=0,
                ),
                stat(
                    "Tokens per second",
                    "Real and synthetic tokens that pass through the model in training.",
                    RATE,
                    decimals=0,
                ),
                stat(
                    "Progress",
                    "Trained tokens as a share of training.total_tokens.",
                    f"{TRAINED} / max(sbp_target_tokens{{R}})",
                    unit="percentunit",
                    maximum=1,
                    minimum=0,
                ),
                stat(
                    "Time left",
                    "At the present rate.",
                    f"(max(sbp_target_tokens{{R}}) - {TRAINED}) / {RATE}",
                    unit="s",
                ),
                stat(
                    "Processes missing",
                    "Processes that should run and do not. The supervisor starts them again.",
                    "sum(sbp_role_wanted{R}) - sum(sbp_role_up{R})",
                    thresholds=((1, "red"),),
                ),
            ),
        ),
        Row(
            "Is it helping?",
            (
                graph(
                    "Loss",
                    "Held-out real text is what counts. The loss on synthetic text says how predictable it is, not how "
                    "good. Marks: swaps of snapshots, rollbacks.",
                    ("max(sbp_heldout_loss{R} > 0)", "held-out real"),
                    ('max(sbp_train_loss{R, source="real"} > 0)', "trained real"),
                    ('max(sbp_train_loss{R, source="synthetic"} > 0)', "trained synthetic"),
                    width=12,
                ),
                graph(
                    "Held-out gap",
                    "Held-out loss minus loss on trained real text (nats per token). Growing: the model memorises; "
                    "more synthetic text, or more real text, is the answer.",
                    ("sbp:heldout_gap:nats{R}", "gap"),
                    width=12,
                ),
            ),
        ),
        Row(
            "What is the mix?",
            (
                graph(
                    "Synthetic share of tokens",
                    "Asked for by the schedule since the first snapshot, and trained. Apart: generators are late.",
                    ('max(sbp_mix_scheduled_share{R, source="synthetic"})', "scheduled"),
                    ('max(sbp_mix_realised_share{R, source="synthetic"})', "realised"),
                    unit="percentunit",
                    minimum=0,
                    width=12,
                ),
                graph(
                    "Snapshot age in tokens",
                    "Tokens trained since the checkpoint behind the snapshot that serves. It falls with each new one.",
                    ("max(sbp_snapshot_age_tokens{R})", "age"),
                    width=12,
                ),
            ),
        ),
        Row(
            "Is anything lost?",
            (
                stat(
                    "Ledger imbalance",
                    "Documents that the ledger cannot account for. Must be 0.",
                    'max(sbp_ledger_documents{R, term="imbalance"})',
                    thresholds=((1, "red"),),
                ),
                stat(
                    "Documents dropped",
                    "For a counted reason, since the run began.",
                    'max(sbp_ledger_documents{R, term="dropped"})',
                ),
                stat(
                    "Steps not finite",
                    "Steps skipped for a loss that is not finite.",
                    "sum(sbp_non_finite_steps_total{R})",
                    thresholds=((1, "red"),),
                ),
                stat(
                    "Candidates refused",
                    "By the gate, since the tuner started.",
                    "sum(sbp_snapshots_quarantined_total{R})",
                ),
                stat(
                    "Restarts",
                    "Processes that died and were started again.",
                    "sum(sbp_role_restarts_total{R})",
                    thresholds=((1, "orange"),),
                ),
                stat(
                    "Synthetic documents paused",
                    "1 while the journal takes no more: disk full, or journal.max_bytes.",
                    "max(sbp_journal_paused{R})",
                    thresholds=((1, "red"),),
                ),
            ),
        ),
        Row(
            "What will break next?",
            (
                graph(
                    "Free disk",
                    "Of the run directory's file system, now and in a day at the rate of the last hour.",
                    ("min(sbp_disk_free_bytes{R})", "now"),
                    ("min(predict_linear(sbp_disk_free_bytes{R}[1h], 86400))", "in a day"),
                    unit="bytes",
                    width=8,
                ),
                graph(
                    "Memory available",
                    "Of the machine.",
                    ("min(sbp_memory_available_bytes{R})", "available"),
                    unit="bytes",
                    minimum=0,
                    width=8,
                ),
                graph(
                    "Checkpoint age in seconds",
                    "What a crash now would cost, in time.",
                    ("max(sbp:checkpoint_age:seconds{R})", "age"),
                    unit="s",
                    width=8,
                ),
            ),
        ),
    ),
)

"""Recording rules and alerts for Prometheus. Each alert has its runbook entry, and a case in which it fires and one in
which it does not, which `promtool test rules` runs.

Every expression keeps the label ``run``, so one Prometheus may watch many runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

RUNBOOK = os.environ.get("SBP_RUNBOOK_URL", "docs/runbook.md")  # where alerts link to
GROUP = "streaming_sbp"

RECORDING: dict[str, tuple[str, str]] = {  # name: (expression, what it is)
    "sbp:tokens:rate5m": ("sum by (run) (rate(sbp_trained_tokens_total[5m]))", "trained tokens per second"),
    "sbp:data_wait:share5m": (
        'sum by (run) (rate(sbp_phase_seconds_total{phase="data_wait"}[5m])) '
        "/ sum by (run) (rate(sbp_phase_seconds_total[5m]))",
        "share of the trainer's time in which it waits for a batch",
    ),
    "sbp:heldout_gap:nats": (
        'max by (run) (sbp_heldout_loss > 0) - max by (run) (sbp_train_loss{source="real"} > 0)',
        "held-out loss minus loss on trained real text, nats per token",
    ),
    "sbp:checkpoint_age:seconds": (
        "max by (run) (time() - sbp_checkpoint_timestamp_seconds > 0)",
        "seconds since the newest checkpoint",
    ),
}


@dataclass(frozen=True)
class Alert:
    """``fires`` and ``quiet``: series and their values, one a minute (promtool's notation); both judged at ``at_m``.

    ``labels``: those of the alert in the case that fires, beside run and severity. ``quick``: replacements in the
    expression for tests in real time.
    """

    name: str
    severity: str  # critical: a person, now; warning: today; info: when convenient
    expr: str
    for_: str
    summary: str
    means: str
    look: tuple[str, ...]
    do: tuple[str, ...]
    fires: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    at_m: int = 30
    quick: tuple[tuple[str, str], ...] = ()


def increased(metric: str, window: str, by: str = "run") -> str:
    return f"sum by ({by}) (increase({metric}[{window}])) > 0"


ALERTS: tuple[Alert, ...] = (
    # is it training?
    Alert(
        "SbpTrainerStuck",
        "critical",
        "time() - max by (run) (last_over_time(sbp_last_step_timestamp_seconds[1h]) > 0) > 300 "
        'and on (run) count by (run) (up{role="trainer"})',
        "1m",
        "{{ $labels.run }}: no optimizer step for over five minutes",
        "The trainer's process is there, or should be, and makes no steps. It may wait (for pairs, for synthetic text "
        'with `mix.starvation_policy = "wait"`), be stopped, or hang in the driver or the file system.',
        (
            '`sbp status RUN`: state and detail of the trainer; "silent for" means that it does not answer.',
            "`RUN/logs/trainer.log`; the panel *Time by phase* on the training dashboard.",
            "`ps -o stat= -p PID` (`T`: somebody stopped it; `D`: it waits for the disk).",
        ),
        (
            "Stopped: `kill -CONT PID`.",
            "Hanging: `kill -9 PID`; the supervisor starts it again, and it goes on from the newest checkpoint.",
            "Waiting for synthetic text: start generators, or set `mix.starvation_policy` to `real_only`.",
        ),
        {
            'sbp_last_step_timestamp_seconds{run="r",role="trainer",name="trainer"}': "1x40",
            'up{run="r",role="trainer",name="trainer"}': "0x40",
        },
        {
            'sbp_last_step_timestamp_seconds{run="r",role="trainer",name="trainer"}': "1+60x40",
            'up{run="r",role="trainer",name="trainer"}': "1x40",
        },
        quick=(("> 300", "> 8"),),
    ),
    Alert(
        "SbpProcessDown",
        "critical",
        'max by (run, name) (up{run!="", role!=""}) == 0',
        "2m",
        "{{ $labels.run }}: {{ $labels.name }} does not answer",
        "Prometheus cannot read the process: it died and nobody started it again, it hangs, or it ended with an error "
        "(a process that ends as it should takes its file out of `RUN/prometheus`).",
        (
            "`sbp status RUN`: is it `dead`, `failed` (the reason stands beside it) or silent?",
            "`RUN/logs/NAME.log`.",
        ),
        (
            "Failed: do what the reason says, then `sbp run` again; it goes on from the newest checkpoint.",
            "Dead without a supervisor: start it again (`sbp train --run RUN`, `sbp tune --run RUN`).",
            "It is not meant to come back: remove `RUN/prometheus/NAME.json`.",
        ),
        {'up{run="r",role="tuner",name="tuner"}': "1x5 0x40"},
        {'up{run="r",role="tuner",name="tuner"}': "1x40"},
        labels={"name": "tuner"},
    ),
    Alert(
        "SbpRoleDown",
        "warning",
        "sum by (run, kind) (sbp_role_wanted) - sum by (run, kind) (sbp_role_up) > 0",
        "2m",
        "{{ $labels.run }}: a {{ $labels.kind }} that should run does not",
        "The supervisor waits longer before each restart of a process that keeps dying.",
        ("Panel *Restarts* on the processes dashboard; `RUN/logs/NAME.log`.", "`dmesg` for the kernel's OOM killer."),
        (
            "Remove the cause; the supervisor restarts by itself, at the latest after `supervisor.max_backoff_s`.",
            "Too little memory: fewer generators (`generator.count`), smaller `generator.batch_size`.",
        ),
        {
            'sbp_role_wanted{run="r",kind="generator"}': "2x40",
            'sbp_role_up{run="r",kind="generator"}': "2x5 1x35",
        },
        {'sbp_role_wanted{run="r",kind="generator"}': "2x40", 'sbp_role_up{run="r",kind="generator"}': "2x40"},
        labels={"kind": "generator"},
    ),
    Alert(
        "SbpRoleRestarts",
        "warning",
        "sum by (run, kind) (increase(sbp_role_restarts_total[15m])) > 3",
        "0m",
        "{{ $labels.run }}: {{ $labels.kind }} died more than three times in a quarter of an hour",
        "After `supervisor.max_restarts` deaths within `supervisor.restart_window_s` the whole run ends.",
        ("`RUN/logs/NAME.log`: the last lines before each start.", "Resident memory on the processes dashboard."),
        ("Remove the cause. Nothing is lost meanwhile: unacknowledged documents are sent again or counted as lost.",),
        {'sbp_role_restarts_total{run="r",kind="tuner"}': "0x10 1+1x20"},
        {'sbp_role_restarts_total{run="r",kind="tuner"}': "0x10 1x20"},
        labels={"kind": "tuner"},
        quick=(("> 3", "> 0"),),
    ),
    Alert(
        "SbpRoleSilent",
        "critical",
        "max by (run, kind) (sbp_role_silent_seconds) > 120",
        "1m",
        "{{ $labels.run }}: a {{ $labels.kind }} runs and has said nothing for over two minutes",
        "The process exists and does not rewrite its status: it is stopped, hangs, or its disk is full.",
        ("`sbp status RUN`; `ps -o stat= -p PID`; free disk on the processes dashboard.",),
        ("Stopped: `kill -CONT PID`. Hanging: `kill -9 PID`; the supervisor starts it again.",),
        {'sbp_role_silent_seconds{run="r",kind="tuner"}': "0x5 0+60x30"},
        {'sbp_role_silent_seconds{run="r",kind="tuner"}': "1x40"},
        labels={"kind": "tuner"},
        quick=(("> 120", "> 6"),),
    ),
    Alert(
        "SbpTrainerWaitsForData",
        "warning",
        "max by (run) (sbp:data_wait:share5m) > 0.1",
        "10m",
        "{{ $labels.run }}: over a tenth of the trainer's time goes into waiting for batches",
        "Batches are made in the training thread, normally in well under 1 % of the time.",
        ("Is the disk of `data.dataset` slow or remote? Is another process taking the trainer's core?",),
        (
            "Copy the data set to a local disk; lower `generator.count` or raise `supervisor.background_nice`.",
            'With `mix.starvation_policy = "wait"` this is the wait for synthetic text: more generators.',
        ),
        {
            'sbp_phase_seconds_total{run="r",phase="data_wait"}': "0+20x40",
            'sbp_phase_seconds_total{run="r",phase="forward_backward"}': "0+40x40",
        },
        {
            'sbp_phase_seconds_total{run="r",phase="data_wait"}': "0+1x40",
            'sbp_phase_seconds_total{run="r",phase="forward_backward"}': "0+59x40",
        },
    ),
    # is it helping?
    Alert(
        "SbpLossNotFinite",
        "critical",
        "sum by (run) (increase(sbp_non_finite_steps_total[10m])) > 0 "
        "or max by (run) (sbp_train_loss != sbp_train_loss) "
        "or max by (run) (sbp_heldout_loss != sbp_heldout_loss)",
        "0m",
        "{{ $labels.run }}: a loss or a gradient is NaN or infinite",
        "The step was skipped (`training.on_non_finite` is `skip`), or the held-out loss is not a number. With `stop` "
        "the trainer ends instead, names the batch, and *SbpProcessDown* fires.",
        (
            "Gradient norm and learning rate on the training dashboard, before the first such step.",
            "`sbp trace RUN --step 1200` shows the documents of that batch.",
        ),
        (
            "One step in thousands: leave it. More: stop, lower `training.learning_rate`, and go on from an earlier "
            "checkpoint with `sbp run --config RUN/config.toml --accept-changes training.learning_rate=1e-3`.",
            'Try `training.precision = "fp32"` to see whether it is the precision.',
        ),
        {'sbp_non_finite_steps_total{run="r"}': "0x20 1x20"},
        {
            'sbp_non_finite_steps_total{run="r"}': "1x40",
            'sbp_train_loss{run="r",source="real"}': "2x40",
            'sbp_heldout_loss{run="r"}': "2x40",
        },
    ),
    Alert(
        "SbpHeldoutLossRising",
        "warning",
        "max by (run) (sbp_heldout_loss) > 1.05 * min by (run) (min_over_time((sbp_heldout_loss > 0)[6h:1m]))",
        "15m",
        "{{ $labels.run }}: the held-out loss is 5 % above its best of the last six hours",
        "The model unlearns: it diverges, memorises repeated real text, or synthetic text hurts it.",
        (
            "*Loss by source*, *Held-out gap* and *Gradient norm*; did it begin at a mark of a swap?",
            "*Real epochs*: above four, repetition is a likely cause.",
            "`sbp peek RUN`: what do the documents look like?",
        ),
        (
            'A bad snapshot: `sbp snapshots RUN --rollback`, and `gate.on_drift = "rollback"` for the next time.',
            "Repetition: a larger `mix.synthetic_share`, or more real text.",
            "Divergence: stop, and go on from an earlier checkpoint with a lower `training.learning_rate`.",
        ),
        {'sbp_heldout_loss{run="r"}': "4x20 5x40"},
        {'sbp_heldout_loss{run="r"}': "0x1 4x20 4.1x40"},
        at_m=50,
    ),
    Alert(
        "SbpRealTextRepeated",
        "info",
        "max by (run) (sbp_real_epochs) > 4",
        "0m",
        "{{ $labels.run }}: real text has been read more than four times",
        "Up to about four times, repeated text is nearly as good as new (Muennighoff et al., 2023); then it helps less.",
        ("*Real epochs* and *Held-out gap* on the training dashboard.",),
        ("A larger synthetic share (`mix.schedule`, `mix.synthetic_share`), more real text, or an earlier end.",),
        {'sbp_real_epochs{run="r"}': "0+0.2x40"},
        {'sbp_real_epochs{run="r"}': "0+0.1x40"},
    ),
    # the mix
    Alert(
        "SbpNoGenerators",
        "warning",
        "max by (run) (sbp_stream_peers) == 0 "
        'and on (run) max by (run) (sbp_mix_current_share{source="synthetic"}) > 0',
        "5m",
        "{{ $labels.run }}: the schedule asks for synthetic text, and no generator is connected",
        "Real text stands in; what is owed is paid back or written off (`mix.forgive_tokens`).",
        (
            "`sbp status RUN`: the generators' states. *Failed connections* and *Refused handshakes* (stream dashboard).",
        ),
        (
            "Start generators (`sbp generate --run RUN`), or look why they die (`RUN/logs/generator-0.log`).",
            "On other machines: can they reach `stream.host` and `stream.port`, with the right keys?",
        ),
        {'sbp_stream_peers{run="r"}': "1x5 0x40", 'sbp_mix_current_share{run="r",source="synthetic"}': "0.3x40"},
        {'sbp_stream_peers{run="r"}': "0x40", 'sbp_mix_current_share{run="r",source="synthetic"}': "0x40"},
    ),
    Alert(
        "SbpMixBehindSchedule",
        "warning",
        'max by (run) (sbp_mix_scheduled_share{source="synthetic"}) '
        '- max by (run) (sbp_mix_realised_share{source="synthetic"}) > 0.05',
        "15m",
        "{{ $labels.run }}: synthetic text is over five points behind its schedule",
        "Generators are too slow for the share that the schedule asks for.",
        ("*Generated tokens per second*, *Documents by fate*, *Generator time* on the synthesizer dashboard.",),
        (
            "More generators, a larger `generator.batch_size`, or a smaller `mix.synthetic_share`.",
            "Most documents filtered: the snapshot is bad; see *Why candidates were refused* and the filters' settings.",
        ),
        {
            'sbp_mix_scheduled_share{run="r",source="synthetic"}': "0.3x40",
            'sbp_mix_realised_share{run="r",source="synthetic"}': "0.2x40",
        },
        {
            'sbp_mix_scheduled_share{run="r",source="synthetic"}': "0.3x40",
            'sbp_mix_realised_share{run="r",source="synthetic"}': "0.29x40",
        },
    ),
    # is anything lost?
    Alert(
        "SbpLedgerImbalance",
        "critical",
        'max by (run) (abs(sbp_ledger_documents{term="imbalance"})) > 0',
        "1m",
        "{{ $labels.run }}: the ledger does not balance",
        "Documents are unaccounted for, or counted twice. This must not happen: it is a fault of this software, or "
        "somebody changed the run directory.",
        ("`sbp status RUN --json`: `ledger.by_generator` names whose documents they are.",),
        (
            "Keep the run directory, and report it with `RUN/records`, `RUN/journal/dropped.jsonl` and the log files.",
            "Training may go on: batches come from the journal, which is checked by itself.",
        ),
        {'sbp_ledger_documents{run="r",term="imbalance"}': "0x20 -1x20"},
        {'sbp_ledger_documents{run="r",term="imbalance"}': "0x40"},
    ),
    Alert(
        "SbpDocumentsUnusable",
        "warning",
        "sum by (run, reason) (delta(sbp_dropped_documents"
        '{reason=~"malformed|oversized|out_of_vocabulary|damaged"}[15m])) > 0',
        "0m",
        "{{ $labels.run }}: documents are dropped as {{ $labels.reason }}",
        "`damaged`: accepted, and no longer readable on disk. The others: a generator sends what does not fit.",
        ("`RUN/journal/dropped.jsonl` names the generator; the trainer's log the damaged shard.",),
        (
            "`damaged`: check the disk (`smartctl`, `dmesg`).",
            "The others: that generator runs another version of this package, or another program; stop it.",
        ),
        {'sbp_dropped_documents{run="r",reason="damaged"}': "0x20 3x20"},
        {
            'sbp_dropped_documents{run="r",reason="damaged"}': "3x40",
            'sbp_dropped_documents{run="r",reason="stale"}': "0+5x40",
        },
        labels={"reason": "damaged"},
    ),
    Alert(
        "SbpHistoryChanged",
        "warning",
        increased("sbp_history_changes_total", "1h"),
        "0m",
        "{{ $labels.run }}: after a resume, steps were trained otherwise than before",
        "Steps since the checkpoint could not be repeated: the journal has lost documents since, or the code or the data "
        "changed. The run goes on; a replay of it will not be equal.",
        ("The record `history_changed` in `RUN/records/trainer.jsonl` has the step and the reason.",),
        ("After an update of the software: expected once. Otherwise check the journal's disk.",),
        {'sbp_history_changes_total{run="r"}': "0x20 1x20"},
        {'sbp_history_changes_total{run="r"}': "0x40"},
    ),
    Alert(
        "SbpJournalPaused",
        "critical",
        "max by (run) (sbp_journal_paused) > 0",
        "2m",
        "{{ $labels.run }}: no synthetic documents are taken: disk full, or journal.max_bytes",
        "Real text only is trained, and nothing is lost: documents wait with their generators.",
        ("`sbp status RUN` says which of the two it is. *Journal size*, *Disk space*.",),
        (
            "Disk: make room. The next attempt comes within a second.",
            "`journal.max_bytes`: raise it, or set `journal.prune = true`.",
        ),
        {'sbp_journal_paused{run="r"}': "0x20 1x20"},
        {'sbp_journal_paused{run="r"}': "0x28 1x1 0x20"},
    ),
    Alert(
        "SbpHandshakeRefused",
        "warning",
        increased("sbp_stream_refusals_total", "10m", "run, reason"),
        "0m",
        "{{ $labels.run }}: a generator was refused: {{ $labels.reason }}",
        "It could connect and does not belong here: another run, another tokenizer, another version.",
        ("*Refused handshakes*; that generator's log says what was got and expected.",),
        ("Give it this run's `config.toml` and `run.json`, the same data set, the same version; or stop it.",),
        {'sbp_stream_refusals_total{run="r",reason="wrong_run"}': "0x25 2x20"},
        {'sbp_stream_refusals_total{run="r",reason="wrong_run"}': "0x2 2x40"},
        labels={"reason": "wrong_run"},
    ),
    Alert(
        "SbpUnauthenticatedPeer",
        "warning",
        increased("sbp_stream_handshake_failures_total", "10m", "run, reason"),
        "0m",
        "{{ $labels.run }}: a connection to the stream was refused: {{ $labels.reason }}",
        "`auth`: a key that the trainer does not list. `protocol`: no keys, another trainer's key, or no ZeroMQ at all, "
        "such as a port scan.",
        ("*Failed connections*; which generator is missing in *Peers*? Otherwise `ss -tn` on the trainer's machine.",),
        (
            "A generator of yours: copy its keys again, as `sbp keys` says.",
            "Nobody you know: the stream is reachable by others. Nothing of theirs was read; close the port.",
        ),
        {'sbp_stream_handshake_failures_total{run="r",reason="auth"}': "0x25 1+1x10"},
        {'sbp_stream_handshake_failures_total{run="r",reason="auth"}': "0x40"},
        labels={"reason": "auth"},
    ),
    # checkpoints
    Alert(
        "SbpCheckpointFailed",
        "critical",
        increased("sbp_checkpoint_failures_total", "1h"),
        "0m",
        "{{ $labels.run }}: a checkpoint could not be written",
        "The run goes on; a crash now costs the tokens since the last good checkpoint.",
        ("The record `checkpoint_failed` in `RUN/records/trainer.jsonl` has the reason; *Disk space*.",),
        ("Make room: fewer `checkpoint.keep_last`, or a larger disk. The next checkpoint tries again.",),
        {'sbp_checkpoint_failures_total{run="r"}': "0x20 1x20"},
        {'sbp_checkpoint_failures_total{run="r"}': "0x40"},
    ),
    Alert(
        "SbpCheckpointOverdue",
        "warning",
        "max by (run) (sbp_run_trained_tokens) - max by (run) (sbp_checkpoint_tokens) "
        "> 3 * max by (run) (sbp_checkpoint_interval_tokens)",
        "5m",
        "{{ $labels.run }}: the newest checkpoint is three intervals behind",
        "Checkpoints fail, or take longer to write than the interval between them.",
        ("*Checkpoint time* and *Checkpoints* on the training dashboard.",),
        ("A faster disk, or a larger `checkpoint.every_tokens`.",),
        {
            'sbp_run_trained_tokens{run="r"}': "0+100x40",
            'sbp_checkpoint_tokens{run="r"}': "0x40",
            'sbp_checkpoint_interval_tokens{run="r"}': "500x40",
        },
        {
            'sbp_run_trained_tokens{run="r"}': "0+100x40",
            'sbp_checkpoint_tokens{run="r"}': "0+100x40",
            'sbp_checkpoint_interval_tokens{run="r"}': "500x40",
        },
    ),
    # the synthesizer
    Alert(
        "SbpTunerStalled",
        "warning",
        "max by (run) (sbp_snapshot_age_tokens) > 5 * max by (run) (sbp_checkpoint_interval_tokens) "
        'and on (run) count by (run) (up{role="tuner"}) '
        "unless on (run) sum by (run) (increase(sbp_snapshots_quarantined_total[30m])) > 0",
        "5m",
        "{{ $labels.run }}: five checkpoints, and neither a new snapshot nor a refused candidate",
        "The tuner is stopped, waits, or is too slow. Generators serve an old model.",
        (
            "`sbp status RUN`: what does the tuner wait for? (the pair table, `synthesizer.max_compute_share`, "
            "`synthesizer.first_checkpoint_tokens`)",
            "*Tuning tokens per second*; `RUN/logs/tuner.log`.",
        ),
        (
            "Stopped or hanging: `kill -CONT` or `kill -9`; the supervisor starts it again.",
            "Too slow: a smaller `synthesizer.tuning_tokens`, a core or a device of its own.",
        ),
        {
            'sbp_snapshot_age_tokens{run="r"}': "0+100x40",
            'sbp_checkpoint_interval_tokens{run="r"}': "400x40",
            'up{run="r",role="tuner",name="tuner"}': "0x40",
            'sbp_snapshots_quarantined_total{run="r"}': "0x40",
        },
        {
            'sbp_snapshot_age_tokens{run="r"}': "0+100x40",
            'sbp_checkpoint_interval_tokens{run="r"}': "400x40",
            'up{run="r",role="tuner",name="tuner"}': "0x40",
            'sbp_snapshots_quarantined_total{run="r"}': "0+1x40",
        },
    ),
    Alert(
        "SbpGateFailing",
        "warning",
        "sum by (run) (increase(sbp_snapshots_quarantined_total[1h])) > 2 "
        "unless on (run) sum by (run) (increase(sbp_snapshots_published_total[1h])) > 0",
        "0m",
        "{{ $labels.run }}: the gate has refused every candidate of the last hour",
        "Generators serve an old snapshot, or none: the model learns nothing new from synthetic text.",
        (
            "*Why candidates were refused* on the synthesizer dashboard; `sbp status RUN` has the last reason.",
            "`RUN/quarantine/*`: the reasons with their numbers, and ten examples of each candidate that the gate refused.",
        ),
        (
            "Poor text: a longer or gentler tuning (`synthesizer.tuning_tokens`, `synthesizer.learning_rate`), or a "
            "later start (`synthesizer.first_checkpoint_tokens`).",
            "A bound that real text of yours does not meet: change that setting of section `gate`.",
        ),
        {'sbp_snapshots_quarantined_total{run="r"}': "0+1x40", 'sbp_snapshots_published_total{run="r"}': "0x40"},
        {'sbp_snapshots_quarantined_total{run="r"}': "0+1x40", 'sbp_snapshots_published_total{run="r"}': "0x20 1x20"},
        quick=(("> 2", "> 0"),),
    ),
    Alert(
        "SbpGeneratorBehind",
        "warning",
        'max by (run) (sbp_snapshot_version{role="trainer"}) '
        '- min by (run) (sbp_snapshot_version{role="generator"}) > 1',
        "10m",
        "{{ $labels.run }}: a generator serves a snapshot that is two or more versions old",
        "It cannot load the newer ones, or does not reach the store.",
        ("*Snapshot version by role*, *Swaps*; the generator's log.",),
        ("Can it read `snapshots.url`? Has it memory for a second model? Restart it: it is stateless.",),
        {
            'sbp_snapshot_version{run="r",role="trainer"}': "0+1x40",
            'sbp_snapshot_version{run="r",role="generator",name="generator-0"}': "1x40",
        },
        {
            'sbp_snapshot_version{run="r",role="trainer"}': "1+1x40",
            'sbp_snapshot_version{run="r",role="generator",name="generator-0"}': "0+1x40",
        },
    ),
    Alert(
        "SbpSnapshotStoreUnavailable",
        "warning",
        increased("sbp_snapshot_store_failures_total", "5m"),
        "10m",
        "{{ $labels.run }}: the snapshot store does not answer",
        "What serves serves on, and training goes on. A tuned candidate waits to be published; no pin or rollback is heard of.",
        (
            "The record `store_unavailable` in `RUN/records/trainer.jsonl` and `tuner.jsonl` has the reason; `sbp snapshots RUN`.",
        ),
        (
            "Bring it back; all goes on by itself. Credentials and `AWS_ENDPOINT_URL` belong into the environment of `sbp run`.",
        ),
        {'sbp_snapshot_store_failures_total{run="r",role="trainer"}': "0+1x40"},
        {'sbp_snapshot_store_failures_total{run="r",role="trainer"}': "1x40"},
    ),
    Alert(
        "SbpSnapshotNotLoaded",
        "warning",
        increased("sbp_snapshot_load_failures_total", "15m", "run, name"),
        "0m",
        "{{ $labels.run }}: {{ $labels.name }} cannot load a snapshot",
        "The old one serves on. A digest that does not match is never loaded.",
        ("The record `swap_failed` in `RUN/records/generator-0.jsonl` has the reason.",),
        ("Damaged: `sbp snapshots RUN --quarantine DIGEST`. Not reachable: check `snapshots.url` from that machine.",),
        {'sbp_snapshot_load_failures_total{run="r",name="generator-0"}': "0x20 1x20"},
        {'sbp_snapshot_load_failures_total{run="r",name="generator-0"}': "0x40"},
        labels={"name": "generator-0"},
    ),
    Alert(
        "SbpSyntheticDrift",
        "warning",
        increased("sbp_synthetic_drifts_total", "1h", "run, measure"),
        "0m",
        "{{ $labels.run }}: synthetic documents left what the gate had measured: {{ $labels.measure }}",
        "What arrives is not what was tried, or the held-out loss became worse after a swap.",
        ("*Received against the gate*; the record `drift` in `RUN/records/trainer.jsonl`; `sbp peek RUN`.",),
        (
            '`sbp snapshots RUN --rollback`, or `gate.on_drift = "rollback"` to have the trainer do it.',
            "One generator with other sampling settings does this, too.",
        ),
        {'sbp_synthetic_drifts_total{run="r",measure="repetition"}': "0x20 1x20"},
        {'sbp_synthetic_drifts_total{run="r",measure="repetition"}': "0x40"},
        labels={"measure": "repetition"},
    ),
    Alert(
        "SbpSnapshotRolledBack",
        "warning",
        increased("sbp_snapshot_rollbacks_total", "1h"),
        "0m",
        "{{ $labels.run }}: the trainer went back to an earlier snapshot",
        "It found a drift and `gate.on_drift` is `rollback`. Documents of the bad snapshot that had arrived are trained.",
        ("The record `drift` has the reasons; `sbp snapshots RUN` shows what serves.",),
        ("Find out why the gate let it through: a larger `gate.trial_documents`, or tighter bounds.",),
        {'sbp_snapshot_rollbacks_total{run="r"}': "0x20 1x20"},
        {'sbp_snapshot_rollbacks_total{run="r"}': "0x40"},
    ),
    # what will break next?
    Alert(
        "SbpDiskFillsUp",
        "critical",
        "min by (run) (predict_linear(sbp_disk_free_bytes[1h], 86400)) < 0",
        "30m",
        "{{ $labels.run }}: at this rate the disk is full within a day",
        "A full disk stops checkpoints and the journal; real text is trained on, unsaved.",
        ("`du -sh RUN/*`: journal, checkpoints, snapshots?",),
        (
            "`journal.prune = true` or `journal.max_bytes`; fewer `checkpoint.keep_last`, `snapshots.keep_last`.",
            "A larger disk.",
        ),
        {'sbp_disk_free_bytes{run="r"}': "100000-100x200"},
        {'sbp_disk_free_bytes{run="r"}': "1000000000-100x200"},
        at_m=120,
    ),
    Alert(
        "SbpMemoryLow",
        "critical",
        "min by (run) (sbp_memory_available_bytes / sbp_memory_total_bytes) < 0.05",
        "5m",
        "{{ $labels.run }}: less than 5 % of the machine's memory is available",
        "The kernel is about to kill the largest process.",
        ("Resident memory by process on the processes dashboard: which one grows?",),
        (
            "Fewer generators, smaller batches, `training.micro_batch_sequences`. A leak: restart that process, report it.",
        ),
        {'sbp_memory_available_bytes{run="r"}': "4x40", 'sbp_memory_total_bytes{run="r"}': "100x40"},
        {'sbp_memory_available_bytes{run="r"}': "40x40", 'sbp_memory_total_bytes{run="r"}': "100x40"},
    ),
)


def rules(alerts: tuple[Alert, ...] = ALERTS) -> dict[str, Any]:
    """The content of rules.yml."""
    recording = [{"record": name, "expr": expr} for name, (expr, _) in RECORDING.items()]
    return {"groups": [{"name": GROUP, "rules": [*recording, *(_rule(alert) for alert in alerts)]}]}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.for_,
        "labels": {"severity": alert.severity},
        "annotations": _annotations(alert),
    }


def _annotations(alert: Alert) -> dict[str, str]:
    return {"summary": alert.summary, "runbook_url": f"{RUNBOOK}#{alert.name.lower()}"}


def rule_tests(rules_file: str) -> dict[str, Any]:
    """For `promtool test rules`: of every alert a case that fires and one that does not."""
    tests = [test for alert in ALERTS for test in (_case(alert, alert.fires, True), _case(alert, alert.quiet, False))]
    return {"rule_files": [rules_file], "evaluation_interval": "1m", "tests": tests}


def _case(alert: Alert, series: dict[str, str], fires: bool) -> dict[str, Any]:
    labels = {"run": "r", "severity": alert.severity, **alert.labels}
    annotations = _annotations(alert)
    for name, value in labels.items():
        annotations = {key: text.replace(f"{{{{ $labels.{name} }}}}", value) for key, text in annotations.items()}
    expected = [{"exp_labels": labels, "exp_annotations": annotations}] if fires else []
    return {
        "name": f"{alert.name} {'fires' if fires else 'is quiet'}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": f"{alert.at_m}m", "alertname": alert.name, "exp_alerts": expected}],
    }

"""What the trainer says of itself: metrics, the `train` record, the facts in its status file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from streaming_sbp import config
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.ledger import Ledger, SessionLedger, balance
from streaming_sbp.telemetry.catalogue import DEPTHS
from streaming_sbp.telemetry.metrics import Metrics, Totals
from streaming_sbp.telemetry.records import Record
from streaming_sbp.training.evaluation import Evaluation, HeldoutLoss
from streaming_sbp.training.loop import Step, Trainer
from streaming_sbp.training.mixer import REAL, SYNTHETIC
from streaming_sbp.training.model import flops_per_token
from streaming_sbp.training.questions import Answers
from streaming_sbp.training.sources import SyntheticSource


def buffered_by_generator(trainer: Trainer, journal: Journal, num_accepted: int) -> Counter[str]:
    """Documents accepted and not yet trained: behind the cursor in the journal, or waiting in the packer's bins."""
    waiting = range(trainer.batches.sources[SYNTHETIC].cursor, num_accepted)
    packed = (p.position for p in trainer.batches.packer.pieces() if p.source == SYNTHETIC and p.last)
    return Counter(journal.generator_of(position) for position in (*waiting, *packed))


class TrainingReport:
    """Collects steps between two records, and keeps the newest of everything else."""

    def __init__(self, trainer: Trainer, journal: Journal, settings: config.Config, metrics: Metrics):
        self._trainer, self._journal = trainer, journal
        self._settings, self._metrics = settings, metrics
        self._seen_snapshots = set(trainer.trained.by_snapshot)
        self._loss_sums: Counter[str] = Counter()
        self._loss_tokens: Counter[str] = Counter()
        self._sources = tuple(trainer.batches.sources)
        self._mean_loss: dict[str, float | None] = dict.fromkeys(self._sources)
        self._heldout: HeldoutLoss | None = None
        self._answers: Answers | None = None
        self._last_step: Step | None = None
        self._staleness_tokens: float | None = None
        self._ledger: Ledger | None = None
        self._sessions: list[SessionLedger] = []
        self._window = (time.monotonic(), trainer.trained.total_tokens)
        self._tokens_per_second = 0.0
        self._flops_per_token = flops_per_token(trainer.model, settings.training.sequence_tokens)
        self._count = Totals(metrics)
        for name, total, labels in self._restored_totals():
            self._count.begin_at(name, total, **labels)
        metrics.set("sbp_target_tokens", settings.training.total_tokens)
        metrics.set("sbp_checkpoint_interval_tokens", settings.checkpoint.every_tokens)
        metrics.set("sbp_last_step_timestamp_seconds", time.time())
        metrics.set("sbp_checkpoint_timestamp_seconds", time.time())
        if settings.telemetry.peak_flops:
            metrics.set("sbp_peak_flops_per_second", settings.telemetry.peak_flops * trainer.world.size)

    def step(self, step: Step) -> dict[str, int]:
        """Count one step; returns the snapshots whose documents were trained for the first time, and their tokens."""
        self._last_step = step
        for name, loss in step.losses.items():
            if loss is not None and not step.skipped:
                weight = step.batch.num_targets(name)
                self._loss_sums[name] += loss * weight  # type: ignore[assignment]
                self._loss_tokens[name] += weight
                self._metrics.set("sbp_train_loss", loss, source=name)
        self._metrics.inc("sbp_steps_total")
        self._metrics.inc("sbp_non_finite_steps_total", step.skipped)
        self._metrics.set("sbp_learning_rate", step.learning_rate)
        self._metrics.set("sbp_gradient_norm", step.gradient_norm)
        self._metrics.set("sbp_last_step_timestamp_seconds", time.time())
        return self._note_snapshots(step)

    def evaluated(self, found: Evaluation) -> None:
        self._heldout, self._answers = heldout, answers = found.heldout, found.answers
        if answers:
            self._metrics.set("sbp_question_accuracy", answers.accuracy)
            self._metrics.set("sbp_question_loss", answers.loss)
        self._metrics.set("sbp_heldout_loss", heldout.loss)
        self._metrics.set("sbp_heldout_compression_ratio", heldout.bits_per_byte / 8)

    def recall(self, records: Iterable[Record], tokens: int) -> None:
        """The last held-out loss that an earlier process of the trainer recorded, up to ``tokens`` trained."""
        earlier = [record for record in records if record["event"] == "eval" and record["tokens"] <= tokens]
        if earlier:
            last = earlier[-1]
            heldout = HeldoutLoss(last["heldout_loss"], last["heldout_bits_per_byte"])
            self.evaluated(Evaluation(heldout, Answers.recorded(last)))

    def close_window(self, sessions: list[SessionLedger], num_accepted: int) -> dict[str, Any]:
        """The fields of a `train` record: means since the last one. Also brings the metrics up to date.

        ``num_accepted`` is the length of the journal that belongs to ``sessions``.
        """
        now, tokens = time.monotonic(), self._trainer.trained.total_tokens
        self._tokens_per_second = (tokens - self._window[1]) / max(now - self._window[0], 1e-9)
        self._window = (now, tokens)
        for name in self._sources:
            if self._loss_tokens[name]:
                self._mean_loss[name] = self._loss_sums[name] / self._loss_tokens[name]
        loss = {name: self._mean_loss[name] if self._loss_tokens[name] else None for name in self._sources}
        self._loss_sums.clear()
        self._loss_tokens.clear()
        self._balance(sessions, num_accepted)
        self._export()
        return {"loss": loss, **self._totals(), **self._mix(), **self._optimizer(), "ledger": self._ledger_terms()}

    def facts(self) -> dict[str, Any]:
        """What `sbp status` shows of the trainer."""
        trained, mix = self._trainer.trained, self._mix()
        return {
            "step": trained.steps,
            "tokens": trained.total_tokens,
            "total_tokens": self._settings.training.total_tokens,
            "ledger": self._ledger_terms() | self._ledger_details(),
            "mix": {
                "scheduled": mix["scheduled_share"],
                "current": mix["current_share"],
                "realised": mix["realised_share"],
                "deviation_tokens": mix["deviation_tokens"],
                "debt_tokens": mix["debt_tokens"],
                "forgiven_tokens": mix["forgiven_tokens"],
                "truncated_tokens": mix["truncated_tokens"],
                "trained_tokens": dict(trained.tokens),
            },
            "loss": {
                "train_real": self._mean_loss[REAL],
                "train_synthetic": self._mean_loss[SYNTHETIC],
                "heldout_real": self._heldout.loss if self._heldout else None,
                "heldout_bits_per_byte": self._heldout.bits_per_byte if self._heldout else None,
                "question_accuracy": self._answers.accuracy if self._answers else None,
            },
            "trained_from": dict(trained.by_snapshot),
            "tokens_per_second": self._tokens_per_second,
            "data_wait_share": self._trainer.clock.seconds["data_wait"]
            / max(sum(self._trainer.clock.seconds.values()), 1e-9),
            "staleness_tokens": self._staleness_tokens,
            "peers": sum(session.alive for session in self._sessions),
            "buffered": self._queue_depth(),
            "real_epochs": self._trainer.batches.sources[REAL].epochs,
        }

    def _note_snapshots(self, step: Step) -> dict[str, int]:
        """Staleness of each document that ended in this batch; which snapshots are new, and the tokens behind them."""
        new, ages = {}, []
        for position in step.batch.finished(SYNTHETIC):
            header = self._journal.entry(position).header
            ages.append(self._trainer.trained.total_tokens - header.parent_tokens)
            self._metrics.observe("sbp_staleness_tokens", ages[-1])
            if header.snapshot not in self._seen_snapshots:
                self._seen_snapshots.add(header.snapshot)
                new[header.snapshot] = header.parent_tokens
        if ages:
            self._staleness_tokens = sum(ages) / len(ages)
        return new

    def _balance(self, sessions: list[SessionLedger], num_accepted: int) -> None:
        buffered = buffered_by_generator(self._trainer, self._journal, num_accepted)
        self._sessions = sessions
        synthetic = self._trainer.batches.sources[SYNTHETIC]
        assert isinstance(synthetic, SyntheticSource)
        self._ledger = balance(sessions, self._trainer.trained.by_generator, buffered, synthetic.dropped)

    def _queue_depth(self) -> int:
        return len(self._journal) - self._trainer.batches.sources[SYNTHETIC].cursor

    def _totals(self) -> dict[str, Any]:
        trained = self._trainer.trained
        return {
            "step": trained.steps,
            "tokens": trained.total_tokens,
            "trained_tokens": dict(trained.tokens),
            "trained_documents": dict(trained.documents),
            "trained_by_depth": dict(trained.by_depth),
            "trained_targets": dict(trained.targets),
            "padding_tokens": trained.padding_tokens,
            "real_epochs": round(self._trainer.batches.sources[REAL].epochs, 4),
            "tokens_per_second": round(self._tokens_per_second, 1),
            "phases": {phase: round(seconds, 3) for phase, seconds in self._trainer.clock.seconds.items()},
            "buffered": self._queue_depth(),
        }

    def _mix(self) -> dict[str, Any]:
        mixer = self._trainer.batches.mixer
        return {
            "scheduled_share": mixer.scheduled_share,
            "current_share": mixer.current_share,
            "realised_share": mixer.realised_share,
            "deviation_tokens": max(abs(deficit) for deficit in mixer.deficit_tokens.values()),
            "debt_tokens": mixer.debt_tokens,
            "forgiven_tokens": mixer.forgiven_tokens,
            "starved_documents": mixer.starved_documents,
            "truncated_tokens": self._trainer.batches.packer.truncated_tokens,
        }

    def _optimizer(self) -> dict[str, Any]:
        step = self._last_step
        return {
            "learning_rate": step.learning_rate if step else None,
            "gradient_norm": step.gradient_norm if step else None,
        }

    def _ledger_terms(self) -> dict[str, int]:
        return self._ledger.terms() if self._ledger else {}

    def _ledger_details(self) -> dict[str, Any]:
        if self._ledger is None:
            return {}
        return {
            "dropped_by_reason": self._ledger.dropped_by_reason(),
            "by_generator": self._ledger.by_generator(),
            "trained_by_depth": dict(self._trainer.trained.by_depth),
        }

    def _restored_totals(self) -> Iterator[tuple[str, float, dict[str, str]]]:
        """Counters whose totals are those of the whole run: a checkpoint brings them along."""
        mixer, trained = self._trainer.batches.mixer, self._trainer.trained
        for name in self._sources:
            yield "sbp_trained_tokens_total", trained.tokens[name], {"source": name}
            yield "sbp_trained_documents_total", trained.documents[name], {"source": name}
            yield "sbp_trained_targets_total", trained.targets[name], {"source": name}
        for depth in DEPTHS:
            yield "sbp_trained_synthetic_documents_total", trained.by_depth[depth], {"depth": depth}
        yield "sbp_mix_forgiven_tokens_total", mixer.forgiven_tokens, {}
        yield "sbp_mix_starved_documents_total", mixer.starved_documents, {}
        yield "sbp_padding_tokens_total", trained.padding_tokens, {}
        yield "sbp_model_flops_total", self._flops_per_token * trained.total_tokens, {}

    def _export(self) -> None:
        set_, mixer, trained = self._metrics.set, self._trainer.batches.mixer, self._trainer.trained
        for name, total, labels in self._restored_totals():
            self._count(name, total, **labels)
        set_("sbp_run_trained_tokens", trained.total_tokens)
        for name in self._sources:
            set_("sbp_mix_deviation_tokens", -mixer.deficit_tokens[name], source=name)
        for metric, shares in (
            ("sbp_mix_scheduled_share", mixer.scheduled_shares),
            ("sbp_mix_realised_share", mixer.realised_shares),
        ):
            for name, share in shares.items():
                set_(metric, share, source=name)
        set_("sbp_mix_current_share", mixer.current_share, source=SYNTHETIC)
        set_("sbp_mix_current_share", 1.0 - mixer.current_share - self._settings.mix.pair_share, source=REAL)
        for phase, seconds in self._trainer.clock.seconds.items():
            self._count("sbp_phase_seconds_total", seconds, phase=phase)
        set_("sbp_mix_debt_tokens", mixer.debt_tokens)
        set_("sbp_real_epochs", self._trainer.batches.sources[REAL].epochs)
        set_("sbp_trained_snapshots", len(trained.by_snapshot))
        set_("sbp_stream_buffered_documents", self._queue_depth())
        for term, value in self._ledger_terms().items():
            set_("sbp_ledger_documents", value, term=term)
        for reason, value in self._ledger_details().get("dropped_by_reason", {}).items():
            set_("sbp_dropped_documents", value, reason=reason)

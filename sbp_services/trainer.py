"""The trainer: receive, journal, mix, pack, step, checkpoint. It waits for nobody."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch

from sbp_services.follower import FollowerService
from sbp_services.service import Service, log
from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.pairing.pairs import PairTable, made_from
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import Announcement
from streaming_sbp.stream.receiver import Receiver
from streaming_sbp.synthesizer.pointer import Pointer
from streaming_sbp.synthesizer.poller import Answer, SnapshotPoller
from streaming_sbp.synthesizer.quarantine import Quarantine
from streaming_sbp.synthesizer.reference import Reference
from streaming_sbp.synthesizer.snapshots import SnapshotInfo, SnapshotStore
from streaming_sbp.synthesizer.truth import Truth
from streaming_sbp.synthesizer.watch import Finding, SyntheticWatch
from streaming_sbp.telemetry.catalogue import PHASES, SENT_MEASURES
from streaming_sbp.training.batches import CannotRepeat
from streaming_sbp.training.build import build_trainer
from streaming_sbp.training.checkpoint import CheckpointStore, SaveResult
from streaming_sbp.training.evaluation import Evaluator
from streaming_sbp.training.history import StepLog
from streaming_sbp.training.loop import PhaseClock, Step
from streaming_sbp.training.mixer import REAL, SYNTHETIC
from streaming_sbp.training.model import choose_device, choose_precision
from streaming_sbp.training.report import TrainingReport
from streaming_sbp.training.sources import RealSource, SyntheticSource
from streaming_sbp.training.world import World

RECORD_EVERY_S = 2.0
LOOK_FOR_SNAPSHOTS_EVERY_S = 1.0
FIRST_LOOK_WAITS_S = 5.0


class TrainerService(Service):
    role = "trainer"

    def __init__(self, run: RunDir, world: World, metrics_port: int = 0, accept_changes: bool = False):
        super().__init__(run, metrics_port=metrics_port)
        self.world, self._accept_changes = world, accept_changes

    # --- startup ---

    def startup(self) -> None:
        self.report("starting", "reading the data set and building the model")
        self.clock = PhaseClock(PHASES)
        self.dataset = Dataset.open(self.config.data.dataset)
        self.device = choose_device(self.config.training.device)
        self.journal = Journal(self.run.journal, writable=True)
        self._await_pairs()
        self._build()
        self._restore()
        self._listen()
        trained = self.trainer.trained
        self.record(
            "start",
            step=trained.steps,
            tokens=trained.total_tokens,
            resumed_from=self.resumed_from,
            device=str(self.device),
            precision=choose_precision(self.config.training.precision, self.device),
            fingerprints=self.dataset.manifest.fingerprints,
        )
        if not trained.steps:
            self._evaluate()

    def _await_pairs(self) -> None:
        """With `mix.pair_share` the trainer's first batch has pairs, so that no later one depends on when they came."""
        wanted = made_from(self.dataset, self.config.pairing, self.config.run.seed)
        while self.config.mix.pair_share > 0 and not self.stopping:
            if PairTable.load_made_from(self.run.pairs, wanted) is not None:
                return
            self.report("waiting", "for the pair table (mix.pair_share); `sbp pair` makes it")
            self.sleep(0.5)
        if self.stopping:
            self.report("stopped", "before there were pairs")
            raise SystemExit(0)

    def _build(self) -> None:
        self.tokenizer = tokenizer = self.dataset.tokenizer()
        self.trainer = build_trainer(
            self.config, self.dataset, self.journal, self.run.pairs, self.device, self.clock, self.world
        )
        synthetic = self.trainer.batches.sources[SYNTHETIC]
        assert isinstance(synthetic, SyntheticSource)
        self.synthetic = synthetic
        self.evaluator = Evaluator(self.dataset, self.config, self.device)
        self.checkpoints = CheckpointStore(self.run.checkpoints, self.config.checkpoint, tokenizer)

    def _restore(self) -> None:
        loaded = self.checkpoints.load_newest(self.trainer.model, self.trainer.optimizer)
        self.resumed_from: str | None = None
        self._saved_sessions: dict[str, object] = {}
        if loaded:
            info, state = loaded
            saved, now = state["fingerprints"], self.dataset.manifest.fingerprints
            self._check_fingerprints(saved)
            self.trainer.load_state_dict(state["trainer"])
            if saved["data set"] != now["data set"]:
                self._change_data_set(saved["data set"], now["data set"])
            self._saved_sessions = state["sessions"]
            self.resumed_from = info.path.name
            self.metrics.set("sbp_checkpoint_tokens", info.tokens)
        self.world.broadcast(self.resumed_from)
        self.steps = StepLog(self.run.steps, self.trainer.trained.steps)
        self._saved_tokens = self.trainer.trained.total_tokens
        self._training_report = TrainingReport(self.trainer, self.journal, self.config, self.metrics)
        self._heldout_loss: float | None = None
        self._last_record = time.monotonic()
        self._waiting_since = 0.0

    def _check_fingerprints(self, saved: dict[str, str]) -> None:
        """The loader's state belongs to one corpus and one tokenizer; another corpus can be accepted."""
        now = self.dataset.manifest.fingerprints
        for name, way_out in (("tokenizer", ""), ("data set", "go on with the new one by --accept-changes, ")):
            if saved[name] != now[name] and not (way_out and self._accept_changes):
                raise ConfigError(
                    f"{self.run.path}: its checkpoint was trained with {name} {saved[name]}, data.dataset now has "
                    f"{now[name]}; put the old one back, {way_out}or start over with `sbp run --fresh`"
                )

    def _change_data_set(self, before: str, after: str) -> None:
        """Accepted: the new corpus starts at its next epoch, and the bins hold no document of the old one."""
        batches = self.trainer.batches
        real = batches.sources[REAL]
        assert isinstance(real, RealSource)
        dropped = batches.forget_waiting(REAL, real.next_epoch(real.cursor))
        self.record("data_set_changed", before=before, after=after, dropped_tokens=dropped)

    def _listen(self) -> None:
        self.snapshots = SnapshotStore(self.config.snapshots.url or str(self.run.snapshots))
        self.serving_snapshot: SnapshotInfo | None = None
        self._answer = Answer(Pointer())
        self.poller = SnapshotPoller(self.snapshots, LOOK_FOR_SNAPSHOTS_EVERY_S)
        self.poller.start(FIRST_LOOK_WAITS_S)
        corpus, digest = self.dataset.split("train"), self.dataset.manifest.digest
        truth = Truth.of_dataset(self.dataset)
        self.watch = SyntheticWatch(
            self.config.gate,
            self.journal,
            self.snapshots,
            lambda: Reference.load(self.run.reference, digest, corpus, truth),
        )
        records, tokens = self.run.read_records(self.name), self.trainer.trained.total_tokens
        self.watch.recall(records, tokens)
        self._training_report.recall(records, tokens)
        manifest = self.dataset.manifest
        self.receiver = Receiver(
            self.config,
            self.run.run_id,
            manifest.tokenizer_digest,
            self.tokenizer.vocab_size,
            self.journal,
            self.metrics,
            self._saved_sessions,
        )
        self.receiver.set_consumed(self.synthetic.cursor)
        self.receiver.set_trained_tokens(self.trainer.trained.total_tokens)
        self.receiver.start()
        self._look_for_snapshots()
        self.report("running", "first step", self._position(), stream_endpoint=self.receiver.endpoint, **self._said())

    # --- the loop ---

    def tick(self) -> bool:
        self.receiver.check()
        self._look_for_snapshots()
        if self._must_start():
            return self._wait("for the first snapshot")
        step = self._step()
        if step is None:
            return self._wait("for synthetic documents")
        self._waiting_since = 0.0
        self.receiver.set_consumed(self.synthetic.cursor)
        self.receiver.set_trained_tokens(self.trainer.trained.total_tokens)
        self._note(step)
        if self.trainer.passed(self.config.evaluation.every_tokens, step):
            self._evaluate()
        if self.trainer.passed(self.config.checkpoint.every_tokens, step):
            self._save()
        self._collect_save()
        return not self.trainer.done

    def shutdown(self) -> None:
        if self.trainer.trained.total_tokens > self._saved_tokens:
            self._save()
        self.checkpoints.wait(self.config.supervisor.stop_timeout_s)
        self._collect_save()
        self.receiver.stop(timeout_s=5.0)
        self.poller.stop()
        self.trainer.end()
        self.world.close()
        self._record_window()
        trained = self.trainer.trained
        reason = "total_tokens reached" if self.trainer.done else "stopped"
        self.record("finish", step=trained.steps, tokens=trained.total_tokens, reason=reason)

    # --- parts of a tick ---

    def _step(self) -> Step | None:
        """The next step; after a crash, first those since the checkpoint, as they were before."""
        past = self.steps.to_repeat
        try:
            step = self.trainer.step(past.decisions if past else None)
        except CannotRepeat as error:
            self._forget(str(error))
            past, step = None, self.trainer.step()
        if step is None:
            return None
        digest = step.batch.digest()
        if past and past.digest != digest:
            self._forget(f"step {past.step} is another batch than before")
            past = None
        if past:
            self.steps.repeated()
        else:
            self.steps.append(digest, step.losses, step.batch.decisions)
        return step

    def _forget(self, reason: str) -> None:
        """Steps that were trained before the crash cannot be trained again as they were."""
        self.steps.forget()
        self.metrics.inc("sbp_history_changes_total")
        self.record("history_changed", step=self.trainer.trained.steps, reason=reason)
        log.warning("the steps since the checkpoint cannot be repeated, they are trained anew: %s", reason)

    def _must_start(self) -> bool:
        """Whether no further step is to be trained before there is a snapshot (mix.start_by_tokens).

        When the gate refuses the newest checkpoint's, there is nothing to wait for before the next checkpoint.
        """
        start_by = self.config.mix.start_by_tokens if self.config.synthesizer.mode != "off" else 0
        if not start_by or self.trainer.trained.total_tokens < start_by or self.trainer.batches.schedule_started:
            return False
        refused = Quarantine(self.run.quarantine).list()
        return max((reason["parent_tokens"] for reason in refused), default=-1) < self._saved_tokens

    def _wait(self, what: str) -> bool:
        """mix.starvation_policy = "wait": bounded, and visible."""
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        limit = self.config.mix.wait_timeout_s
        if now - self._waiting_since > limit:
            raise ConfigError(
                f'waited {what} for {limit:.0f} s (mix.wait_timeout_s) with mix.starvation_policy = "wait"; start '
                "tuner and generators, look whether the gate refuses (`sbp snapshots RUN`), or set the policy to "
                '"real_only"'
            )
        self.report("waiting", what, self._position(), **self._said())
        with self.clock("data_wait"):
            self.sleep(0.02)
        return True

    def _note(self, step: Step) -> None:
        for digest, parent_tokens in self._training_report.step(step).items():
            tokens = self.trainer.trained.total_tokens
            self.watch.first_trained(digest)
            self.record("first_trained", snapshot=digest, parent_tokens=parent_tokens, tokens=tokens)
        if time.monotonic() - self._last_record >= RECORD_EVERY_S:
            self._record_window()

    def _record_window(self) -> None:
        self._last_record = time.monotonic()
        self._act_on(self.watch.look())
        parent_tokens = self.serving_snapshot.parent_tokens if self.serving_snapshot else 0
        self.metrics.set("sbp_snapshot_age_tokens", self.trainer.trained.total_tokens - parent_tokens)
        for measure in SENT_MEASURES if self.watch.measures else ():
            value = self.watch.measures.get(measure, math.nan)
            self.metrics.set("sbp_synthetic_measure", value, measure=measure)
        window = self._training_report.close_window(*self.receiver.sessions())
        self.record("train", **window, received=self.watch.measures)
        paused = self.receiver.paused
        detail = f"step {self.trainer.trained.steps}" + (f", no synthetic documents: {paused}" if paused else "")
        detail += f", no new snapshots: {self._answer.problem}" if self._answer.problem else ""
        self.report("running", detail, self._position(), **self._said())

    def _said(self) -> dict[str, object]:
        facts = self._training_report.facts()
        serving = self._announced_facts(self.serving_snapshot) if self.serving_snapshot else None
        return facts | {"snapshots": {"trained_from": facts.pop("trained_from"), "serving": serving}}

    def _announced_facts(self, serving: SnapshotInfo) -> dict[str, object]:
        facts = {"digest": serving.digest, "version": serving.version, "parent_tokens": serving.parent_tokens}
        return facts | {"pinned": self._answer.pointer.pinned}

    def _position(self) -> tuple[float, float, str]:
        return (self.trainer.trained.total_tokens, self.config.training.total_tokens, "tokens")

    def _evaluate(self) -> None:
        with self.clock("evaluate"):
            found = self.evaluator(self.trainer.model)
        if found is None:
            return
        self._training_report.evaluated(found)
        self._heldout_loss = found.heldout.loss
        self._act_on(self.watch.evaluated(found.heldout.loss))
        trained = self.trainer.trained
        self.record("eval", step=trained.steps, tokens=trained.total_tokens, **found.record())

    def _act_on(self, finding: Finding | None) -> None:
        if finding is None:
            return
        for measure in finding.reasons:
            self.metrics.inc("sbp_synthetic_drifts_total", measure=measure)
        self.metrics.inc("sbp_snapshot_rollbacks_total", finding.action == "rolled_back")
        reasons = list(finding.reasons.values())
        self.record("drift", snapshot=finding.snapshot, reasons=reasons, action=finding.action)
        log.warning("snapshot %s: %s (%s)", finding.snapshot, "; ".join(reasons), finding.action)

    def _save(self) -> None:
        trained = self.trainer.trained
        state = {
            "fingerprints": self.dataset.manifest.fingerprints,
            "trainer": self.trainer.state_dict(),
            "sessions": self.receiver.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "versions": self.run.versions,
        }
        with self.clock("checkpoint"):
            self.steps.sync()
            self.checkpoints.save(
                trained.steps,
                trained.total_tokens,
                self.trainer.model,
                self.trainer.optimizer,
                state,
                self._heldout_loss,
                self.trainer.batches.oldest_needed(SYNTHETIC),
            )
        self._saved_tokens = trained.total_tokens

    def _collect_save(self) -> None:
        result = self.checkpoints.poll()
        if result is None:
            return
        if result.error:
            self.metrics.inc("sbp_checkpoint_failures_total")
            self.record("checkpoint_failed", step=result.step, tokens=result.tokens, reason=result.error)
            return
        self.metrics.inc("sbp_checkpoints_total")
        self.metrics.observe("sbp_checkpoint_blocked_seconds", result.blocked_s)
        self.metrics.observe("sbp_checkpoint_seconds", result.seconds)
        self.metrics.set("sbp_checkpoint_timestamp_seconds", time.time())
        self.metrics.set("sbp_checkpoint_tokens", result.tokens)
        self.record("checkpoint", **_described(result))
        point_to(self.run.path / "model", result.path / "model")
        if self.config.journal.prune:
            self.receiver.prune(self.checkpoints.journal_from())

    def _look_for_snapshots(self) -> None:
        answer = self.poller.newest()
        if answer is None or answer is self._answer:
            return
        was_pinned, self._answer = self._answer.pointer.pinned, answer
        self.note_store(answer.problem)
        pointer, serving, before = answer.pointer, answer.serving, self.serving_snapshot
        self.synthetic.rejected = frozenset(pointer.bad) - {pointer.digest or ""}
        if serving is None or (before and serving.digest == before.digest and pointer.pinned == was_pinned):
            return
        self.serving_snapshot = serving
        self.metrics.set("sbp_snapshot_version", serving.version)
        self.record("announced", **self._announced_facts(serving), by=pointer.by, reason=pointer.reason)
        self.trainer.batches.start_schedule()
        self.receiver.announce(Announcement(serving.digest, serving.version, serving.parent_tokens, serving.path))


def point_to(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to ``target``, by rename."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    os.replace(temporary, link)


def _described(result: SaveResult) -> dict[str, object]:
    return {
        "step": result.step,
        "tokens": result.tokens,
        "path": result.path.name,
        "blocked_s": round(result.blocked_s, 4),
        "seconds": round(result.seconds, 3),
    }


def main(run: RunDir, metrics_port: int = 0, accept_changes: bool = False) -> int:
    torch.set_num_threads(run.config().training.cpu_threads)
    world = World.from_environment()
    if not world.leads:
        return FollowerService(run, world).main()
    return TrainerService(run, world, metrics_port, accept_changes).main()

"""The tuner: tunes the newest checkpoint on pairs, and publishes it if the gate opens. Then the next."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sbp_services.service import Service, log
from streaming_sbp.config import Config, ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.files import read_json
from streaming_sbp.pairing.pairs import STATISTICS_NAME, PairTable, made_from
from streaming_sbp.rundir import RunDir
from streaming_sbp.synthesizer.engines import make_engine
from streaming_sbp.synthesizer.engines.base import Sampling
from streaming_sbp.synthesizer.gate import Verdict, decide
from streaming_sbp.synthesizer.given import require_model
from streaming_sbp.synthesizer.pointer import Pointer
from streaming_sbp.synthesizer.prompt import Mismatched, Pairs, PairSequences, Prompter, training_pairs
from streaming_sbp.synthesizer.quality import TrialBatch, measure_trial, sample_trial
from streaming_sbp.synthesizer.quarantine import Quarantine
from streaming_sbp.synthesizer.reference import Reference, sample_of
from streaming_sbp.synthesizer.snapshots import (
    SnapshotInfo,
    SnapshotStore,
    SnapshotStoreUnavailable,
    digest_of_folder,
)
from streaming_sbp.synthesizer.truth import Truth
from streaming_sbp.synthesizer.tuning import PairLoss, TuningDiverged, TuningProgress, budget, next_tuning, tune
from streaming_sbp.telemetry.catalogue import GATE_MEASURES
from streaming_sbp.training.checkpoint import CheckpointInfo, newest_checkpoint, verify_checkpoint
from streaming_sbp.training.model import choose_device

TRIAL_SEED = 20250911  # of the trial batch: the same for every candidate of every run, so that they compare


@dataclass(frozen=True)
class Measured:
    """What a candidate was found to be, before anything is decided."""

    measures: dict[str, float]
    batch: TrialBatch | None
    error: str = ""  # why it cannot be sampled from


@dataclass
class Candidate:
    """A tuning that is under way."""

    parent: str  # the name of the checkpoint
    parent_tokens: int
    model: PreTrainedModel
    steps: Iterator[TuningProgress]
    started: float
    last: TuningProgress | None = None
    base: dict[str, torch.Tensor] | None = None  # the checkpoint's weights, when the next tuning will continue
    untuned_pair_loss: float = math.nan
    error: str = ""
    measured: Measured | None = None  # tuned and tried: only the store may be in the way
    tune_s: float = 0.0
    gate_s: float = 0.0


@dataclass(frozen=True)
class Trial:
    measures: dict[str, float]
    verdict: Verdict
    batch: TrialBatch | None  # None when the candidate cannot be sampled from


class TunerService(Service):
    role = "tuner"

    def startup(self) -> None:
        self.report("starting", "reading the data set")
        transformers_logging.disable_progress_bar()
        self.device = choose_device(self.config.training.device)
        self.dataset = Dataset.open(self.config.data.dataset)
        self.documents, self.tokenizer = self.dataset.split("train"), self.dataset.tokenizer()
        self.pairable = self.dataset.pairable()  # with those of groups that no one trains on
        self._wanted_pairs = made_from(self.dataset, self.config.pairing, self.config.run.seed)
        self.prompter = Prompter(self.tokenizer, self.config.synthesizer)
        self.engine = make_engine(self.config.generator, self.tokenizer)
        self.store = SnapshotStore(self.config.snapshots.url or str(self.run.snapshots))
        self.quarantine = Quarantine(self.run.quarantine)
        self.work = self.run.quarantine / ".candidate"
        self.pairs: PairSequences | None = None
        self.candidate: Candidate | None = None
        self._passed_over: set[str] = set()  # digests of checkpoints that cannot be loaded
        self._learnt: dict[str, torch.Tensor] = {}  # what the last published tuning changed, by parameter
        self._recalled, self._handled_tokens, self._trained_tokens = False, -1, 0
        self._newest: SnapshotInfo | None = None
        self._pointer = Pointer()  # after the last publication
        judged = [r for r in self.run.read_records(self.name) if r["event"] == "snapshot"]
        verdicts = [r["verdict"] for r in judged]
        self._published, self._quarantined = verdicts.count("published"), verdicts.count("quarantined")
        self._tuned_tokens: int = sum(r["tuned_tokens"] for r in judged)

    def tick(self) -> bool:
        try:
            waiting_for = self._work()
            self.note_store("")
        except SnapshotStoreUnavailable as error:
            self.note_store(str(error))
            waiting_for = f"for the {error}"
        if waiting_for:
            self.report("waiting", waiting_for, **self._known())
            self.sleep(self.config.synthesizer.idle_s)
        return True

    def _work(self) -> str:
        """One step; returns "" or what there is to wait for."""
        if not self._recalled:
            self._recall()
        if self.candidate is None:
            return self._start()
        self._advance(self.candidate)
        return ""

    def shutdown(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)  # a tuning that was cut short is simply abandoned

    # --- what to tune next ---

    def _recall(self) -> None:
        """What the store and the quarantine have of this run's candidates."""
        handled = [info.parent_tokens for info in self.store.list()]
        handled += [reason["parent_tokens"] for reason in self.quarantine.list()]
        self._newest = self.store.current()
        self._handled_tokens = max(handled, default=-1)
        self._trained_tokens = max(self._handled_tokens, 0)
        self._set_newest()
        self._recalled = True

    def _start(self) -> str:
        """Begin with the newest checkpoint; returns "" or what there is to wait for."""
        if self.pairs is None and (waiting_for := self._read_pairs()):
            return waiting_for
        settings = self.config.synthesizer
        if settings.mode == "given":
            return (
                "for nothing more: the given snapshot is handled" if self._handled_tokens >= 0 else self._take_given()
            )
        if settings.max_snapshots and self._published >= settings.max_snapshots:
            return f"for nothing more: {self._published} published (synthesizer.max_snapshots)"
        checkpoint = newest_checkpoint(self.run.checkpoints)
        first = max(settings.first_checkpoint_tokens, self._handled_tokens + 1)
        if checkpoint is None or checkpoint.tokens < first or checkpoint.digest in self._passed_over:
            return f"for a checkpoint of at least {first:,} trained tokens" if first > 1 else "for the first checkpoint"
        self._trained_tokens = checkpoint.tokens
        if waiting_for := self._over_budget():
            return waiting_for
        self.report("running", f"loading {checkpoint.path.name}", **self._known())
        model = self._load(checkpoint)
        if model is None:
            return f"for a checkpoint other than {checkpoint.path.name}"
        self._begin(model, checkpoint.path.name, checkpoint.tokens)
        return ""

    def _take_given(self) -> str:
        """Begin with `synthesizer.snapshot`. Raises ConfigError when it is no model of this data set's tokenizer."""
        folder = require_model(self.config.synthesizer)
        try:
            model = self._read_model(folder)
            digest = Tokenizer.load(folder).digest
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ConfigError(
                f"synthesizer.snapshot = {str(folder)!r}: expected a Hugging Face folder: {error}"
            ) from None
        if digest != self.dataset.manifest.tokenizer_digest:
            raise ConfigError(
                f"synthesizer.snapshot = {str(folder)!r}: its tokenizer is not that of the data set "
                f"{self.dataset.path}; expected the same"
            )
        self._begin(model, folder.name, 0)
        return ""

    @property
    def _next(self) -> Config:
        return next_tuning(self.config, self._published)

    def _begin(self, model: PreTrainedModel, parent: str, parent_tokens: int) -> None:
        assert self.pairs is not None
        base = self._continue(model) if self.config.synthesizer.start == "continue" else None
        steps = tune(model, self.pairs, self.pair_loss, self._next, self.tokenizer.pad_id, self.device)
        self.candidate = Candidate(parent, parent_tokens, model, steps, time.monotonic(), base=base)

    def _over_budget(self) -> str:
        """Why another tuning would exceed `synthesizer.max_compute_share`, or ""."""
        limit = self.config.synthesizer.max_compute_share
        allowed = limit * self._trained_tokens
        needed = self._tuned_tokens + budget(self._next.synthesizer)
        if not limit or needed <= allowed:
            return ""
        return f"for more trained tokens: {needed:,} tuned ones would exceed synthesizer.max_compute_share = {limit:g}"

    def _continue(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Add what the last tuning learnt to the checkpoint's weights, which are returned as they were.

        Task arithmetic (Ilharco et al., Editing models with task arithmetic, ICLR 2023), with factor 1.
        """
        weights = model.state_dict()
        base = {name: weights[name].clone() for name, _ in model.named_parameters()}
        with torch.no_grad():
            for name, change in self._learnt.items():
                weights[name].add_(change)
        return base

    def _read_pairs(self) -> str:
        table = PairTable.load_made_from(self.run.pairs, self._wanted_pairs)
        if table is None:
            return "for the pair table"
        self.metrics.set("sbp_pairs", len(table))
        self.metrics.set("sbp_paired_documents", len(table.paired_documents()))
        heldout = np.flatnonzero(table.heldout)
        self.pairs = training_pairs(table, self.documents, self.prompter)
        if not len(self.pairs) or not len(heldout):
            found, self.pairs = len(self.pairs), None
            why = (read_json(self.run.pairs / STATISTICS_NAME) or {}).get("missing_because", "")
            return f"for pairs: the table has {found} for training and {len(heldout)} held out, expected both; {why}"
        shuffled = np.random.default_rng(self.config.run.seed).permutation(heldout)
        chosen = np.sort(shuffled[: self.config.synthesizer.heldout_pairs])
        judges = PairSequences(self.pairable, table.seed[chosen], table.target[chosen], self.prompter)
        self.pair_loss, self.unrelated_pair_loss = self._pair_loss(judges), self._pair_loss(Mismatched(judges))
        self.reference = self._read_reference(table, chosen)
        self.record("pairs_read", num_heldout=len(chosen), **asdict(self.pairs.cuts()))
        return ""

    def _pair_loss(self, pairs: Pairs) -> PairLoss:
        batch_tokens = self.config.synthesizer.batch_tokens
        return PairLoss(pairs, self.prompter.longest_pair_tokens, batch_tokens, self.tokenizer.pad_id)

    def _read_reference(self, table: PairTable, rows: np.ndarray) -> Reference:
        """What candidates are compared with: made once for a data set."""
        dataset, settings = self.dataset, self.config.synthesizer
        digest, max_tokens = dataset.manifest.digest, self.config.generator.max_new_tokens
        truth = Truth.of_dataset(dataset)
        found = Reference.load(self.run.reference, digest, self.documents, truth)
        if found is None:
            self.report("running", "indexing the corpus for the gate", **self._known())
            found = Reference.build(
                self.documents,
                sample_of(dataset.split("heldout"), max_tokens, TRIAL_SEED),
                [
                    (self.pairable.tokens(s)[: settings.max_seed_tokens], self.pairable.tokens(t)[:max_tokens])
                    for s, t in zip(table.seed[rows].tolist(), table.target[rows].tolist(), strict=True)
                ],
                self.tokenizer.vocab_size,
                self.config.gate.index_bytes,
                self.config.generator.max_copied_span,
                truth,
            )
            found.save(self.run.reference, digest)
        return found

    def _load(self, checkpoint: CheckpointInfo) -> PreTrainedModel | None:
        """The model of a checkpoint, fp32; None when it is damaged, or the trainer pruned it meanwhile."""
        try:
            problem = verify_checkpoint(checkpoint)
            if not problem:
                return self._read_model(checkpoint.model_path)
        except (OSError, TypeError, SafetensorError) as error:
            problem = f"{type(error).__name__}: {error}"
        log.warning("checkpoint %s passed over: %s", checkpoint.path.name, problem)
        self._passed_over.add(checkpoint.digest)
        return None

    def _read_model(self, folder: Path) -> PreTrainedModel:
        """fp32, on the device."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
        )
        model.to(self.device)  # type: ignore[arg-type]
        return model

    # --- tuning, one step a tick ---

    def _advance(self, candidate: Candidate) -> None:
        try:
            progress = next(candidate.steps, None)
        except TuningDiverged as error:
            candidate.error, progress = str(error), None
        if progress is None:
            self._judge(candidate)
            self.candidate = None  # unless the store was away: then it is judged again
            return
        if progress.step == 0:
            candidate.untuned_pair_loss = progress.best_pair_loss
        self._note(candidate, progress)

    def _note(self, candidate: Candidate, progress: TuningProgress) -> None:
        new_tokens = progress.tuned_tokens - (candidate.last.tuned_tokens if candidate.last else 0)
        candidate.last = progress
        self._tuned_tokens += new_tokens
        self.metrics.inc("sbp_tuning_tokens_total", new_tokens)
        if progress.pair_loss is not None:
            self.metrics.set("sbp_tuning_pair_loss", progress.pair_loss)
            self.record(
                "tuning",
                checkpoint=candidate.parent,
                parent_tokens=candidate.parent_tokens,
                step=progress.step,
                tuned_tokens=progress.tuned_tokens,
                train_loss=progress.train_loss,
                pair_loss=progress.pair_loss,
            )
        self.report(
            "running",
            f"tuning {candidate.parent}: pair loss {progress.best_pair_loss:.3f}",
            (progress.tuned_tokens, max(budget(self._next.synthesizer), 1), "tokens"),
            **self._known(),
        )

    # --- the gate ---

    def _judge(self, candidate: Candidate) -> None:
        """When the store is away, what was measured is kept for the next call."""
        folder = self.work / "model"
        if candidate.measured is None:
            candidate.tune_s, started = time.monotonic() - candidate.started, time.monotonic()
            self.report("running", f"trying the candidate from {candidate.parent}", **self._known())
            shutil.rmtree(self.work, ignore_errors=True)
            candidate.model.save_pretrained(folder)
            self.tokenizer.save(folder)
            candidate.measured = self._try(candidate, folder)
            candidate.gate_s = time.monotonic() - started
        if candidate.measured is None:
            return
        trial = self._decide(candidate.measured)
        digest, version = (
            self._publish(candidate, folder, trial)
            if trial.verdict.published
            else self._refuse(candidate, folder, trial)
        )
        self._handled_tokens = candidate.parent_tokens
        self._count(trial, candidate)
        self.record(
            "snapshot",
            verdict=str(trial.verdict),
            digest=digest,
            version=version,
            checkpoint=candidate.parent,
            parent_tokens=candidate.parent_tokens,
            measures=trial.measures,
            reasons=trial.verdict.reasons,
            serves=digest == self._pointer.digest if trial.verdict.published else None,
            pinned=self._pointer.pinned if trial.verdict.published else None,
            tune_s=round(candidate.tune_s, 2),
            gate_s=round(candidate.gate_s, 2),
            tuned_tokens=candidate.last.tuned_tokens if candidate.last else 0,
            num_pairs=self._num_pairs(),
        )

    def _try(self, candidate: Candidate, folder: Path) -> Measured | None:
        """Measure the saved candidate as a generator would serve it; None when a signal came."""
        if candidate.error:
            return Measured({}, None, candidate.error)
        precision = self.config.training.precision
        losses = {
            "pair_loss": self.pair_loss(candidate.model, self.device, precision),
            "untuned_pair_loss": candidate.untuned_pair_loss,
            "unrelated_pair_loss": self.unrelated_pair_loss(candidate.model, self.device, precision),
        }
        settings = self.config.generator
        rng = np.random.default_rng(TRIAL_SEED)
        num = min(self.config.gate.trial_documents, len(self.documents))
        seeds = [self.documents.tokens(i) for i in rng.choice(len(self.documents), num, replace=False).tolist()]
        try:
            self.engine.load(folder)
            prompts = [self.prompter.prompt(seed) for seed in seeds]
            batch = sample_trial(self.engine, seeds, prompts, Sampling.of(settings), TRIAL_SEED, self._alive)
        except FloatingPointError as error:
            return Measured({}, None, str(error))
        if batch is None:
            return None
        real = [seed[: settings.max_new_tokens] for seed in seeds]
        return Measured(losses | measure_trial(batch, real, settings, self.reference), batch)

    def _decide(self, measured: Measured) -> Trial:
        if measured.error:
            return Trial({}, Verdict.unusable(measured.error), None)
        serving = self.store.current()  # a person, or the trainer, may have gone back to an earlier one
        found = serving.measures if serving else None
        verdict = decide(measured.measures, found, self.config.gate, self.config.synthesizer.mode)
        return Trial(measured.measures, verdict, measured.batch)

    def _publish(self, candidate: Candidate, folder: Path, trial: Trial) -> tuple[str, int]:
        self._newest = self.store.publish(
            folder,
            parent_checkpoint=candidate.parent,
            parent_tokens=candidate.parent_tokens,
            num_pairs=self._num_pairs(),
            measures=trial.measures,
        )
        self._pointer = self.store.pointer()
        if candidate.base is not None:
            weights = candidate.model.state_dict()
            self._learnt = {name: weights[name] - before for name, before in candidate.base.items()}
        log.info("published snapshot %d from %s", self._newest.version, candidate.parent)
        try:
            self.store.prune(self.config.snapshots.keep_last)
        except SnapshotStoreUnavailable as error:  # nothing is lost: the next publication prunes
            self.metrics.inc("sbp_snapshot_store_failures_total")
            log.warning("no snapshot pruned: %s", error)
        return self._newest.digest, self._newest.version

    def _refuse(self, candidate: Candidate, folder: Path, trial: Trial) -> tuple[str, None]:
        digest = digest_of_folder(folder)
        self.quarantine.add(
            folder,
            digest,
            parent_checkpoint=candidate.parent,
            parent_tokens=candidate.parent_tokens,
            reasons=trial.verdict.reasons,
            measures=trial.measures,
            examples=self._examples(trial.batch),
        )
        log.warning("candidate %s quarantined: %s", digest, "; ".join(trial.verdict.reasons))
        return digest, None

    def _examples(self, batch: TrialBatch | None) -> list[dict[str, str]]:
        if batch is None:
            return []
        decode = self.tokenizer.decode
        pairs = zip(batch.seeds, batch.documents, strict=True)
        return [{"seed": decode(seed.tolist()), "document": decode(d.tokens.tolist())} for seed, d in pairs]

    # --- counts ---

    def _count(self, trial: Trial, candidate: Candidate) -> None:
        for measure in GATE_MEASURES:
            self.metrics.set("sbp_gate_measure", trial.measures.get(measure, math.nan), measure=measure)
        if trial.verdict.published:
            self._published += 1
            self.metrics.inc("sbp_snapshots_published_total")
            self._set_newest()
        else:
            self._quarantined += 1
            self.metrics.inc("sbp_snapshots_quarantined_total")
            for measure in trial.verdict.measures:
                self.metrics.inc("sbp_gate_reasons_total", measure=measure)

    def _set_newest(self) -> None:
        if self._newest:
            self.metrics.set("sbp_snapshot_parent_tokens", self._newest.parent_tokens)
            self.metrics.set("sbp_snapshot_version", self._newest.version)

    def _known(self) -> dict[str, Any]:
        return {
            "published": self._published,
            "quarantined": self._quarantined,
            "newest": _described(self._newest),
            "tuned_tokens": self._tuned_tokens,
            "compute_share": self._tuned_tokens / self._trained_tokens if self._trained_tokens else 0.0,
        }

    def _num_pairs(self) -> int:
        return len(self.pairs) if self.pairs is not None else 0

    def _alive(self) -> bool:
        """Between the steps of a trial: keep the status fresh, and say whether to go on."""
        self.report("running", self._detail, **self._known())
        return not self.stopping


def _described(info: SnapshotInfo | None) -> dict[str, object] | None:
    if info is None:
        return None
    return {name: getattr(info, name) for name in ("digest", "version", "parent_tokens", "measures")}


def main(run: RunDir, metrics_port: int = 0) -> int:
    torch.set_num_threads(1)
    return TunerService(run, metrics_port=metrics_port).main()

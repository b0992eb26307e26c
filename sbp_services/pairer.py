"""The pairer: finds the pairs of related documents, once, and ends. The embedder "self" waits for a checkpoint."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import faiss

from sbp_services.service import Service, log
from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.files import write_atomically
from streaming_sbp.pairing.embedders import SELF, require_embedder
from streaming_sbp.pairing.find import Found, PairingProgress, find_pairs
from streaming_sbp.pairing.pairs import FIGURE_NAME, STATISTICS_NAME, MadeFrom, PairTable, delete_table, made_from
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.text import duration

if TYPE_CHECKING:
    from streaming_sbp.training.checkpoint import CheckpointInfo

CHECKPOINT_EVERY_S = 1.0  # how often to look for the first one


class Stopped(Exception):
    """A signal came while pairs were sought."""


class PairerService(Service):
    role = "pairer"

    def startup(self) -> None:
        self.report("starting", "reading the data set")
        require_embedder(self.config.pairing.embedder)
        self.dataset = Dataset.open(self.config.data.dataset)
        self._phase, self._phase_started = "", 0.0

    def tick(self) -> bool:
        table = self._made_before()
        if table is not None:
            log.info("%s: the pairs of this data set and these settings are there", self.run.pairs)
            self._tell(table)
            return False
        checkpoint = self._checkpoint()
        if self.config.pairing.embedder == SELF and checkpoint is None:
            self.report("waiting", "for the first checkpoint, to embed with")
            self.sleep(CHECKPOINT_EVERY_S)
            return True
        started = time.monotonic()
        model = checkpoint.model_path if checkpoint else None
        try:
            found = find_pairs(
                self.dataset, self.config.pairing, self.config.run.seed, self._note, model, self.run.pairs
            )
        except Stopped:
            return False
        found.statistics["embedded_with"] = checkpoint.path.name if checkpoint else self.config.pairing.embedder
        found.table.save(self.run.pairs, self.dataset.pairable().ids, found.statistics)
        self._draw(found.statistics)
        self._conclude(found, time.monotonic() - started)
        return False

    def _checkpoint(self) -> CheckpointInfo | None:
        """The newest whole checkpoint, when the embedder needs one."""
        if self.config.pairing.embedder != SELF:
            return None
        from streaming_sbp.training.checkpoint import newest_checkpoint, verify_checkpoint  # brings torch: slow

        newest = newest_checkpoint(self.run.checkpoints)
        return newest if newest and not verify_checkpoint(newest) else None

    def _draw(self, statistics: dict[str, Any]) -> None:
        from streaming_sbp.experiment import plots  # matplotlib is slow to import, and may be missing

        plot = plots.similarity(statistics)
        if plot is not None:
            write_atomically(self.run.pairs / FIGURE_NAME, plot.png, durable=False)

    # --- an earlier table ---

    def _made_before(self) -> PairTable | None:
        """The table, if it is what these settings would find; another one is removed: nobody must tune on it."""
        wanted = made_from(self.dataset, self.config.pairing, self.config.run.seed)
        try:
            table = PairTable.load(self.run.pairs)
        except ConfigError as error:
            log.warning("%s", error)
            table = None
        if table is not None and table.made_from == wanted:
            return table
        if table is not None:
            log.warning("%s: pairs again: %s", self.run.pairs, "; ".join(_differences(table.made_from, wanted)))
        delete_table(self.run.pairs)
        return None

    # --- what others see ---

    def _note(self, progress: PairingProgress) -> None:
        if self.stopping:
            raise Stopped
        if progress.phase != self._phase:
            self._phase, self._phase_started = progress.phase, time.monotonic()
        total = progress.total or 0
        self.report("running", self._say(progress.done, total), (progress.done, total, progress.unit))

    def _say(self, done: int, total: int) -> str:
        if not 0 < done < total:
            return self._phase
        left_s = (time.monotonic() - self._phase_started) * (total - done) / done
        return f"{self._phase}: {duration(left_s)} left"

    def _conclude(self, found: Found, seconds: float) -> None:
        statistics = found.statistics
        self.record(
            "pairs",
            num_pairs=len(found.table),
            num_heldout_pairs=statistics["num_heldout_pairs"],
            num_paired_documents=statistics["num_documents_with_pair"],
            num_documents=statistics["num_documents"],
            num_near_duplicate_documents=statistics["num_near_duplicate_documents"],
            num_near_duplicate_pairs=statistics["num_near_duplicate_pairs"],
            num_pairs_across_the_cut_dropped=statistics["num_pairs_across_the_cut_dropped"],
            seconds=round(seconds, 3),
            seconds_by_phase=statistics["seconds"],
        )
        self._tell(found.table)
        log.info("%s in %s", self._detail, duration(seconds))
        self._warn(statistics)

    def _warn(self, statistics: dict[str, Any]) -> None:
        settings, wanted, there = (
            self.config.pairing,
            statistics["num_pairs_wanted"],
            statistics["num_pairs_to_choose_from"],
        )
        if wanted > there:
            log.warning(
                "pairing.pairs_per_document = %g asks for %s pairs, and there are %s above a similarity of 0: all are "
                "taken; raise pairing.max_targets_per_seed = %d, or ask for fewer",
                settings.pairs_per_document,
                f"{wanted:,}",
                f"{there:,}",
                settings.max_targets_per_seed,
            )
        if statistics["fewest_held_out"]:
            log.warning(
                "pairing.heldout_share = %g cannot be had: every neighbourhood is larger, or no pair would be left for "
                "training; held out is one pair of documents",
                settings.heldout_share,
            )
        if why := statistics["missing_because"]:
            log.warning("%s; %s has all counts", why, self.run.pairs / STATISTICS_NAME)

    def _tell(self, table: PairTable) -> None:
        num_documents = len(table.paired_documents())
        self.metrics.set("sbp_pairs", len(table))
        self.metrics.set("sbp_paired_documents", num_documents)
        self.report(
            "running",
            f"{len(table):,} pairs of {num_documents:,} documents",
            num_pairs=len(table),
            num_paired_documents=num_documents,
        )


def _differences(old: MadeFrom, new: MadeFrom) -> list[str]:
    """One line for each thing that the pairs depend on and that is another one now."""
    before = {"data set": old.dataset_digest, **old.settings}
    after = {"data set": new.dataset_digest, **new.settings}
    names = [*after, *(name for name in before if name not in after)]
    return [f"{n}: {before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n)]


def main(run: RunDir, metrics_port: int = 0) -> int:
    faiss.omp_set_num_threads(1)
    return PairerService(run, metrics_port=metrics_port).main()

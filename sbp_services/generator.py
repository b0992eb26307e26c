"""A generator: samples documents from the newest snapshot and streams them. Stateless: kill and restart at will."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from sbp_services.service import Service, log
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.files import read_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.messages import DocumentHeader, SamplingSettings
from streaming_sbp.stream.sender import Sender
from streaming_sbp.synthesizer import confidence
from streaming_sbp.synthesizer.engines import make_engine
from streaming_sbp.synthesizer.engines.base import Sampled, Sampling
from streaming_sbp.synthesizer.filters import DocumentFilter
from streaming_sbp.synthesizer.prompt import Prompter
from streaming_sbp.synthesizer.second_round import SecondRound, Seed
from streaming_sbp.synthesizer.seeds import SeedOrder
from streaming_sbp.synthesizer.snapshots import SnapshotError, SnapshotInfo, SnapshotStore, SnapshotStoreUnavailable
from streaming_sbp.telemetry.text import counted

LOOK_FOR_SNAPSHOTS_EVERY_S = 1.0
RETRY_SNAPSHOT_AFTER_S = 10.0
RECORD_EVERY_S = 5.0
BATCHES_AT_ONCE = 4  # sampled before looking for a newer snapshot; more keep the rows of a batch full for longer
LEASE_EVERY_S = 60.0  # well below snapshots.LEASE_S
ROUNDS_AHEAD = 4  # so many times as many seeds are asked for, so that granting them takes no time
POLL_S = 0.1  # longest wait for the stream at once: signals are seen within it
CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Document:
    seed: Seed
    header: DocumentHeader
    tokens: np.ndarray
    confidence: np.ndarray


class GeneratorService(Service):
    role = "generator"

    def __init__(self, run: RunDir, index: int, metrics_port: int = 0, connect: str | None = None):
        super().__init__(run, f"generator-{index}", metrics_port)
        self._index, self._connect = index, connect

    def startup(self) -> None:
        self.report("starting", "reading the data set")
        transformers_logging.disable_progress_bar()
        dataset = Dataset.open(self.config.data.dataset)
        self.documents, tokenizer = dataset.split("train"), dataset.tokenizer()
        self.prompter = Prompter(tokenizer, self.config.synthesizer)
        self.filter = DocumentFilter(self.config.generator)
        self.engine = make_engine(self.config.generator, tokenizer)
        self.store = SnapshotStore(self.config.snapshots.url or str(self.run.snapshots))
        self.serving: SnapshotInfo | None = None
        self.rng = np.random.default_rng((self.config.run.seed, self._index, time.time_ns()))
        self.second_round = SecondRound(self.config.generator, self.rng.spawn(1)[0])
        targets = self.config.generator.targets_per_seed
        self.order = SeedOrder(len(self.documents), self.config.run.seed, targets_per_seed=targets)
        self.outbox: deque[Document] = deque()  # sampled and passed, waiting for credit
        self.counts: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.blocked_s = self.busy_s = 0.0
        self._failed: tuple[str, float] = ("", 0.0)  # a digest that could not be loaded, and when to try again
        self._looked, self._recorded = 0.0, time.monotonic()
        self._leased = ("", 0.0)  # a digest, and when the lease was taken
        self._reader = f"{self.name}-{secrets.token_hex(4)}"
        self.sender = Sender(
            self.config.stream,
            self._endpoint,
            self.run.run_id,
            dataset.manifest.tokenizer_digest,
            tokenizer.vocab_size,
            self.name,
            ROUNDS_AHEAD * BATCHES_AT_ONCE * self.config.generator.batch_size,
        )
        self.record("start")  # what it counts begins at 0

    def tick(self) -> bool:
        self.sender.poll(0.0)
        self._swap_if_newer()
        self._send_waiting()
        if self.serving is None:
            self._tell("waiting", f"for the {self._store_problem or 'first snapshot'}")
            self.sender.poll(POLL_S)
        elif self.outbox:
            self._wait_for_credit()
        elif not len(self.sender.seeds):
            self._tell("waiting", "for seed documents")
            self.sender.poll(POLL_S)
        else:
            self._generate(self.serving)
        return True

    def shutdown(self) -> None:
        self._send_waiting()
        self._record_throughput()
        self.sender.close(CLOSE_TIMEOUT_S)
        with suppress(SnapshotError):
            self.store.release(self._reader)
        self._count_stream()

    # --- snapshots ---

    def _swap_if_newer(self) -> None:
        digest = self._newest_digest()
        failed_digest, try_again = self._failed
        if digest is None or (digest == failed_digest and time.monotonic() < try_again):
            return
        if self.serving is None or digest != self.serving.digest:
            self._lease(digest)
            self._swap(digest)
        self._lease(self.serving.digest if self.serving else digest)

    def _lease(self, digest: str) -> None:
        """So that it is not pruned. A store that cannot be written is only read: then pruning may be in the way."""
        leased, since = self._leased
        if leased == digest and time.monotonic() - since < LEASE_EVERY_S:
            return
        self._leased = (digest, time.monotonic())
        try:
            self.store.lease(self._reader, digest)
        except SnapshotStoreUnavailable as error:
            self.metrics.inc("sbp_snapshot_store_failures_total")
            log.warning("no lease on snapshot %s: %s", digest, error)

    def _newest_digest(self) -> str | None:
        """What the trainer announced last; until it has announced anything, what the store says."""
        if self.sender.announced is not None:
            return self.sender.announced.digest
        now = time.monotonic()
        if self.serving is None and now - self._looked >= LOOK_FOR_SNAPSHOTS_EVERY_S:
            try:
                current = self.store.current()
                self.note_store("")
            except SnapshotStoreUnavailable as error:
                current = None
                self.note_store(str(error))
            self._looked = time.monotonic() + (RETRY_SNAPSHOT_AFTER_S if self._store_problem else 0.0)
            return current.digest if current else None
        return None

    def _swap(self, digest: str) -> None:
        """Load a snapshot between two batches; when that fails, the old one serves on."""
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="sbp-snapshot-"))
        try:
            info = self.store.fetch(digest, folder)
            fetched = time.monotonic()
            self.engine.load(folder)
        except (SnapshotError, OSError, ValueError, RuntimeError, SafetensorError) as error:
            self._could_not_load(digest, str(error))
            return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.serving, ended = info, time.monotonic()
        self.counts["swaps"] += 1
        self.metrics.inc("sbp_snapshot_swaps_total")
        self.metrics.observe("sbp_snapshot_swap_seconds", ended - started)
        self.metrics.set("sbp_snapshot_serving_parent_tokens", info.parent_tokens)
        self.metrics.set("sbp_snapshot_version", info.version)
        self.record(
            "swap",
            digest=digest,
            version=info.version,
            parent_tokens=info.parent_tokens,
            load_s=round(ended - fetched, 4),
            pause_s=round(ended - started, 4),
        )

    def _could_not_load(self, digest: str, reason: str) -> None:
        self._failed = (digest, time.monotonic() + RETRY_SNAPSHOT_AFTER_S)
        self.metrics.inc("sbp_snapshot_load_failures_total")
        self.record("swap_failed", digest=digest, reason=reason)
        log.warning("snapshot %s cannot be loaded; what served before serves on: %s", digest, reason)

    # --- documents ---

    def _generate(self, snapshot: SnapshotInfo) -> None:
        """Sample a few batches from this snapshot, sending what passes the filter as it comes."""
        settings = self.config.generator
        num_real = self.second_round.num_real(BATCHES_AT_ONCE * settings.batch_size)
        positions = self.sender.seeds.take(num_real)
        seeds = [self._real_seed(position) for position in positions]
        seeds += self.second_round.draw(len(seeds), snapshot.digest, self.sender.is_settled)
        self.counts["second_round"] += len(seeds) - len(positions)
        prompts = [self.prompter.prompt(seed.tokens) for seed in seeds]
        self.counts["prompt_tokens"] += sum(map(len, prompts))
        unfinished, started = set(range(len(positions))), time.monotonic()
        try:
            for ended in self.engine.stream(prompts, Sampling.of(settings), int(self.rng.integers(2**63))):
                for i, document in ended:
                    unfinished.discard(i)
                    self._take(seeds[i], document, snapshot)
                took, started = time.monotonic() - started, time.monotonic()
                self.busy_s += took
                self.metrics.inc("sbp_generator_busy_seconds_total", took)
                self._serve_stream(snapshot)
                if self.stopping:
                    return
        except FloatingPointError as error:
            self.serving = None
            self._could_not_load(snapshot.digest, str(error))
        finally:
            self.sender.seeds.put_back(positions[i] for i in unfinished)

    def _serve_stream(self, snapshot: SnapshotInfo) -> None:
        """Between the steps of sampling: heartbeats, acknowledgements and credit, status."""
        self.sender.poll(0.0)
        self._send_waiting()
        self._tell("running", f"snapshot {snapshot.version}")

    def _real_seed(self, position: int) -> Seed:
        index = self.order.document(position)
        return Seed(index, self.documents.tokens(index), position)

    def _take(self, seed: Seed, document: Sampled, snapshot: SnapshotInfo) -> None:
        self._count_sampled(document)
        if reason := self.filter.reason(document, seed.tokens, *self._begin_of(seed)):
            self._done_with(seed)
            self.filtered[reason] += 1
            self.metrics.inc("sbp_filtered_documents_total", reason=reason)
        else:
            self.outbox.append(self._document(seed, document, snapshot))

    def _begin_of(self, seed: Seed) -> list[np.ndarray]:
        """The real document at the begin of the line, where ``seed`` is not that one."""
        return [self.documents.tokens(seed.document)] if seed.depth else []

    def _done_with(self, seed: Seed) -> None:
        if seed.position is not None:
            self.sender.seeds.done(seed.position)

    def _document(self, seed: Seed, document: Sampled, snapshot: SnapshotInfo) -> Document:
        settings = self.config.generator
        header = DocumentHeader(
            seed_id=self.documents.ids[seed.document],
            snapshot=snapshot.digest,
            parent_tokens=snapshot.parent_tokens,
            sampling=SamplingSettings(temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k),
            log_likelihood=float(document.log_probs.mean()),
            num_tokens=len(document.tokens),
            num_prompt_tokens=len(self.prompter.prompt(seed.tokens)),
            seed_position=seed.position,
            depth=seed.depth + 1,
            seed_seq=seed.seq,
        )
        return Document(seed, header, document.tokens, confidence.quantised(document.log_probs))

    def _send_waiting(self) -> None:
        while self.outbox and self.sender.credit > 0:
            document = self.outbox.popleft()
            seq = self.sender.send(document.header, document.tokens, document.confidence)
            self._done_with(document.seed)
            self.second_round.sent(seq, document.header.snapshot, document.seed, document.tokens)
            self.counts["sent"] += 1
            self.metrics.inc("sbp_sent_documents_total")

    def _wait_for_credit(self) -> None:
        started = time.monotonic()
        self._tell("waiting", f"for credit: {counted(len(self.outbox), 'document')} ready")
        self.sender.poll(POLL_S)
        waited = time.monotonic() - started
        self.blocked_s += waited
        self.metrics.inc("sbp_generator_blocked_seconds_total", waited)

    def _endpoint(self) -> str | None:
        """Where the trainer of this run listens now; None while there is none."""
        if self._connect:
            return self._connect
        try:
            status = read_json(self.run.roles / "trainer.json") or {}
        except ValueError:
            return None  # the file of a machine that crashed; the trainer rewrites it
        return status.get("facts", {}).get("stream_endpoint")

    # --- counts ---

    def _count_sampled(self, document: Sampled) -> None:
        self.counts["documents"] += 1
        self.counts["tokens"] += len(document.tokens)
        self.metrics.inc("sbp_generated_documents_total")
        self.metrics.inc("sbp_generated_tokens_total", len(document.tokens))

    def _tell(self, state: str, detail: str) -> None:
        self._count_stream()
        if time.monotonic() - self._recorded >= RECORD_EVERY_S:
            self._record_throughput()
        self.report(state, detail, **self._known())

    def _count_stream(self) -> None:
        self.metrics.set("sbp_unacknowledged_documents", self.sender.unacknowledged)
        self.metrics.inc("sbp_resent_documents_total", self.sender.num_resent - self.counts["resent"])
        self.counts["resent"] = self.sender.num_resent

    def _throughput(self) -> dict[str, Any]:
        busy_s = max(self.busy_s, 1e-9)
        return {
            "documents": self.counts["documents"],
            "second_round": self.counts["second_round"],
            "sent": self.counts["sent"],
            "filtered": dict(self.filtered),
            "tokens": self.counts["tokens"],
            "prompt_tokens": self.counts["prompt_tokens"],
            "tokens_per_second": round(self.counts["tokens"] / busy_s, 1),
            "documents_per_second": round(self.counts["documents"] / busy_s, 2),
            "blocked_s": round(self.blocked_s, 2),
        }

    def _record_throughput(self) -> None:
        self._recorded = time.monotonic()
        self.record("throughput", **self._throughput())

    def _known(self) -> dict[str, Any]:
        serving = self.serving
        snapshot = serving and {
            "digest": serving.digest,
            "version": serving.version,
            "parent_tokens": serving.parent_tokens,
        }
        return {"snapshot": snapshot, "swaps": self.counts["swaps"], **self._throughput()}


def main(run: RunDir, index: int, metrics_port: int = 0, connect: str | None = None) -> int:
    torch.set_num_threads(1)
    return GeneratorService(run, index, metrics_port, connect).main()

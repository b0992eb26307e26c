"""Writes the records and role files of a plausible run through the real RunDir and Recorder."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streaming_sbp import config as configuration
from streaming_sbp.config import Config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.ingest import ingest
from streaming_sbp.files import write_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import DocumentHeader, SamplingSettings
from streaming_sbp.stream.shards import AcceptedDocument

SECOND_TOKENS = 20_000  # trained per second
RECORD_EVERY_S = 2.0
SHARE = 0.3
DIED_AT = 0.6  # of the run: generator-1
# (parent tokens, seconds to tune, verdict)
TUNINGS = (
    (500_000, 30, "published"),
    (1_500_000, 32, "quarantined"),
    (2_500_000, 35, "published"),
    (4_000_000, 33, "published"),
)
DIGESTS = tuple(f"{k:x}" * 64 for k in (10, 11, 12, 13))
SERVING = {"digest": DIGESTS[-1], "version": 3, "parent_tokens": TUNINGS[-1][0], "pinned": False}


def make_run(folder: Path, overrides: tuple[str, ...] = ()) -> RunDir:
    defaults = (f"run.dir={folder}", f"data.dataset={folder.parent / 'dataset'}", "training.total_tokens=6000000")
    settings: Config = configuration.load(overrides=(*defaults, "generator.count=2", *overrides))
    return RunDir.open_or_create(settings)


def add_documents(
    run: RunDir, pairs: list[tuple[str, str]], group: int = 4, seed_seqs: Mapping[int, int] | None = None
) -> None:
    """Ingest the seeds of ``pairs`` (seed text, synthetic text) as the run's data set, and journal the others.

    ``seed_seqs``: document -> the earlier document that seeded it, where that is a synthetic one.

    Document ``i`` is number ``i`` of generator-0, from the published snapshots in turn, with log-likelihood ``-1 - i``.
    """
    config = run.config()
    corpus = run.path.parent / "seeds.jsonl"
    corpus.write_text("".join(json.dumps({"text": seed}) + "\n" for seed, _ in pairs), encoding="utf-8")
    settings = {"source": "jsonl", "inputs": (str(corpus),), "vocab_size": 400, "heldout_share": 0.0}
    ingest(config.data.model_copy(update=settings))
    dataset = Dataset.open(config.data.dataset)
    tokenizer, ids = dataset.tokenizer(), dict(zip(_texts(dataset), dataset.split("train").ids, strict=True))
    published = [digest for digest, (_, _, verdict) in zip(DIGESTS, TUNINGS, strict=True) if verdict == "published"]
    documents: list[AcceptedDocument] = []
    for seq, (seed, text) in enumerate(pairs):
        seed_seq = (seed_seqs or {}).get(seq)
        tokens = np.array(tokenizer.encode(text), dtype="<u2")
        header = DocumentHeader(
            seed_id=ids[seed],
            snapshot=published[seq % len(published)],
            parent_tokens=500_000,
            sampling=SamplingSettings(temperature=0.9, top_p=0.95, top_k=0),
            log_likelihood=-1.0 - seq,
            num_tokens=len(tokens),
            num_prompt_tokens=9,
            depth=1 if seed_seq is None else documents[seed_seq].header.depth + 1,
            seed_seq=seed_seq,
        )
        documents.append(AcceptedDocument("generator-0", "s0", seq, header, tokens, np.zeros(len(tokens), np.uint8)))
    journal = Journal(run.journal, writable=True)
    for first in range(0, len(documents), group):
        journal.append(documents[first : first + group])


def _texts(dataset: Dataset) -> list[str]:
    split, tokenizer = dataset.split("train"), dataset.tokenizer()
    return [tokenizer.decode(split.tokens(i)) for i in range(len(split))]


@dataclass
class RecordWriter:
    """One role's records at chosen times; the Recorder itself only knows the present."""

    run: RunDir
    role: str

    def __post_init__(self) -> None:
        self._record = self.run.record(self.role)

    def __call__(self, at: float, event: str, **fields: Any) -> None:
        self._record(event, time=round(at, 3), **fields)


@dataclass
class FakeRun:
    """A run of ``seconds`` that ended just now. ``synthetic=False`` leaves out everything but the trainer."""

    run: RunDir
    seconds: int = 300
    synthetic: bool = True
    resume_at_s: int | None = None  # the trainer falls back to the checkpoint before, and trains on
    finished: bool = True
    pid: int = 0  # of every role; 0: they have ended
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def write(self) -> None:
        self.started = time.time() - self.seconds
        self.swaps = []
        if self.synthetic:
            self._tuner()
            self._generators()
            self._supervisor()
        self._trainer()

    def role_file(self, name: str, state: str, **fields: Any) -> None:
        status = {
            "role": name.split("-")[0],
            "name": name,
            "pid": self.pid or 2**22 + 1,
            "state": state,
            "detail": "",
            "progress": None,
            "metrics_port": 9100,
            "started": self.started,
            "updated": time.time(),
            "rss_bytes": 700 * 2**20,
            "peak_rss_bytes": 900 * 2**20,
            "cpu_seconds": 0.8 * self.seconds,
            "facts": {},
        }
        write_json(self.run.roles / f"{name}.json", status | fields, durable=False)

    # --- roles ---

    def _trainer(self) -> None:
        record = RecordWriter(self.run, "trainer")
        record(self.started, "start", step=0, tokens=0, resumed_from=None)
        tokens, mixed, trained_synthetic, next_eval, offset, process_began = 0, 0, 0, 0, 0.0, 0.0
        fields: dict[str, Any] = {}
        first_trained: dict[str, int] = {}
        for k in range(int(self.seconds / RECORD_EVERY_S)):
            second = (k + 1) * RECORD_EVERY_S
            at = self.started + second
            if self.resume_at_s and not offset and second >= self.resume_at_s:
                offset, process_began = 30 * SECOND_TOKENS, second
                resumed = int(tokens - offset)
                record(at, "start", step=0, tokens=resumed, resumed_from="step-00000400")
                first_trained = {
                    digest: at_tokens for digest, at_tokens in first_trained.items() if at_tokens <= resumed
                }
                next_eval = min(next_eval, resumed)
            tokens = int(second * SECOND_TOKENS - offset)
            first = self.swaps[0][1] * SECOND_TOKENS if self.swaps else math.inf
            mixed = max(0, tokens - first)
            trained_synthetic = int(mixed * SHARE + self.random.uniform(-150, 150)) if mixed > 0 else 0
            fields = self._train_fields(tokens, trained_synthetic, mixed, second - process_began)
            record(at, "train", **fields)
            if tokens >= next_eval:
                loss = self._loss(tokens) + 0.08
                record(
                    at, "eval", step=tokens // 4096, tokens=tokens, heldout_loss=loss, heldout_bits_per_byte=loss / 2.9
                )
                next_eval = tokens + 300_000
            for digest, swapped in self.swaps:
                if second >= swapped + 4 and digest not in first_trained:
                    first_trained[digest] = tokens
                    record(at, "first_trained", snapshot=digest, parent_tokens=500_000, tokens=tokens)
        if self.finished:
            record(self.started + self.seconds, "finish", step=1, tokens=tokens, reason="total_tokens reached")
        self._trainer_role(tokens, fields)

    def _train_fields(self, tokens: int, synthetic: int, mixed: float, second: float) -> dict[str, Any]:
        noise = self.random.gauss(0, 0.05)
        documents = synthetic // 140
        sent = documents + 40
        return {
            "step": tokens // 4096,
            "tokens": tokens,
            "loss": {
                "real": self._loss(tokens) + noise,
                "synthetic": self._loss(tokens) - 0.3 + noise if synthetic else None,
            },
            "trained_tokens": {"real": tokens - synthetic, "synthetic": synthetic},
            "trained_documents": {"real": (tokens - synthetic) // 210, "synthetic": documents},
            "scheduled_share": SHARE if mixed > 0 else 0.0,
            "current_share": SHARE if mixed > 0 else 0.0,
            "realised_share": synthetic / mixed if mixed > 0 else 0.0,
            "deviation_tokens": abs(self.random.gauss(0, 90)) if mixed > 0 else 0.0,
            "debt_tokens": 0,
            "forgiven_tokens": 0,
            "truncated_tokens": 12,
            "learning_rate": 3e-3,
            "gradient_norm": 0.9,
            "tokens_per_second": SECOND_TOKENS + 900 * noise / 0.05,
            "phases": {
                "data_wait": 0.01 * second,
                "forward_backward": 0.82 * second,
                "optimizer": 0.06 * second,
                "evaluate": 0.05 * second,
                "checkpoint": 0.02 * second,
                "other": 0.04 * second,
            },
            "padding_tokens": tokens // 300,
            "real_epochs": tokens / 4e6,
            "ledger": {"sent": sent, "trained": documents, "buffered": 30, "in_flight": 7, "dropped": 3, "imbalance": 0}
            if synthetic
            else {},
            "buffered": 30 if synthetic else 0,
        }

    def _loss(self, tokens: int) -> float:
        return 3.1 + 5.9 * math.exp(-tokens / 700_000) + 1.0 * math.exp(-tokens / 4e6)

    def _trainer_role(self, tokens: int, fields: dict[str, Any]) -> None:
        by_generator = {"generator-0": fields["ledger"], "generator-1": {"sent": 0}}
        ledger = fields["ledger"] | {
            "dropped_by_reason": {"malformed": 0, "lost_with_generator": 3},
            "by_generator": by_generator,
            "trained_by_depth": {"1": fields["ledger"].get("trained", 0)},
        }
        trained_from = {digest: 400 * (k + 1) for k, (digest, _) in enumerate(self.swaps)}
        facts = {
            "step": tokens // 4096,
            "tokens": tokens,
            "total_tokens": 6_000_000,
            "ledger": ledger if self.synthetic else {},
            "mix": {
                "scheduled": fields["scheduled_share"],
                "current": fields["current_share"],
                "realised": fields["realised_share"],
                "trained_tokens": fields["trained_tokens"],
                **{
                    key: fields[key]
                    for key in ("deviation_tokens", "debt_tokens", "forgiven_tokens", "truncated_tokens")
                },
            },
            "loss": {
                "train_real": fields["loss"]["real"],
                "train_synthetic": fields["loss"]["synthetic"],
                "heldout_real": 3.4,
                "heldout_bits_per_byte": 1.2,
            },
            "snapshots": {"trained_from": trained_from, "serving": SERVING if self.synthetic else None},
            "tokens_per_second": 20_100.0,
            "data_wait_share": 0.011,
            "staleness_tokens": 640_000,
            "peers": 2,
            "buffered": 30,
            "real_epochs": 1.5,
        }
        progress = {"done": tokens, "total": 6_000_000, "unit": "tokens"}
        state = "done" if self.finished else "running"
        self.role_file("trainer", state, detail=f"step {tokens // 4096}", progress=progress, facts=facts)

    def _tuner(self) -> None:
        record = RecordWriter(self.run, "tuner")
        version = 0
        for digest, (parent, tune_s, verdict) in zip(DIGESTS, TUNINGS, strict=True):
            begun = self.started + parent / SECOND_TOKENS + 2
            for step in range(1, 7):
                at = begun + step * tune_s / 6
                record(
                    at,
                    "tuning",
                    checkpoint="step-1",
                    parent_tokens=parent,
                    step=20 * step,
                    tuned_tokens=60_000 * step,
                    train_loss=3.0,
                    pair_loss=3.1 - 0.1 * step,
                )
            version += verdict == "published"
            self._verdict(record, begun + tune_s + 4, digest, parent, tune_s, verdict, version)
            if verdict == "published":
                self.swaps.append((digest, parent / SECOND_TOKENS + tune_s + 9))
        self.role_file(
            "tuner",
            "done" if self.finished else "running",
            detail="tuning the checkpoint at 5.5M tokens, held-out pair loss 2.471",
            progress={"done": 240_000, "total": 400_000, "unit": "tokens"},
            facts={"published": 3, "quarantined": 1, "tuned_tokens": 960_000, "compute_share": 0.16},
        )

    def _verdict(
        self, record: RecordWriter, at: float, digest: str, parent: int, tune_s: int, verdict: str, version: int
    ) -> None:
        published = verdict == "published"
        measures = {
            "pair_loss": 3.0 - parent / 8e6,
            "repetitive_share": 0.06 if published else 0.41,
            "copied_share": 0.02,
            "duplicate_share": 0.0,
            "empty_share": 0.03,
            "mean_tokens": 118.5,
        }
        record(
            at,
            "snapshot",
            verdict=verdict,
            digest=digest,
            version=version if published else None,
            parent_tokens=parent,
            measures=measures,
            reasons=[] if published else ["repetitive_share 0.41 is above gate.max_repetitive_share 0.25"],
            tune_s=tune_s,
            gate_s=3.8,
            tuned_tokens=360_000,
            num_pairs=21_000,
        )

    def _generators(self) -> None:
        for index in range(2):
            name = f"generator-{index}"
            record = RecordWriter(self.run, name)
            for version, (digest, second) in enumerate(self.swaps, start=1):
                record(
                    self.started + second + index,
                    "swap",
                    digest=digest,
                    version=version,
                    parent_tokens=TUNINGS[0][0],
                    load_s=0.4,
                    pause_s=0.45,
                )
            first = self.swaps[0][1]
            died_s = DIED_AT * self.seconds
            for second in range(int(first) + 5, self.seconds, 5):
                began = died_s + 1 if index == 1 and second > died_s else first  # generator-1 is killed and restarted
                k = int((second - began) / 5)
                sent = 60 * (k + 1)
                filtered = {"unfinished": 4 * k, "too_short": k, "repetitive": k, "copied": 0, "duplicate": 0}
                documents = sent + sum(filtered.values())
                record(
                    self.started + second,
                    "throughput",
                    documents=documents,
                    sent=sent,
                    filtered=filtered,
                    tokens=documents * 130,
                    tokens_per_second=2_000.0 + 300 * index,
                    documents_per_second=14.0,
                    blocked_s=0.5 * k,
                )
            self.role_file(
                name,
                "done" if self.finished else "running",
                detail="sampling 32 documents from snapshot v3",
                facts={
                    "documents_per_second": 13.4,
                    "tokens_per_second": 2_000.0,
                    "swaps": 3,
                    "filtered": {"unfinished": 4, "too_short": 1},
                },
            )

    def _supervisor(self) -> None:
        record = RecordWriter(self.run, "supervisor")
        for k, name in enumerate(("trainer", "pairer", "tuner", "generator-0", "generator-1")):
            record(self.started - 1, "role_started", name=name, pid=100 + k)
        died = self.started + DIED_AT * self.seconds
        record(died, "role_died", name="generator-1", pid=104, exit_code=-9, restart_in_s=1.0)
        record(died + 1, "role_started", name="generator-1", pid=105)
        self.role_file("supervisor", "done" if self.finished else "running", detail="5 of 5 processes run")
        self.role_file("pairer", "done", detail="21,331 pairs of 9,870 documents", facts={"num_pairs": 21_331})
        RecordWriter(self.run, "pairer")(self.started + 12, "pairs", num_pairs=21_331, num_paired_documents=9_870)

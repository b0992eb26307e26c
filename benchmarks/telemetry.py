"""What metrics and records cost the trainer: blocks of steps in turn with and without them, then one JSON line.

    python -m benchmarks.telemetry [BLOCKS] [section.key=value ...]

The demo's model, batch and mix on a small corpus, with synthetic documents in the journal. In blocks "with", every step
is counted, a window is closed every two seconds, with its record and the status file, and /metrics is read every second
by another thread. CPU time of the process is compared, since wall time depends on what else the machine does:
``overhead`` is what the calls took in the training thread over the CPU time of the steps; ``overhead_of_blocks`` the
median over pairs of blocks, everything included, with the half width of its 95 % interval.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streaming_sbp import config as configuration
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.files import write_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.ledger import SessionLedger
from streaming_sbp.stream.messages import DocumentHeader, SamplingSettings
from streaming_sbp.stream.shards import AcceptedDocument
from streaming_sbp.telemetry.catalogue import PHASES
from streaming_sbp.telemetry.health import HealthServer
from streaming_sbp.telemetry.metrics import Metrics
from streaming_sbp.training.build import build_trainer
from streaming_sbp.training.loop import PhaseClock, Trainer
from streaming_sbp.training.report import TrainingReport
from streaming_sbp.training.world import World
from tests.checks import runs
from tests.conftest import tiny_overrides

BLOCK_S = 3.0  # CPU time of a block
WINDOW_S = 2.0
SCRAPE_EVERY_S = 1.0
SCRAPES = 300
DOCUMENTS = 4096
BUFFERED = 512  # accepted and not yet mixed
SHAPE = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "max_position_embeddings")


def demo_settings(folder: Path, overrides: list[str]) -> configuration.Config:
    """The demo's model and batch on the small corpus of the tests."""
    demo = configuration.load(preset="demo")
    shape = [f"model.{key}={getattr(demo.model, key)}" for key in SHAPE]
    training = [f"training.{key}={getattr(demo.training, key)}" for key in ("sequence_tokens", "batch_sequences")]
    more = ["mix.synthetic_share=0.3", "training.total_tokens=1000000000"]
    return configuration.load(overrides=[*tiny_overrides(folder), *shape, *training, *more, *overrides])


def fill(journal: Journal, dataset: Dataset) -> None:
    """With real documents, as if a generator had written them."""
    split, sampling = dataset.split("train"), SamplingSettings(temperature=1.0, top_p=0.9, top_k=0)
    documents = []
    for seq in range(DOCUMENTS):
        tokens = np.asarray(split.tokens(seq % len(split)), "<u2")
        header = DocumentHeader(split.ids[seq % len(split)], f"{seq // 1000:032x}", 0, sampling, -2.0, len(tokens), 2)
        documents.append(AcceptedDocument("generator-0", "s", seq, header, tokens, np.zeros(len(tokens), np.uint8)))
    for first in range(0, DOCUMENTS, 256):
        journal.append(documents[first : first + 256])


class Telemetry:
    """What the trainer's service does beside training, and how long that takes."""

    def __init__(self, trainer: Trainer, journal: Journal, run: RunDir, settings: configuration.Config):
        self.metrics = Metrics("trainer")
        self._report = TrainingReport(trainer, journal, settings, self.metrics)
        self._record, self._run, self._trainer = run.record("trainer"), run, trainer
        self._last = time.monotonic()
        self.seconds = 0.0

    def note(self, step: Any) -> None:
        started = time.thread_time()
        self._report.step(step)
        if time.monotonic() - self._last >= WINDOW_S:
            self._last = time.monotonic()
            num_trained = self._trainer.batches.sources["synthetic"].cursor
            accepted = min(num_trained + BUFFERED, DOCUMENTS)
            sessions = [SessionLedger("generator-0", "s", accepted, accepted, alive=True)]
            self._record("train", **self._report.close_window(sessions, accepted))
            write_json(self._run.roles / "trainer.json", self._report.facts(), durable=False)
        self.seconds += time.thread_time() - started


def block(trainer: Trainer, telemetry: Telemetry | None) -> tuple[float, int]:
    """CPU seconds of the process, and steps."""
    started, steps = time.process_time(), 0
    while (used := time.process_time() - started) < BLOCK_S:
        step = trainer.step()
        steps += 1
        if telemetry:
            telemetry.note(step)
    return used, steps


def read(port: int) -> bytes:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=accept)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
    return content


def scrapes(port: int) -> dict[str, float]:
    seconds = []
    for _ in range(SCRAPES):
        started = time.monotonic()
        text = read(port)
        seconds.append(time.monotonic() - started)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    p50, p99 = np.quantile(seconds, (0.5, 0.99))
    return {"series": series, "scrape_p50_ms": round(1e3 * p50, 2), "scrape_p99_ms": round(1e3 * p99, 2)}


def measure(folder: Path, blocks: int, overrides: list[str]) -> dict[str, Any]:
    runs.prepare(folder)
    settings = demo_settings(folder, overrides)
    run = RunDir.open_or_create(settings)
    dataset, journal = Dataset.open(settings.data.dataset), Journal(run.journal, writable=True)
    fill(journal, dataset)
    trainer = build_trainer(settings, dataset, journal, run.pairs, torch.device("cpu"), PhaseClock(PHASES), World())
    trainer.batches.start_schedule()
    telemetry = Telemetry(trainer, journal, run, settings)
    server = HealthServer(telemetry.metrics.registry, str, str, "127.0.0.1")
    scraping, ended = threading.Event(), threading.Event()

    def scrape() -> None:
        while not ended.wait(SCRAPE_EVERY_S):
            if scraping.is_set():
                read(server.port)

    reader = threading.Thread(target=scrape)
    reader.start()
    block(trainer, None)  # warm up
    ratios, cpu_s, num_steps = [], 0.0, 0
    for number in range(blocks):
        costs = {}
        for on in (True, False) if number % 2 else (False, True):
            if on:
                scraping.set()
            used, steps = block(trainer, telemetry if on else None)
            scraping.clear()
            costs[on] = used / steps
            if on:
                cpu_s, num_steps = cpu_s + used, num_steps + steps
        ratios.append(costs[True] / costs[False] - 1)
        print(f"pair {number}: {costs[False]:.4f} s a step, {ratios[-1]:+.3%}", file=sys.stderr, flush=True)
    ended.set()
    reader.join()
    error = 1.253 * statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    result = {
        "step_cpu_s": round(cpu_s / num_steps, 5),
        "steps_with": num_steps,
        "telemetry_cpu_us_per_step": round(1e6 * telemetry.seconds / num_steps, 1),
        "overhead": round(telemetry.seconds / cpu_s, 6),
        "overhead_of_blocks": round(statistics.median(ratios), 5),
        "overhead_of_blocks_95": round(1.96 * error, 5),
        **scrapes(server.port),
    }
    server.close()
    return result


def main() -> None:
    arguments = sys.argv[1:]
    blocks = int(arguments.pop(0)) if arguments and "=" not in arguments[0] else 8
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"blocks": blocks, **measure(Path(folder), blocks, arguments)}))


if __name__ == "__main__":
    main()

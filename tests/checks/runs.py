"""What the two checks share: a tiny corpus and configuration, processes of a run, and the comparison of histories."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streaming_sbp import config as configuration
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.training.build import build_batches
from streaming_sbp.training.history import PastStep, read_steps
from tests.conftest import tiny_overrides, write_corpus

WITHIN_S = 240
# a model that trains in milliseconds a step, a synthesizer that passes any gate, checkpoints many times a minute
SETTINGS = [
    "training.total_tokens=100000000",
    "checkpoint.every_tokens=40000",
    "evaluation.every_tokens=200000",
    "mix.synthetic_share=0.3",
    'mix.confidence="grounded"',  # what is a target depends on the documents before, and on the seed document
    "mix.min_confidence=0.9",
    "pairing.threshold=0.2",
    "pairing.dimensions=32",
    "synthesizer.tuning_tokens=20000",
    "synthesizer.batch_tokens=1024",
    "synthesizer.evaluate_every_steps=5",
    "synthesizer.heldout_pairs=16",
    "gate.trial_documents=8",
    "gate.max_repetitive_share=1.0",
    "gate.max_empty_share=1.0",
    "gate.max_copied_share=1.0",
    "gate.max_duplicate_share=1.0",
    "gate.max_unfinished_share=1.0",
    "gate.max_pair_loss_increase=10.0",
    "gate.max_corpus_13gram_excess=1.0",
    "gate.max_corpus_copied_excess=1.0",
    "gate.min_relatedness_ratio=0",
    "gate.min_distinct_ratio=0",
    "gate.min_length_ratio=0",
    "gate.max_length_ratio=1000",
    "generator.batch_size=16",
    "generator.max_repetition=1.0",
    "generator.max_copied_span=1.0",
    "stream.capacity_documents=256",
    "stream.dead_after_s=5",
    "supervisor.background_nice=0",  # the trainer of a busy machine leaves the others their share
    "supervisor.max_restarts=100000",
    "supervisor.backoff_s=0.2",
    "supervisor.max_backoff_s=1",
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def prepare(folder: Path) -> None:
    """The corpus and its data set, made once."""
    from streaming_sbp.data.ingest import ingest

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "corpus.jsonl").exists():
        write_corpus(folder / "corpus.jsonl")
    ingest(configuration.load(overrides=tiny_overrides(folder)).data)


def settings(folder: Path, name: str, *extra: str) -> list[str]:
    """The overrides of the run ``folder/name``."""
    return [*tiny_overrides(folder), *SETTINGS, f'run.dir="{folder / name}"', *extra]


def make_run(folder: Path, name: str, *extra: str) -> RunDir:
    """A run directory made anew."""
    shutil.rmtree(folder / name, ignore_errors=True)
    return RunDir.open_or_create(configuration.load(overrides=settings(folder, name, *extra)))


def spawn(log: Path, *command: str) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT
        )


def train(run: RunDir, ranks: int = 1) -> subprocess.Popen[bytes]:
    """`sbp train --config RUN/config.toml`, under torchrun for more than one rank (which takes --run for its own)."""
    arguments = ["sbp_services", "train", "--config", str(run.path / "config.toml")]
    if ranks > 1:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        return spawn(run.logs / "train.log", "-m", *torchrun, *arguments)
    return spawn(run.logs / "train.log", "-m", *arguments)


def wait_for(what: str, happened: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        if value := happened():
            return value
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"a process ended with status {process.returncode} before: {what}")
        time.sleep(0.05)
    raise TimeoutError(f"not within {WITHIN_S} s: {what}")


def end(process: subprocess.Popen[bytes], number: int) -> None:
    process.send_signal(number)
    process.wait(120)


def kill_all(folder: Path) -> None:
    """End every process of the runs in ``folder`` that is still there."""
    for path in folder.glob("*/run.json"):
        pids = [found["pid"] for found in RunDir(path.parent).read_roles().values() if "pid" in found]
        for pid in pids:
            try:
                if str(folder) in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass


def train_until(run: RunDir, step: int, ranks: int = 1, number: int = signal.SIGTERM) -> None:
    """Train until this step is logged, then send the signal."""
    process = train(run, ranks)
    wait_for(f"step {step} of {run.path.name}", lambda: num_steps(run) >= step, process)
    end(process, number)


def num_steps(run: RunDir) -> int:
    """Steps logged; a partial last line counts."""
    try:
        return run.steps.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def steps(run: RunDir) -> list[PastStep]:
    return list(read_steps(run.steps))


def num_different(expected: list[PastStep], found: list[PastStep], *, losses: bool) -> int:
    """Steps whose batch (or loss, bit for bit) differs, over those that both have."""
    pairs = zip(expected, found, strict=False)
    return sum(a.digest != b.digest or (losses and a.loss != b.loss) for a, b in pairs)


def uninterrupted_digests(run: RunDir) -> tuple[list[str], list[int], Any]:
    """What a loader that was never interrupted makes of the run's decisions, from the first step to the last.

    Returns the digest of each batch, the journal positions of the synthetic documents in the order in which they were
    trained, and the loader.
    """
    config = run.config()
    batches = build_batches(config, Dataset.open(config.data.dataset), Journal(run.journal), run.pairs)
    digests, trained = [], []
    for past in read_steps(run.steps):
        batch = batches.next(past.decisions)
        assert batch is not None
        digests.append(batch.digest())
        trained += batch.finished("synthetic")
    return digests, trained, batches

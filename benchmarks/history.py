"""What the history of a long run takes: thinning the trainer's records, reading the log of steps when it resumes.

    python benchmarks/history.py [--megabytes 8] [--steps 200000]

Ends in one JSON line. Times are CPU seconds of this process, and of the replacing of the file wall seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from streaming_sbp.files import AppendLog
from streaming_sbp.telemetry.records import parse
from streaming_sbp.telemetry.thinning import thinned
from streaming_sbp.training.batches import Decisions
from streaming_sbp.training.history import PastStep, StepLog

RECORD_EVERY_S = 2.0


def train_record(k: int) -> dict[str, Any]:
    """As the trainer writes it, with an online run's fields."""
    shares = {"scheduled_share": 0.2, "current_share": 0.2, "realised_share": 0.2 - 1 / (k + 7)}
    documents, tokens = {"real": 21_391 + k, "synthetic": 217 + k}, {"real": 907_934 + k, "synthetic": 10_341 + k}
    phases = ("data_wait", "forward_backward", "optimizer", "evaluate", "checkpoint", "other")
    terms = ("sent", "trained", "buffered", "in_flight", "dropped", "imbalance")
    received = ("repetition", "corpus_13gram_share", "mean_tokens", "mean_log_prob", "relatedness", "distinct_ngrams")
    return {
        "time": 1.7e9 + RECORD_EVERY_S * k,
        "event": "train",
        "loss": {"real": 3.0 + 1 / (k + 3), "synthetic": 2.5 + 1 / (k + 7)},
        "step": 10 * k,
        "tokens": 5_120 * k,
        **{f"trained_{name}": counts for name, counts in (("tokens", tokens), ("documents", documents))},
        "trained_targets": tokens,
        "padding_tokens": 17 * k,
        "real_epochs": round(k / 700, 4),
        "tokens_per_second": 12_480.6,
        "phases": {name: round(0.345 * k, 3) for name in phases},
        "buffered": 81,
        **shares,
        "deviation_tokens": 48.0 + 1 / (k + 3),
        "debt_tokens": 0.0,
        "forgiven_tokens": 0.0,
        "starved_documents": 10,
        "learning_rate": 0.003,
        "gradient_norm": 0.4 + 1 / (k + 7),
        "ledger": dict.fromkeys(terms, 300 + k),
        "received": dict.fromkeys(received, 1 / (k + 7)),
    }


def records(folder: Path, num_bytes: int) -> dict[str, Any]:
    lines: list[bytes] = []
    size = 0
    while size <= num_bytes:
        lines.append(json.dumps(train_record(len(lines))).encode() + b"\n")
        size += len(lines[-1])
    path, content = folder / "trainer.jsonl", b"".join(lines)
    log = AppendLog(path)
    log.append(content)
    began = time.process_time()
    left = thinned(content, num_bytes)
    thinning_s, began = time.process_time() - began, time.monotonic()
    log.replace(left)
    replacing_s = time.monotonic() - began
    assert all(parse(line) for line in left.splitlines())
    return {
        "records": len(lines),
        "bytes_a_record": round(len(content) / len(lines)),
        "hours_of_records": round(RECORD_EVERY_S * len(lines) / 3600, 1),
        "records_left": left.count(b"\n"),
        "bytes_left": len(left),
        "thinning_cpu_s": round(thinning_s, 2),
        "replacing_s": round(replacing_s, 2),
    }


def steps(folder: Path, num_steps: int) -> dict[str, Any]:
    path = folder / "steps.jsonl"
    with open(path, "wb") as file:
        for k in range(1, num_steps + 1):
            losses = {"real": 3.0 + 1 / (k + 3), "synthetic": 2.5 + 1 / (k + 7)}
            file.write(PastStep(k, f"{k:032x}", losses, Decisions()).line())
    began = time.process_time()
    log = StepLog(path, num_steps - 10)
    assert log.to_repeat is not None
    return {
        "steps": num_steps,
        "bytes_a_step": round(path.stat().st_size / num_steps),
        "opening_cpu_s": round(time.process_time() - began, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "records": records(Path(folder), given.megabytes * 2**20),
            "steps": steps(Path(folder), given.steps),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

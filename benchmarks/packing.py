"""Padding, speed and latency of the packer beside two baselines, for several distributions of lengths: one JSON line.

    python benchmarks/packing.py [--dataset data/pydocs]

Best fit over 64 bins and first fit over 8 close their fullest bin when a document fits into none; joining and cutting
pads nothing, but cuts documents that would fit. ``wait`` is how many sequences were closed between a document and its
own sequence. With ``--dataset``, the lengths of that ingested corpus are among the distributions, scaled to mean 700
for 2,048 tokens, and as they are for 256.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from streaming_sbp import config
from streaming_sbp.training.packing import Bin, Packer, Piece

NUM_DOCUMENTS = 20_000
MEAN = 700


def distributions(dataset: str | None) -> dict[str, tuple[np.ndarray, int]]:
    """Lengths and the length of a sequence, by name. Mean 700, but for those that are there to show what cannot fit."""
    rng = np.random.default_rng(0)

    def lognormal(sigma: float) -> np.ndarray:
        return np.clip(rng.lognormal(np.log(MEAN) - sigma**2 / 2, sigma, NUM_DOCUMENTS).astype(int), 8, 20_000)

    lengths: dict[str, tuple[np.ndarray, int]] = {
        "exponential": (np.clip(rng.exponential(MEAN, NUM_DOCUMENTS).astype(int), 8, 10_000), 2048),
        "lognormal, sigma 1.3": (lognormal(1.3), 2048),
        "lognormal, sigma 1": (lognormal(1.0), 2048),
        "lognormal, sigma 0.5": (lognormal(0.5), 2048),
        "uniform 1-1399": (rng.integers(1, 1400, NUM_DOCUMENTS), 2048),
        "normal 700 +- 150": (np.clip(rng.normal(MEAN, 150, NUM_DOCUMENTS).astype(int), 8, 2048), 2048),
        "64 tokens each": (np.full(NUM_DOCUMENTS, 64), 2048),
        "uniform 900-1399": (rng.integers(900, 1400, NUM_DOCUMENTS), 2048),
        "1,100 tokens each": (np.full(5_000, 1100), 2048),
    }
    if dataset:
        import pyarrow.parquet as pq

        found = pq.read_table(Path(dataset) / "documents.parquet", columns=["num_tokens"])["num_tokens"].to_numpy() + 2
        drawn = rng.choice(found, NUM_DOCUMENTS)
        lengths[f"{Path(dataset).name}, scaled"] = (np.maximum(1, (drawn * (MEAN / found.mean())).astype(int)), 2048)
        lengths[f"{Path(dataset).name}, as it is"] = (drawn, 256)
    return lengths


class Packing(Protocol):
    closed: Any

    def add(self, source: str, position: int, num_tokens: int) -> None: ...


class FittedBins:
    """First or best fit over a number of open bins; the fullest is closed when a document fits into none."""

    def __init__(self, num_bins: int, best: bool, sequence_tokens: int):
        self._num_bins, self._best, self._sequence_tokens = num_bins, best, sequence_tokens
        self._open: list[tuple[int, Bin]] = []  # (room, bin)
        self.closed: list[Bin] = []

    def add(self, source: str, position: int, num_tokens: int) -> None:
        for start in range(0, num_tokens, self._sequence_tokens):
            length = min(self._sequence_tokens, num_tokens - start)
            self._place(Piece(source, position, start, length, start + length == num_tokens))

    def _place(self, piece: Piece) -> None:
        fitting = [i for i, (room, _) in enumerate(self._open) if room >= piece.length]
        if fitting:
            at = min(fitting, key=lambda i: self._open[i][0]) if self._best else fitting[0]
        else:
            if len(self._open) == self._num_bins:
                fullest = min(range(self._num_bins), key=lambda i: self._open[i][0])
                self.closed.append(self._open.pop(fullest)[1])
            self._open.append((self._sequence_tokens, Bin(self._sequence_tokens)))
            at = len(self._open) - 1
        room, packed = self._open[at]
        packed.pieces.append(piece)
        self._open[at] = (room - piece.length, packed)
        if room == piece.length:
            self.closed.append(self._open.pop(at)[1])


def measure(packer: Packing, lengths: list[int], sequence_tokens: int) -> dict[str, float]:
    came = []
    began = time.perf_counter()
    for position, length in enumerate(lengths):
        came.append(len(packer.closed))
        packer.add("real", position, length)
    seconds = time.perf_counter() - began
    rows = list(packer.closed)
    waits = [n - came[piece.position] for n, row in enumerate(rows) for piece in row.pieces if piece.start == 0]
    return {
        "padding_percent": round(100 * sum(row.room for row in rows) / len(rows) / sequence_tokens, 3),
        "us_per_document": round(1e6 * seconds / len(lengths), 1),
        "wait_median": float(np.median(waits)),
        "wait_longest": max(waits),
    }


def cut_when_joined(lengths: np.ndarray, sequence_tokens: int) -> float:
    """Percent of the documents that would fit into a sequence and are cut all the same."""
    ends = np.cumsum(lengths)
    short = lengths <= sequence_tokens
    cut = (ends - lengths) // sequence_tokens != (ends - 1) // sequence_tokens
    return round(100 * float((cut & short).sum() / short.sum()), 1)


def state_of_small_documents() -> dict[str, float]:
    packer = Packer(config.Packing(), 2048)
    for position in range(NUM_DOCUMENTS):
        packer.add("synthetic", 10**6 + position, 60 + position % 9)
    packer.closed.clear()
    began = time.perf_counter()
    state = packer.state_dict()
    return {"ms": round(1e3 * (time.perf_counter() - began), 2), "json_bytes": len(json.dumps(state))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset")
    results: dict[str, Any] = {}
    for name, (array, sequence_tokens) in distributions(parser.parse_args().dataset).items():
        lengths = array.tolist()
        results[name] = {
            **{
                f"ours, {bins}": measure(
                    Packer(config.Packing(num_open_bins=bins), sequence_tokens), lengths, sequence_tokens
                )
                for bins in (8, 16, 32, 64)
            },
            "best fit, 64": measure(FittedBins(64, True, sequence_tokens), lengths, sequence_tokens),
            "first fit, 8": measure(FittedBins(8, False, sequence_tokens), lengths, sequence_tokens),
            "joined: cut_percent": cut_when_joined(array, sequence_tokens),
        }
        print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    default = config.Packing().num_open_bins
    print(
        json.dumps(
            {
                "benchmark": "packing",
                "default": default,
                "state_of_64_token_documents": state_of_small_documents(),
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()

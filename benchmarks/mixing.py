"""How far the mix strays from its schedule, ours beside the usual ways to mix: one JSON line.

    python benchmarks/mixing.py

``share_error``: two sources at 50 % by tokens, mean lengths 700 and 340 (exponential), 40 seeds; percentage points at a
million tokens, and the furthest that any prefix was off, in documents (of the longest so far). Baselines: documents
drawn with the share as their weight; drawn with weights corrected for the true mean lengths; the largest deficit first.
``sources``: the furthest of any prefix for 2, 3 and 5 sources, ours and the largest deficit first.
``waiting``: the most synthetic documents that ever wait in the packer with its defaults, by share: those that are
trained although their snapshot was rolled back meanwhile; synthetic documents of about 130 tokens, real ones of 340,
10 seeds.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from streaming_sbp import config
from streaming_sbp.training.mixer import REAL, SYNTHETIC, Mixer
from streaming_sbp.training.packing import Packer

SEEDS = 40
TOKENS = 1_000_000
SHARE = 0.5
MEANS = {REAL: 700, SYNTHETIC: 340}


class LargestDeficitFirst(Mixer):
    def _next_in_turn(self, repaying: bool) -> str:
        return max(self.deficit_tokens, key=lambda name: self.deficit_tokens[name])


def length(rng: random.Random, source: str) -> int:
    return min(4000, 1 + int(rng.expovariate(1 / MEANS[source])))


def drawn(synthetic_weight: float, seed: int) -> tuple[float, float]:
    rng = random.Random(seed)
    tokens, longest, furthest = {REAL: 0, SYNTHETIC: 0}, 0, 0.0
    while sum(tokens.values()) < TOKENS:
        source = SYNTHETIC if rng.random() < synthetic_weight else REAL
        n = length(rng, source)
        tokens[source] += n
        longest = max(longest, n)
        furthest = max(furthest, abs(tokens[SYNTHETIC] - SHARE * sum(tokens.values())) / longest)
    return 100 * (tokens[SYNTHETIC] / sum(tokens.values()) - SHARE), furthest


def scheduled(kind: Callable[..., Mixer], seed: int) -> tuple[float, float]:
    rng = random.Random(seed)
    mixer = kind(config.Mix(synthetic_share=SHARE))
    mixer.start()
    furthest, everything = 0.0, {REAL: True, SYNTHETIC: True}
    while mixer.tokens_since_start < TOKENS:
        choice = mixer.choose(everything)
        mixer.add(choice, length(rng, choice.source))
        furthest = max(furthest, abs(mixer.deficit_tokens[SYNTHETIC]) / mixer.longest_tokens)
    return 100 * (mixer.realised_share - SHARE), furthest


def over_seeds(run: Callable[[int], tuple[float, float]]) -> dict[str, float]:
    found = [run(seed) for seed in range(SEEDS)]
    return {
        "mean_points": round(sum(error for error, _ in found) / SEEDS, 3),
        "largest_points": round(max(abs(error) for error, _ in found), 3),
        "furthest_prefix_documents": round(max(furthest for _, furthest in found), 2),
    }


LENGTHS: dict[str, Callable[[random.Random], int]] = {
    "equal": lambda rng: 1,
    "uniform": lambda rng: rng.randint(1, 4000),
    "heavy tail": lambda rng: min(4000, int(rng.paretovariate(0.7))),
}


def furthest_prefix(kind: Callable[..., Mixer], num_sources: int, schedule: str, lengths: str) -> float:
    """In documents, over 40 random sets of shares and 400 documents each."""
    rng, furthest = random.Random(num_sources), 0.0
    for _ in range(SEEDS):
        weights = [rng.expovariate(1) for _ in range(num_sources)]
        shares = [weight / sum(weights) for weight in weights]
        steps = tuple(config.ShareStep(tokens=t, share=rng.random() * shares[1]) for t in (0, 50, 150, 50_000))
        tokens = rng.choice((100, 300_000))
        mix = config.Mix(schedule=schedule, synthetic_share=shares[1], ramp_tokens=tokens, steps=steps)
        mixer = kind(mix, {f"extra{i}": share for i, share in enumerate(shares[2:])})
        mixer.start()
        everything = dict.fromkeys(mixer.mixed_tokens, True)
        for _ in range(400):
            mixer.add(mixer.choose(everything), LENGTHS[lengths](rng))
            furthest = max(furthest, max(map(abs, mixer.deficit_tokens.values())) / mixer.longest_tokens)
    return round(furthest, 3)


def microseconds(num_sources: int, schedule: str) -> float:
    """For one document: `choose` and `add`."""
    extra_shares = {f"extra{i}": 0.1 for i in range(num_sources - 2)}
    mixer = Mixer(config.Mix(schedule=schedule, synthetic_share=0.3, ramp_tokens=10**9), extra_shares)
    mixer.start()
    everything, rng = dict.fromkeys(mixer.mixed_tokens, True), random.Random(0)
    lengths = [rng.randint(1, 1400) for _ in range(20_000)]
    began = time.perf_counter()
    for n in lengths:
        mixer.add(mixer.choose(everything), n)
    return round(1e6 * (time.perf_counter() - began) / len(lengths), 1)


def most_waiting(share: float, seed: int) -> tuple[int, int]:
    """Synthetic documents, and tokens of them, in the packer; looked at when a batch has been taken."""
    rng, training = random.Random(seed), config.Training()
    mixer, packer = Mixer(config.Mix(synthetic_share=share)), Packer(config.Packing(), training.sequence_tokens)
    mixer.start()
    documents = tokens = position = 0
    while mixer.tokens_since_start < TOKENS:
        while len(packer.closed) < training.batch_sequences:
            choice = mixer.choose({REAL: True, SYNTHETIC: True})
            assert choice is not None
            mean = 130 if choice.source == SYNTHETIC else 340
            num_tokens = min(4000, 16 + int(rng.expovariate(1 / (mean - 16))))
            packer.add(choice.source, position, num_tokens)
            mixer.add(choice, packer.trained_length(num_tokens))
            position += 1
        for _ in range(training.batch_sequences):
            packer.closed.popleft()
        waiting = [piece for piece in packer.pieces() if piece.source == SYNTHETIC]
        documents = max(documents, sum(piece.last for piece in waiting))
        tokens = max(tokens, sum(piece.length for piece in waiting))
    return documents, tokens


def waiting(share: float) -> dict[str, int]:
    found = [most_waiting(share, seed) for seed in range(10)]
    return {"documents": max(d for d, _ in found), "tokens": max(t for _, t in found)}


def main() -> None:
    corrected = SHARE / MEANS[SYNTHETIC] / (SHARE / MEANS[SYNTHETIC] + (1 - SHARE) / MEANS[REAL])
    share_error = {
        "document weights": over_seeds(lambda seed: drawn(SHARE, seed)),
        "corrected weights": over_seeds(lambda seed: drawn(corrected, seed)),
        "largest deficit first": over_seeds(lambda seed: scheduled(LargestDeficitFirst, seed)),
        "ours": over_seeds(lambda seed: scheduled(Mixer, seed)),
    }
    sources: dict[str, Any] = {}
    for name, kind in (("ours", Mixer), ("largest deficit first", LargestDeficitFirst)):
        for num_sources in (2, 3, 5):
            sources[f"{name}, {num_sources}"] = {
                schedule: {lengths: furthest_prefix(kind, num_sources, schedule, lengths) for lengths in LENGTHS}
                for schedule in ("constant", "ramp", "steps")
            }
            print(name, num_sources, sources[f"{name}, {num_sources}"], file=sys.stderr, flush=True)
    speed = {f"{n}, {schedule}": microseconds(n, schedule) for n in (2, 3) for schedule in ("constant", "ramp")}
    found = {
        "benchmark": "mixing",
        "share_error": share_error,
        "sources": sources,
        "us_per_document": speed,
        "waiting": {share: waiting(share) for share in (0.1, 0.3, 0.5)},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""What RUN/pairs/statistics.json says: enough to choose `pairing.threshold`, and to see what was left out and why."""

from __future__ import annotations

from typing import Any

import numpy as np

from streaming_sbp import config
from streaming_sbp.pairing.control import similarities
from streaming_sbp.pairing.pairs import PairTable

HISTOGRAM_EDGES = np.round(np.arange(21) * 0.05, 2)  # similarities below 0 count in the first bin
NUM_HUBS = 10
NUM_LARGEST = 5
NUM_RANDOM_PAIRS = 2**17
RANDOM_QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
_SALT = 0x6E6F6973


class Similarities:
    """The histogram of all similarities seen, and the largest few; an array at a time.

    Attributes: ``counts`` (int64 [20], by `HISTOGRAM_EDGES`), ``largest`` (descending).
    """

    def __init__(self) -> None:
        self.counts = np.zeros(len(HISTOGRAM_EDGES) - 1, dtype=np.int64)
        self.largest: list[float] = []

    def add(self, similarity: np.ndarray) -> None:
        values = np.clip(similarity.ravel().astype(np.float64), 0.0, 1.0)
        self.counts += np.histogram(values, HISTOGRAM_EDGES)[0]
        top = np.sort(values)[::-1][:NUM_LARGEST].tolist()
        self.largest = sorted([*self.largest, *(round(value, 4) for value in top)], reverse=True)[:NUM_LARGEST]


def of_random_pairs(embeddings: np.ndarray, run_seed: int) -> np.ndarray:
    """Similarities of `NUM_RANDOM_PAIRS` pairs of two documents that have a vector, float32; none of fewer than two.

    They say where the noise lies: what unrelated documents measure, and those few of a random pair that are related.
    """
    known = np.flatnonzero([row.any() for row in embeddings])
    if len(known) < 2:
        return np.zeros(0, dtype=np.float32)
    rng = np.random.default_rng([run_seed, _SALT])
    first, second = rng.integers(len(known), size=NUM_RANDOM_PAIRS), rng.integers(len(known) - 1, size=NUM_RANDOM_PAIRS)
    return similarities(embeddings, known[first], known[second + (second >= first)])


def describe(
    table: PairTable, num_documents: int, found: Similarities, random: np.ndarray, ids: list[str]
) -> dict[str, Any]:
    """Statistics of a finished table. ``found``: of all neighbours, before the threshold; ``random``: similarities of
    random pairs.
    """
    by_chance = Similarities()
    by_chance.add(random)
    kept = Similarities()
    kept.add(table.similarity)
    num_paired = len(table.paired_documents())
    return {
        "num_documents": num_documents,
        "num_pairs": len(table),
        "num_heldout_pairs": int(table.heldout.sum()),
        "num_documents_with_pair": num_paired,
        "num_documents_without_pair": num_documents - num_paired,
        "num_documents_by_num_targets": _distribution(table.seed, num_documents),
        "hubs": _hubs(table.target, ids),
        "similarity": {
            "bin_edges": HISTOGRAM_EDGES.tolist(),
            "kept_pairs": kept.counts.tolist(),
            "all_neighbours": found.counts.tolist(),
            "random_pairs": by_chance.counts.tolist(),
            "random_pairs_quantiles": _quantiles(random),
            "largest": found.largest,
        },
    }


def why_missing(found: dict[str, Any], settings: config.Pairing) -> str:
    """Why there are no pairs, or none on one side of the held-out cut, and what to do; "" when nothing is missing.

    ``found``: the finished statistics.
    """
    if not found["num_pairs"]:
        return f"no pairs: {_why_no_pairs(found, settings)}"
    if not found["num_heldout_pairs"]:
        return f"no pairs are held out: {_why_no_heldout_pairs(found, settings)}; the tuner needs some"
    if found["num_heldout_pairs"] == found["num_pairs"]:
        return f"no pairs are left for training: {_losses(found, settings)}"
    return ""


def _why_no_pairs(found: dict[str, Any], settings: config.Pairing) -> str:
    if found["num_candidates_above_threshold"]:
        return _losses(found, settings)
    if not found["similarity"]["largest"]:
        return (
            f"of {found['num_documents']:,} documents {found['num_near_duplicate_documents']:,} are near-duplicates of "
            f"others (pairing.near_duplicate_jaccard = {settings.near_duplicate_jaccard:g}), and the embedder knows "
            f"nothing of {found['num_documents_without_vector']:,}; expected two others at least"
        )
    largest = ", ".join(f"{value:.3f}" for value in found["similarity"]["largest"])
    return (
        f"pairing.threshold = {found['threshold']}; the largest similarities found: {largest}; near-duplicates left "
        f"out: {found['num_near_duplicate_documents']} "
        f"({'choose another pairing.embedder' if settings.pairs_per_document else 'lower pairing.threshold'})"
    )


def _losses(found: dict[str, Any], settings: config.Pairing) -> str:
    """What became of the candidates; a way out for each kind."""
    more_pairs, jaccard = _more_pairs(settings), settings.near_duplicate_jaccard
    hold_out_less = "hold out less at ingest" if found["held_out_at_ingest"] else "lower pairing.heldout_share"
    kinds = [
        (
            found["num_near_duplicate_pairs"],
            f"are of near-duplicates (raise pairing.near_duplicate_jaccard = {jaccard:g}, or {more_pairs})",
        ),
        (
            found["num_pairs_across_the_cut_dropped"],
            f"have one document held out, the other not ({more_pairs}, or {hold_out_less})",
        ),
        (found["num_without_unrelated_target_dropped"], f"have no unrelated target ({_unrelated_ways_out(found)})"),
    ]
    lost = "; ".join(f"{count:,} {what}" for count, what in kinds if count)
    return f"of {found['num_candidates_above_threshold']:,} candidates {lost}"


def _why_no_heldout_pairs(found: dict[str, Any], settings: config.Pairing) -> str:
    if lost := found["num_heldout_without_unrelated_target_dropped"]:
        return f"{lost:,} have no unrelated target among the documents held out ({_unrelated_ways_out(found)})"
    if found["held_out_at_ingest"]:
        return (
            "no two documents held out at ingest are related and no copies of training documents "
            f"({_more_pairs(settings)}, or hold out more at ingest)"
        )
    if settings.heldout_share == 0.0:
        return "pairing.heldout_share is 0"
    return f"no two pairs have all their documents apart ({_more_pairs(settings)}, or add text)"


def _more_pairs(settings: config.Pairing) -> str:
    return "raise pairing.pairs_per_document" if settings.pairs_per_document else "lower pairing.threshold"


def _unrelated_ways_out(found: dict[str, Any]) -> str:
    hold_out_more = "hold out more at ingest" if found["held_out_at_ingest"] else "raise pairing.heldout_share"
    return f"raise the threshold, {found['threshold']:.3g}, {hold_out_more}, or add text about something else"


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values.astype(np.float64), RANDOM_QUANTILES).round(4).tolist()
    return dict(zip(map(str, RANDOM_QUANTILES), found, strict=True))


def _distribution(seed: np.ndarray, num_documents: int) -> dict[str, int]:
    """How many documents have 0, 1, 2, ... targets."""
    by_num_targets = np.bincount(np.bincount(seed, minlength=num_documents))
    return {str(num_targets): count for num_targets, count in enumerate(by_num_targets.tolist())}


def _hubs(target: np.ndarray, ids: list[str]) -> list[dict[str, Any]]:
    """The documents that are the target of the most pairs."""
    num_pairs = np.bincount(target)
    first = np.argsort(-num_pairs, kind="stable")[:NUM_HUBS].tolist()
    return [{"document": i, "id": ids[i], "num_pairs": int(num_pairs[i])} for i in first if num_pairs[i]]

"""From documents to pairs of related ones.

1. embed      every training document, a vector
2. search     its nearest neighbours; those above `pairing.threshold` are candidates
3. copies     candidates that share too many shingles are removed; then the best few of each seed document are kept
4. heldout    whole neighbourhoods are held out, and pairs across the cut dropped

Only the training split is looked at. Pairs are ordered: (d1, d2) does not imply (d2, d1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from streaming_sbp import config
from streaming_sbp.data.dataset import Dataset, Split
from streaming_sbp.data.documents import sampling_key
from streaming_sbp.data.progress import IngestProgress, Progress
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.pairing.copies import Shingles, find_copies
from streaming_sbp.pairing.embed import make_embedder
from streaming_sbp.pairing.heldout import PURPOSE, Cut, cut, groups_of_copies
from streaming_sbp.pairing.index import nearest
from streaming_sbp.pairing.pairs import MadeFrom, PairTable
from streaming_sbp.pairing.statistics import Similarities, describe

TEXT_BATCH_DOCUMENTS = 256
NEIGHBOURS_PER_TARGET = 2  # searched for each pair wanted: copies are found too, and removed

PairingProgress = IngestProgress  # phase: "embed", "search", "copies" or "heldout"; unit: "documents" or "pairs"


@dataclass(frozen=True)
class Found:
    table: PairTable
    statistics: dict[str, Any]  # pairing/statistics.py, and counts and seconds of each phase


@dataclass(frozen=True)
class Candidates:
    """Ordered pairs, by seed document, the most similar first; one entry per pair in each array."""

    seed: np.ndarray  # int64
    target: np.ndarray  # int64
    similarity: np.ndarray  # float32

    def __len__(self) -> int:
        return len(self.seed)

    def where(self, mask: np.ndarray) -> Candidates:
        return Candidates(self.seed[mask], self.target[mask], self.similarity[mask])


def made_from(dataset: Dataset, settings: config.Pairing, seed: int) -> MadeFrom:
    """What the table of these arguments will say it was made from."""
    return MadeFrom(dataset.manifest.digest, {**settings.model_dump(mode="json"), "seed": seed})


def find_pairs(
    dataset: Dataset, settings: config.Pairing, seed: int, report: Callable[[PairingProgress], None] | None = None
) -> Found:
    """Find the pairs of the training split; the same arguments find the same pairs.

    ``report`` hears of the progress several times a second; what it raises ends the search.
    Raises ConfigError when the embedder cannot be used.
    """
    documents, clock = dataset.split("train"), PhaseClock(report)
    embeddings = _embed(documents, dataset.tokenizer(), settings, seed, clock)
    candidates, similarities = _search(embeddings, settings, clock)
    copies = _copies(candidates, documents, settings, clock)
    related = _best(candidates.where(~copies), settings.max_targets_per_seed)
    chosen = _cut(related, candidates.where(copies), documents, settings.heldout_share, clock)
    inside = chosen.heldout | chosen.training
    kept = related.where(inside)
    origin = made_from(dataset, settings, seed)
    table = PairTable(kept.seed, kept.target, kept.similarity, chosen.heldout[inside], origin)
    statistics = describe(table, len(documents), similarities, documents.ids) | {
        "num_documents_without_vector": int((~embeddings.any(axis=1)).sum()),
        "num_candidates_above_threshold": len(candidates),
        "num_near_duplicates_removed": int(copies.sum()),
        "num_pairs_across_the_cut_dropped": int((~inside).sum()),
        "no_heldout_pairs_because": _why_none(table, settings.heldout_share),
        "seconds": clock.seconds,
    }
    return Found(table, statistics)


class PhaseClock:
    """Progress and duration of the phases, one after the other. Attribute: ``seconds`` by phase."""

    def __init__(self, report: Callable[[PairingProgress], None] | None):
        self.seconds: dict[str, float] = {}
        self._progress = Progress(report)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Gives the function that is told how many more are done."""
        started = time.monotonic()
        self._progress.start(name, total, unit)
        yield self._progress.advance
        self._progress.finish()
        self.seconds[name] = round(time.monotonic() - started, 3)


def _embed(
    documents: Split, tokenizer: Tokenizer, settings: config.Pairing, seed: int, clock: PhaseClock
) -> np.ndarray:
    embedder = make_embedder(settings, seed)
    with clock.phase("embed", len(documents), "documents") as advance:
        return embedder.embed(_texts(documents, tokenizer, advance))


def _texts(documents: Split, tokenizer: Tokenizer, advance: Callable[[int], None]) -> Iterator[list[str]]:
    for start in range(0, len(documents), TEXT_BATCH_DOCUMENTS):
        batch = range(start, min(start + TEXT_BATCH_DOCUMENTS, len(documents)))
        yield [tokenizer.decode(documents.tokens(i)) for i in batch]
        advance(len(batch))


def _search(embeddings: np.ndarray, settings: config.Pairing, clock: PhaseClock) -> tuple[Candidates, Similarities]:
    blocks, similarities = [_no_candidates()], Similarities()
    num_neighbours = NEIGHBOURS_PER_TARGET * settings.max_targets_per_seed
    with clock.phase("search", len(embeddings), "documents") as advance:
        for found in nearest(embeddings, num_neighbours):
            similarities.add(found.similarity)
            row, column = np.nonzero(found.similarity > settings.threshold)
            blocks.append(Candidates(found.document[row], found.neighbour[row, column], found.similarity[row, column]))
            advance(len(found.document))
    names = ("seed", "target", "similarity")
    return Candidates(*(np.concatenate([getattr(block, name) for block in blocks]) for name in names)), similarities


def _no_candidates() -> Candidates:
    return Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def _copies(candidates: Candidates, documents: Split, settings: config.Pairing, clock: PhaseClock) -> np.ndarray:
    shingles = Shingles(documents.tokens, settings.shingle_tokens)
    with clock.phase("copies", len(candidates), "pairs") as advance:
        return find_copies(shingles, candidates.seed, candidates.target, settings.near_duplicate_jaccard, advance)


def _best(candidates: Candidates, max_targets: int) -> Candidates:
    """At most ``max_targets`` of each seed document: the first, which are the most similar."""
    _, first, back = np.unique(candidates.seed, return_index=True, return_inverse=True)
    return candidates.where(np.arange(len(candidates)) - first[back] < max_targets)


def _cut(related: Candidates, copies: Candidates, documents: Split, share: float, clock: PhaseClock) -> Cut:
    with clock.phase("heldout", len(related), "pairs"):
        group = groups_of_copies(len(documents), copies.seed, copies.target)
        key = np.array([sampling_key(id, PURPOSE) for id in documents.ids], dtype=np.uint64)
        return cut(related.seed, related.target, group, key, share)


def _why_none(table: PairTable, share: float) -> str:
    if table.heldout.any():
        return ""
    if not len(table):
        return "there are no pairs"
    return "pairing.heldout_share is 0" if share == 0.0 else "no two pairs have all their documents apart"

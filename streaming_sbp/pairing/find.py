"""From documents to pairs of related ones.

1. duplicates of documents that share too many shingles the first stays, the others get no pairs
2. embed      every document, a vector
3. search     its nearest neighbours; those above `pairing.threshold` are candidates, all of them for a calibration
4. copies     candidates that share too many shingles all the same are removed; then the best few of each seed document
              are kept, and with `pairing.pairs_per_document` only the most similar of all
5. heldout    pairs of held-out groups only judge; without such groups whole neighbourhoods are held out. Pairs across
              the cut are dropped
6. control    with `pairing.relation = "random"` each target is replaced by an unrelated one (pairing/control.py)

Only documents of training and of held-out groups are looked at (`Dataset.pairable`).
Pairs are ordered: (d1, d2) does not imply (d2, d1).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streaming_sbp import config
from streaming_sbp.data.dataset import Dataset, Split
from streaming_sbp.data.documents import sampling_key
from streaming_sbp.data.progress import IngestProgress, Progress
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.pairing.control import random_targets
from streaming_sbp.pairing.copies import Shingles, find_copies
from streaming_sbp.pairing.duplicates import find_duplicates
from streaming_sbp.pairing.embed import Embedder, make_embedder, stack
from streaming_sbp.pairing.heldout import PURPOSE, Cut, cut, cut_groups, groups_of_copies
from streaming_sbp.pairing.index import choose, nearest
from streaming_sbp.pairing.pairs import PairTable, made_from
from streaming_sbp.pairing.statistics import Similarities, describe, of_random_pairs, why_missing

TEXT_BATCH_DOCUMENTS = 256
NEIGHBOURS_PER_TARGET = 2  # searched for each pair wanted: copies are found too, and removed

PairingProgress = IngestProgress  # phase: the first five above; unit: "documents" or "pairs"


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


def find_pairs(
    dataset: Dataset,
    settings: config.Pairing,
    seed: int,
    report: Callable[[PairingProgress], None] | None = None,
    model: Path | None = None,
    scratch: Path | None = None,
) -> Found:
    """Find the pairs of a data set; the same arguments find the same pairs.

    ``report`` hears of the progress several times a second; what it raises ends the search. ``model``: for the embedder
    "self". ``scratch``: folder for large intermediate files, which are gone afterwards.
    Raises ConfigError when the embedder cannot be used.
    """
    documents, num_training, clock = dataset.pairable(), len(dataset.split("train")), PhaseClock(report)
    embedder = make_embedder(settings, seed, model)  # before the work that would be lost
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".pairing-") as folder:
        shingles = Shingles(documents.tokens, settings.shingle_tokens)
        duplicate = _duplicates(shingles, len(documents), settings, clock) >= 0
        embeddings = _embed(embedder, documents, dataset.tokenizer(), clock, Path(folder))
        without_vector = sum(1 for row in embeddings if not row.any())
        embeddings[duplicate] = 0.0  # has no neighbours, and is none
        by_chance = of_random_pairs(embeddings, seed)
        candidates, similarities = _search(embeddings, settings, clock, Path(folder))
        copies = _copies(candidates, shingles, settings, clock)
        across_groups = (candidates.seed < num_training) != (candidates.target < num_training)
        related = _best(candidates.where(~copies & ~across_groups), settings.max_targets_per_seed)
        num_related = len(related)
        related, threshold = _calibrated(related, settings, len(documents))
        with clock.phase("heldout", len(related), "pairs"):
            chosen = _cut(related, candidates.where(copies), documents, num_training, settings.heldout_share)
        num_across = int((~copies & across_groups & (candidates.similarity > threshold)).sum())
        inside = chosen.heldout | chosen.training
        kept, heldout = related.where(inside), chosen.heldout[inside]
        if settings.relation == "random":
            kept, heldout = _control(kept, heldout, embeddings, threshold, seed)
    table = PairTable(kept.seed, kept.target, kept.similarity, heldout, made_from(dataset, settings, seed))
    statistics = describe(table, len(documents), similarities, by_chance, documents.ids) | {
        "threshold": threshold,
        "index": choose(settings.index, len(documents)),
        "num_documents_without_vector": without_vector,
        "num_candidates_above_threshold": len(candidates),
        "num_pairs_wanted": _num_wanted(settings, len(documents)),
        "num_pairs_to_choose_from": num_related,
        "num_near_duplicate_documents": int(duplicate.sum()),
        "num_near_duplicate_pairs": int(copies.sum()),
        "num_pairs_across_the_cut_dropped": num_across + int((~inside).sum()),
        "num_without_unrelated_target_dropped": int(inside.sum()) - len(table),
        "num_heldout_without_unrelated_target_dropped": int(chosen.heldout.sum() - heldout.sum()),
        "held_out_at_ingest": len(documents) > num_training,
        "fewest_held_out": chosen.least,
        "seconds": clock.seconds,
    }
    statistics["missing_because"] = why_missing(statistics, settings)
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


def _duplicates(shingles: Shingles, num_documents: int, settings: config.Pairing, clock: PhaseClock) -> np.ndarray:
    with clock.phase("duplicates", num_documents, "documents") as advance:
        return find_duplicates(shingles, num_documents, settings.near_duplicate_jaccard, advance)


def _embed(embedder: Embedder, documents: Split, tokenizer: Tokenizer, clock: PhaseClock, folder: Path) -> np.ndarray:
    with clock.phase("embed", len(documents), "documents") as advance:
        return stack(embedder, _texts(documents, tokenizer, advance), len(documents), folder)


def _texts(documents: Split, tokenizer: Tokenizer, advance: Callable[[int], None]) -> Iterator[list[str]]:
    for start in range(0, len(documents), TEXT_BATCH_DOCUMENTS):
        batch = range(start, min(start + TEXT_BATCH_DOCUMENTS, len(documents)))
        yield [tokenizer.decode(documents.tokens(i)) for i in batch]
        advance(len(batch))


def _search(
    embeddings: np.ndarray, settings: config.Pairing, clock: PhaseClock, folder: Path
) -> tuple[Candidates, Similarities]:
    blocks, similarities = [_no_candidates()], Similarities()
    threshold = 0.0 if settings.pairs_per_document else settings.threshold
    num_neighbours = NEIGHBOURS_PER_TARGET * settings.max_targets_per_seed
    with clock.phase("search", len(embeddings), "documents") as advance:
        for found in nearest(embeddings, num_neighbours, kind=settings.index, folder=folder):
            similarities.add(found.similarity)
            row, column = np.nonzero(found.similarity > threshold)
            blocks.append(Candidates(found.document[row], found.neighbour[row, column], found.similarity[row, column]))
            advance(len(found.document))
    names = ("seed", "target", "similarity")
    return Candidates(*(np.concatenate([getattr(block, name) for block in blocks]) for name in names)), similarities


def _no_candidates() -> Candidates:
    return Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def _copies(candidates: Candidates, shingles: Shingles, settings: config.Pairing, clock: PhaseClock) -> np.ndarray:
    with clock.phase("copies", len(candidates), "pairs") as advance:
        return find_copies(shingles, candidates.seed, candidates.target, settings.near_duplicate_jaccard, advance)


def _best(candidates: Candidates, max_targets: int) -> Candidates:
    """At most ``max_targets`` of each seed document: the first, which are the most similar."""
    _, first, back = np.unique(candidates.seed, return_index=True, return_inverse=True)
    return candidates.where(np.arange(len(candidates)) - first[back] < max_targets)


def _calibrated(related: Candidates, settings: config.Pairing, num_documents: int) -> tuple[Candidates, float]:
    """The most similar candidates, as many as are wanted, and the threshold they are above.

    Fewer when there are no more; pairs that are as similar as the last one come with it.
    """
    wanted = _num_wanted(settings, num_documents)
    if not wanted:
        return related, settings.threshold
    if wanted >= len(related):
        return related, 0.0
    last = np.partition(related.similarity, len(related) - wanted)[len(related) - wanted]
    threshold = float(np.nextafter(last, np.float32(-1)))
    return related.where(related.similarity > np.float32(threshold)), threshold


def _num_wanted(settings: config.Pairing, num_documents: int) -> int:
    """What `pairing.pairs_per_document` asks for, one at least; 0 where it asks for nothing."""
    return max(1, round(settings.pairs_per_document * num_documents)) if settings.pairs_per_document else 0


def _cut(related: Candidates, copies: Candidates, documents: Split, num_training: int, share: float) -> Cut:
    group = groups_of_copies(len(documents), copies.seed, copies.target)
    if len(documents) > num_training:
        return cut_groups(related.seed, related.target, group, num_training)
    key = np.array([sampling_key(id, PURPOSE) for id in documents.ids], dtype=np.uint64)
    return cut(related.seed, related.target, group, key, share)


def _control(
    related: Candidates, heldout: np.ndarray, embeddings: np.ndarray, threshold: float, seed: int
) -> tuple[Candidates, np.ndarray]:
    """As many pairs with random targets, and which of them are held out; by seed, the most similar first."""
    target, similarity = random_targets(related.seed, related.target, heldout, embeddings, threshold, seed)
    found = np.lexsort((-similarity, related.seed))
    found = found[target[found] >= 0]
    return Candidates(related.seed, target, similarity).where(found), heldout[found]

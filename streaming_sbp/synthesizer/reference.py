"""What sampled documents are compared with: the corpus' runs of tokens, its token weights, and real text's own values.

Made once by the tuner, and kept in RUN/reference/ for whoever measures what generators send (the trainer):

hashes.npy, documents.npy   the index of the corpus (corpus_index.py)
idf.npy                     token weights (relatedness.py)
seeds.npy                   hash and number of each document, by hash: a received document names its seed
reference.json              of which data set, and what real text measures; written last
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from streaming_sbp.files import fsync_directory, read_json, write_json
from streaming_sbp.synthesizer.corpus_index import CorpusIndex
from streaming_sbp.synthesizer.filters import copied_share
from streaming_sbp.synthesizer.relatedness import FIT_DOCUMENTS, Related, TermWeights
from streaming_sbp.synthesizer.truth import Truth

REFERENCE = "reference.json"
FORMAT_VERSION = 2  # another one, or none, is made again
NUM_REAL = 256  # held-out documents, and pairs, that say what real text measures
OTHERS_SEED = 20250912  # of the documents that relatedness compares with: the same for every candidate and real text
Pair = tuple[np.ndarray, np.ndarray]


class Documents(Protocol):
    """A corpus: a split of a data set, or what looks like one."""

    num_tokens: np.ndarray

    @property
    def ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def tokens(self, i: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Reference:
    """``real``: the measures of real text whose names begin with ``real_``. ``truth``: None where it is not known."""

    index: CorpusIndex
    terms: TermWeights
    corpus: Documents
    seeds: np.ndarray  # uint64 [documents, 2]
    real: dict[str, float]
    truth: Truth | None = None

    @classmethod
    def build(
        cls,
        corpus: Documents,
        heldout: Sequence[np.ndarray],
        pairs: Sequence[Pair],
        vocab_size: int,
        max_bytes: int,
        max_copied_span: float,
        truth: Truth | None = None,
    ) -> Reference:
        """``heldout`` and ``pairs`` (seed, target): real documents, cut as sampled ones and their seeds are."""
        documents = (corpus.tokens(i) for i in range(len(corpus)))
        index = CorpusIndex.build(documents, int(corpus.num_tokens.sum()), max_bytes)
        terms = TermWeights.fit((corpus.tokens(i) for i in range(min(len(corpus), FIT_DOCUMENTS))), vocab_size)
        hashes = np.array([_hash(id) for id in corpus.ids], dtype=np.uint64)
        order = np.argsort(hashes)
        seeds = np.stack([hashes[order], order.astype(np.uint64)], axis=1)
        bare = cls(index, terms, corpus, seeds, {})
        sources, targets = [seed for seed, _ in pairs], [target for _, target in pairs]
        real = bare.copying(heldout, max_copied_span)
        real.pop("longest_corpus_span")
        real["copied_share"] = copied_share(targets, sources, max_copied_span)
        real |= bare.related(targets, sources).measures()
        real |= truth.measures(targets, sources) if truth else {}
        return cls(index, terms, corpus, seeds, {f"real_{name}": value for name, value in real.items()}, truth)

    def related(self, documents: Sequence[np.ndarray], seeds: Sequence[np.ndarray]) -> Related:
        """Beside `NUM_REAL` documents of the corpus, cut to the length of the longest seed."""
        others = sample_of(self.corpus, max(map(len, seeds), default=0), OTHERS_SEED)
        return self.terms.related(documents, seeds, others)

    def copying(self, documents: Sequence[np.ndarray], max_copied_span: float) -> dict[str, float]:
        """``corpus_13gram_share``: mean over documents. ``corpus_copied_share``: documents of which a single corpus
        document has more than ``max_copied_span`` in one run. ``longest_corpus_span``: the longest run, in tokens."""
        spans = [self.index.longest_span(tokens, self.corpus.tokens) for tokens in documents]
        copied = [span > max_copied_span * len(tokens) for span, tokens in zip(spans, documents, strict=True)]
        count = max(len(documents), 1)
        return {
            "corpus_13gram_share": sum(map(self.index.share, documents)) / count,
            "corpus_copied_share": sum(copied) / count,
            "longest_corpus_span": float(max(spans, default=0)),
        }

    def seed(self, id: str) -> np.ndarray | None:
        """The tokens of the document with this id; None when the corpus has none."""
        wanted = np.uint64(_hash(id))
        at = int(np.searchsorted(self.seeds[:, 0], wanted))
        if at == len(self.seeds) or self.seeds[at, 0] != wanted:
            return None
        return self.corpus.tokens(int(self.seeds[at, 1]))

    def save(self, folder: Path, dataset_digest: str) -> None:
        """Written beside, then renamed: a reader sees all of it or nothing."""
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.index.save(temporary)
        np.save(temporary / "idf.npy", self.terms.idf)
        np.save(temporary / "seeds.npy", self.seeds)
        facts = {
            "format_version": FORMAT_VERSION,
            "dataset_digest": dataset_digest,
            "zero_bits": self.index.zero_bits,
            "real": self.real,
        }
        write_json(temporary / REFERENCE, facts)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        fsync_directory(folder.parent)

    @classmethod
    def load(cls, folder: Path, dataset_digest: str, corpus: Documents, truth: Truth | None = None) -> Reference | None:
        """None when there is none yet of this data set, or it cannot be read: it is made again."""
        try:
            facts = read_json(folder / REFERENCE)
            if facts is None or (facts["format_version"], facts["dataset_digest"]) != (FORMAT_VERSION, dataset_digest):
                return None
            index = CorpusIndex.load(folder, facts["zero_bits"])
            seeds = np.load(folder / "seeds.npy", mmap_mode="r").view(np.ndarray)
            return cls(index, TermWeights(np.load(folder / "idf.npy")), corpus, seeds, facts["real"], truth)
        except (OSError, ValueError, KeyError):
            return None


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def sample_of(split: Documents, max_tokens: int, seed: int) -> list[np.ndarray]:
    """At most `NUM_REAL` documents of a split, each cut to ``max_tokens``; the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(split))[:NUM_REAL]
    return [split.tokens(i)[:max_tokens] for i in order.tolist()]

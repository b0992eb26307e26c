"""Synthetic documents beside the seed documents they came from, with their provenance: what `sbp peek` shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streaming_sbp.data.dataset import Dataset
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal, JournalEntry
from streaming_sbp.synthesizer.filters import copied_span
from streaming_sbp.telemetry.records import read_records
from streaming_sbp.telemetry.text import decimal, percent, printable, quantity

MISSING = "not there any more"  # in place of a seed document's text
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PeekedDocument:
    """One synthetic document of the journal. Texts are as decoded: untrusted, see `telemetry.text.printable`."""

    index: int  # in the journal: the order of arrival
    text: str
    depth: int  # 1: seeded by a real document; else 1 + that of its synthetic seed document
    seed_text: str | None  # the part of the seed document that the generator saw; None: it is not there any more
    seed_index: int | None  # in the journal, of a synthetic seed document
    seed_id: str  # of the real document at the begin of the line
    snapshot: str  # digest
    version: int | None  # of the snapshot; None when the records do not know it
    parent_tokens: int  # trained tokens behind the snapshot
    generator: str
    session: str
    seq: int
    sampling: dict[str, Any]  # temperature, top_p, top_k
    log_likelihood: float  # mean log-probability per token, nats
    num_tokens: int
    num_seed_tokens: int
    shared_words: float | None  # distinct words in both / distinct words in either
    copied_share: float | None  # longest run of tokens shared with the seed / tokens of the document

    @property
    def length_ratio(self) -> float | None:
        """Tokens of the document per token of the seed."""
        return self.num_tokens / self.num_seed_tokens if self.num_seed_tokens else None


def sample(run: RunDir, count: int, seed: int) -> list[PeekedDocument]:
    """``count`` documents spread over the journal in order of arrival, fewer when it holds fewer or some are damaged.

    Raises ConfigError when the run's data set is not there.
    """
    journal = Journal(run.journal)
    positions = [position for position in spread(len(journal), count, seed) if journal.is_intact(position)]
    if not positions:
        return []
    config = run.config()
    dataset = Dataset.open(config.data.dataset)
    tokenizer, train = dataset.tokenizer(), dataset.split("train")
    entries = [journal.entry(position) for position in positions]
    wanted = {entry.header.seed_id for entry in entries if entry.header.depth == 1}
    index_of = {str(seed_id): i for i, seed_id in enumerate(train.ids) if seed_id in wanted}
    synthetic_seeds = {position: _synthetic_seed(journal, position) for position in positions}
    versions = _snapshot_versions(run)
    seen_tokens = config.synthesizer.max_seed_tokens
    found = []
    for position, entry in zip(positions, entries, strict=True):
        tokens = journal.tokens(position).tolist()
        seed_index, seed_tokens = synthetic_seeds[position], []
        if seed_index is not None:
            seed_tokens = journal.tokens(seed_index)[:seen_tokens].tolist()
        elif entry.header.depth == 1 and entry.header.seed_id in index_of:
            seed_tokens = train.tokens(index_of[entry.header.seed_id])[:seen_tokens].tolist()
        texts = tokenizer.decode(tokens), tokenizer.decode(seed_tokens) if seed_tokens else None
        found.append(_peeked(position, entry, versions, seed_index, texts, (tokens, seed_tokens)))
    return found


def _synthetic_seed(journal: Journal, position: int) -> int | None:
    """Where the synthetic seed document of this one is; None when it has none, or it cannot be read any more.

    It was acknowledged before this one was sampled, so it stands further in front.
    """
    entry = journal.entry(position)
    if entry.header.seed_seq is None:
        return None
    wanted = (entry.generator, entry.session, entry.header.seed_seq)
    for earlier in range(position - 1, journal.first - 1, -1):
        if journal.is_intact(earlier):
            found = journal.entry(earlier)
            if (found.generator, found.session, found.seq) == wanted:
                return earlier
    return None


def spread(num_documents: int, count: int, seed: int) -> list[int]:
    """One position drawn from each of ``count`` equal stretches, so that every snapshot has its part."""
    edges = np.linspace(0, num_documents, min(count, num_documents) + 1).astype(int)
    generator = np.random.default_rng(seed)
    return [int(generator.integers(low, high)) for low, high in pairwise(edges)]


def render(documents: Sequence[PeekedDocument]) -> RenderableType:
    """Panels for a terminal: the seed document on the left, the synthetic one on the right, provenance below."""
    if not documents:
        return Text("no synthetic documents yet: they arrive after the first snapshot is published")
    return Group(*(_panel(document) for document in documents))


def provenance(document: PeekedDocument) -> str:
    """Where a document came from, in one line."""
    version = f"v{document.version}" if document.version is not None else document.snapshot[:8]
    numbers = {key: value for key, value in document.sampling.items() if isinstance(value, int | float)}
    settings = ", ".join(f"{key} {value:g}" for key, value in numbers.items())
    return (
        f"snapshot {version} ({document.snapshot[:8]}, from {quantity(document.parent_tokens)} tokens) · "
        f"{document.generator} #{document.seq} · {settings} · log-likelihood {decimal(document.log_likelihood, 2)}"
    )


def seed_heading(document: PeekedDocument) -> str:
    return "seed document" if document.depth == 1 else "seed document, synthetic"


def lineage(document: PeekedDocument) -> str:
    """What it was made from, in one line."""
    real = f"real document {document.seed_id[:12]}"
    if document.depth == 1:
        return f"depth 1, from {real}"
    seed = "a document that is not there any more" if document.seed_index is None else f"document {document.seed_index}"
    return f"depth {document.depth}, from {seed} of the same snapshot; at the begin of the line, {real}"


def comparison(document: PeekedDocument) -> str:
    """How the document relates to its seed, in one line."""
    return (
        f"{document.num_tokens} tokens ({decimal(document.length_ratio, 2)}× the seed) · "
        f"{percent(document.shared_words, 0)} of the words shared · "
        f"longest copied span {percent(document.copied_share, 0)}"
    )


def word_overlap(first: str, second: str) -> float | None:
    """Jaccard similarity of the sets of words; None when neither has any."""
    a, b = set(_WORD.findall(first.lower())), set(_WORD.findall(second.lower()))
    return len(a & b) / len(a | b) if a | b else None


def longest_shared_span(tokens: Sequence[int], seed_tokens: Sequence[int]) -> float | None:
    """Length of the longest common run of tokens, as a share of ``tokens``; None when there are none."""
    return copied_span(tokens, seed_tokens) if tokens and seed_tokens else None


def _peeked(
    position: int,
    entry: JournalEntry,
    versions: dict[str, int],
    seed_index: int | None,
    texts: tuple[str, str | None],
    tokens: tuple[list[int], list[int]],
) -> PeekedDocument:
    header = entry.header
    return PeekedDocument(
        index=position,
        text=texts[0],
        depth=header.depth,
        seed_text=texts[1],
        seed_index=seed_index,
        seed_id=header.seed_id,
        snapshot=header.snapshot,
        version=versions.get(header.snapshot),
        parent_tokens=header.parent_tokens,
        generator=entry.generator,
        session=entry.session,
        seq=entry.seq,
        sampling=msgspec.to_builtins(header.sampling),
        log_likelihood=header.log_likelihood,
        num_tokens=len(tokens[0]),
        num_seed_tokens=len(tokens[1]),
        shared_words=None if texts[1] is None else word_overlap(texts[0], texts[1]),
        copied_share=longest_shared_span(*tokens),
    )


def _snapshot_versions(run: RunDir) -> dict[str, int]:
    records = (r for r in read_records(run.records / "tuner.jsonl") if r["event"] == "snapshot")
    return {r["digest"]: r["version"] for r in records if r.get("verdict") == "published"}


def _panel(document: PeekedDocument) -> Panel:
    texts = Table.grid(padding=(0, 2), expand=True)
    texts.add_column(ratio=1)
    texts.add_column(ratio=1)
    texts.add_row(Text(seed_heading(document), style="bold blue"), Text("synthetic document", style="bold dark_orange"))
    seed_text = Text(MISSING, style="dim") if document.seed_text is None else _body(document.seed_text)
    texts.add_row(seed_text, _body(document.text))
    said = "\n".join((provenance(document), lineage(document), comparison(document)))
    notes = Text(printable(said), style="dim")
    return Panel(Group(texts, Text(""), notes), box=ROUNDED, title=f"document {document.index}", title_align="left")


def _body(text: str) -> Text:
    return Text(printable(text).strip())

"""The stream of batches: source -> mixer -> packer -> tensors, resumable by construction, repeatable by its decisions.

1. The mixer says which source is furthest behind its share.
2. That source's next document is taken (one cursor a source).
3. The packer puts it into an open bin; full bins become sequences.
4. ``batch_sequences`` sequences become one global batch.

``state_dict()`` holds cursors, the mixer and the bins (references, not tokens); taken between two batches, it is
exactly the frontier of what has been trained. Three things no seed decides: when the schedule began, whether a
synthetic document was there when the mixer asked, and which were passed over because their snapshot had been rolled
back. They are noted with each batch (`Decisions`); a stream that is given them makes the same batches again: that is
how a trainer resumes after a crash, replays a run, and how further ranks follow the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from streaming_sbp.training.mixer import SYNTHETIC, Mixer
from streaming_sbp.training.packing import NO_GROUP, Bin, Packer, Piece
from streaming_sbp.training.sources import RealSource, Source, SyntheticSource

IGNORED = -100  # label of a token that is not a target
STATE_VERSION = 5


@dataclass(frozen=True)
class Decisions:
    """What happened while the documents of one batch were taken. Documents are numbered from the run's first.

    ``started_at``: the schedule began before this document. ``availability``: from this document on, whether synthetic
    documents were there; changes only. ``passed_over``: before this document, those of the synthetic ones that stand
    before this position in the journal, and had not been taken, were passed over.
    """

    started_at: int | None = None
    availability: tuple[tuple[int, bool], ...] = ()
    passed_over: tuple[tuple[int, int], ...] = ()

    def state(self) -> dict[str, Any]:
        """JSON-able; see `of`."""
        state: dict[str, Any] = {"started_at": self.started_at, "availability": [list(c) for c in self.availability]}
        return state | ({"passed_over": [list(jump) for jump in self.passed_over]} if self.passed_over else {})

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Decisions:
        availability = tuple((int(k), bool(there)) for k, there in state["availability"])
        return cls(state["started_at"], availability, _pairs(state.get("passed_over", ())))


def _pairs(values: Iterable[Iterable[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((int(k), int(position)) for k, position in values)


class CannotRepeat(RuntimeError):
    """The decisions ask for a synthetic document that the journal does not hold."""


@dataclass(frozen=True)
class Batch:
    """One global batch, or the part of it that one rank trains. Tensors are int64 ``[rows, sequence_tokens]``.

    ``labels`` are not shifted; the first token of a piece is no target, so that no document predicts another.
    ``position_ids`` restart at each piece, or at each megadocument (packing.py): that is what masks documents from each
    other.
    ``source_ids`` index into ``source_names``; padding is -1. ``weights`` (float32) say how much a target counts in the
    loss; where it is 0 there is none.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    source_ids: torch.Tensor
    weights: torch.Tensor
    source_names: tuple[str, ...]
    rows: tuple[tuple[Piece, ...], ...]  # what each sequence is made of
    decisions: Decisions = Decisions()

    @property
    def num_padding_tokens(self) -> int:
        return int((self.source_ids < 0).sum())

    def num_tokens(self, source: str) -> int:
        return sum(piece.length for row in self.rows for piece in row if piece.source == source)

    def finished(self, source: str) -> list[int]:
        """Positions of the documents that end in this batch."""
        return [piece.position for row in self.rows for piece in row if piece.source == source and piece.last]

    def num_targets(self, source: str) -> int:
        at = self.source_ids == self.source_names.index(source)
        return int((at & (self.labels != IGNORED)).sum())

    def digest(self) -> str:
        """Equal digests mean equal batches: tokens, targets, weights and masks."""
        hasher = hashlib.sha256()
        for tensor in (self.input_ids, self.labels, self.position_ids, self.weights):
            hasher.update(tensor.numpy().tobytes())
        return hasher.hexdigest()[:32]

    def part(self, first: int, last: int) -> Batch:
        """Rows ``first`` to ``last``, exclusive."""
        rows = slice(first, last)
        return Batch(
            self.input_ids[rows],
            self.labels[rows],
            self.position_ids[rows],
            self.source_ids[rows],
            self.weights[rows],
            self.source_names,
            self.rows[rows],
            self.decisions,
        )


class BatchStream:
    """Batches for ever. ``next`` returns None while the mixer's policy is to wait for synthetic documents.

    ``group_by_seed``: a seed document goes beside its synthetic relatives. When it is real text's turn, a group of
    relatives that waits without its seed document gets it, out of the real documents' order.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        mixer: Mixer,
        packer: Packer,
        batch_sequences: int,
        sequence_tokens: int,
        pad_id: int,
        *,
        group_by_seed: bool = False,
    ):
        self.sources, self.mixer, self.packer = dict(sources), mixer, packer
        self._group_by_seed = group_by_seed
        self._batch_sequences, self._sequence_tokens, self._pad_id = batch_sequences, sequence_tokens, pad_id
        self._num_documents = 0
        self._available = False  # what was last noted
        self._noted: list[tuple[int, bool]] = []  # since the last batch
        self._noted_jumps: dict[int, int] = {}  # document -> position, since the last batch
        self._noted_start: int | None = None
        self._start_asked = False

    def start_schedule(self) -> None:
        """The first snapshot is there: synthetic documents are scheduled from the next document on."""
        self._start_asked = True

    @property
    def schedule_started(self) -> bool:
        """Whether it has begun, or does with the next document."""
        return self._start_asked or self.mixer.started_at is not None

    def next(self, decisions: Decisions | None = None) -> Batch | None:
        """The next batch; with ``decisions``, the one that was made with them. Raises CannotRepeat."""
        found = self.next_rows(decisions)
        if found is None:
            return None
        rows, noted = found
        return collate(rows, self.sources, self._sequence_tokens, self._pad_id, noted)

    def next_rows(self, decisions: Decisions | None = None) -> tuple[list[Bin], Decisions] | None:
        """What the next batch is made of, without reading a token."""
        script = dict(decisions.availability) if decisions else None
        while len(self.packer.closed) < self._batch_sequences:
            self._start_if_due(decisions)
            self._pass_over(decisions)
            if not self._take_document(script):
                return None
        rows = [self.packer.closed.popleft() for _ in range(self._batch_sequences)]
        noted = Decisions(self._noted_start, tuple(self._noted), tuple(self._noted_jumps.items()))
        self._noted, self._noted_start, self._noted_jumps = [], None, {}
        return rows, noted

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "sources": {name: source.state_dict() for name, source in self.sources.items()},
            "mixer": self.mixer.state_dict(),
            "packer": self.packer.state_dict(),
            "num_documents": self._num_documents,
            "available": self._available,
            "noted": [list(change) for change in self._noted],
            "noted_start": self._noted_start,
            "noted_jumps": list(self._noted_jumps.items()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a state of another version or with other sources."""
        if state["version"] != STATE_VERSION or set(state["sources"]) != set(self.sources):
            raise ValueError(
                f"loader state: got version {state['version']} with sources {sorted(state['sources'])}, "
                f"expected version {STATE_VERSION} with {sorted(self.sources)}"
            )
        for name, saved in state["sources"].items():
            self.sources[name].load_state_dict(saved)
        self.mixer.load_state_dict(state["mixer"])
        self.packer.load_state_dict(state["packer"])
        self._num_documents, self._available = state["num_documents"], state["available"]
        self._noted, self._noted_start = [(k, there) for k, there in state["noted"]], state["noted_start"]
        self._noted_jumps = dict(_pairs(state["noted_jumps"]))

    def oldest_needed(self, source: str) -> int:
        """The first document of ``source`` that must still be there, for those unread or waiting in the packer."""
        waiting = (piece.position for piece in self.packer.pieces() if piece.source == source)
        found = self.sources[source]
        return found.first_needed(min(waiting, default=found.cursor))

    def forget_waiting(self, source: str, cursor: int) -> int:
        """Go on with another corpus: take ``source`` from ``cursor``, drop what of it waits in bins.

        Returns the number of tokens dropped: they were mixed, and will not be trained.
        """
        self.sources[source].cursor = cursor
        self.packer.forget_groups()  # they are numbers of the old corpus' documents
        return self.packer.drop(source)

    def _start_if_due(self, decisions: Decisions | None) -> None:
        due = decisions.started_at == self._num_documents if decisions else self._start_asked
        if due and self.mixer.started_at is None:
            self.mixer.start()
            self._noted_start = self._num_documents

    def _pass_over(self, decisions: Decisions | None) -> None:
        """Synthetic documents whose snapshot was rolled back: now, or as it was then."""
        source = self.sources[SYNTHETIC]
        if decisions is None:
            passed = source.pass_over_rejected()
        else:
            position = dict(decisions.passed_over).get(self._num_documents, source.cursor)
            passed = position > source.cursor
            if passed and not source.pass_over_to(position):
                raise CannotRepeat(
                    f"synthetic documents before {position} were passed over, and are not in the journal"
                )
        if passed:
            self._noted_jumps[self._num_documents] = source.cursor

    def _take_document(self, script: Mapping[int, bool] | None) -> bool:
        available = self._is_available(script)
        has_document = {name: source.has_document() for name, source in self.sources.items()}
        choice = self.mixer.choose(has_document | {SYNTHETIC: available})
        if choice is None:
            return False
        if available != self._available:
            self._available = available
            self._noted.append((self._num_documents, available))
        position, group = self._next_document(choice.source)
        num_tokens = self.sources[choice.source].num_tokens(position)
        self.packer.add(choice.source, position, num_tokens, group)
        self.mixer.add(choice, self.packer.trained_length(num_tokens))
        self._num_documents += 1
        return True

    def _next_document(self, name: str) -> tuple[int, int]:
        """Its position and group; it counts as taken."""
        source, group = self.sources[name], NO_GROUP
        if self._group_by_seed and isinstance(source, SyntheticSource):
            group = source.seed(source.cursor)
        elif self._group_by_seed and isinstance(source, RealSource):
            group = self.packer.group_without_seed()
            if group != NO_GROUP:
                return source.take(group), group
        source.cursor += 1
        return source.cursor - 1, group

    def _is_available(self, script: Mapping[int, bool] | None) -> bool:
        there = self.sources[SYNTHETIC].has_document()
        if script is None:
            return there
        scripted = script.get(self._num_documents, self._available)
        if scripted and not there and not self.sources[SYNTHETIC].look_again():
            raise CannotRepeat(f"document {self._num_documents}: a synthetic one was there, and is not in the journal")
        return scripted


def collate(
    rows: list[Bin],
    sources: Mapping[str, Source],
    sequence_tokens: int,
    pad_id: int,
    decisions: Decisions = Decisions(),
) -> Batch:
    """Read the tokens of packed rows into tensors."""
    names = tuple(sources)
    shape = (len(rows), sequence_tokens)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    source_ids = np.full(shape, -1, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    for r, row in enumerate(rows):
        at = 0
        for piece in row.pieces:
            source, part = sources[piece.source], slice(piece.start, piece.start + piece.length)
            span = slice(at, at + piece.length)
            input_ids[r, span] = source.tokens(piece.position)[part]
            found = source.target_weights(piece.position)
            weights[r, span] = 1.0 if found is None else found[part]
            weights[r, at] = 0.0
            labels[r, span] = np.where(weights[r, span] > 0, input_ids[r, span], IGNORED)
            source_ids[r, span] = names.index(piece.source)
            at += piece.length
        lengths = [sum(piece.length for piece in segment) for segment in row.segments()]
        position_ids[r] = np.concatenate([np.arange(n) for n in (*lengths, sequence_tokens - at)])
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        torch.from_numpy(position_ids),
        torch.from_numpy(source_ids),
        torch.from_numpy(weights),
        names,
        tuple(tuple(row.pieces) for row in rows),
        decisions,
    )

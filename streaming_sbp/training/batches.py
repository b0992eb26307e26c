"""The stream of batches: source -> mixer -> packer -> tensors, resumable by construction.

1. The mixer says which source is furthest behind its share.
2. That source's next document is taken (one cursor a source).
3. The packer puts it into an open bin; full bins become sequences.
4. ``batch_sequences`` sequences become one global batch.

``state_dict()`` holds cursors, the mixer and the bins (references, not tokens); taken between two batches, it is
exactly the frontier of what has been trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from streaming_sbp.training.mixer import Mixer
from streaming_sbp.training.packing import Bin, Packer, Piece
from streaming_sbp.training.sources import Source

IGNORED = -100  # label of a token that is not a target
STATE_VERSION = 1


@dataclass(frozen=True)
class Batch:
    """One global batch. Tensors are int64 ``[batch_sequences, sequence_tokens]``.

    ``labels`` are not shifted; the first token of a piece is no target, so that no document predicts another.
    ``position_ids`` restart at each piece, which is what masks documents from each other.
    ``source_ids`` index into ``source_names``; padding is -1.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    source_ids: torch.Tensor
    source_names: tuple[str, ...]
    rows: tuple[tuple[Piece, ...], ...]  # what each sequence is made of

    @property
    def num_padding_tokens(self) -> int:
        return int((self.source_ids < 0).sum())

    def num_tokens(self, source: str) -> int:
        return sum(piece.length for row in self.rows for piece in row if piece.source == source)

    def finished(self, source: str) -> list[int]:
        """Positions of the documents that end in this batch."""
        return [piece.position for row in self.rows for piece in row if piece.source == source and piece.last]

    def digest(self) -> str:
        """Equal digests mean equal batches: tokens, targets and masks."""
        hasher = hashlib.sha256()
        for tensor in (self.input_ids, self.labels, self.position_ids):
            hasher.update(tensor.numpy().tobytes())
        return hasher.hexdigest()


class BatchStream:
    """Batches for ever. ``next`` returns None while the mixer's policy is to wait for synthetic documents."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        mixer: Mixer,
        packer: Packer,
        batch_sequences: int,
        sequence_tokens: int,
        pad_id: int,
    ):
        self.sources, self.mixer, self.packer = dict(sources), mixer, packer
        self._batch_sequences, self._sequence_tokens, self._pad_id = batch_sequences, sequence_tokens, pad_id

    def next(self) -> Batch | None:
        while len(self.packer.closed) < self._batch_sequences:
            if not self._take_document():
                return None
        rows = [self.packer.closed.popleft() for _ in range(self._batch_sequences)]
        return collate(rows, self.sources, self._sequence_tokens, self._pad_id)

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "cursors": {name: source.cursor for name, source in self.sources.items()},
            "mixer": self.mixer.state_dict(),
            "packer": self.packer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a state of another version or with other sources."""
        if state["version"] != STATE_VERSION or set(state["cursors"]) != set(self.sources):
            raise ValueError(
                f"loader state: got version {state['version']} with sources {sorted(state['cursors'])}, "
                f"expected version {STATE_VERSION} with {sorted(self.sources)}"
            )
        for name, cursor in state["cursors"].items():
            self.sources[name].cursor = cursor
        self.mixer.load_state_dict(state["mixer"])
        self.packer.load_state_dict(state["packer"])

    def _take_document(self) -> bool:
        choice = self.mixer.choose({name: source.has_document() for name, source in self.sources.items()})
        if choice is None:
            return False
        source = self.sources[choice.source]
        num_tokens = source.num_tokens(source.cursor)
        self.packer.add(choice.source, source.cursor, num_tokens)
        self.mixer.add(choice, self.packer.trained_length(num_tokens))
        source.cursor += 1
        return True


def collate(rows: list[Bin], sources: Mapping[str, Source], sequence_tokens: int, pad_id: int) -> Batch:
    """Read the tokens of packed rows into tensors."""
    names = tuple(sources)
    shape = (len(rows), sequence_tokens)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    source_ids = np.full(shape, -1, dtype=np.int64)
    for r, row in enumerate(rows):
        at = 0
        for piece in row.pieces:
            tokens = sources[piece.source].tokens(piece.position)[piece.start : piece.start + piece.length]
            span = slice(at, at + piece.length)
            input_ids[r, span] = tokens
            labels[r, span] = tokens
            labels[r, at] = IGNORED
            position_ids[r, span] = np.arange(piece.length)
            source_ids[r, span] = names.index(piece.source)
            at += piece.length
        position_ids[r, at:] = np.arange(sequence_tokens - at)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        torch.from_numpy(position_ids),
        torch.from_numpy(source_ids),
        names,
        tuple(tuple(row.pieces) for row in rows),
    )

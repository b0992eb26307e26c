"""Documents into sequences of a fixed length: best fit over open bins.

A bin holds references to documents (`Piece`), never their tokens: its state is small, and the tokens are read again
on resume. A document goes into the open bin that it fills best; when none has room, the fullest bin is closed and
becomes a sequence. No token is dropped unless ``long_documents = "truncate"``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streaming_sbp import config


class Piece(NamedTuple):
    """Tokens ``start : start + length`` of the document at ``position`` of ``source``."""

    source: str
    position: int
    start: int
    length: int
    last: bool  # the document ends with this piece


@dataclass
class Bin:
    capacity: int
    pieces: list[Piece] = field(default_factory=list)

    @property
    def room(self) -> int:
        return self.capacity - sum(piece.length for piece in self.pieces)


class Packer:
    """``add`` documents; ``closed`` holds the finished sequences, oldest first."""

    def __init__(self, packing: config.Packing, sequence_tokens: int):
        self._num_open_bins = packing.num_open_bins
        self._truncate = packing.long_documents == "truncate"
        self._sequence_tokens = sequence_tokens
        self._open: list[Bin] = []
        self.closed: deque[Bin] = deque()
        self.truncated_tokens = 0

    def trained_length(self, num_tokens: int) -> int:
        """How many of a document's tokens will be trained."""
        return min(num_tokens, self._sequence_tokens) if self._truncate else num_tokens

    def add(self, source: str, position: int, num_tokens: int) -> None:
        kept = self.trained_length(num_tokens)
        self.truncated_tokens += num_tokens - kept
        for start in range(0, kept, self._sequence_tokens):
            length = min(self._sequence_tokens, kept - start)
            self._place(Piece(source, position, start, length, last=start + length == kept))

    def pieces(self) -> Iterator[Piece]:
        """Every piece that waits in a bin, open or closed."""
        for packed in (*self.closed, *self._open):
            yield from packed.pieces

    def flush(self) -> None:
        """Close every open bin, fullest first."""
        self.closed.extend(sorted(self._open, key=lambda packed: packed.room))
        self._open.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "open": [[list(piece) for piece in packed.pieces] for packed in self._open],
            "closed": [[list(piece) for piece in packed.pieces] for packed in self.closed],
            "truncated_tokens": self.truncated_tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        def restore(rows: list[list[list[Any]]]) -> list[Bin]:
            return [Bin(self._sequence_tokens, [Piece(*piece) for piece in row]) for row in rows]

        self._open = restore(state["open"])
        self.closed = deque(restore(state["closed"]))
        self.truncated_tokens = state["truncated_tokens"]

    def _place(self, piece: Piece) -> None:
        fitting = [packed for packed in self._open if packed.room >= piece.length]
        best = min(fitting, key=lambda packed: packed.room) if fitting else self._open_bin()
        best.pieces.append(piece)
        if best.room == 0:
            self._close(best)

    def _open_bin(self) -> Bin:
        if len(self._open) >= self._num_open_bins:
            self._close(min(self._open, key=lambda packed: packed.room))
        self._open.append(Bin(self._sequence_tokens))
        return self._open[-1]

    def _close(self, packed: Bin) -> None:
        self._open = [other for other in self._open if other is not packed]
        self.closed.append(packed)

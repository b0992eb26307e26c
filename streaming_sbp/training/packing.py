"""Documents into sequences of a fixed length: the oldest waiting document, and those that fill the rest of it best.

``num_open_bins`` sequences' worth of documents wait. When there are more, the oldest gets a sequence, and of the
others those are chosen whose lengths sum up to the most that fits (a subset sum, exactly solved). Where several
choices fit as well, older documents are preferred; but when a source is more than half a sequence behind the proportion
in which it came, its documents are, so that the mix comes out as it went in. A document waits for at most as many
sequences as documents were waiting when it came; one that fills a sequence alone does not wait. Waiting documents are
references (`Piece`), never tokens: the state is small, and the tokens are read again on resume.
This is the minimum bin slack heuristic: Gupta and Ho, A new heuristic algorithm for the one-dimensional bin-packing
problem, Production Planning and Control 10 (1999). Best fit over 64 open bins pads 0.2 to 4.7 % where this pads
0.0 to 0.6 %, and its latest documents waited for thousands of sequences (`benchmarks/packing.py`).

What is cut: only a document longer than a sequence (``long_documents``: "split" trains all of it, in pieces;
"truncate" trains its beginning and counts the rest). A shorter one is never cut, whatever that costs.

What that costs: a sequence that is half empty or emptier leaves only documents longer than half a sequence waiting, and
the oldest of them does not fit into it, so two neighbouring sequences hold more than one of them could. Padding
therefore stays below half for any lengths and however few documents there are. Documents of just above half a sequence
come near that half (46 % for 1,100 tokens at 2,048), documents of just above a third come near a third: there longer
sequences help, more waiting documents do not.

Documents of one ``group`` (`packing.group_by_seed`: a seed document and its synthetic relatives) that wait at the same
time go into one sequence, one behind the other, the real one first: a megadocument. They take the place of one document
in all of the above; of a group longer than a sequence the oldest goes, with those that fit beside it, and the others
are next.
"""

from __future__ import annotations

import operator
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streaming_sbp import config
from streaming_sbp.training.mixer import REAL

NO_GROUP = -1


class Piece(NamedTuple):
    """Tokens ``start : start + length`` of the document at ``position`` of ``source``."""

    source: str
    position: int
    start: int
    length: int
    last: bool  # the document ends with this piece
    group: int = NO_GROUP  # neighbours of the same group in a sequence see each other


@dataclass
class Bin:
    """The pieces of a sequence, in their order."""

    capacity: int
    pieces: list[Piece] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens of padding."""
        return self.capacity - sum(piece.length for piece in self.pieces)

    def segments(self) -> list[list[Piece]]:
        """The pieces that see each other: neighbours of one group, or one piece alone."""
        found: list[list[Piece]] = []
        for piece in self.pieces:
            if found and piece.group != NO_GROUP and piece.group == found[-1][-1].group:
                found[-1].append(piece)
            else:
                found.append([piece])
        return found


@dataclass
class _Unit:
    """What goes into one sequence: a piece, or what waits of one group, in the order in which it came."""

    group: int
    pieces: list[Piece]
    num_tokens: int


class Packer:
    """``add`` documents; ``closed`` holds the finished sequences, oldest first."""

    def __init__(self, packing: config.Packing, sequence_tokens: int):
        self._waiting_limit = packing.num_open_bins * sequence_tokens
        self._truncate = packing.long_documents == "truncate"
        self._sequence_tokens = sequence_tokens
        self._waiting: list[_Unit] = []  # oldest first
        self._waiting_tokens = 0
        self._packed_tokens: Counter[str] = Counter()  # in sequences so far, by source
        self.closed: deque[Bin] = deque()
        self.truncated_tokens = 0

    def trained_length(self, num_tokens: int) -> int:
        """How many of a document's tokens will be trained."""
        return min(num_tokens, self._sequence_tokens) if self._truncate else num_tokens

    def add(self, source: str, position: int, num_tokens: int, group: int = NO_GROUP) -> None:
        num_tokens = operator.index(num_tokens)  # a NumPy integer would overflow in the sums of `fullest_subset`
        kept = self.trained_length(num_tokens)
        self.truncated_tokens += num_tokens - kept
        for start in range(0, kept, self._sequence_tokens):
            length = min(self._sequence_tokens, kept - start)
            self._place(Piece(source, position, start, length, start + length == kept, group))

    def group_without_seed(self) -> int:
        """The oldest waiting group of which no real document waits; NO_GROUP when there is none."""
        for unit in self._waiting:
            if unit.group != NO_GROUP and all(piece.source != REAL for piece in unit.pieces):
                return unit.group
        return NO_GROUP

    def forget_groups(self) -> None:
        """What waits will stand alone."""
        self._wait_anew(piece._replace(group=NO_GROUP) for piece in self._waiting_pieces())

    def pieces(self) -> Iterator[Piece]:
        """Every piece that waits, alone or in a finished sequence."""
        for packed in self.closed:
            yield from packed.pieces
        yield from self._waiting_pieces()

    def flush(self) -> None:
        """Close sequences until nothing waits. The longest go first: that leaves the fewest sequences."""
        self._waiting.sort(key=lambda unit: unit.num_tokens, reverse=True)
        while self._waiting:
            self._close_one()

    def drop(self, source: str) -> int:
        """Forget what waits of ``source``; returns how many tokens that is."""
        dropped = sum(piece.length for piece in self.pieces() if piece.source == source)
        self._wait_anew(piece for piece in self._waiting_pieces() if piece.source != source)
        for packed in self.closed:
            packed.pieces = [piece for piece in packed.pieces if piece.source != source]
        return dropped

    def state_dict(self) -> dict[str, Any]:
        return {
            "waiting": [list(piece) for piece in self._waiting_pieces()],
            "closed": [[list(piece) for piece in packed.pieces] for packed in self.closed],
            "packed_tokens": dict(self._packed_tokens),
            "truncated_tokens": self.truncated_tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._wait_anew(Piece(*piece) for piece in state["waiting"])
        self.closed = deque(Bin(self._sequence_tokens, [Piece(*piece) for piece in row]) for row in state["closed"])
        self._packed_tokens = Counter(state["packed_tokens"])
        self.truncated_tokens = state["truncated_tokens"]

    def _place(self, piece: Piece) -> None:
        if piece.length == self._sequence_tokens:
            self._close([piece])
            return
        self._wait(piece)
        while self._waiting_tokens > self._waiting_limit:
            self._close_one()

    def _wait(self, piece: Piece) -> None:
        self._waiting_tokens += piece.length
        if piece.group != NO_GROUP:
            for unit in self._waiting:
                if unit.group == piece.group:
                    unit.pieces.append(piece)
                    unit.num_tokens += piece.length
                    return
        self._waiting.append(_Unit(piece.group, [piece], piece.length))

    def _wait_anew(self, pieces: Iterable[Piece]) -> None:
        """These, and nothing else."""
        kept = list(pieces)
        self._waiting, self._waiting_tokens = [], 0
        for piece in kept:
            self._wait(piece)

    def _waiting_pieces(self) -> Iterator[Piece]:
        for unit in self._waiting:
            yield from unit.pieces

    def _close_one(self) -> None:
        ahead = self._tokens_ahead()
        oldest, *others = self._waiting
        pieces, rest = self._that_fit(oldest)
        room = self._sequence_tokens - sum(piece.length for piece in pieces)
        # A group of which more may come fills up a sequence only where nothing else does.
        young = {k for k, unit in enumerate(others) if unit.group != NO_GROUP and 2 * k >= len(others)}
        chosen: set[int] = set()
        for candidates in ([k for k in range(len(others)) if k not in young], sorted(young)):
            if ahead:
                candidates.sort(key=lambda k: ahead[others[k].pieces[0].source])
            found = fullest_subset([others[k].num_tokens for k in candidates], room)
            chosen.update(candidates[i] for i in found)
            room -= sum(others[candidates[i]].num_tokens for i in found)
        self._waiting = rest + [unit for k, unit in enumerate(others) if k not in chosen]
        for k in sorted(chosen):
            pieces += _real_first(others[k].pieces)
        self._waiting_tokens -= sum(piece.length for piece in pieces)
        self._close(pieces)

    def _that_fit(self, unit: _Unit) -> tuple[list[Piece], list[_Unit]]:
        """Of a unit, the pieces that fit into one sequence, the oldest among them for certain, and what is left."""
        if unit.num_tokens <= self._sequence_tokens:
            return _real_first(unit.pieces), []
        oldest, *others = unit.pieces
        fitting, left, room = [oldest], [], self._sequence_tokens - oldest.length
        for piece in _real_first(others):
            if piece.length <= room:
                fitting.append(piece)
                room -= piece.length
            else:
                left.append(piece)
        return _real_first(fitting), [_Unit(unit.group, left, sum(piece.length for piece in left))]

    def _tokens_ahead(self) -> dict[str, float]:
        """By source, how much more is in sequences than its part of all that came.

        What is behind goes first, a group as its oldest document does. Empty while none is ahead by more than half a
        sequence: then only age counts.
        """
        came = self._packed_tokens.copy()
        for unit in self._waiting:
            for piece in unit.pieces:
                came[piece.source] += piece.length
        part = self._packed_tokens.total() / came.total()
        ahead = {source: self._packed_tokens[source] - part * tokens for source, tokens in came.items()}
        return ahead if max(ahead.values()) > self._sequence_tokens / 2 else {}

    def _close(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._packed_tokens[piece.source] += piece.length
        self.closed.append(Bin(self._sequence_tokens, pieces))


def _real_first(pieces: list[Piece]) -> list[Piece]:
    """In the order in which they came but for that."""
    return sorted(pieces, key=lambda piece: piece.source != REAL) if len(pieces) > 1 else list(pieces)


def fullest_subset(lengths: Sequence[int], room: int) -> list[int]:
    """Indices, ascending, of the lengths with the largest sum that is at most ``room``; early ones win.

    Bit s of an integer says whether the sum s can be made, so that one shift adds a length to every sum at once.
    """
    within = (1 << (room + 1)) - 1
    full = 1 << room
    sums = 1
    grown: list[tuple[int, int]] = []  # (index, sums that could be made without it), where it made a new one
    for i, length in enumerate(lengths):
        if sums & full:
            break
        more = (sums | (sums << length)) & within
        if more != sums:
            grown.append((i, sums))
            sums = more
    total = sums.bit_length() - 1
    chosen = []
    for i, without in reversed(grown):
        if not (without >> total) & 1:
            chosen.append(i)
            total -= lengths[i]
    return chosen[::-1]

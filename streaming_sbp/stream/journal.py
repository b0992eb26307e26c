"""The journal: every accepted synthetic document, on disk before it is acknowledged, numbered in order of arrival.

RUN/journal/0000000000-004096.tar   WebDataset shards; the name says which positions (see `shards.py`)
RUN/journal/dropped.jsonl           documents that were refused, with the reason

The first shards may have been removed (`prune`): positions stay what they were.

One process appends; any number read. A group of documents becomes a small shard: written beside, fsynced, renamed.
Small shards are joined into larger ones, the same way; a crash in between leaves both, and the larger one counts.
Memory does not grow with the journal: of each shard only the name is kept, and the entries of the last few used.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from streaming_sbp.files import fsync_directory
from streaming_sbp.stream import shards
from streaming_sbp.stream.shards import CONFIDENCE_DTYPE, END_OF_TAR, AcceptedDocument, JournalEntry, ShardName

UNKNOWN = "unknown"
DROPPED_NAME = "dropped.jsonl"
SHARD_DOCUMENTS = 256  # a shard of this many is never joined again: joining writes every byte twice
JOIN_AT = 64  # small shards
OPEN_SHARDS = 64  # whose entries and memory maps are kept
log = logging.getLogger("sbp")


class Drop(NamedTuple):
    """A document that was refused."""

    generator: str
    session: str
    seq: int
    reason: str  # telemetry.catalogue.DROP_REASONS


class Written(NamedTuple):
    """A group that is on disk."""

    name: ShardName
    num_bytes: int


class _Shard:
    """A mapped shard and where each document is in it; None where the shard is damaged."""

    def __init__(self, path: Path, name: ShardName):
        mapped = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
        self.data = mapped.view(np.ndarray).data
        found = list(shards.scan(self.data))[: name.size]
        if len(found) < name.size:
            log.warning("journal shard %s is damaged: %d of %d documents found", path, len(found), name.size)
        self.located: list[shards.Located | None] = [*found, *[None] * (name.size - len(found))]


class Journal:
    """``len`` is the number of positions; safe to read from one thread while another appends.

    ``writable``: this process is the one that appends; what a crash left half-written is removed.
    ``num_bytes`` is the size of the shards when the journal was opened, and what this process has appended;
    ``fsync_seconds`` the time that it has waited for the disk.
    """

    def __init__(self, folder: str | Path, *, writable: bool = False):
        self._folder = Path(folder)
        self._lock = threading.RLock()
        self._open: OrderedDict[ShardName, _Shard] = OrderedDict()
        self._names: list[ShardName] = []
        self._writable = writable
        self.num_bytes = 0
        self.fsync_seconds = 0.0
        if writable:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".*.tmp"):
                leftover.unlink()
        self._look()
        self.num_bytes = sum(path.stat().st_size for path in self._folder.glob("*.tar"))

    @property
    def first(self) -> int:
        """The first position that is kept; those before were pruned."""
        with self._lock:
            return self._names[0].first if self._names else 0

    def __len__(self) -> int:
        with self._lock:
            return self._names[-1].first + self._names[-1].size if self._names else 0

    def look_again(self) -> int:
        """The length, after a look for what another process has appended."""
        if not self._writable:
            self._look()
        return len(self)

    def entry(self, position: int) -> JournalEntry:
        """Raises ValueError when the shard is damaged there; see `is_intact`."""
        located = self._located(position)[1]
        if located is None:
            raise self._damaged(position)
        return located.entry

    def generator_of(self, position: int) -> str:
        """Who wrote the document; "unknown" when the shard is damaged there."""
        located = self._located(position)[1]
        return UNKNOWN if located is None else located.entry.generator

    def tokens(self, position: int) -> np.ndarray:
        """Token ids as they arrived (uint16 or uint32), read-only. Raises ValueError when damaged."""
        data, located = self._located(position)
        if located is None or not shards.is_intact(data, located):
            raise self._damaged(position)
        dtype = np.dtype(f"<u{located.tokens_bytes // max(located.entry.header.num_tokens, 1) or 2}")
        return np.frombuffer(data, dtype, located.entry.header.num_tokens, located.tokens_at)

    def confidence(self, position: int) -> np.ndarray:
        """One byte a token; see `synthesizer.confidence`."""
        data, located = self._located(position)
        if located is None:
            raise self._damaged(position)
        return np.frombuffer(data, CONFIDENCE_DTYPE, located.entry.header.num_tokens, located.confidence_at)

    def is_intact(self, position: int) -> bool:
        """Whether the document can be read, and is what arrived."""
        data, located = self._located(position)
        return located is not None and shards.is_intact(data, located)

    def entries(self, first: int = 0) -> Iterator[JournalEntry]:
        """From position ``first`` on; damaged ones are left out."""
        for position in range(max(first, self.first), len(self)):
            located = self._located(position)[1]
            if located is not None:
                yield located.entry

    def drops(self) -> list[Drop]:
        """Every refused document; a line that a crash cut short was never acknowledged, and is left out."""
        try:
            lines = (self._folder / DROPPED_NAME).read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [Drop(**json.loads(line)) for line in lines]

    # --- appending ---

    def append(self, documents: Sequence[AcceptedDocument]) -> None:
        """Write a group; when this returns, it is durable. Raises OSError, and then nothing was appended."""
        self.publish(self.write(documents))
        self._join()

    def write(self, documents: Sequence[AcceptedDocument]) -> Written | None:
        """Make the next group durable. It belongs to the journal, for readers of this object, when it is published.

        Only one group may be written and not yet published. Raises OSError, and then nothing was written.
        """
        self._join()
        if not documents:
            return None
        name = ShardName(len(self), len(documents))
        content = shards.encode(name.first, documents, time.time())
        self._write(name, [content])
        return Written(name, len(content))

    def publish(self, written: Written | None) -> None:
        if written is not None:
            with self._lock:
                self._names.append(written.name)
                self.num_bytes += written.num_bytes

    def append_drops(self, drops: Iterable[Drop]) -> None:
        """Note refused documents, durably."""
        lines = "".join(json.dumps(drop._asdict()) + "\n" for drop in drops)
        if not lines:
            return
        with open(self._folder / DROPPED_NAME, "ab") as file:
            file.write(lines.encode())
            self._sync(file)

    def prune(self, before: int) -> None:
        """Remove the shards that hold only positions before this one, never the last. Not beside `write`."""
        for name in list(self._names[:-1]):
            if name.first + name.size > before:
                return
            path = self._folder / str(name)
            size = path.stat().st_size
            with self._lock:
                self._names.remove(name)
                self._open.pop(name, None)
                self.num_bytes -= size
            path.unlink()

    def _join(self) -> None:
        """Join the small shards at the end, when there are many, into one."""
        small = len(self._names)
        while small > 0 and self._names[small - 1].size < SHARD_DOCUMENTS:
            small -= 1
        names = self._names[small:]
        if len(names) < 2 or (len(names) < JOIN_AT and sum(name.size for name in names) < SHARD_DOCUMENTS):
            return
        joined = ShardName(names[0].first, sum(name.size for name in names))
        contents = [(self._folder / str(name)).read_bytes() for name in names]
        if not all(content.endswith(END_OF_TAR) for content in contents):
            return  # one is damaged: leave them as they are
        self._write(joined, [*(content[: -len(END_OF_TAR)] for content in contents), END_OF_TAR])
        with self._lock:
            self._names[small:] = [joined]
            for name in names:
                self._open.pop(name, None)
        for name in names:
            (self._folder / str(name)).unlink()

    def _write(self, name: ShardName, contents: Iterable[bytes]) -> None:
        temporary = self._folder / f".{name}.tmp"
        try:
            with open(temporary, "wb") as file:
                for content in contents:
                    file.write(content)
                self._sync(file)
            os.replace(temporary, self._folder / str(name))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        started = time.monotonic()
        fsync_directory(self._folder)
        self.fsync_seconds += time.monotonic() - started

    def _sync(self, file: BinaryIO) -> None:
        started = time.monotonic()
        file.flush()
        os.fsync(file.fileno())
        self.fsync_seconds += time.monotonic() - started

    # --- finding ---

    def _look(self) -> None:
        """Read the names; of two shards that hold the same position, the larger one counts."""
        found = sorted(
            (name for path in self._folder.glob("*.tar") if (name := ShardName.parse(path.name))),
            key=lambda name: (name.first, -name.size),
        )
        names: list[ShardName] = []
        for name in found:
            end = names[-1].first + names[-1].size if names else 0
            if name.first >= end:
                names.append(name)
            elif self._writable:
                (self._folder / str(name)).unlink()  # joined into the one before; the crash came before its removal
        with self._lock:
            self._names = names

    def _located(self, position: int) -> tuple[memoryview, shards.Located | None]:
        with self._lock:
            if not 0 <= position < len(self):
                raise IndexError(f"journal position {position}: expected 0..{len(self) - 1}")
            shard, name = self._shard(position)
        if shard is None:
            return memoryview(b""), None
        return shard.data, shard.located[position - name.first]

    def _shard(self, position: int) -> tuple[_Shard | None, ShardName]:
        name = self._name_of(position)
        if not name.first <= position < name.first + name.size:
            return None, name  # pruned, or a shard was removed by somebody
        if name not in self._open:
            try:
                self._open[name] = _Shard(self._folder / str(name), name)
            except FileNotFoundError:
                if self._writable:
                    return None, name
                self._look()  # the writer has joined it into a larger one meanwhile, or pruned it
                name = self._name_of(position)
                if not name.first <= position < name.first + name.size:
                    return None, name
                self._open[name] = _Shard(self._folder / str(name), name)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name], name

    def _name_of(self, position: int) -> ShardName:
        """The last shard that begins at or before ``position``."""
        return self._names[max(bisect_right(self._names, position, key=lambda name: name.first) - 1, 0)]

    def _damaged(self, position: int) -> ValueError:
        if position < self.first:
            return ValueError(f"journal position {position}: was removed (journal.prune); kept from {self.first} on")
        return ValueError(
            f"journal position {position}: shard {self._folder / str(self._name_of(position))} is damaged"
        )

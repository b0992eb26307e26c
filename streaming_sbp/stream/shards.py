"""One shard of the journal: a tar that any WebDataset reader reads, and that is found by position, not by search.

A sample is ``{key: position, "json": provenance, "tokens.npy": token ids, "confidence.npy": one byte a token}``.
The name says which positions it holds: ``0000000128-000064.tar`` holds 64 documents from position 128 on.

The tar is written by hand: `tarfile` takes 22 microseconds for the header of a member, this takes 1, and a document has
three. Every member begins at a multiple of 512 bytes, so shards are joined by joining their bytes.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from streaming_sbp.stream.messages import DocumentHeader

BLOCK_BYTES = 512
END_OF_TAR = bytes(2 * BLOCK_BYTES)
POSITION_DIGITS = 10
MEMBERS = ("json", "tokens.npy", "confidence.npy")
CONFIDENCE_DTYPE = np.dtype("u1")


class AcceptedDocument(msgspec.Struct, frozen=True, gc=False):
    """A synthetic document on its way into the journal; ``tokens`` and ``confidence`` have one element a token."""

    generator: str
    session: str
    seq: int
    header: DocumentHeader
    tokens: np.ndarray
    confidence: np.ndarray  # uint8, see `synthesizer.confidence`


class JournalEntry(msgspec.Struct, frozen=True, gc=False):
    """What the journal knows of a document; the content of its ``json`` member."""

    generator: str
    session: str
    seq: int
    header: DocumentHeader
    received: float  # Unix time
    checksum: int  # crc32 of token ids, then confidence


_json = msgspec.json.Encoder()


class Located(NamedTuple):
    entry: JournalEntry
    tokens_at: int  # byte of the shard at which the token ids begin
    tokens_bytes: int
    confidence_at: int


class ShardName(NamedTuple):
    first: int
    size: int

    def __str__(self) -> str:
        return f"{self.first:010d}-{self.size:06d}.tar"

    @classmethod
    def parse(cls, name: str) -> ShardName | None:
        first, dash, rest = name.removesuffix(".tar").partition("-")
        if not (name.endswith(".tar") and dash and first.isdecimal() and rest.isdecimal()):
            return None
        return cls(int(first), int(rest))


def encode(first: int, documents: Sequence[AcceptedDocument], received: float) -> bytes:
    """A complete tar of ``documents``, the first at position ``first``."""
    parts: list[bytes | memoryview] = []
    for position, document in enumerate(documents, start=first):
        tokens, confidence = document.tokens.data, document.confidence.data
        checksum = zlib.crc32(confidence, zlib.crc32(tokens))
        about = _json.encode(
            JournalEntry(document.generator, document.session, document.seq, document.header, received, checksum)
        )
        name = b"%010d" % position
        parts += _member(name, "json", b"", about)
        parts += _member(name, "tokens.npy", _npy_head(document.tokens.dtype.str, len(tokens)), tokens)
        parts += _member(name, "confidence.npy", _npy_head(CONFIDENCE_DTYPE.str, len(confidence)), confidence)
    parts.append(END_OF_TAR)
    return b"".join(parts)


def scan(data: memoryview) -> Iterator[Located]:
    """Where each document is in a shard; ends early, without an error, where the shard is damaged."""
    members = _members(data)
    while True:
        found = [next(members, None) for _ in MEMBERS]
        if None in found:
            return
        (_, about, about_bytes), (_, tokens, tokens_bytes), (_, confidence, _) = found  # type: ignore[misc]
        try:
            entry = msgspec.json.decode(data[about : about + about_bytes], type=JournalEntry)
            head, confidence_head = _npy_head_bytes(data, tokens), _npy_head_bytes(data, confidence)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            return
        yield Located(entry, tokens + head, tokens_bytes - head, confidence + confidence_head)


def is_intact(data: memoryview, located: Located) -> bool:
    """Whether token ids and confidence have the checksum that was computed when they arrived."""
    tokens = data[located.tokens_at : located.tokens_at + located.tokens_bytes]
    confidence = data[located.confidence_at : located.confidence_at + located.entry.header.num_tokens]
    return zlib.crc32(confidence, zlib.crc32(tokens)) == located.entry.checksum


def _members(data: memoryview) -> Iterator[tuple[str, int, int]]:
    """(name, first byte of the content, bytes) of each whole member."""
    at = 0
    while at + BLOCK_BYTES <= len(data):
        block = bytes(data[at : at + BLOCK_BYTES])
        if not any(block) or _checksum_of(block) != block[148:154]:
            return
        size = int(block[124:135], 8)
        if at + BLOCK_BYTES + size > len(data):
            return
        yield block[:100].rstrip(b"\0").decode("ascii", "replace"), at + BLOCK_BYTES, size
        at += BLOCK_BYTES + -(-size // BLOCK_BYTES) * BLOCK_BYTES


# ustar: name 0:100, mode 100:108, uid 108:116, gid 116:124, size 124:136, mtime 136:148, checksum 148:156, type 156
_AFTER_NAME = b"0000644\0" + b"0000000\0" * 2
_AFTER_SIZE = b"00000000000\0"
_AFTER_CHECKSUM = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK_BYTES - 156, b"\0")
_CONSTANT_SUM = 8 * ord(" ") + sum(_AFTER_CHECKSUM)


def _member(name: bytes, extension: str, head: bytes, body: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """A member of a tar: its header, its content (``head`` and ``body``), and what fills the last block."""
    before, after, constant, padding = _member_frame(extension, len(head) + memoryview(body).nbytes)
    return name, before, b"%06o\0 " % (constant + sum(name)), after, head, body, padding


@lru_cache(maxsize=8192)
def _member_frame(extension: str, size: int) -> tuple[bytes, bytes, int, bytes]:
    """The parts of a member that depend on neither its position nor its content: between the position and the
    checksum, after the checksum, the checksum without the position, and the padding."""
    end_of_name = f".{extension}".encode("ascii").ljust(100 - POSITION_DIGITS, b"\0")
    before = end_of_name + _AFTER_NAME + b"%011o\0" % size + _AFTER_SIZE
    return before, _AFTER_CHECKSUM, _CONSTANT_SUM + sum(before), bytes(-size % BLOCK_BYTES)


def _checksum_of(block: bytes) -> bytes:
    return b"%06o" % (sum(block) - sum(block[148:156]) + 8 * ord(" "))


@lru_cache(maxsize=8192)
def _npy_head(dtype: str, length: int) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": (length,)})
    return buffer.getvalue()


def _npy_head_bytes(data: memoryview, start: int) -> int:
    """Length of the head of the NumPy file at ``start``: magic, version, a two-byte length, then so many bytes."""
    head = bytes(data[start : start + 10])
    if head[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("not a NumPy file")
    return 10 + int.from_bytes(head[8:], "little")

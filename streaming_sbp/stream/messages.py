"""What travels between generators and the trainer: every message, its encoding, and its limits. No I/O, no rules.

A message is one frame, tagged msgpack; what is sent together travels as the frames of one ZeroMQ message. A document
carries its token ids (little-endian, 2 bytes each where the vocabulary fits, else 4) and one confidence byte per token.
Decoding checks types and sizes; nothing here can execute anything (msgpack, no pickle).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from streaming_sbp.telemetry.catalogue import MAX_DEPTH

PROTOCOL_VERSION = 3
MAX_CONTROL_BYTES = 64 * 1024  # of a control message
MAX_HEADER_BYTES = 4096
MAX_FRAMES = 64  # messages that are sent together
MAX_SETTLED_ALSO = 4096  # listed in one `Progress`: it stays below MAX_CONTROL_BYTES
MAX_HELD_SEEDS = 4096  # of one generator: a report of them stays below MAX_CONTROL_BYTES
MAX_GRANTS = 64  # of seeds, in one `Progress`
MAX_NAME_CHARACTERS = 128

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARACTERS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class StreamRefused(RuntimeError):
    """The trainer will not take this generator; the message says why."""


class SamplingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """How a document was sampled; see `config.Generator`."""

    temperature: float
    top_p: float
    top_k: Count


class DocumentHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """Provenance of one synthetic document.

    One that was seeded by a synthetic document (`synthesizer.second_round`) names that document in ``seed_seq``: a
    number of the same generator and session, and of the same snapshot. Its ``seed_id`` is that of the real document at
    the begin of the line.
    """

    seed_id: Name  # id of the real seed document
    snapshot: Name  # digest of the synthesizer
    parent_tokens: Count  # trained tokens behind that snapshot's checkpoint
    sampling: SamplingSettings
    log_likelihood: float  # mean log-probability per token under the plain distribution, nats
    num_tokens: Count  # of the document, no special tokens
    num_prompt_tokens: Count
    seed_position: Count | None = None  # of a real seed document, in the order of seeds; see `synthesizer.seeds`
    depth: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEPTH)] = 1  # 1 + that of the seed document; a real one has 0
    seed_seq: Count | None = None  # of a synthetic seed document; None: it was a real one


class SeedReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which seeds a generator holds: granted to it, and neither sent nor filtered."""

    number: Count  # of this report; the newest counts
    last_grant: Count  # grants up to this number have arrived
    want: Annotated[int, msgspec.Meta(ge=0, le=MAX_HELD_SEEDS)]  # how many it would like to hold
    held: Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(max_length=MAX_HELD_SEEDS)] = ()  # (first, end)
    introduced: Count = 0  # number of the report in the last Hello: this one, in a Hello


class SeedGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The positions from ``first`` to before ``end`` in the order of seeds."""

    number: Count  # 1, 2, ... for each generator process
    first: Count
    end: Count


NO_SEEDS = SeedReport(0, 0, 0)


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    pass


# --- generator -> trainer ---


class Hello(_Message, frozen=True):
    """Opens or resumes a session. A session is one generator process: its documents are numbered 0, 1, 2, ..."""

    protocol_version: int
    run_id: Text
    tokenizer_digest: Text
    role: Text
    generator: Name
    session: Name
    first_unsettled: Count  # every document below has been acknowledged
    next_seq: Count  # every document below has been handed to the stream
    seeds: SeedReport = NO_SEEDS


class Document(_Message, frozen=True, gc=False):
    seq: Count
    header: msgspec.Raw  # a DocumentHeader; decoded apart, so that a bad one can still be answered by its seq
    tokens: bytes
    confidence: bytes


class Alive(_Message, frozen=True):
    """Heartbeat of a generator."""

    next_seq: Count
    seeds: SeedReport = NO_SEEDS


class Leaving(_Message, frozen=True):
    """The generator ends. What it sent and nobody acknowledged is lost, and counted so."""

    next_seq: Count
    seeds: SeedReport = NO_SEEDS


# --- trainer -> generator ---


class Announcement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest published snapshot."""

    digest: Name
    version: Count
    parent_tokens: Count
    path: str


class Progress(_Message, frozen=True):
    """Everything a generator must know, so that any earlier message may be lost; also the trainer's heartbeat.

    A document is *settled* when it is in the journal, or was dropped with a counted reason.
    """

    limit: Count  # the generator may send documents numbered below this
    settled_below: Count  # all documents below are settled
    settled_also: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_SETTLED_ALSO)] = ()
    announcement: Announcement | None = None
    introduced: Count = 0  # number of the report in the Hello that this answers
    grants: Annotated[tuple[SeedGrant, ...], msgspec.Meta(max_length=MAX_GRANTS)] = ()  # those not yet reported


class Refused(_Message, frozen=True):
    """The handshake failed; see `telemetry.catalogue.REFUSAL_REASONS`."""

    reason: Text
    detail: str


class Unknown(_Message, frozen=True):
    """The trainer does not know this peer (it restarted, or had given it up): say Hello again."""


class Closing(_Message, frozen=True):
    """The trainer ends; look for another one."""


FromGenerator = Hello | Document | Alive | Leaving
FromTrainer = Progress | Refused | Unknown | Closing
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_from_generator = msgspec.msgpack.Decoder(FromGenerator)
_from_trainer = msgspec.msgpack.Decoder(FromTrainer)
_header = msgspec.msgpack.Decoder(DocumentHeader)


class MalformedMessage(ValueError):
    """Bytes that are no message of this protocol."""


def max_frame_bytes(max_document_tokens: int) -> int:
    """A peer that sends a larger frame is disconnected by ZeroMQ.

    Room for twice as many tokens: a document that is a little too long is answered, not cut off.
    """
    return MAX_CONTROL_BYTES + 2 * max_document_tokens * (4 + 1)


def encode(message: FromGenerator | FromTrainer) -> list[bytes]:
    return [_encoder.encode(message)]


def encode_document(seq: int, header: DocumentHeader, tokens: np.ndarray, confidence: np.ndarray) -> list[bytes]:
    """``tokens`` in the stream's dtype, ``confidence`` uint8."""
    raw_header = msgspec.Raw(_encoder.encode(header))
    return [_encoder.encode(Document(seq, raw_header, tokens.tobytes(), confidence.tobytes()))]


def decode_from_generator(frame: bytes) -> FromGenerator:
    """Raises MalformedMessage."""
    message = _decode(_from_generator, frame)
    if len(frame) > MAX_CONTROL_BYTES and not isinstance(message, Document):
        raise MalformedMessage(f"{type(message).__name__} of {len(frame)} bytes")
    return message


def decode_from_trainer(frames: Sequence[bytes]) -> FromTrainer:
    """The one message of ``frames``. Raises MalformedMessage."""
    if len(frames) != 1 or len(frames[0]) > MAX_CONTROL_BYTES:
        raise MalformedMessage(f"got {len(frames)} frames: expected 1 of up to {MAX_CONTROL_BYTES} bytes")
    return _decode(_from_trainer, frames[0])


def decode_header(raw: msgspec.Raw) -> DocumentHeader:
    """Raises MalformedMessage."""
    size = memoryview(raw).nbytes
    if size > MAX_HEADER_BYTES:
        raise MalformedMessage(f"header of {size} bytes: expected at most {MAX_HEADER_BYTES}")
    return _decode(_header, raw)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(str(error)) from None

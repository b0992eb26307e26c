"""The rules of the stream, for both ends, without sockets, threads or clocks: fed with frames and the time, they say
what to send. `receiver.py` and `sender.py` are the thin shells that own the sockets.

A generator's session, as the generator sees it::

    connecting ──Progress──► ready ──disconnected, Unknown or Closing──► connecting
        └──────Refused──────► refused                any ──leave()──► left

and a peer, as the trainer sees it::

    (nobody) ──Hello──► alive ──silence or Leaving──► ended ──Hello──► alive

The guarantees, whatever is lost, repeated, delayed or reordered in between, and whichever end dies:
1. A document is settled (acknowledged) only after the journal holds it, or its drop is on disk.
2. It enters the journal at most once: `Session.settled` is rebuilt from the journal.
3. A living generator sends again what is not settled, so nothing is lost while both ends come back.
4. A generator sends no more than its limit, so the documents on their way stay below `stream.capacity_documents`.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, TypeVar

import numpy as np

from streaming_sbp import config
from streaming_sbp.data.shards import token_dtype
from streaming_sbp.stream import messages
from streaming_sbp.stream.journal import UNKNOWN, Drop
from streaming_sbp.stream.leases import HeldSeeds, Lease, SeedPool, positions_of, ranges_of
from streaming_sbp.stream.ledger import SessionLedger
from streaming_sbp.stream.messages import (
    MAX_FRAMES,
    MAX_SETTLED_ALSO,
    PROTOCOL_VERSION,
    Alive,
    Announcement,
    Closing,
    Document,
    DocumentHeader,
    FromGenerator,
    FromTrainer,
    Hello,
    Leaving,
    MalformedMessage,
    Progress,
    Refused,
    Unknown,
)
from streaming_sbp.stream.shards import AcceptedDocument, JournalEntry

ROLE = "generator"
LOST = "lost_with_generator"
DAMAGED = "damaged"
STALE = "stale"
MAX_UNSETTLED = 2**16  # documents that one generator can have on their way, whatever it claims
MAX_SESSIONS = 2**16  # generator processes that one run remembers
MAX_JUNK = 1000  # malformed messages and dropped documents of one session; then it is refused
Frames = list[bytes]
T = TypeVar("T")
Key = tuple[str, str]  # generator, session


# --- the generator's end ---


class Settled:
    """A set of document numbers: all below ``below``, and a few more."""

    def __init__(self, below: int = 0, also: Iterable[int] = ()):
        self.below, self.also = below, set(also)

    def __contains__(self, seq: int) -> bool:
        return seq < self.below or seq in self.also

    def __len__(self) -> int:
        return self.below + len(self.also)

    def add(self, seq: int) -> None:
        if seq >= self.below:
            self.also.add(seq)
        while self.below in self.also:
            self.also.remove(self.below)
            self.below += 1

    @property
    def end(self) -> int:
        """One above the largest number."""
        return max(self.also, default=self.below - 1) + 1


@dataclass
class _Unsettled:
    frames: Frames
    sent_at: float


class SenderProtocol:
    """One session of one generator. ``outgoing()`` after each call gives the frames to send.

    ``silent_since`` and ``dead_after_s`` tell the shell when to look for another trainer.
    """

    def __init__(
        self,
        settings: config.Stream,
        run_id: str,
        tokenizer_digest: str,
        vocab_size: int,
        generator: str,
        session: str,
        seeds_wanted: int = 0,
    ):
        self._settings = settings
        self.seeds = HeldSeeds(seeds_wanted)
        self._identity = (run_id, tokenizer_digest, ROLE, generator, session)
        self._dtype = token_dtype(vocab_size)
        self._max_frame_bytes = messages.max_frame_bytes(settings.max_document_tokens)
        self.state = "connecting"
        self.refused = ""  # reason of the trainer
        self.announced: Announcement | None = None
        self.num_resent = 0
        self._limit = self._next_seq = self._settled_below = 0
        self._unsettled: OrderedDict[int, _Unsettled] = OrderedDict()  # the one sent longest ago first
        self._outgoing: list[Frames] = []
        self._heard_at = self._spoke_at = -math.inf

    @property
    def credit(self) -> int:
        """How many documents may be sent now."""
        return max(0, self._limit - self._next_seq) if self.state == "ready" else 0

    @property
    def unacknowledged(self) -> int:
        return len(self._unsettled)

    def is_settled(self, seq: int) -> bool:
        """Whether the trainer has acknowledged this document: it is in the journal, or was dropped."""
        return seq < self._next_seq and seq not in self._unsettled

    def connect(self, now: float) -> None:
        """A connection to a trainer was made: introduce ourselves."""
        if self.state in ("connecting", "ready"):
            self.state = "connecting"
            self._heard_at = now
            self._hello(now)

    def disconnected(self) -> None:
        """The connection is closed: what was on its way may be lost, a goodbye too."""
        if self.state == "ready":
            self.state = "connecting"

    def send(self, header: DocumentHeader, tokens: np.ndarray, confidence: np.ndarray, now: float) -> int:
        """Hand a document to the stream; returns its number. Raises ValueError without credit."""
        if self.credit <= 0:
            raise ValueError(f"send: no credit ({self.state}, {len(self._unsettled)} documents unacknowledged)")
        seq = self._next_seq
        frames = messages.encode_document(seq, header, tokens.astype(self._dtype, copy=False), confidence)
        if len(frames[0]) > self._max_frame_bytes:
            raise ValueError(
                f"send: a document of {len(tokens)} tokens: expected at most "
                f"stream.max_document_tokens = {self._settings.max_document_tokens}"
            )
        self._next_seq += 1
        self._unsettled[seq] = _Unsettled(frames, now)
        self._say(frames, now)
        return seq

    def receive(self, frames: Sequence[bytes], now: float) -> None:
        """A message of the trainer. What is no message is ignored: silence is noticed, lies cannot be told apart."""
        try:
            message = messages.decode_from_trainer(frames)
        except MalformedMessage:
            return
        if self.state not in ("connecting", "ready"):
            return
        self._heard_at = now
        match message:
            case Progress():
                self._progress(message, now)
            case Refused():
                self.state, self.refused = "refused", f"{message.reason}: {message.detail}"
            case Unknown():
                self.state = "connecting"
                self._hello(now)
            case Closing():
                self.state = "connecting"

    def tick(self, now: float) -> None:
        """Heartbeats and repetitions; call at least every `stream.heartbeat_s`."""
        if self.state == "ready":
            sent_by = now - self._settings.resend_after_s
            overdue = takewhile(lambda item: item[1].sent_at <= sent_by, self._unsettled.items())
            self._resend([seq for seq, _ in overdue], now)
        if self.state in ("connecting", "ready") and now - self._spoke_at >= self._settings.heartbeat_s:
            if self.state == "ready":
                self._say(messages.encode(Alive(self._next_seq, self.seeds.report())), now)
            else:
                self._hello(now)

    def is_trainer_dead(self, now: float) -> bool:
        return now - self._heard_at > self._settings.dead_after_s

    def leave(self, now: float) -> None:
        if self.state == "ready":
            self._say(messages.encode(Leaving(self._next_seq, self.seeds.report())), now)
        self.state = "left"

    @property
    def num_outgoing(self) -> int:
        return len(self._outgoing)

    def outgoing(self) -> list[Frames]:
        found, self._outgoing = self._outgoing, []
        return found

    def _progress(self, message: Progress, now: float) -> None:
        self._limit = max(self._limit, message.limit)
        below = min(message.settled_below, self._next_seq)
        for seq in (*range(self._settled_below, below), *message.settled_also):
            self._unsettled.pop(seq, None)
        self._settled_below = max(self._settled_below, below)
        self.announced = message.announcement or self.announced
        self.seeds.receive(message.introduced, message.grants)
        if self.state == "connecting":
            self.state = "ready"
            self._resend(list(self._unsettled), now)

    def _resend(self, seqs: Iterable[int], now: float) -> None:
        for seq in seqs:
            document = self._unsettled[seq]
            document.sent_at = now
            self._unsettled.move_to_end(seq)
            self.num_resent += 1
            self._say(document.frames, now)

    def _hello(self, now: float) -> None:
        run_id, tokenizer_digest, role, generator, session = self._identity
        first = min(self._unsettled, default=self._next_seq)
        who = (PROTOCOL_VERSION, run_id, tokenizer_digest, role, generator, session)
        self._say(messages.encode(Hello(*who, first, self._next_seq, self.seeds.report(introduction=True))), now)

    def _say(self, frames: Frames, now: float) -> None:
        self._spoke_at = now
        self._outgoing.append(frames)


# --- the trainer's end ---


@dataclass
class Session:
    """What the trainer knows of one generator process."""

    generator: str
    session: str
    settled: Settled = field(default_factory=Settled)
    accepted: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    sent: int = 0  # one above the largest number heard of
    limit: int = 0
    pending: set[int] = field(default_factory=set)  # received, not yet on disk
    lease: Lease = field(default_factory=Lease)  # of seeds
    peer: bytes | None = None  # None: ended
    junk: int = 0
    heard_at: float = -math.inf
    told_at: float = -math.inf

    @property
    def outstanding(self) -> int:
        """Documents that may still come: granted, and not settled."""
        return max(0, self.limit - len(self.settled))

    def hear_of(self, end: int) -> None:
        self.sent = max(self.sent, end)

    def ledger(self) -> SessionLedger:
        dropped = dict(self.dropped)
        left = self.sent - len(self.settled)
        if self.peer is None and left > 0:
            dropped[LOST] = left  # it may come back and send them again: then they are no longer lost
        return SessionLedger(self.generator, self.session, self.sent, self.accepted, dropped, self.peer is not None)


class ReceiverProtocol:
    """All sessions of a run. After each call, ``outgoing()`` gives (peer, frames) to send.

    The shell writes ``pending`` to the journal and ``drops`` to disk, then calls ``committed()``; not before that is
    anything acknowledged. ``counts`` are totals since the process started, by event and by refusal reason.
    """

    def __init__(self, settings: config.Stream, run_id: str, tokenizer_digest: str, vocab_size: int):
        self._settings, self._run_id, self._tokenizer_digest = settings, run_id, tokenizer_digest
        self._vocab_size, self._dtype = vocab_size, token_dtype(vocab_size)
        self._sessions: dict[Key, Session] = {}
        self._peers: dict[bytes, Session] = {}
        self._outgoing: list[tuple[bytes, Frames]] = []
        self._untold: dict[Key, Session] = {}
        self.seeds = SeedPool()
        self._claims_end: float | None = -math.inf  # until then no seeds are granted; None: from the next tick on
        self.pending: list[AcceptedDocument] = []
        self.drops: list[Drop] = []
        self.announcement: Announcement | None = None
        self.paused = False  # grants no credit: the disk is full
        self.num_buffered = 0  # accepted, not yet consumed by the mixer; set by the shell
        self.trained_tokens = 0  # by the trainer, so far; set by the shell
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    # --- what was known before this process ---

    def state_dict(self) -> dict[str, Any]:
        """The sessions and the leases of seeds, for a checkpoint; JSON-able."""
        sessions = [
            {
                "generator": s.generator,
                "session": s.session,
                "settled_below": s.settled.below,
                "settled_also": sorted(s.settled.also),
                "accepted": s.accepted,
                "dropped": dict(s.dropped),
                "sent": s.sent,
                "limit": s.limit,
                "seeds": ranges_of(s.lease.positions()),
            }
            for s in self._sessions.values()
        ]
        return {"sessions": sessions, "seeds": self.seeds.state_dict()}

    def restore(
        self,
        state: Mapping[str, Any],
        entries: Iterable[JournalEntry],
        drops: Iterable[Drop],
        journal_length: int,
    ) -> None:
        """Take up the sessions of a checkpoint, then what journal and drop log have had since.

        Of documents whose record in the journal is destroyed nobody knows who wrote them: a session "unknown" has
        them, so that the ledger balances. (If their generator is alive, it knows of them too, and they count twice.)
        """
        for saved in state.get("sessions", ()):
            session = self._session((saved["generator"], saved["session"]))
            session.settled = Settled(saved["settled_below"], saved["settled_also"])
            session.accepted, session.sent = saved["accepted"], saved["sent"]
            session.dropped, session.limit = Counter(saved["dropped"]), saved["limit"]
            session.lease.held = positions_of(saved["seeds"])
        seeded: set[int] = set()
        for entry in entries:
            session = self._session((entry.generator, entry.session))
            if entry.seq not in session.settled:
                session.accepted += 1
                if entry.header.seed_position is not None:
                    seeded.add(entry.header.seed_position)
                self._settle(session, entry.seq)
        for drop in drops:
            session = self._session((drop.generator, drop.session))
            if drop.seq not in session.settled:
                session.dropped[drop.reason] += 1
                self._settle(session, drop.seq)
        if missing := journal_length - sum(session.accepted for session in self._sessions.values()):
            session = self._session((UNKNOWN, UNKNOWN))
            session.accepted = session.sent = session.accepted + missing
            session.settled = Settled(session.accepted)
        self.seeds.restore(state.get("seeds", {}), seeded)
        for session in self._sessions.values():
            session.lease.held -= seeded
        if self._sessions:
            self._claims_end = None
        self._untold.clear()

    # --- events ---

    def receive(self, peer: bytes, frames: Sequence[bytes], now: float) -> None:
        """Messages of a peer. Never raises for what a peer sends: it is refused, dropped or ignored, and counted."""
        if len(frames) > MAX_FRAMES:
            self._junk(peer)
            return
        for frame in frames:
            try:
                message = messages.decode_from_generator(frame)
            except MalformedMessage:
                self._junk(peer)
                continue
            self._on_message(peer, message, now)

    def committed(self, num_documents: int | None = None, num_drops: int | None = None) -> None:
        """The first so many of ``pending`` and ``drops`` are on disk (all by default): acknowledge them."""
        documents, self.pending = self.pending[:num_documents], _after(self.pending, num_documents)
        drops, self.drops = self.drops[:num_drops], _after(self.drops, num_drops)
        for document in documents:
            session = self._sessions[document.generator, document.session]
            session.pending.discard(document.seq)
            session.accepted += 1
            self.counts["received"] += 1
            self.counts["received_bytes"] += document.tokens.nbytes + document.confidence.nbytes
            self._settle(session, document.seq)
        for drop in drops:
            session = self._sessions[drop.generator, drop.session]
            session.pending.discard(drop.seq)
            session.dropped[drop.reason] += 1
            self._settle(session, drop.seq)

    def announce(self, announcement: Announcement) -> None:
        self.announcement = announcement
        self._untold.update({(s.generator, s.session): s for s in self._peers.values()})

    def tick(self, now: float) -> None:
        """Deaths, credit, progress reports and heartbeats; call at least every `stream.heartbeat_s`."""
        for session in list(self._peers.values()):
            if now - session.heard_at > self._settings.dead_after_s:
                self.counts["dead_peers"] += 1
                self._end(session)
        self._grant()
        self._grant_seeds(now)
        for session in self._peers.values():
            if now - session.told_at >= self._settings.heartbeat_s:
                self._untold[session.generator, session.session] = session
        for session in self._untold.values():
            self._tell(session, now)
        self._untold.clear()

    def close(self) -> None:
        """The trainer ends: say so to everybody."""
        for peer in self._peers:
            self._say(peer, Closing())

    def gone(self, peer: bytes) -> None:
        """The shell could not send to this peer: its connection is closed. It may come back as another one."""
        if peer in self._peers:
            self._end(self._peers[peer])

    def outgoing(self) -> list[tuple[bytes, Frames]]:
        found, self._outgoing = self._outgoing, []
        return found

    # --- what can be asked ---

    @property
    def num_peers(self) -> int:
        return len(self._peers)

    @property
    def granted(self) -> int:
        """Documents that living generators may still send."""
        return sum(s.outstanding - len(s.pending) for s in self._peers.values())

    def ledgers(self) -> list[SessionLedger]:
        return [session.ledger() for session in self._sessions.values()]

    # --- inside ---

    def _session(self, key: Key) -> Session:
        return self._sessions.setdefault(key, Session(*key))

    def _settle(self, session: Session, seq: int) -> None:
        session.settled.add(seq)
        session.hear_of(seq + 1)
        self._untold[session.generator, session.session] = session

    def _hello(self, peer: bytes, hello: Hello, now: float) -> None:
        if reason := self._refusal(peer, hello):
            self.refusals[reason[0]] += 1
            self._say(peer, Refused(*reason))
            return
        key = (hello.generator, hello.session)
        if key not in self._sessions and len(self._sessions) >= MAX_SESSIONS:
            self._make_room()
        session = self._session(key)
        if session.peer is not None and session.peer != peer:
            self._peers.pop(session.peer, None)  # the same process over a new connection
        if peer in self._peers and self._peers[peer] is not session:
            self._end(self._peers[peer])
        session.peer, session.heard_at = peer, now
        session.limit = max(session.limit, hello.next_seq)
        session.hear_of(hello.next_seq)
        self.seeds.hear(session.lease, hello.seeds, introduction=True)
        for seq in range(session.settled.below, hello.first_unsettled):
            if seq not in session.settled and seq not in session.pending:
                session.dropped[DAMAGED] += 1  # acknowledged once, and in the journal no more
                session.settled.add(seq)
        self._sessions[key] = self._peers[peer] = self._untold[key] = session

    def _refusal(self, peer: bytes, hello: Hello) -> tuple[str, str] | None:
        expected = {
            "protocol_version": (hello.protocol_version, PROTOCOL_VERSION),
            "wrong_run": (hello.run_id, self._run_id),
            "wrong_tokenizer": (hello.tokenizer_digest, self._tokenizer_digest),
            "wrong_role": (hello.role, ROLE),
        }
        for reason, (got, wanted) in expected.items():
            if got != wanted:
                return reason, f"got {got!r}, expected {wanted!r}"
        settled = self._sessions.get((hello.generator, hello.session), Session("", "")).settled
        if not hello.first_unsettled <= hello.next_seq <= settled.below + MAX_UNSETTLED:
            return "malformed", f"documents {hello.first_unsettled} to {hello.next_seq}"
        if peer not in self._peers and len(self._peers) >= self._settings.max_peers:
            return "too_many_peers", f"stream.max_peers = {self._settings.max_peers} are connected"
        return None

    def _on_message(self, peer: bytes, message: FromGenerator, now: float) -> None:
        if isinstance(message, Hello):
            self._hello(peer, message, now)
            return
        session = self._peers.get(peer)
        if session is None:
            self._say(peer, Unknown())
            return
        session.heard_at = now
        if isinstance(message, Document):
            self._document(session, message)
            return
        if message.next_seq <= session.settled.below + MAX_UNSETTLED:
            session.limit = max(session.limit, message.next_seq)  # a trainer before this one had granted it
            session.hear_of(message.next_seq)
        self.seeds.hear(session.lease, message.seeds, introduction=False)
        if isinstance(message, Leaving):
            self._end(session)
        elif message.seeds.introduced > session.lease.introduced:
            self._say(peer, Unknown())  # its last Hello was lost, and it takes no grant that answers an earlier one

    def _document(self, session: Session, message: Document) -> None:
        seq = message.seq
        if seq >= session.limit:
            self.counts["without_credit"] += 1  # not ours to settle: it was never allowed
            return
        if seq in session.settled or seq in session.pending:
            self.counts["duplicates"] += 1
            self._untold[session.generator, session.session] = session  # it seems not to know
            return
        session.hear_of(seq + 1)
        session.pending.add(seq)
        found = self._checked(message)
        if isinstance(found, str):
            self.drops.append(Drop(session.generator, session.session, seq, found))
            if found != STALE:  # a slow generator is not a faulty one
                self._count_junk(session)
            return
        header, tokens, confidence = found
        self.pending.append(AcceptedDocument(session.generator, session.session, seq, header, tokens, confidence))

    def _checked(self, message: Document) -> str | tuple[DocumentHeader, np.ndarray, np.ndarray]:
        """The parts of a document, or the reason to drop it."""
        if len(message.tokens) > self._settings.max_document_tokens * self._dtype.itemsize:
            return "oversized"
        try:
            header = messages.decode_header(message.header)
        except MalformedMessage:
            return "malformed"
        size = header.num_tokens
        numbers = header.log_likelihood + header.sampling.temperature + header.sampling.top_p
        if len(message.tokens) != size * self._dtype.itemsize or len(message.confidence) != size or size == 0:
            return "malformed"
        if not math.isfinite(numbers) or not _is_lineage(header, message.seq):
            return "malformed"
        limit = self._settings.max_staleness_tokens
        if limit and self.trained_tokens - header.parent_tokens > limit:
            return STALE
        tokens = np.frombuffer(message.tokens, self._dtype)
        if int(np.maximum.reduce(tokens)) >= self._vocab_size:
            return "out_of_vocabulary"
        return header, tokens, np.frombuffer(message.confidence, np.uint8)

    def _junk(self, peer: bytes) -> None:
        """What is no message. Nobody answers it; a generator that sends much of it is faulty, and told so."""
        self.counts["malformed"] += 1
        if session := self._peers.get(peer):
            self._count_junk(session)

    def _count_junk(self, session: Session) -> None:
        session.junk += 1
        if session.junk > MAX_JUNK and session.peer is not None:
            self.refusals["malformed"] += 1
            self._say(session.peer, Refused("malformed", f"more than {MAX_JUNK} bad messages or documents"))
            self._end(session)

    def _end(self, session: Session) -> None:
        """The peer is no more; its unused credit returns, for only living sessions count in `_grant`."""
        if session.peer is not None:
            self._peers.pop(session.peer, None)
        session.peer = None
        self.seeds.end(session.lease)
        if not session.sent:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self._sessions.pop((session.generator, session.session), None)
        self._untold.pop((session.generator, session.session), None)

    def _make_room(self) -> None:
        """Of the sessions that ended, forget those of which no document ever arrived."""
        for session in list(self._sessions.values()):
            if session.peer is None and not session.pending and not len(session.settled):
                self._forget(session)

    def _grant(self) -> None:
        """Share the room so that every generator has equally many documents outstanding; in steps, not one by one.

        While the buffer has room, a generator without credit gets a step even if others sit on all of the capacity:
        one that is alive and sends nothing must not starve the rest. It exceeds the capacity by an eighth at most.
        """
        capacity, sessions = (
            self._settings.capacity_documents,
            sorted(self._peers.values(), key=lambda s: s.outstanding),
        )
        if self.paused or not sessions or self.num_buffered >= capacity:
            return
        room = max(0, capacity - self.num_buffered - sum(s.outstanding for s in sessions))
        level = _level([s.outstanding for s in sessions], room)
        step = max(1, capacity // (8 * len(sessions)))
        for session in sessions:
            more = min(level - session.outstanding, room)
            if session.outstanding == 0:
                more = max(more, min(step, capacity - self.num_buffered))
            elif more < step:
                continue
            session.limit += more
            room = max(0, room - more)
            self._untold[session.generator, session.session] = session

    def _grant_seeds(self, now: float) -> None:
        """After a restart generators that live say first what they hold; what nobody claims is given back."""
        if self._claims_end is None:
            self._claims_end = now + self._settings.dead_after_s
        if now < self._claims_end:
            return
        if self._claims_end > -math.inf:
            self._claims_end = -math.inf
            for session in self._sessions.values():
                if session.peer is None:
                    self.seeds.end(session.lease)
        for session in self._peers.values():
            if self.seeds.grant(session.lease):
                self._untold[session.generator, session.session] = session

    def _tell(self, session: Session, now: float) -> None:
        if session.peer is None:
            return
        session.told_at = now
        also = tuple(sorted(session.settled.also)[:MAX_SETTLED_ALSO])  # the others when these are below
        lease = session.lease
        self._say(
            session.peer,
            Progress(
                session.limit,
                session.settled.below,
                also,
                self.announcement,
                lease.introduced,
                tuple(lease.grants),
            ),
        )

    def _say(self, peer: bytes, message: FromTrainer) -> None:
        self._outgoing.append((peer, messages.encode(message)))


def _is_lineage(header: DocumentHeader, seq: int) -> bool:
    """Whether a document of depth 1 names no synthetic seed document, and any other an earlier one."""
    if header.seed_seq is None:
        return header.depth == 1
    return header.depth > 1 and header.seed_seq < seq and header.seed_position is None


def _after(items: list[T], count: int | None) -> list[T]:
    return [] if count is None else items[count:]


def _level(heights: Sequence[int], amount: int) -> int:
    """To what height ``amount`` fills vessels of these ascending heights; rounded up when they share it unevenly."""
    total = amount
    for count, height in enumerate(heights, start=1):
        total += height
        level = -(-total // count)
        if count == len(heights) or level <= heights[count]:
            return level
    return 0

"""The trainer's end of the stream: a thread that owns the socket and feeds the protocol, one that writes the journal.

Everything is decided in `protocol.py`; here are the socket, the group commit and the metrics.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import zmq
from zmq.auth.thread import ThreadAuthenticator

from streaming_sbp.config import Config, ConfigError
from streaming_sbp.stream import keys
from streaming_sbp.stream.journal import Drop, Journal, Written
from streaming_sbp.stream.ledger import SessionLedger
from streaming_sbp.stream.messages import Announcement, max_frame_bytes
from streaming_sbp.stream.protocol import ReceiverProtocol
from streaming_sbp.stream.shards import AcceptedDocument
from streaming_sbp.telemetry.catalogue import REFUSAL_REASONS
from streaming_sbp.telemetry.metrics import Metrics, Totals

POLL_MS = 50  # longest wait for a message: commands of the trainer are seen within it
WRITING_POLL_MS = 1  # while a group is being written: it is acknowledged as soon as it is on disk
DRAIN_FRAMES = 2048  # read at once, before the journal and the peers have their turn
MAX_GROUP_DOCUMENTS = 1024  # when more have arrived than `journal.group_documents`; more would wait long for the disk
QUEUED_MESSAGES = 64  # of each peer, each way; what it sends beyond waits with it
HANDSHAKE_TIMEOUT_S = 10.0
RETRY_JOURNAL_AFTER_S = 1.0
log = logging.getLogger("sbp")


class Receiver:
    """``start()``, then call ``check()`` now and then; ``stop()`` flushes what has arrived.

    Safe to call from the trainer's thread. Raises ConfigError when it cannot listen.
    """

    def __init__(
        self,
        settings: Config,
        run_id: str,
        tokenizer_digest: str,
        vocab_size: int,
        journal: Journal,
        metrics: Metrics,
        saved_sessions: Mapping[str, object] | None = None,
    ):
        self._settings, self._journal, self._metrics = settings, journal, metrics
        self._protocol = ReceiverProtocol(settings.stream, run_id, tokenizer_digest, vocab_size)
        self._protocol.restore(saved_sessions or {}, journal.entries(), journal.drops(), len(journal))
        self._lock = threading.Lock()  # of the protocol, and of its agreement with the journal's length
        self._consumed = self._trained_tokens = 0
        self._oldest_pending: float | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._write: Future[Written | None] | None = None
        self._group = (0, 0)  # documents and drops that are being written
        self._writer_cpu_s = 0.0
        self._retry_journal_at = 0.0
        self._disk_refuses = self._is_full = False
        self._count = Totals(metrics)
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()  # one authenticator each
        self._socket = self._context.socket(zmq.ROUTER)
        self._authenticator, self.endpoint = _listen(self._socket, self._context, settings)
        self._monitor = keys.ConnectionMonitor(self._socket)
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raises RuntimeError when the thread has died: nothing would be received any more."""
        if self._error is not None:
            raise RuntimeError(f"the receiver failed: {self._error}") from self._error

    def stop(self, timeout_s: float) -> None:
        """Write and acknowledge what has arrived, say goodbye, close."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("the receiver did not stop within %.0f s", timeout_s)
                return
        self.check()

    def set_consumed(self, position: int) -> None:
        """The mixer has taken every document of the journal before this position."""
        self._consumed = position

    def set_trained_tokens(self, tokens: int) -> None:
        """What documents' snapshots are compared with, see `stream.max_staleness_tokens`."""
        self._trained_tokens = tokens

    def prune(self, before: int) -> None:
        """Remove journal shards that hold only documents before this position, some time soon."""
        if not self._stopping.is_set():
            self._writer.submit(self._prune, before)

    @property
    def paused(self) -> str:
        """Why no synthetic documents are asked for now, or ""."""
        return "the journal's disk is full" if self._disk_refuses else "journal.max_bytes" if self._is_full else ""

    def announce(self, announcement: Announcement) -> None:
        with self._lock:
            self._protocol.announce(announcement)

    def sessions(self) -> tuple[list[SessionLedger], int]:
        """Every session, and the length of the journal that belongs to these numbers."""
        with self._lock:
            return self._protocol.ledgers(), len(self._journal)

    def state_dict(self) -> dict[str, object]:
        """The sessions and the leases of seeds, for a checkpoint."""
        with self._lock:
            return self._protocol.state_dict()

    # --- the thread ---

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn(WRITING_POLL_MS if self._write else POLL_MS)
            self._say_goodbye()
        except Exception as error:
            log.exception("the receiver failed")
            self._error = error
        finally:
            self._close()

    def _close(self) -> None:
        self._writer.shutdown(wait=False)
        self._monitor.close()
        self._socket.close(linger=500)
        if self._authenticator:
            self._authenticator.stop()
        self._context.term()

    def _turn(self, poll_ms: int) -> None:
        received = self._receive() if self._socket.poll(poll_ms) else []
        now = time.monotonic()
        with self._lock:
            self._protocol.trained_tokens = self._trained_tokens
            for peer, *frames in received:
                self._protocol.receive(peer, frames, now)
        self._commit_if_due(now)
        self._look_at_the_cap()
        with self._lock:
            self._protocol.paused = self._disk_refuses or self._is_full
            self._protocol.num_buffered = len(self._journal) - self._consumed
            self._protocol.tick(now)
            outgoing = self._protocol.outgoing()
        self._export()
        for peer, frames in outgoing:
            self._send(peer, frames)

    def _say_goodbye(self) -> None:
        self._turn(0)
        while self._write or self._protocol.pending or self._protocol.drops:
            if self._write is None:
                self._begin_write()
            if self._write is None:
                break  # the disk refuses: the generators keep them
            wait([self._write])
            self._finish_write(self._write)
        with self._lock:
            self._protocol.tick(time.monotonic())
            self._protocol.close()
            outgoing = self._protocol.outgoing()
        for peer, frames in outgoing:
            self._send(peer, frames)
        self._export()

    def _receive(self) -> list[list[bytes]]:
        found: list[list[bytes]] = []
        num_frames = 0
        try:
            while num_frames < DRAIN_FRAMES:
                found.append(self._socket.recv_multipart(zmq.NOBLOCK))
                num_frames += len(found[-1])
        except zmq.Again:
            pass
        return found

    def _send(self, peer: bytes, frames: list[bytes]) -> None:
        try:
            self._socket.send_multipart([peer, *frames], zmq.NOBLOCK)
        except zmq.Again:
            pass  # it does not read; every message is repeated sooner or later
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            with self._lock:
                self._protocol.gone(peer)

    # --- the journal ---

    def _commit_if_due(self, now: float) -> None:
        if self._write and self._write.done():
            self._finish_write(self._write)
        waiting = len(self._protocol.pending) + len(self._protocol.drops)
        if self._write or not waiting:
            self._oldest_pending = None
            return
        self._oldest_pending = self._oldest_pending or now
        journal = self._settings.journal
        if waiting >= journal.group_documents or now - self._oldest_pending >= journal.group_latency_s:
            self._begin_write()

    def _begin_write(self) -> None:
        """Give what has arrived to the writing thread, while more arrives."""
        if time.monotonic() >= self._retry_journal_at:
            documents, drops = self._protocol.pending[:MAX_GROUP_DOCUMENTS], list(self._protocol.drops)
            self._group = (len(documents), len(drops))
            self._write = self._writer.submit(self._write_group, documents, drops)

    def _write_group(self, documents: list[AcceptedDocument], drops: list[Drop]) -> Written | None:
        """In the writing thread. Raises OSError, and then no document was written."""
        started, cpu = time.monotonic(), time.thread_time()
        try:
            self._journal.append_drops(drops)
            return self._journal.write(documents)
        finally:
            self._metrics.observe("sbp_journal_write_seconds", time.monotonic() - started)
            self._writer_cpu_s += time.thread_time() - cpu

    def _finish_write(self, write: Future[Written | None]) -> None:
        """Acknowledge the group; when the disk refused it, keep it, and grant nothing until it is written.

        The lock keeps the journal's length and the protocol's counts in step.
        """
        self._write = None
        try:
            written = write.result()
        except OSError as error:
            self._cannot_write(error)
            return
        with self._lock:
            self._journal.publish(written)
            self._protocol.committed(*self._group)
        self._disk_refuses = False

    def _look_at_the_cap(self) -> None:
        """Grant nothing while the journal is as large as it may be; what has been granted is still taken."""
        limit = self._settings.journal.max_bytes
        full = bool(limit) and self._journal.num_bytes >= limit
        if full and not self._is_full:
            way_out = "raise it, or set journal.prune = true"
            if self._settings.journal.prune:
                way_out = "what every kept checkpoint has trained is pruned with the next one; see checkpoint.keep_best"
            log.error(
                "the journal has %d bytes, journal.max_bytes = %d (%s): no further credit for synthetic documents; "
                "what has been granted is still taken",
                self._journal.num_bytes,
                limit,
                way_out,
            )
        self._is_full = full

    def _prune(self, before: int) -> None:
        try:
            self._journal.prune(before)
        except OSError as error:
            log.warning("the journal could not be pruned: %s", error)

    def _cannot_write(self, error: OSError) -> None:
        if not self._disk_refuses:
            log.error("the journal cannot be written, synthetic documents wait with their generators: %s", error)
        self._disk_refuses = True
        self._retry_journal_at = time.monotonic() + RETRY_JOURNAL_AFTER_S
        self._metrics.inc("sbp_journal_errors_total")

    # --- metrics ---

    def _export(self) -> None:
        for event in self._monitor.events():
            if event != keys.DISCONNECTED:
                self._metrics.inc("sbp_stream_handshake_failures_total", reason=event)
        counts = self._protocol.counts
        self._count("sbp_stream_received_documents_total", counts["received"])
        self._count("sbp_stream_received_bytes_total", counts["received_bytes"])
        self._count("sbp_stream_duplicates_total", counts["duplicates"])
        self._count("sbp_stream_dead_peers_total", counts["dead_peers"])
        self._count("sbp_stream_malformed_total", counts["malformed"])
        self._count("sbp_receiver_cpu_seconds_total", time.thread_time() + self._writer_cpu_s)
        for reason in REFUSAL_REASONS:
            self._count("sbp_stream_refusals_total", self._protocol.refusals[reason], reason=reason)
        self._metrics.set("sbp_stream_peers", self._protocol.num_peers)
        self._metrics.set("sbp_journal_bytes", self._journal.num_bytes)
        self._count("sbp_journal_fsync_seconds_total", self._journal.fsync_seconds)
        self._metrics.set("sbp_journal_paused", self._protocol.paused)
        self._metrics.set("sbp_stream_credit_documents", self._protocol.granted)


def _listen(
    socket: zmq.Socket[bytes], context: zmq.Context[zmq.Socket[bytes]], settings: Config
) -> tuple[ThreadAuthenticator | None, str]:
    """Set the limits, take the keys, bind; returns the authenticator and the endpoint. Raises ConfigError."""
    stream = settings.stream
    generators = keys.generator_names(settings.generator.count)
    authenticator = None
    try:
        keys.require_keys_off_loopback(stream, "stream.host", stream.host, generators)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a peer that is gone is an error to see, not a message lost
        socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes(stream.max_document_tokens))
        socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_TIMEOUT_S * 1000))
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)  # a host that vanished does not hold its connection for ever
        if stream.keys:
            authenticator = keys.guard(socket, context, stream.keys)
        address = f"tcp://{stream.host}:{stream.port or '*'}"
        socket.bind(address)
    except (ConfigError, zmq.ZMQError) as error:
        if authenticator:
            authenticator.stop()
        socket.close(linger=0)
        context.term()
        if isinstance(error, ConfigError):
            raise
        way_out = "choose another stream.port, or 0 for a free one" if error.errno == errno.EADDRINUSE else "change it"
        raise ConfigError(f"stream.host, stream.port: cannot listen on {address}: {error}; {way_out}") from None
    return authenticator, socket.getsockopt_string(zmq.LAST_ENDPOINT)

"""A generator's end of the stream: the socket around `protocol.SenderProtocol`, and the search for the trainer."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

import numpy as np
import zmq

from streaming_sbp import config
from streaming_sbp.stream import keys
from streaming_sbp.stream.leases import HeldSeeds
from streaming_sbp.stream.messages import MAX_FRAMES, Announcement, DocumentHeader, StreamRefused
from streaming_sbp.stream.protocol import SenderProtocol

LOOK_FOR_TRAINER_EVERY_S = 0.5
MAX_RECONNECT_S = 2.0  # between attempts; the first ones come faster
WARN_EVERY_S = 10.0
log = logging.getLogger("sbp")


class Sender:
    """Call ``poll`` often, at least every `stream.heartbeat_s`; it never blocks longer than asked.

    ``find_endpoint`` says where the trainer listens now (it changes when the trainer restarts), or None.
    Raises ConfigError when `stream.keys` cannot be used.
    """

    def __init__(
        self,
        settings: config.Stream,
        find_endpoint: Callable[[], str | None],
        run_id: str,
        tokenizer_digest: str,
        vocab_size: int,
        generator: str,
        seeds_wanted: int = 0,
    ):
        self._find_endpoint = find_endpoint
        self._settings, self._generator = settings, generator
        self._credentials = keys.Credentials(settings.keys, generator) if settings.keys else None
        session = secrets.token_hex(8)
        self._protocol = SenderProtocol(
            settings, run_id, tokenizer_digest, vocab_size, generator, session, seeds_wanted
        )
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: keys.ConnectionMonitor | None = None
        self._endpoint: str | None = None
        self._warned_at = -WARN_EVERY_S
        self._looked_at = -LOOK_FOR_TRAINER_EVERY_S

    @property
    def credit(self) -> int:
        """How many documents may be sent now."""
        return self._protocol.credit

    @property
    def unacknowledged(self) -> int:
        return self._protocol.unacknowledged

    def is_settled(self, seq: int) -> bool:
        """Whether the trainer has acknowledged this document."""
        return self._protocol.is_settled(seq)

    @property
    def num_resent(self) -> int:
        return self._protocol.num_resent

    @property
    def seeds(self) -> HeldSeeds:
        """Positions in the order of seeds that the trainer has granted."""
        return self._protocol.seeds

    @property
    def announced(self) -> Announcement | None:
        """The newest snapshot, as the trainer last said."""
        return self._protocol.announced

    def send(self, header: DocumentHeader, tokens: np.ndarray, confidence: np.ndarray) -> int:
        """Hand over one document, sent with others or with the next ``poll``; returns its number.

        Raises ValueError without credit.
        """
        seq = self._protocol.send(header, tokens, confidence, time.monotonic())
        if self._protocol.num_outgoing >= MAX_FRAMES:
            self._flush()
        return seq

    def poll(self, timeout_s: float) -> None:
        """Send what waits, read what the trainer said, wait for it up to ``timeout_s``.

        Raises StreamRefused, and ConfigError for a trainer on another machine when there are no keys.
        """
        self._look_for_trainer()
        if self._socket is None:
            time.sleep(timeout_s)
            return
        self._flush()
        self._socket.poll(int(timeout_s * 1000))
        self._receive()
        self._protocol.tick(time.monotonic())
        self._flush()
        self._check_connection()
        if self._protocol.refused:
            raise StreamRefused(f"the trainer refused this generator: {self._protocol.refused}")

    def close(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged, at most ``timeout_s``; then say goodbye."""
        end = time.monotonic() + timeout_s
        while self.unacknowledged and self._protocol.state == "ready" and time.monotonic() < end:
            self.poll(0.05)
        self._protocol.leave(time.monotonic())
        self._flush()
        self._disconnect(linger_ms=500)

    def _receive(self) -> None:
        assert self._socket is not None
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._protocol.receive(frames, time.monotonic())

    def _flush(self) -> None:
        waiting = self._protocol.outgoing()
        for first in range(0, len(waiting), MAX_FRAMES):
            together = [frame for frames in waiting[first : first + MAX_FRAMES] for frame in frames]
            try:
                if self._socket is not None:
                    self._socket.send_multipart(together, zmq.NOBLOCK)
            except zmq.Again:
                pass  # there is no connection; everything is said again when there is one

    def _look_for_trainer(self) -> None:
        """Connect when there is no trainer, when it went silent, and when a new one listens elsewhere."""
        now = time.monotonic()
        lost = self._protocol.state == "connecting" or self._protocol.is_trainer_dead(now)
        if not lost or now - self._looked_at < LOOK_FOR_TRAINER_EVERY_S:
            return
        self._looked_at = now
        endpoint = self._find_endpoint()
        if endpoint is None or (endpoint == self._endpoint and not self._protocol.is_trainer_dead(now)):
            return
        self._disconnect()
        self._connect(endpoint)
        self._protocol.connect(now)
        self._flush()

    def _connect(self, endpoint: str) -> None:
        keys.require_keys_off_loopback(
            self._settings, "the trainer's address", keys.host_of(endpoint), [self._generator]
        )
        self._endpoint = endpoint
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for a trainer that is not there
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(MAX_RECONNECT_S * 1000))
        self._monitor = keys.ConnectionMonitor(self._socket)
        if self._credentials:
            self._credentials.apply(self._socket)
        self._socket.connect(endpoint)

    def _disconnect(self, linger_ms: int = 0) -> None:
        if self._monitor is not None:
            self._monitor.close()
        if self._socket is not None:
            self._socket.close(linger=linger_ms)
        self._socket, self._monitor, self._endpoint = None, None, None

    def __del__(self) -> None:
        if getattr(self, "_monitor", None):
            self._disconnect()  # in this order: see `ConnectionMonitor.close`

    def _check_connection(self) -> None:
        """A trainer that died, or will not talk to us, says so only here. Raises StreamRefused when it never will."""
        assert self._monitor is not None
        events = self._monitor.events()
        if keys.DISCONNECTED in events:
            self._protocol.disconnected()
        if "auth" in events:
            raise StreamRefused(
                f"the trainer at {self._endpoint} does not list the key of {self._generator}: "
                f"copy {self._generator}.key into {keys.GENERATORS}/ of its stream.keys, and restart the trainer"
            )
        if "protocol" in events:
            have = f"stream.keys = {self._settings.keys!r}"
            raise StreamRefused(
                f"the trainer at {self._endpoint} speaks another protocol: only one end has keys (here {have}), "
                "or something else listens there"
            )
        if "no_detail" in events and time.monotonic() - self._warned_at >= WARN_EVERY_S:
            self._warned_at = time.monotonic()
            if self._credentials:
                why = f"{keys.TRAINER}.key here is not its own, or it has no stream.keys"
            else:
                why = "it has stream.keys and there are none here"
            log.warning(
                "the trainer at %s closes the connection during the handshake; unless it is just ending, "
                "%s; trying again",
                self._endpoint,
                why,
            )

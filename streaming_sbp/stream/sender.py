"""A generator's end of the stream: the socket around `protocol.SenderProtocol`, and the search for the trainer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import numpy as np
import zmq

from streaming_sbp import config
from streaming_sbp.stream.messages import Announcement, DocumentHeader
from streaming_sbp.stream.protocol import SenderProtocol, StreamRefused

LOOK_FOR_TRAINER_EVERY_S = 0.5


class Sender:
    """Call ``poll`` often, at least every `stream.heartbeat_s`; it never blocks longer than asked.

    ``find_endpoint`` says where the trainer listens now (it changes when the trainer restarts), or None.
    """

    def __init__(
        self,
        settings: config.Stream,
        find_endpoint: Callable[[], str | None],
        run_id: str,
        tokenizer_digest: str,
        vocab_size: int,
        generator: str,
    ):
        self._find_endpoint = find_endpoint
        session = secrets.token_hex(8)
        self._protocol = SenderProtocol(settings, run_id, tokenizer_digest, vocab_size, generator, session)
        self._socket: zmq.Socket[bytes] | None = None
        self._endpoint: str | None = None
        self._looked_at = -LOOK_FOR_TRAINER_EVERY_S

    @property
    def credit(self) -> int:
        """How many documents may be sent now."""
        return self._protocol.credit

    @property
    def unacknowledged(self) -> int:
        return self._protocol.unacknowledged

    @property
    def num_resent(self) -> int:
        return self._protocol.num_resent

    @property
    def announced(self) -> Announcement | None:
        """The newest snapshot, as the trainer last said."""
        return self._protocol.announced

    def send(self, header: DocumentHeader, tokens: np.ndarray, confidence: np.ndarray) -> int:
        """Hand over one document; returns its number. Raises ValueError without credit."""
        seq = self._protocol.send(header, tokens, confidence, time.monotonic())
        self._flush()
        return seq

    def poll(self, timeout_s: float) -> None:
        """Read what the trainer said, wait for it up to ``timeout_s``. Raises StreamRefused."""
        self._look_for_trainer()
        if self._socket is None:
            time.sleep(timeout_s)
            return
        self._socket.poll(int(timeout_s * 1000))
        self._receive()
        self._protocol.tick(time.monotonic())
        self._flush()
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
        for frames in self._protocol.outgoing():
            try:
                if self._socket is not None:
                    self._socket.send_multipart(frames, zmq.NOBLOCK)
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
        self._endpoint = endpoint
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for a trainer that is not there
        self._socket.connect(endpoint)
        self._protocol.connect(now)
        self._flush()

    def _disconnect(self, linger_ms: int = 0) -> None:
        if self._socket is not None:
            self._socket.close(linger=linger_ms)
        self._socket, self._endpoint = None, None

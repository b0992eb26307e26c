"""A million mutated messages into a real receiver, over real sockets, while a good generator goes on streaming.

    python benchmarks/fuzz_stream.py [--messages 1000000] [--junk-peers 4]

Junk peers are processes with plain DEALER sockets. They mutate valid messages of every kind, and say a valid Hello now
and then, so that mutated documents arrive with credit; some never read what they are told. Another thread sends bytes
that are no ZMTP at all. At the end every document of the good generator must be in the journal exactly once, the ledger
balanced, the receiver alive, and its memory flat. Ends in one JSON line; exit status 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import socket as plain_socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import zmq

from streaming_sbp import config
from streaming_sbp.stream import messages
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.ledger import balance
from streaming_sbp.stream.messages import Alive, DocumentHeader, Hello, Leaving, SamplingSettings, StreamRefused
from streaming_sbp.stream.receiver import Receiver
from streaming_sbp.stream.sender import Sender
from streaming_sbp.telemetry.catalogue import HANDSHAKE_FAILURE_REASONS, REFUSAL_REASONS
from streaming_sbp.telemetry.metrics import Metrics

VOCABULARY = 5000
STREAM = {"capacity_documents": 512, "max_document_tokens": 512}
GOOD = "good"
processes = multiprocessing.get_context("forkserver")


def header(num_tokens: int) -> DocumentHeader:
    return DocumentHeader("a" * 32, "b" * 64, 10**6, SamplingSettings(1.0, 0.9, 0), -2.5, num_tokens, 100)


# --- the good generator ---


def stream_well(endpoint: str, stop: Any, result: Any) -> None:
    """Documents whose first two tokens are their number; says at the end how many, or what went wrong."""
    sender = Sender(config.Stream(**STREAM), lambda: endpoint, "run", "tokenizer", VOCABULARY, GOOD)
    sent = 0
    try:
        while not stop.is_set():
            for _ in range(min(sender.credit, 8)):
                tokens = np.full(64, 7)
                tokens[:2] = divmod(sent, VOCABULARY)
                sender.send(header(64), tokens, np.full(64, sent % 256, np.uint8))
                sent += 1
            sender.poll(0.01)
        sender.close(30.0)
        result.put((sent, sender.unacknowledged, ""))
    except StreamRefused as error:
        result.put((sent, sender.unacknowledged, str(error)))


# --- junk ---


def send_junk(endpoint: str, number: int, num_messages: int) -> None:
    rng = random.Random(number)
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(endpoint)
    reads = number % 2 == 0
    sent = session = 0
    valid = valid_messages(number, session)
    while sent < num_messages:
        if sent % 2000 < 8:
            session += 1
            valid = valid_messages(number, session)
            socket.send(valid[0])
        count = 70 if rng.random() < 0.001 else rng.choice((1, 2, 4, 8, 8, 16))
        socket.send_multipart([mutated(rng, rng.choice(valid)) for _ in range(count)])
        sent += count
        while reads and socket.poll(0):
            socket.recv_multipart()
    socket.close(linger=60_000)
    zmq.Context.instance().term()


def valid_messages(number: int, session: int) -> list[bytes]:
    """The first is a Hello."""
    hello = Hello(messages.PROTOCOL_VERSION, "run", "tokenizer", "generator", f"junk-{number}", f"{session}", 0, 0)
    documents = [
        messages.encode_document(seq, header(size), np.full(size, 4990, "<u2"), np.zeros(size, "u1"))[0]
        for seq, size in ((0, 3), (1, 50), (5, 300), (17, 512), (60, 513))
    ]
    others = [hello, msgspec.structs.replace(hello, next_seq=9), Alive(3), Leaving(4)]
    return [*(messages.encode(message)[0] for message in others), *documents, *documents]


def mutated(rng: random.Random, frame: bytes) -> bytes:
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randint(1, 16))
        elif kind == 2:
            del data[at : at + rng.randint(1, 16)]
        elif data:
            data[at % len(data)] = rng.randrange(256)
    return bytes(data)


def send_no_zmtp(endpoint: str, stop: threading.Event) -> None:
    """Random bytes, half a greeting, nothing at all."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    rng = random.Random(0)
    while not stop.wait(0.05):
        try:
            with plain_socket.create_connection((host, int(port)), timeout=1.0) as connection:
                connection.sendall(rng.choice((rng.randbytes(200), b"GET / HTTP/1.0\r\n\r\n", b"\xff" + bytes(8), b"")))
        except OSError:
            pass  # it has closed the connection before we had sent everything: right


# --- all of it ---


def settled(metrics: Metrics) -> None:
    """Wait until everything that is on its way has been seen."""
    before = -1.0
    while (seen := metrics.value("sbp_receiver_cpu_seconds_total")) - max(before, 0) > 0.2 or before < 0:
        before = seen
        time.sleep(2.0)


def run(folder: Path, num_messages: int, junk_peers: int) -> dict[str, Any]:
    metrics, journal = Metrics("trainer"), Journal(folder, writable=True)
    receiver = Receiver(config.build({"stream": STREAM}), "run", "tokenizer", VOCABULARY, journal, metrics)
    receiver.start()
    stop, result = processes.Event(), processes.Queue()
    good = processes.Process(target=stream_well, args=(receiver.endpoint, stop, result), daemon=True)
    good.start()
    junk = [
        processes.Process(target=send_junk, args=(receiver.endpoint, k, num_messages // junk_peers), daemon=True)
        for k in range(junk_peers)
    ]
    for process in junk:
        process.start()
    no_zmtp_stop = threading.Event()
    no_zmtp = threading.Thread(target=send_no_zmtp, args=(receiver.endpoint, no_zmtp_stop))
    no_zmtp.start()
    memory: list[float] = []
    started = time.monotonic()
    while any(process.is_alive() for process in junk):
        time.sleep(0.2)
        receiver.set_consumed(len(journal))
        receiver.check()
        memory.append(psutil.Process().memory_info().rss / 2**20)
    seconds = time.monotonic() - started
    no_zmtp_stop.set()
    no_zmtp.join()
    settled(metrics)
    stop.set()
    sent, unacknowledged, error = result.get(timeout=60)
    good.join(10)
    memory.append(psutil.Process().memory_info().rss / 2**20)
    exceptions = 0
    try:
        receiver.check()
        receiver.stop(30.0)
    except RuntimeError:
        exceptions += 1
    arrived, accepted = found_in(journal)
    sessions, _ = receiver.sessions()
    return {
        "benchmark": "fuzz_stream",
        "messages": num_messages // junk_peers * junk_peers,
        "junk_exit_statuses": sorted({process.exitcode for process in junk}),
        "seconds": round(seconds, 1),
        "malformed": int(metrics.value("sbp_stream_malformed_total")),
        "junk_documents_accepted": sum(accepted.values()) - accepted[GOOD],
        "refusals": {r: int(metrics.value("sbp_stream_refusals_total", reason=r)) for r in REFUSAL_REASONS},
        "handshake_failures": {
            r: int(metrics.value("sbp_stream_handshake_failures_total", reason=r)) for r in HANDSHAKE_FAILURE_REASONS
        },
        "sessions": len(sessions),
        "good_sent": sent,
        "good_unacknowledged": unacknowledged,
        "good_error": error,
        "lost": sent - len(arrived),
        "twice": arrived.total() - len(arrived),
        "wrong": sum(number >= sent for number in arrived),
        "imbalance": balance(sessions, accepted, {}, {}).terms()["imbalance"],
        "rss_mib": [round(memory[len(memory) // 10], 1), round(memory[len(memory) // 2], 1), round(memory[-1], 1)],
        "exceptions": exceptions,
    }


def found_in(journal: Journal) -> tuple[Counter[int], Counter[str]]:
    """How often each number of the good generator is there, and documents by generator."""
    arrived: Counter[int] = Counter()
    accepted: Counter[str] = Counter()
    for position, entry in enumerate(journal.entries()):
        accepted[entry.generator] += 1
        if entry.generator == GOOD:
            tokens = journal.tokens(position)
            arrived[int(tokens[0]) * VOCABULARY + int(tokens[1])] += 1
    return arrived, accepted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--junk-peers", type=int, default=4)
    chosen = parser.parse_args()
    processes.set_forkserver_preload(["streaming_sbp.stream.sender"])
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), chosen.messages, chosen.junk_peers)
    print(json.dumps(result))
    wrong = ("lost", "twice", "wrong", "imbalance", "exceptions", "good_error", "good_unacknowledged")
    return int(any(result[name] for name in wrong) or result["junk_exit_statuses"] != [0])


if __name__ == "__main__":
    sys.exit(main())

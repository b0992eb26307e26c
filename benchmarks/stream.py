"""Documents per second of the stream, durable, beside bare pyzmq of the same bytes; and what it costs a trainer.

    python benchmarks/stream.py [--seconds 3] [--rounds 2] [--generators 1,4,16]

Ours: real `Sender` processes, a real `Receiver` and `Journal`: fsync before every acknowledgement. Bare: processes that
PUSH the very same encoded documents, one PULL that throws them away. Both alternate, with and without CURVE, at two
sizes: 8 KiB (as others measure) and 300 tokens (as in the demo). Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from streaming_sbp import config
from streaming_sbp.files import write_atomically
from streaming_sbp.stream import keys, messages, shards
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import DocumentHeader, SamplingSettings
from streaming_sbp.stream.receiver import Receiver
from streaming_sbp.stream.sender import Sender
from streaming_sbp.stream.shards import AcceptedDocument
from streaming_sbp.telemetry.metrics import Metrics

VOCABULARY = 8192
SIZES = {"8 KiB": 2731, "300 tokens": 300}  # tokens; three bytes each
processes = multiprocessing.get_context("forkserver")


def document(num_tokens: int) -> tuple[DocumentHeader, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(num_tokens)
    header = DocumentHeader("a" * 32, "b" * 64, 10**6, SamplingSettings(1.0, 0.9, 0), -2.5, num_tokens, 100)
    tokens = rng.integers(0, VOCABULARY, num_tokens).astype("<u2")
    return header, tokens, rng.integers(0, 256, num_tokens).astype("u1")


# --- ours ---


def send_documents(stream: dict[str, Any], endpoint: str, name: str, num_tokens: int, per_second: float) -> None:
    """Until killed; ``per_second`` 0: as many as there is credit for."""
    sender = Sender(config.Stream(**stream), lambda: endpoint, "run", "tokenizer", VOCABULARY, name)
    header, tokens, confidence = document(num_tokens)
    due = time.monotonic()
    while True:
        while sender.credit > 0 and (not per_second or due <= time.monotonic()):
            sender.send(header, tokens, confidence)
            due += 1 / per_second if per_second else 0
        sender.poll(0.005)


@contextmanager
def our_stream(
    folder: Path, generators: int, num_tokens: int, curve: bool, capacity: int, per_second: float = 0.0
) -> Iterator[tuple[Receiver, Journal, Metrics]]:
    names = [f"generator-{k}" for k in range(generators)]
    stream: dict[str, Any] = {"capacity_documents": capacity}
    if curve:
        keys.make(folder / "keys", names)
        stream["keys"] = str(folder / "keys")
    metrics, journal = Metrics("trainer"), Journal(folder / "journal", writable=True)
    receiver = Receiver(config.build({"stream": stream}), "run", "tokenizer", VOCABULARY, journal, metrics)
    receiver.start()
    workers = [
        processes.Process(
            target=send_documents, args=(stream, receiver.endpoint, n, num_tokens, per_second / generators), daemon=True
        )
        for n in names
    ]
    try:
        with running(workers):
            wait_until(lambda: metrics.value("sbp_stream_peers") == generators and len(journal) > 0)
            yield receiver, journal, metrics
    finally:
        receiver.stop(30.0)


def ours(generators: int, num_tokens: int, curve: bool, capacity: int, seconds: float) -> tuple[float, float]:
    """Documents per second, and microseconds of CPU time of our threads in the trainer for each."""
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder,
        our_stream(Path(folder), generators, num_tokens, curve, capacity) as (receiver, journal, metrics),
    ):
        trained = threading.Event()

        def consume() -> None:
            while not trained.wait(0.002):
                receiver.set_consumed(len(journal))

        thread = threading.Thread(target=consume)
        thread.start()
        time.sleep(0.5)
        first, started, cpu_s = len(journal), time.monotonic(), metrics.value("sbp_receiver_cpu_seconds_total")
        time.sleep(seconds)
        count, seconds = len(journal) - first, time.monotonic() - started
        cpu_s = metrics.value("sbp_receiver_cpu_seconds_total") - cpu_s
        trained.set()
        thread.join()
        receiver.check()
        return count / seconds, cpu_s / max(count, 1) * 1e6


# --- bare pyzmq ---


def push(endpoint: str, num_tokens: int, pair: tuple[bytes, bytes], server_key: bytes | None) -> None:
    socket = zmq.Context.instance().socket(zmq.PUSH)
    if server_key:
        socket.curve_publickey, socket.curve_secretkey = pair
        socket.curve_serverkey = server_key
    socket.connect(endpoint)
    (frame,) = messages.encode_document(10**5, *document(num_tokens))
    while True:
        socket.send(frame)


def bare(generators: int, num_tokens: int, curve: bool, seconds: float) -> tuple[float, float]:
    """As `ours`."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PULL)
    server = zmq.curve_keypair()
    if curve:
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = server
    endpoint = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
    arguments = (endpoint, num_tokens, zmq.curve_keypair(), server[0] if curve else None)
    with running([processes.Process(target=push, args=arguments, daemon=True) for _ in range(generators)]):
        count_for(socket, 0.5)
        cpu_s = time.thread_time()
        count = count_for(socket, seconds)
        cpu_s = time.thread_time() - cpu_s
    socket.close(linger=0)
    context.term()
    return count / seconds, cpu_s / count * 1e6


def count_for(socket: zmq.Socket[bytes], seconds: float) -> int:
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(100):
            socket.recv()
        count += 100
    return count


# --- the disk alone ---


def disk(num_tokens: int, seconds: float, group: int = 1024) -> float:
    """Documents per second when their shards are only written, as durably: the most that any stream could do."""
    header, tokens, confidence = document(num_tokens)
    documents = [AcceptedDocument("generator-0", "0" * 16, k, header, tokens, confidence) for k in range(group)]
    content, count, end = shards.encode(0, documents, time.time()), 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        while time.monotonic() < end:
            write_atomically(Path(folder) / f"{count:010d}.tar", content)
            count += group
    return count / seconds


# --- the receiver beside a trainer ---


def receiver_share(documents_per_second: float, seconds: float, num_tokens: int = 300) -> dict[str, float]:
    """A thread that multiplies matrices, as a trainer does, alone and then with the stream at a demo's rate."""
    alone = train(seconds)
    with (
        tempfile.TemporaryDirectory() as folder,
        our_stream(Path(folder), 1, num_tokens, False, 512, documents_per_second) as (receiver, journal, metrics),
    ):
        before, first, started = metrics.value("sbp_receiver_cpu_seconds_total"), len(journal), time.monotonic()
        io_before = zmq_thread_seconds()
        beside = train(seconds, lambda: receiver.set_consumed(len(journal)))
        wall = time.monotonic() - started
        return {
            "documents_per_second": round((len(journal) - first) / wall, 1),
            "receiver_share": round((metrics.value("sbp_receiver_cpu_seconds_total") - before) / wall, 4),
            "zmq_io_share": round((zmq_thread_seconds() - io_before) / wall, 4),
            "trainer_speed_beside": round(beside / alone, 3),
        }


def train(seconds: float, after_step: Any = lambda: None) -> float:
    """Steps per second."""
    a, b = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    steps, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            a = np.tanh(a @ b * 0.05)
        sum(k * k for k in range(2000))  # Python between the kernels
        after_step()
        steps += 1
    return steps / seconds


def zmq_thread_seconds() -> float:
    """CPU time of ZeroMQ's own threads in this process."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            name, _, rest = (task / "stat").read_text().partition(") ")
        except FileNotFoundError:
            continue
        if "ZMQbg" in name:
            fields = rest.split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


# --- all of it ---


@contextmanager
def running(workers: list[Any]) -> Iterator[None]:
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()


def wait_until(happened: Any, within_s: float = 120.0) -> None:
    end = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError("the generators did not connect")
        time.sleep(0.01)


def compare(size: str, generators: int, curve: bool, capacity: int, seconds: float, rounds: int) -> dict[str, Any]:
    measured: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for _ in range(rounds):
        measured["bare"].append(bare(generators, SIZES[size], curve, seconds))
        measured["ours"].append(ours(generators, SIZES[size], curve, capacity, seconds))
    result = {name: round(statistics.median(rate for rate, _ in values)) for name, values in measured.items()}
    cpu_us = {name: round(statistics.median(cpu for _, cpu in values), 1) for name, values in measured.items()}
    ratio = result["ours"] / result["bare"]
    rates = f"{result['bare']:,} | {result['ours']:,} | {ratio:.2f} | {cpu_us['bare']} | {cpu_us['ours']}"
    print(f"| {size} | {generators} | {'yes' if curve else 'no'} | {rates} |", flush=True)
    row = {"size": size, "generators": generators, "curve": curve, **result}
    return {**row, "ratio": round(ratio, 3), "cpu_us": cpu_us}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="alternations; the median counts")
    parser.add_argument("--generators", default="1,4,16")
    parser.add_argument("--curve", choices=("both", "yes", "no"), default="both")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--capacity", type=int, default=8192, help="stream.capacity_documents of the throughput runs")
    parser.add_argument(
        "--rate", type=float, default=10.0, help="documents per second beside the trainer; 0: leave out"
    )
    chosen = parser.parse_args()
    processes.set_forkserver_preload(["streaming_sbp.stream.sender"])
    print("| document | generators | CURVE | bare, documents/s | ours | ratio | CPU us a document, bare | ours |")
    print("|---|---|---|---|---|---|---|---|")
    curves = {"both": (False, True), "yes": (True,), "no": (False,)}[chosen.curve]
    rows = [
        compare(size, generators, curve, chosen.capacity, chosen.seconds, chosen.rounds)
        for size in chosen.sizes.split(",")
        for curve in curves
        for generators in map(int, chosen.generators.split(","))
    ]
    disks = {size: round(disk(SIZES[size], chosen.seconds)) for size in chosen.sizes.split(",")}
    share = receiver_share(chosen.rate, 10.0) if chosen.rate else None
    lowest = min((row["ratio"] for row in rows), default=None)
    print(
        json.dumps(
            {
                "benchmark": "stream",
                "cpus": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
                "rows": rows,
                "disk_documents_per_second": disks,
                "lowest_ratio": lowest,
                "receiver": share,
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())

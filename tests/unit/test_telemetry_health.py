import socket
import struct
import threading
import urllib.error
import urllib.request

import pytest

from streaming_sbp.config import ConfigError
from streaming_sbp.telemetry.health import HealthServer, QuietHandler
from streaming_sbp.telemetry.metrics import Metrics


class Process:
    healthy = ready = ""


@pytest.fixture
def process():
    return Process()


@pytest.fixture
def metrics():
    return Metrics("trainer")


@pytest.fixture
def server(process, metrics):
    server = HealthServer(metrics.registry, lambda: process.healthy, lambda: process.ready, "127.0.0.1")
    yield server
    server.close()


def get(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_checks_follow_the_process(server, process):
    assert get(server, "/healthz") == get(server, "/readyz") == (200, "ok\n")
    process.ready = "starting: reading the data set – 漢"
    assert get(server, "/readyz") == (503, "starting: reading the data set – 漢\n")
    assert get(server, "/healthz") == (200, "ok\n")
    process.healthy = "NaN loss"
    assert get(server, "/healthz") == (503, "NaN loss\n")


def test_metrics_are_those_of_the_registry(server, metrics):
    metrics.set("sbp_train_loss", 2.5, source="real")
    status, text = get(server, "/metrics")
    assert status == 200
    assert 'sbp_train_loss{source="real"} 2.5' in text.splitlines()
    metrics.set("sbp_train_loss", 2.25, source="real")
    assert 'sbp_train_loss{source="real"} 2.25' in get(server, "/metrics")[1].splitlines()


def test_a_peer_that_says_nothing_is_let_go(server, monkeypatch):
    monkeypatch.setattr(QuietHandler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.settimeout(10)
        assert silent.recv(1) == b""


def test_a_peer_that_resets_its_connection_is_not_reported(server, capfd):
    peer = socket.create_connection(("127.0.0.1", server.port))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sendall(b"GET /metrics HTTP/1.1")
    peer.close()
    assert get(server, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_unknown_paths_name_the_known_ones(server):
    assert get(server, "/") == (404, "expected /metrics, /healthz or /readyz\n")
    assert get(server, "/healthz/x")[0] == 404


def test_two_servers_have_ports_of_their_own_and_one_can_be_chosen(server, metrics):
    other = HealthServer(metrics.registry, lambda: "", lambda: "", "127.0.0.1")
    other.close()
    assert other.port != server.port
    again = HealthServer(metrics.registry, lambda: "", lambda: "", "127.0.0.1", other.port)
    assert again.port == other.port
    again.close()
    with pytest.raises(ConfigError, match="in use; choose another --metrics-port"):
        HealthServer(metrics.registry, lambda: "", lambda: "", "127.0.0.1", server.port)


def test_a_slow_reader_does_not_hold_up_the_others(process, metrics):
    entered, leave = threading.Event(), threading.Event()

    def slow():
        entered.set()
        leave.wait(20)
        return ""

    server = HealthServer(metrics.registry, slow, lambda: "", "127.0.0.1")
    reader = threading.Thread(target=get, args=(server, "/healthz"))
    reader.start()
    try:
        assert entered.wait(10)
        assert get(server, "/readyz") == (200, "ok\n")
    finally:
        leave.set()
        reader.join(10)
        server.close()

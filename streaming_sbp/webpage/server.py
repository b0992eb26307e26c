"""`sbp dashboard`: serves the page of some runs until it is told to end."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
from collections.abc import Callable

from streaming_sbp.config import ConfigError
from streaming_sbp.stream.keys import is_loopback
from streaming_sbp.telemetry.health import QuietHandler, QuietServer
from streaming_sbp.telemetry.targets import EVERYWHERE
from streaming_sbp.webpage.app import App
from streaming_sbp.webpage.runs import RunList

TOKEN_BYTES = 24


class _ServerV6(QuietServer):
    address_family = socket.AF_INET6


class PageServer:
    """Answers from a daemon thread. ``url`` is what to open: with the token, where one is needed.

    A token is needed off loopback, and with ``with_token``. Raises ConfigError when the port is taken.
    """

    def __init__(self, runs: RunList, host: str, port: int, with_token: bool = False):
        token = secrets.token_urlsafe(TOKEN_BYTES) if with_token or not is_loopback(host) else ""
        kind = _ServerV6 if ":" in host else QuietServer
        try:
            self._server = kind((host.strip("[]"), port), QuietHandler)
        except (OSError, OverflowError) as error:
            way_out = "choose another --port, or 0 for a free one"
            raise ConfigError(f"--host {host} --port {port}: cannot listen: {error}; {way_out}") from None
        self.port: int = self._server.server_port
        # cookies do not know ports: a name of its own for each, or two dashboards would take each other's
        self._server.set_app(App(runs, token, cookie=f"sbp-token-{self.port}"))
        name = socket.gethostname() if host in EVERYWHERE else f"[{host.strip('[]')}]" if ":" in host else host
        self.url = f"http://{name}:{self.port}/" + (f"?token={token}" if token else "")
        threading.Thread(target=self._server.serve_forever, name="page", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve(runs: RunList, host: str, port: int, with_token: bool, say: Callable[[str], None]) -> None:
    """Until Ctrl-C or SIGTERM. ``say`` gets the address."""
    ended = threading.Event()
    server = PageServer(runs, host, port, with_token)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    say(server.url)
    ended.wait()
    server.close()

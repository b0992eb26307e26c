"""`/metrics`, `/healthz` and `/readyz` of one process, served by a daemon thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from streaming_sbp.config import ConfigError

REQUEST_TIMEOUT_S = 30.0  # a peer that says nothing for so long is let go


class QuietHandler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        pass


class QuietServer(ThreadingWSGIServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away is nothing to report; browsers open connections ahead, and never use them."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class HealthServer:
    """Serves until the process ends. ``healthy`` and ``ready`` return "" or the reason why not."""

    def __init__(
        self,
        registry: CollectorRegistry,
        healthy: Callable[[], str],
        ready: Callable[[], str],
        host: str,
        port: int = 0,
    ):
        metrics_app = make_wsgi_app(registry)
        checks = {"/healthz": healthy, "/readyz": ready}

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "/")
            if path == "/metrics":
                return metrics_app(environ, start_response)
            if path not in checks:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"expected /metrics, /healthz or /readyz\n"]
            problem = checks[path]()
            status = "503 Service Unavailable" if problem else "200 OK"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [(problem or "ok").encode() + b"\n"]

        try:
            self._server = make_server(host, port, app, QuietServer, handler_class=QuietHandler)
        except OSError as error:
            raise ConfigError(
                f"telemetry.host = {host!r}, metrics port {port}: cannot listen: {error}; choose another "
                "--metrics-port, or 0 for a free one"
            ) from None
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

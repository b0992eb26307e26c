"""The page's requests as a WSGI application: who may ask, which addresses there are, and what browsers may do with it.

    /                                  the page
    /static/NAME                       what it loads, from the package
    /api/runs                          the list of runs
    /api/runs/NUMBER?after=CURSOR      one run: see `watch.WatchedRun.look`
    /api/runs/NUMBER/documents         its newest synthetic documents

Everything is read-only. No part of an address is ever used as a path: files are found by name in a closed list that is
made at start, runs by their number.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from streaming_sbp.telemetry.text import one_line
from streaming_sbp.webpage.runs import RunList
from streaming_sbp.webpage.watch import Unreadable, WatchedRun

log = logging.getLogger("sbp")

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}  # LICENSE: plain text
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
]
LIST_AGE_S = 10.0  # the list's line of a run may be so old
LIST_BUDGET_S = 0.3  # of reading runs for one answer of the list: the others come with the next ones


class Answer(NamedTuple):
    status: HTTPStatus
    type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class App:
    """``token``: what a browser must show, by address once, then by cookie; "" where nobody else can reach us.

    Without a token the request must be for a name of this machine: a page elsewhere whose name is made to lead here
    (DNS rebinding) is refused.
    """

    def __init__(self, runs: RunList, token: str = "", cookie: str = "sbp-token"):
        self._runs, self._token, self._cookie = runs, token, cookie
        self._files = _static_files()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            answer = self._refusal(environ) or self._answer(environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
        except Exception:
            log.exception("dashboard: %s", one_line(environ.get("PATH_INFO")))
            answer = _error(HTTPStatus.INTERNAL_SERVER_ERROR, "a defect; `sbp dashboard` printed where")
        length = ("Content-Length", str(len(answer.body)))
        headers = [("Content-Type", f"{answer.type}; charset=utf-8"), length, *HEADERS, *answer.headers]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.body]

    # --- who may ask ---

    def _refusal(self, environ: dict[str, Any]) -> Answer | None:
        """None when the request may be answered."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET", (("Allow", "GET, HEAD"),))
        if not self._token:
            return _refused_name(environ.get("HTTP_HOST", ""))
        shown = parse_qs(environ.get("QUERY_STRING", "")).get("token", [""])[0]
        if environ["PATH_INFO"] == "/" and self._is_token(shown):
            kept = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
            return _text(HTTPStatus.SEE_OTHER, "", (("Location", "/"), ("Set-Cookie", kept)))
        if self._is_token(_cookie(environ.get("HTTP_COOKIE", ""), self._cookie)):
            return None
        return _text(HTTPStatus.FORBIDDEN, "open the address that `sbp dashboard` printed, with its ?token=...")

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "replace"), self._token.encode())

    # --- what there is ---

    def _answer(self, path: str, query: str) -> Answer:
        name = "index.html" if path == "/" else path.removeprefix("/static/")
        if name in self._files and path in ("/", f"/static/{name}"):
            return self._files[name]
        parts = path.split("/")[1:]
        if parts == ["api", "runs"]:
            return _json({"runs": self._list()})
        if parts[:2] == ["api", "runs"] and len(parts) in (3, 4):
            run = self._run(parts[2])
            if run is not None and parts[3:] == []:
                return _read(lambda: run.look(parse_qs(query).get("after", [""])[0]))
            if run is not None and parts[3:] == ["documents"]:
                return _read(run.documents)
        return _error(HTTPStatus.NOT_FOUND, "no such page")

    def _run(self, number: str) -> WatchedRun | None:
        if not (number.isascii() and number.isdecimal() and len(number) < 10 and int(number) < len(self._runs)):
            return None
        return self._runs[int(number)]

    def _list(self) -> list[dict[str, Any]]:
        self._runs.look()
        found, end = [], time.monotonic() + LIST_BUDGET_S
        for number, run in enumerate(self._runs):
            line = {"number": number, "name": run.name, "chosen": run.chosen, "brief": None, "problem": ""}
            try:
                line["brief"] = run.brief(LIST_AGE_S)
                if line["brief"] is None and time.monotonic() < end:
                    run.look_briefly()
                line["brief"] = run.brief(float("inf"))
            except Unreadable as error:
                line["problem"] = str(error)
            found.append(line)
        return found


def _refused_name(host: str) -> Answer | None:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() in LOOPBACK_NAMES:
        return None
    problem = f"the page is for {', '.join(LOOPBACK_NAMES)}, and was asked for as {one_line(host)!r}"
    return _text(HTTPStatus.FORBIDDEN, f"{problem}; for other names start `sbp dashboard` with --token")


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _static_files() -> dict[str, Answer]:
    folder = resources.files("streaming_sbp.webpage") / "static"
    found = {}
    for prefix, entries in (("", folder.iterdir()), ("uplot/", (folder / "uplot").iterdir())):
        for entry in entries:
            if entry.is_file():
                kind = TYPES.get(entry.name.rpartition(".")[2], "text/plain")
                found[prefix + entry.name] = Answer(HTTPStatus.OK, kind, entry.read_bytes())
    return found


# --- answers ---


def _read(what: Callable[[], dict[str, Any]]) -> Answer:
    try:
        return _json(what())
    except Unreadable as error:
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))


def _json(value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(status, "application/json", json.dumps(value, allow_nan=False).encode())


def _error(status: HTTPStatus, reason: str) -> Answer:
    return _json({"error": reason}, status)


def _text(status: HTTPStatus, text: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, "text/plain", text.encode() + b"\n", headers)

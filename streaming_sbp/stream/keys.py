"""CURVE keys: who may stream to the trainer. Made and read with `zmq.auth`; both ends use this module, no others.

KEYS/trainer.key, KEYS/trainer.key_secret   of the trainer
KEYS/generators/NAME.key                    the trainer takes documents from these generators, and from nobody else
KEYS/NAME.key_secret                        of that generator

Secret files have mode 0600, or they are refused. Off loopback there is no stream without keys.
"""

from __future__ import annotations

import ipaddress
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from streaming_sbp.config import ConfigError, Stream

TRAINER = "trainer"
GENERATORS = "generators"
ZAP_DOMAIN = "sbp"
EXAMPLE_FOLDER = "keys"
DISCONNECTED = "disconnected"
EVENTS = {
    zmq.EVENT_DISCONNECTED: DISCONNECTED,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "auth",  # the trainer does not list that generator's key
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "protocol",  # the other end has no keys, another trainer's, or is no peer
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "no_detail",  # the other end closed the connection
}


# --- making them ---


def make(folder: str | Path, generators: Sequence[str]) -> list[str]:
    """The trainer's pair and one for each generator, but those that exist; returns the names of the new ones.

    Raises ConfigError for a name that is no file name, and where half of a pair exists.
    """
    folder = Path(folder)
    for name in generators:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) or name == TRAINER:
            raise ConfigError(f"--generator {name!r}: expected the name of a generator, as in generator-0")
    try:
        for part in (folder, folder / GENERATORS):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.chmod(0o700)
        return [name for name in (TRAINER, *dict.fromkeys(generators)) if _make_pair(folder, name)]
    except OSError as error:
        raise ConfigError(f"{folder}: keys cannot be written: {error}") from None


def _make_pair(folder: Path, name: str) -> bool:
    """False when the pair is there already; nothing is ever overwritten."""
    files = _public_path(folder, name), _secret_path(folder, name)
    existing = [path for path in files if path.exists()]
    if len(existing) == 2:
        return False
    if existing:
        raise ConfigError(f"{existing[0]} exists without the other half of the pair: bring it back, or remove this one")
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        for made, path in zip(zmq.auth.create_certificates(beside, name), files, strict=True):
            Path(made).chmod(0o600 if path == files[1] else 0o644)
            Path(made).rename(path)
    return True


def _public_path(folder: Path, name: str) -> Path:
    return (folder if name == TRAINER else folder / GENERATORS) / f"{name}.key"


def _secret_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.key_secret"


def command(folder: str | Path, generators: Iterable[str]) -> str:
    """The command line that makes these keys."""
    return f"sbp keys {folder} " + " ".join(f"--generator {name}" for name in generators)


def instructions(folder: str | Path, generators: Sequence[str], made: Sequence[str]) -> str:
    """What is new, and what to copy where."""
    names = list(dict.fromkeys(generators))
    lines = [f"{name}: {'made' if name in made else 'exists, left as it is'}" for name in (TRAINER, *names)]
    lines += [
        "",
        f"On the trainer's machine: stream.keys = {str(folder)!r}; it needs {TRAINER}.key_secret and {GENERATORS}/.",
        "On a generator's machine: a folder, as stream.keys there, with these two files and no other secret:",
        *(f"  {name}: {_public_path(Path(folder), TRAINER)} {_secret_path(Path(folder), name)}" for name in names),
        f"To take a generator out, remove {Path(folder) / GENERATORS}/NAME.key and restart the trainer.",
    ]
    return "\n".join(lines)


# --- using them ---


def require_keys_off_loopback(stream: Stream, what: str, host: str, generators: Sequence[str]) -> None:
    """Raises ConfigError, with the way out, when ``host`` can be reached from other machines and there are no keys."""
    if stream.keys or is_loopback(host):
        return
    raise ConfigError(
        f"{what} = {host!r} is no loopback address, and without keys anybody who reaches it could send documents: "
        f"make keys with `{command(EXAMPLE_FOLDER, generators)}` and set stream.keys = {EXAMPLE_FOLDER!r}, "
        "or stay on 127.0.0.1; see docs/security.md"
    )


def generator_names(count: int) -> list[str]:
    """What the generators of a run are called; at least one, for an example."""
    return [f"generator-{index}" for index in range(max(count, 1))]


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(endpoint: str) -> str:
    """Of ``tcp://host:port``."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0]


def guard(socket: zmq.Socket[bytes], context: zmq.Context[zmq.Socket[bytes]], folder: str) -> ThreadAuthenticator:
    """Make a socket that is not bound yet a CURVE server which accepts the listed generators.

    The context must be the socket's, and no other server's: it holds one authenticator. Stop it before the context.
    """
    keys = Path(folder)
    pair = _read_pair(keys, TRAINER, ["generator-0"])
    if not list((keys / GENERATORS).glob("*.key")):
        raise ConfigError(
            f"stream.keys = {folder!r}: {keys / GENERATORS} lists no generator, so that none could connect: "
            f"`{command(folder, ['generator-0'])}`"
        )
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(domain=ZAP_DOMAIN, location=keys / GENERATORS)
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = pair
    socket.zap_domain = ZAP_DOMAIN.encode()
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an authenticator nobody gets in, rather than everybody
    return authenticator


class Credentials:
    """What a generator needs to connect: its own pair and the trainer's public key. Raises ConfigError."""

    def __init__(self, folder: str, generator: str):
        self._pair = _read_pair(Path(folder), generator, [generator])
        self._server = _read(_public_path(Path(folder), TRAINER), [generator])[0]

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        socket.curve_publickey, socket.curve_secretkey = self._pair
        socket.curve_serverkey = self._server


def _read_pair(folder: Path, name: str, generators: Sequence[str]) -> tuple[bytes, bytes]:
    path = _secret_path(folder, name)
    public, secret = _read(path, generators)
    if secret is None:
        raise ConfigError(f"{path} holds no secret key: copy it again from where `sbp keys` made it")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    return public, secret


def _read(path: Path, generators: Sequence[str]) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(path)
    except OSError as error:
        reason = error.strerror or "not found"
    except ValueError as error:
        reason = str(error)
    way_out = f"make it with `{command(path.parent, generators)}` and copy it as docs/security.md says"
    raise ConfigError(f"stream.keys: {path} cannot be read ({reason}): {way_out}")


# --- what becomes of connections ---


class ConnectionMonitor:
    """ZeroMQ tells of failed handshakes on a socket of its own; without it, both ends would wait in silence."""

    def __init__(self, socket: zmq.Socket[bytes]):
        self._watched = socket
        self._socket = socket.get_monitor_socket(sum(EVENTS))

    def events(self) -> list[str]:
        """What happened since the last call: "disconnected", or why a handshake failed."""
        found = []
        while self._socket.poll(0):
            found.append(EVENTS[zmq.Event(recv_monitor_message(self._socket)["event"])])
        return found

    def close(self) -> None:
        """Call before the watched socket is closed: ZeroMQ blocks for ever on an event that nobody can receive."""
        self._watched.disable_monitor()
        self._socket.close(linger=0)

"""Writing files so that a crash leaves the old content or the new, never a part."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

MAX_WAITING_BYTES = 64 * 2**20


def fsync_directory(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write beside, fsync, rename. ``durable=False`` skips the fsyncs: for status files that are rewritten anyway."""
    path = Path(path)
    temporary = _beside(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk a part of it takes room
        raise
    if durable:
        fsync_directory(path.parent)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")


def create_atomically(path: str | Path, content: bytes) -> None:
    """`write_atomically` for a file that must not be there yet. Raises FileExistsError when it is."""
    path = Path(path)
    temporary = _beside(path)
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    fsync_directory(path.parent)


def write_json(path: str | Path, value: Any, *, durable: bool = True) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", durable=durable)


class AppendLog:
    """Appends lines to a file; a reader sees each at once. What a full disk refuses is kept, and written later.

    A line that a crash cut short at the end of the file is dropped when the file is opened.
    Raises OSError when more waits than memory should hold.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._descriptor = self._open()
        self._waiting: list[bytes] = []
        self.truncate(_end_of_last_line(self._descriptor))

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    @property
    def size(self) -> int:
        """Bytes in the file; what waits is not in it."""
        return os.fstat(self._descriptor).st_size

    def append(self, line: bytes) -> None:
        self._waiting.append(line)
        data = b"".join(self._waiting)
        size = self.size
        try:
            if os.write(self._descriptor, data) == len(data):
                self._waiting.clear()
                return
            raise OSError(errno.ENOSPC, "No space left on device: a part was written")
        except OSError:
            self.truncate(size)
            if len(data) > MAX_WAITING_BYTES:
                raise

    def replace(self, content: bytes) -> None:
        """Put whole lines in place of all that is in the file, at once; what follows is appended to them.

        Raises OSError, and then the file is what it was.
        """
        write_atomically(self._path, content)
        os.close(self._descriptor)
        self._descriptor = self._open()

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        os.fsync(self._descriptor)


def _end_of_last_line(descriptor: int) -> int:
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 2**16)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_json(path: str | Path) -> Any | None:
    """The parsed file, or None when there is none yet. Raises ValueError that names the file when it is broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None


def sha256_of_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

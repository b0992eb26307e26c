"""A folder that appears complete or not at all, and is made by one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streaming_sbp.config import ConfigError
from streaming_sbp.files import fsync_directory


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """An empty hidden folder beside ``path``; leaving the context makes it ``path``, an exception removes it.

    What a killed process left there is cleared. Raises ConfigError when another process works on it, or when it
    cannot be written (a full disk, too).
    """
    folder = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        _clear(folder)
        yield folder
        _fsync(folder)
        os.rename(folder, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path, path: Path) -> int:
    """Descriptor of the folder, locked; the lock ends with the process."""
    while True:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(folder).st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(f"{path}: another process is making it; wait until it is done, or end it") from None
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its maker renamed or removed it after we opened it


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _fsync(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_directory(place)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written: {error}; free space, or choose another place")

"""What all kinds of input share: the documents they yield, how bad input is met, bounded reading of files.

A file is read up to the size it had when reading began. One that changes meanwhile is bad input: whoever writes it is
not done. With ``on_error = "skip"`` what was there at the start is taken, and the file is counted.
"""

from __future__ import annotations

import glob
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from streaming_sbp import config
from streaming_sbp.config import ConfigError

BAD_INPUT = (
    "missing",  # an input that is not there
    "unreadable",  # cannot be opened, is damaged or cut short
    "empty_file",
    "changed",  # while it was read
    "not_utf8",
    "broken_json",
    "missing_column",
    "not_text",  # a number, null, ... where text was expected
)
LEFT_OUT = (
    "unparsable",  # Python files, by `pydocs`
    "too_short",
    "too_long",
    "duplicate",
    "not_sampled",  # beyond data.max_documents or data.max_train_documents
)
_BUFFER_BYTES = 2**18


class InputError(ConfigError):
    """Bad input; the message names the file and the line or row, and the way out."""


@dataclass(frozen=True)
class RawDocument:
    text: str
    origin: str  # file and line, or the name of the documented object
    group: str = ""  # what it is about, where the source knows: groups are held out as a whole


@dataclass(frozen=True)
class InputFile:
    path: Path
    num_bytes: int  # when reading began
    modified_ns: int


class Reading:
    """One pass over the input: ``data`` says what to read, ``skipped`` counts what was left out, by reason.

    ``start(total, unit)`` and ``advance(n)`` are told how far the reading is; ``total`` is None when unknown.
    """

    def __init__(
        self,
        data: config.Data,
        start: Callable[[int | None, str], None] = lambda total, unit: None,
        advance: Callable[[int], None] = lambda n: None,
    ):
        self.data, self.start, self.advance = data, start, advance
        self.skipped: Counter[str] = Counter()

    def bad(self, reason: str, where: str, problem: str, way_out: str) -> None:
        """Raise InputError, or count the reason when data.on_error = "skip"."""
        if reason not in BAD_INPUT:
            raise ValueError(f"reason {reason!r}: expected one of {', '.join(BAD_INPUT)}")
        if self.data.on_error == "stop":
            raise InputError(f"{where}: {problem}; {way_out}, or leave it out (`sbp ingest --on-error skip`)")
        self.skipped[reason] += 1

    def column(self, record: Mapping[str, Any], where: str, called: str, correct: str) -> str | None:
        """The text of a record, or None for bad input. ``called``: key or column; ``correct``: what to correct."""
        name = self.data.text_column
        if name not in record:
            problem = f"no {called} {name!r} ({called}s: {', '.join(record) or 'none'})"
            self.bad("missing_column", where, problem, f"set data.text_column to the {called} that holds the text")
            return None
        value = record[name]
        if not isinstance(value, str):
            self.bad("not_text", where, f"{name!r} holds {type(value).__name__}, expected text", f"correct {correct}")
            return None
        return value

    def leave_out(self, reason: str, count: int = 1) -> None:
        if reason not in LEFT_OUT:
            raise ValueError(f"reason {reason!r}: expected one of {', '.join(LEFT_OUT)}")
        self.skipped[reason] += count

    def files(self, suffixes: Sequence[str]) -> list[InputFile]:
        """The input files in a fixed order: those named, whatever their suffix, and those in the folders named.
        A name may be a pattern, as in ``corpus/**/*.jsonl``, where no such file exists.

        Raises ConfigError when no input is named or a folder holds none; empty and missing files are bad input.
        """
        if not self.data.inputs:
            raise ConfigError(
                f"data.inputs is empty: expected files or folders for data.source = {self.data.source!r}, "
                'as in data.inputs=["corpus/"]'
            )
        named = [path for name in self.data.inputs for path in self._expand(Path(name), suffixes)]
        files = [file for path in named if (file := self._look(path))]
        self.start(sum(file.num_bytes for file in files), "bytes")
        return files

    def open(self, file: InputFile) -> BinaryIO | None:
        """The file up to the size it had when reading began, counted as progress; None for a bad one."""
        try:
            raw = open(file.path, "rb", buffering=0)  # noqa: SIM115 - closed by the caller, through _Bounded
        except OSError as error:
            self.unreadable(file, error)
            return None
        bounded = _Bounded(cast(io.FileIO, raw), file.num_bytes, self.advance)
        return cast(BinaryIO, io.BufferedReader(bounded, _BUFFER_BYTES))

    def unchanged(self, file: InputFile) -> bool:
        """Whether the file is still as it was when reading began; to be asked after reading it."""
        try:
            now = file.path.stat()
        except FileNotFoundError:
            return True  # what was opened has been read
        if (now.st_size, now.st_mtime_ns) == (file.num_bytes, file.modified_ns):
            return True
        problem = f"was written while it was read ({file.num_bytes} bytes before, {now.st_size} now)"
        self.bad("changed", str(file.path), problem, "ingest it when its writer is done")
        return False

    def unreadable(self, file: InputFile, error: Exception | str) -> None:
        self.bad("unreadable", str(file.path), f"cannot be read: {error}", "repair or remove it")

    def text(self, content: bytes, where: str) -> str | None:
        """``content`` as UTF-8, without a byte order mark; None when it is bad input."""
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problem = f"not UTF-8: byte 0x{content[error.start]:02x} at position {error.start}"
            self.bad("not_utf8", where, problem, "convert it (iconv -t UTF-8)")
            return None

    def _expand(self, path: Path, suffixes: Sequence[str]) -> list[Path]:
        if any(sign in str(path) for sign in "*?[") and not path.exists():
            matching = sorted(map(Path, glob.glob(str(path), recursive=True)))
            if not matching:
                self.bad("missing", str(path), "nothing matches this pattern", "correct data.inputs")
            return [file for match in matching for file in self._expand(match, suffixes)]
        if not path.is_dir():
            return [path]
        inside = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        found = sorted(file for file in inside if file.name.lower().endswith(tuple(suffixes)))
        if not found:
            self.bad("missing", str(path), f"no file ending in {', '.join(suffixes)}", "correct data.inputs")
        return found

    def _look(self, path: Path) -> InputFile | None:
        try:
            status = path.stat()
        except OSError as error:
            self.bad("missing", str(path), f"cannot be found: {error.strerror}", "correct data.inputs")
            return None
        if status.st_size == 0:
            self.bad("empty_file", str(path), "is empty", "remove it")
            return None
        return InputFile(path, status.st_size, status.st_mtime_ns)


class _Bounded(io.RawIOBase):
    """The first ``limit`` bytes of a file."""

    def __init__(self, file: io.FileIO, limit: int, advance: Callable[[int], None]):
        self._file, self._left, self._advance = file, limit, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self._left)
        count = self._file.readinto(memoryview(buffer)[:wanted]) or 0
        self._left -= count
        self._advance(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

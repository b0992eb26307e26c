"""Reading RUN/records/ROLE.jsonl: while they grow and are thinned, after a crash cut a line short, across resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
LATEST = 1e11  # in Unix time: what is later, infinite or NaN is no time
SUPERSEDED_BY_RESUME = ("train", "eval", "first_trained")


class RecordFollower:
    """Reads what was appended to one file since the last call.

    The writer may have thinned the file meanwhile (`thinning.py`), which moves everything: then it is read on from the
    last line that was seen, and when that is gone, too, from the time it was written. ``state`` continues another
    follower, of an earlier process perhaps.
    """

    def __init__(self, path: str | Path, state: Mapping[str, Any] | None = None):
        self._path = Path(path)
        self._offset: int = state["offset"] if state else 0
        self._last: bytes = state["last"].encode() if state else b""  # the last whole line, with its end

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self._offset, "last": self._last.decode()}

    def read(self) -> list[Record]:
        """The new complete records, oldest first; a line that is no record (a crash cut it short) is passed over."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset - len(self._last))
                moved = file.read(len(self._last)) != self._last
                if moved:
                    file.seek(0)
                data = file.read()
        except (FileNotFoundError, IsADirectoryError):
            return []
        complete = data[: data.rfind(b"\n") + 1]
        if not moved:
            return self._take(complete, self._offset)
        seen = complete.rfind(b"\n" + self._last) + 1 or (0 if complete.startswith(self._last) else -1)
        if seen >= 0:
            return self._take(complete[seen + len(self._last) :], seen + len(self._last))
        before = parse(self._last)
        found = self._take(complete, 0)
        return [record for record in found if before is None or record["time"] > before["time"]]

    def _take(self, lines: bytes, begin: int) -> list[Record]:
        """``lines`` stand at ``begin`` in the file, and are the last ones."""
        self._offset = begin + len(lines)
        if lines:
            self._last = lines[lines.rfind(b"\n", 0, -1) + 1 :]
        return [record for line in lines.split(b"\n") if (record := parse(line)) is not None]


def read_records(path: str | Path) -> list[Record]:
    """All complete records of one file; none when there is no file."""
    return RecordFollower(path).read()


def without_superseded(records: Iterable[Record]) -> list[Record]:
    """A trainer's records as one history.

    A trainer that resumes at T tokens trains what came after T again, so every earlier `train`, `eval` and
    `first_trained` record beyond T is dropped.
    """
    kept: list[Record] = []
    for record in records:
        if record["event"] == "start":
            kept = [earlier for earlier in kept if not is_superseded(earlier, record)]
        kept.append(record)
    return kept


def is_superseded(record: Record, start: Record) -> bool:
    return record["event"] in SUPERSEDED_BY_RESUME and (record.get("tokens") or 0) > (start.get("tokens") or 0)


def parse(line: bytes) -> Record | None:
    """None for what is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    time, tokens = record.get("time"), record.get("tokens")
    well = isinstance(time, int | float) and abs(time) < LATEST and isinstance(tokens, int | float | None)
    return record if well else None

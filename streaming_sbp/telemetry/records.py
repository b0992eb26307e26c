"""Reading RUN/records/ROLE.jsonl: while they grow, after a crash cut a line short, and across resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SUPERSEDED_BY_RESUME = ("train", "eval", "first_trained")


class RecordFollower:
    """Reads what was appended to one file since the last call."""

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._offset = 0

    def read(self) -> list[Record]:
        """The new complete records, oldest first; a line that is no record (a crash cut it short) is passed over."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [record for line in complete.split(b"\n") if (record := _parse(line)) is not None]


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


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    return record if isinstance(record.get("time"), int | float) else None

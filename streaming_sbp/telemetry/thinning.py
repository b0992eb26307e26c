"""What keeps RUN/records/ROLE.jsonl within a bound, however long a run is.

A record that a role writes every few seconds (`ROUTINE`) may be left out once it is old; all others (evaluations,
snapshots, swaps, checkpoints, starts, ends, errors) are kept for good, and no record is ever altered but for a count.
Old routine records thin out evenly: of each span of ``spacing`` seconds the last one stays, and the spacing doubles
until the file is half of what it may be. The newest records stay as they are.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator

from streaming_sbp.telemetry.records import Record, parse, without_superseded

# Events that come every few seconds, and what counts up in each while one process (or one tuning) goes on.
ROUTINE = {"train": "tokens", "throughput": "documents", "tuning": "tuned_tokens"}
EXTREMES = ("loss", "deviation_tokens", "debt_tokens", "gradient_norm", "train_loss", "pair_loss")
THINNED = "thinned"  # in a record: how many like it were left out between it and the one before
RECENT_SHARE = 0.25  # of the bound: the newest records, which stay as they are
TARGET_SHARE = 0.5  # of the bound: what thinning leaves, so that it is seldom needed
FIRST_SPACING_S, LAST_SPACING_S = 4.0, 2.0**30  # decades: then nothing routine is left but what is needed
ASLEEP_S = 600.0  # a longer gap within one process: the machine slept, and the report must be able to tell


def thinned(content: bytes, most_bytes: int) -> bytes:
    """The lines of one file of records, thinned. Lines that are no records are left out.

    Kept besides what the module says: the first and the last routine record of each process, on both sides of a long
    sleep, and those with the lowest and the highest loss, gradient norm and deviation.
    """
    parsed = [(line + b"\n", record) for line in content.split(b"\n") if (record := parse(line)) is not None]
    lines, records = [line for line, _ in parsed], [record for _, record in parsed]
    num_old = _num_old(lines, int(RECENT_SHARE * most_bytes))
    needed = _ends_of_processes(records) | _extremes(records)
    spacing_s, left_out = FIRST_SPACING_S, set[int]()
    while _size(lines, left_out) > TARGET_SHARE * most_bytes and spacing_s < LAST_SPACING_S:
        left_out = _left_out(records[:num_old], needed, spacing_s)
        spacing_s *= 2
    return b"".join(_with_counts(lines, records, left_out))


def _size(lines: list[bytes], left_out: set[int]) -> int:
    return sum(len(line) for k, line in enumerate(lines) if k not in left_out)


def _num_old(lines: list[bytes], recent_bytes: int) -> int:
    """How many of the lines come before the newest ``recent_bytes``."""
    size = 0
    for k in range(len(lines) - 1, -1, -1):
        size += len(lines[k])
        if size > recent_bytes:
            return k
    return 0


def _ends_of_processes(records: list[Record]) -> set[int]:
    found: set[int] = set()
    newest: dict[str, int] = {}  # of each routine event, in this process
    for k, record in enumerate(records):
        event = record["event"]
        if event == "start":
            found |= set(newest.values())
            newest = {}
        elif event in ROUTINE:
            before = newest.get(event)
            if before is None:
                found.add(k)
            elif _fell(records[before], record) or _slept(records[before], record):
                found |= {before, k}
            newest[event] = k
    return found | set(newest.values())


def _fell(before: Record, record: Record) -> bool:
    count = ROUTINE[record["event"]]
    return (record.get(count) or 0) < (before.get(count) or 0)


def _slept(before: Record, record: Record) -> bool:
    return THINNED not in record and abs(record["time"] - before["time"]) > ASLEEP_S


def _extremes(records: list[Record]) -> set[int]:
    """Of what no resume has superseded."""
    counted = {id(record) for record in without_superseded(records)}
    lowest: dict[str, tuple[float, int]] = {}
    highest: dict[str, tuple[float, int]] = {}
    for k, record in enumerate(records):
        if record["event"] not in ROUTINE or id(record) not in counted:
            continue
        for name, value in _values(record):
            if name not in lowest or value < lowest[name][0]:
                lowest[name] = (value, k)
            if name not in highest or value > highest[name][0]:
                highest[name] = (value, k)
    return {k for found in (lowest, highest) for _, k in found.values()}


def _values(record: Record) -> Iterator[tuple[str, float]]:
    """The finite values in which extremes are kept, by name; those of a source apart."""
    for key in EXTREMES:
        value = record.get(key)
        for name, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, int | float) and math.isfinite(number):
                yield f"{key}.{name}", number


def _left_out(records: list[Record], needed: set[int], spacing_s: float) -> set[int]:
    """All but the last of each event in each span, and what is needed."""
    last_in_span: dict[tuple[str, int], int] = {}
    for k, record in enumerate(records):
        if record["event"] in ROUTINE:
            last_in_span[record["event"], int(record["time"] // spacing_s)] = k
    kept = needed | set(last_in_span.values())
    return {k for k, record in enumerate(records) if record["event"] in ROUTINE and k not in kept}


def _with_counts(lines: list[bytes], records: list[Record], left_out: set[int]) -> Iterator[bytes]:
    """What is kept; a record before which others are now missing says how many."""
    missing: Counter[str] = Counter()
    for k, (line, record) in enumerate(zip(lines, records, strict=True)):
        event = record["event"]
        if k in left_out:
            missing[event] += 1 + record.get(THINNED, 0)
        elif event in ROUTINE and missing[event]:
            counted = record | {THINNED: record.get(THINNED, 0) + missing.pop(event)}
            yield json.dumps(counted).encode() + b"\n"
        else:
            yield line

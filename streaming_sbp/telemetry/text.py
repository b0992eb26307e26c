"""Numbers and untrusted text as people read them: in the terminal view, in the report, in `sbp peek`."""

from __future__ import annotations

import re
import time

NOTHING = "–"
_ESCAPE_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # OSC, DCS and the like: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]?"  # the rest
    r"|\x9b[0-?]*[ -/]*[@-~]",
    re.DOTALL,
)
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_UNPRINTABLE = _CONTROLS | {ord(char): None for char in _BIDIRECTIONAL} | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def printable(text: object) -> str:
    """Text that cannot steer a terminal: escape sequences, control characters (but line ends and tabs) and marks that
    reverse the direction of writing are left out; lone surrogates, which cannot be encoded, become U+FFFD."""
    return _ESCAPE_SEQUENCES.sub("", str(text).replace("\r\n", "\n")).translate(_UNPRINTABLE)


def one_line(text: object) -> str:
    return " ".join(printable(text).split())


def quantity(value: float | None) -> str:
    """A count in at most five characters: 950, 12.3k, 4.56M, 1.20G."""
    if value is None:
        return NOTHING
    if abs(value) < 999.5:
        return f"{value:.0f}"
    for divisor, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        scaled = value / divisor
        if abs(scaled) < 999.5:
            return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{unit}"
    return f"{value:.2e}"


def whole(value: float | None) -> str:
    """An exact count: 12,345."""
    return NOTHING if value is None else f"{value:,.0f}"


def counted(value: int | None, noun: str) -> str:
    """1 document, 2,000 documents, – documents."""
    return f"{whole(value)} {noun}" if value == 1 else f"{whole(value)} {noun}s"


def decimal(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def size(num_bytes: float | None) -> str:
    """Bytes in binary units: 512 B, 1.5 MiB."""
    if num_bytes is None:
        return NOTHING
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 99.5 or units[0] == "B" else f"{value:.1f} {units[0]}"


def duration(seconds: float | None) -> str:
    """The two largest units: 8 s, 2 min 41 s, 3 h 12 min, 2 d 4 h."""
    if seconds is None:
        return NOTHING
    if seconds < 59.5:
        return f"{seconds:.1f} s" if 0 < seconds < 9.95 else f"{seconds:.0f} s"
    left = round(seconds)
    for large, large_unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= large:
            return f"{left // large} {large_unit} {left % large // small} {small_unit}"
    return f"{left} s"


def clock_time(unix_time: float | None) -> str:
    """Local time of day, HH:MM:SS."""
    return NOTHING if unix_time is None else time.strftime("%H:%M:%S", time.localtime(unix_time))

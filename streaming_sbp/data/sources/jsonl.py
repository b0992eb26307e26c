"""JSON Lines, plain or compressed with gzip or zstd: one object a line, its text under ``data.text_column``.

Blank lines are passed over.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa

from streaming_sbp.data.sources.reading import InputFile, RawDocument, Reading

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def read(reading: Reading) -> Iterator[RawDocument]:
    for file in reading.files(SUFFIXES):
        stream = reading.open(file)
        if stream is None:
            continue
        try:
            with stream:
                yield from _read_lines(reading, file, _decompressed(stream, file))
        except OSError as error:  # pyarrow raises it for a damaged or cut stream, too
            reading.unreadable(file, error)
        reading.unchanged(file)


def _decompressed(stream: BinaryIO, file: InputFile) -> BinaryIO:
    codec = _CODECS.get(file.path.suffix.lower())
    if codec is None:
        return stream
    unpacked = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)
    return cast(BinaryIO, io.BufferedReader(unpacked))


def _read_lines(reading: Reading, file: InputFile, stream: BinaryIO) -> Iterator[RawDocument]:
    for number, line in enumerate(stream, start=1):
        where = f"{file.path}:{number}"
        text = _text(reading, line, where)
        if text is not None:
            yield RawDocument(text, where)


def _text(reading: Reading, line: bytes, where: str) -> str | None:
    decoded = reading.text(line, where)
    if not decoded or decoded.isspace():
        return None
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        reading.bad("broken_json", where, f"not JSON: {error}", "expected one JSON object a line; correct the line")
        return None
    if not isinstance(record, dict):
        problem = f"expected a JSON object, got {type(record).__name__}"
        reading.bad("broken_json", where, problem, "correct the line")
        return None
    return reading.column(record, where, "key", "the line or data.text_column")

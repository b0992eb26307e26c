"""Parquet files: one row is one document, its text in the column ``data.text_column``."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from streaming_sbp.data.sources.reading import InputFile, RawDocument, Reading

SUFFIXES = (".parquet",)
_BATCH_ROWS = 512


def read(reading: Reading) -> Iterator[RawDocument]:
    for file in reading.files(SUFFIXES):
        try:
            with pq.ParquetFile(file.path) as table:
                if _has_text(reading, table.schema_arrow, file):
                    yield from _read_rows(reading, table, file)
        except (pa.ArrowException, OSError) as error:
            reading.unreadable(file, error)
        reading.unchanged(file)


def _has_text(reading: Reading, schema: pa.Schema, file: InputFile) -> bool:
    column = reading.data.text_column
    way_out = "set data.text_column to the column that holds the text"
    if column not in schema.names:
        problem = f"no column {column!r} (columns: {', '.join(schema.names) or 'none'})"
        reading.bad("missing_column", str(file.path), problem, way_out)
        return False
    kind = schema.field(column).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value_kind) or pa.types.is_large_string(value_kind)):
        reading.bad("not_text", str(file.path), f"column {column!r} holds {kind}, expected string", way_out)
        return False
    return True


def _read_rows(reading: Reading, table: pq.ParquetFile, file: InputFile) -> Iterator[RawDocument]:
    row = 0
    for batch in table.iter_batches(_BATCH_ROWS, columns=[reading.data.text_column]):
        for value in batch.column(0):
            row += 1
            where = f"{file.path}: row {row}"
            text = _text(reading, value, where)
            if text is not None:
                yield RawDocument(text, where)
        reading.advance(file.num_bytes * len(batch) // table.metadata.num_rows)


def _text(reading: Reading, value: pa.Scalar, where: str) -> str | None:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        reading.bad("not_utf8", where, f"not UTF-8: {error}", "correct the row")
        return None
    if text is None:
        reading.bad("not_text", where, f"{reading.data.text_column!r} is null, expected text", "fill or remove the row")
    return text

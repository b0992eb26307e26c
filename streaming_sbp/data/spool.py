"""Documents on disk between two passes over them: compressed, read in order, one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

BATCH_DOCUMENTS = 512
BATCH_BYTES = 2**18  # of text, and one document more; its token ids take up to 36 times as much, as Python integers
_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("origin", pa.string())])


@dataclass(frozen=True)
class Batch:
    ids: list[str]
    texts: list[str]
    origins: list[str]


class Spool:
    """``append`` until ``close``; then ``batches``, any number of times."""

    def __init__(self, path: Path):
        self.num_documents = 0
        self.num_bytes = 0  # of text in UTF-8
        self._path = path
        self._writer = pa.ipc.new_stream(str(path), _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd"))
        self._begin_batch()

    def append(self, id: str, text: str, num_bytes: int, origin: str) -> None:
        self._batch.ids.append(id)
        self._batch.texts.append(text)
        self._batch.origins.append(origin)
        self._batch_bytes += num_bytes
        self.num_documents += 1
        self.num_bytes += num_bytes
        if len(self._batch.ids) == BATCH_DOCUMENTS or self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def batches(self) -> Iterator[Batch]:
        with pa.OSFile(str(self._path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield Batch(*(column.to_pylist() for column in batch.columns))

    def delete(self) -> None:
        self._path.unlink()

    def _flush(self) -> None:
        columns = [self._batch.ids, self._batch.texts, self._batch.origins]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._batch, self._batch_bytes = Batch([], [], []), 0

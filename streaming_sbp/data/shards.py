"""Writing documents as WebDataset shards, and the index that finds each document's tokens in them.

A shard is a tar of samples ``{key: document id, "json": {...}, "tokens.npy": 1-D little-endian token ids}``: any
WebDataset reader reads it. The index also knows at which byte the ids begin, so a shard can be memory-mapped.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming_sbp.files import sha256_of_file

if TYPE_CHECKING:
    import webdataset

TAR_BLOCK_BYTES = 512
INDEX_NAME = "documents.parquet"
INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_bytes", pa.int64()),
        ("checksum", pa.uint32()),
        ("origin", pa.string()),
    ]
)
_INDEX_ROWS = 2**16


@dataclass(frozen=True)
class IndexRow:
    id: str
    split: str
    shard: str  # file name
    offset: int  # bytes from the start of the shard to the first token
    num_tokens: int
    num_bytes: int  # of the text in UTF-8
    checksum: int  # crc32 of the token ids, as they are stored
    origin: str


@dataclass(frozen=True)
class Shard:
    name: str
    num_documents: int
    num_bytes: int  # size of the file
    sha256: str


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 when every id fits, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class ShardWriter:
    """Writes ``SPLIT-000000.tar``, ``SPLIT-000001.tar``, ... into ``folder``; a shard under its name is complete.

    ``shards`` lists the complete ones. Leaving the context by an exception leaves the open shard under its temporary
    name.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_bytes: int):
        self.shards: list[Shard] = []
        self._folder, self._split, self._dtype, self._shard_bytes = folder, split, dtype, shard_bytes
        self._tar: webdataset.TarWriter | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        elif self._tar is not None:
            with suppress(OSError):
                self._tar.close()  # or Python complains when it collects one that writes to a closed file
            self._file.close()

    def write(self, id: str, ids: list[int], origin: str, num_bytes: int) -> IndexRow:
        """Append one document and return its row of the index."""
        tar = self._tar or self._begin()
        tokens = np.asarray(ids, dtype=self._dtype)
        npy = _npy_bytes(tokens)
        about = {"origin": origin, "num_bytes": num_bytes, "num_tokens": len(tokens)}
        tar.write({"__key__": id, "json": json.dumps(about, ensure_ascii=False).encode(), "tokens.npy": npy})
        tar.tarstream.members = []  # tarfile keeps a header of every member, which grows without bound
        # WebDataset writes the parts of a sample in the order of their names, so the tokens end the tar so far.
        offset = tar.tarstream.offset - _padded(len(npy)) + len(npy) - tokens.nbytes
        checksum = zlib.crc32(tokens.tobytes())
        row = IndexRow(id, self._split, self._name, offset, len(tokens), num_bytes, checksum, origin)
        self._num_documents += 1
        if tar.tarstream.offset >= self._shard_bytes:
            self._finish()
        return row

    def _begin(self) -> webdataset.TarWriter:
        import webdataset  # it brings torch: only for whoever writes shards

        self._name = f"{self._split}-{len(self.shards):06d}.tar"
        self._num_documents = 0
        self._file = open(self._folder / f".{self._name}.tmp", "wb")  # noqa: SIM115 - closed by _finish or __exit__
        # A fixed time makes equal documents equal shards, to the byte.
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0)
        return self._tar

    def _finish(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self._folder / self._name
        os.replace(self._file.name, path)
        self.shards.append(Shard(self._name, self._num_documents, path.stat().st_size, sha256_of_file(path)))


class IndexWriter:
    """Writes ``documents.parquet``, a group of rows at a time."""

    def __init__(self, folder: Path):
        self._writer = pq.ParquetWriter(folder / INDEX_NAME, INDEX_SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, row: IndexRow) -> None:
        self._rows.append(vars(row))
        if len(self._rows) >= _INDEX_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=INDEX_SCHEMA))
        self._rows = []


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES

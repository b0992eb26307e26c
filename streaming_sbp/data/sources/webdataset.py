"""Existing WebDataset shards: one sample is one document, its text in the part ``data.text_column`` (as in ``txt``)."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from webdataset.tariterators import group_by_keys, tar_file_iterator

from streaming_sbp.data.sources.reading import InputFile, RawDocument, Reading

SUFFIXES = (".tar", ".tar.gz", ".tgz")


def read(reading: Reading) -> Iterator[RawDocument]:
    for file in reading.files(SUFFIXES):
        stream = reading.open(file)
        if stream is None:
            continue
        with stream:
            for sample in _samples(reading, stream, file):
                where = f"{file.path}: {sample['__key__']}"
                text = _text(reading, sample, where)
                if text is not None:
                    yield RawDocument(text, where)
        reading.unchanged(file)


def _samples(reading: Reading, stream: BinaryIO, file: InputFile) -> Iterator[dict[str, Any]]:
    """The samples of one shard, as far as it can be read."""
    try:
        members = tar_file_iterator(stream)  # type: ignore[arg-type]
        yield from group_by_keys({**member, "__url__": str(file.path)} for member in members)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        reading.unreadable(file, str(error).partition(" @ ")[0])  # webdataset appends the address of the stream


def _text(reading: Reading, sample: dict[str, Any], where: str) -> str | None:
    part = reading.data.text_column.lower()  # WebDataset's names of parts are in lower case
    if part not in sample:
        parts = ", ".join(name for name in sample if not name.startswith("__"))
        problem = f"no part {part!r} (parts: {parts or 'none'})"
        reading.bad("missing_column", where, problem, "set data.text_column to the part that holds the text")
        return None
    return reading.text(sample[part], where)

"""A Hugging Face data set: a folder that `save_to_disk` wrote, or anything that `datasets.load_dataset` takes by name.

An input is ``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIG:SPLIT``; the split is ``train`` unless named. Needs the extra
``datasets``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from streaming_sbp.config import ConfigError
from streaming_sbp.data.sources.reading import InputError, RawDocument, Reading

_SAVED_MARKS = ("state.json", "dataset_dict.json")  # files that `save_to_disk` writes


def read(reading: Reading) -> Iterator[RawDocument]:
    if not reading.data.inputs:
        raise ConfigError(
            'data.inputs is empty: expected names or folders of data sets, as in data.inputs=["NAME:train"]'
        )
    reading.start(None, "documents")
    for name in reading.data.inputs:
        for row, record in enumerate(_records(name), start=1):
            reading.advance(1)
            where = f"{name}: row {row}"
            text = reading.column(record, where, "column", "data.text_column")
            if text is not None:
                yield RawDocument(text, where)


def _records(name: str) -> Iterator[Mapping[str, Any]]:
    library = _library()
    path, config, split = _parse(name)
    try:
        if any((Path(path) / mark).exists() for mark in _SAVED_MARKS):
            saved = library.load_from_disk(path)
            yield from saved[split] if isinstance(saved, library.DatasetDict) else saved
        else:
            yield from library.load_dataset(path, config, split=split, streaming=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"data set {name}: cannot be read: {error}; expected a folder, or NAME, NAME:SPLIT or NAME:CONFIG:SPLIT"
        ) from error


def _library() -> Any:
    try:
        return import_module("datasets")
    except ImportError:
        raise ConfigError(
            'data.source = "datasets" needs the package datasets: pip install "streaming-sbp[datasets]"'
        ) from None


def _parse(name: str) -> tuple[str, str | None, str]:
    """(name or folder, configuration, split)"""
    path, *rest = name.split(":")
    if len(rest) > 2:
        raise ConfigError(f"data.inputs: {name!r}: expected NAME, NAME:SPLIT or NAME:CONFIG:SPLIT")
    return path, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"

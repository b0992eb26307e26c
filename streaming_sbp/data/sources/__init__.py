"""Where text comes from: one module per kind of input, each with ``read(reading) -> Iterator[RawDocument]``.

To add a kind: write the module, and name it in ``config.Data.source``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from streaming_sbp.data.sources.reading import RawDocument, Reading


def read(reading: Reading) -> Iterator[RawDocument]:
    """All documents of ``reading.data``, in a fixed order. Raises InputError for bad input, or counts it."""
    return import_module(f"{__name__}.{reading.data.source}").read(reading)

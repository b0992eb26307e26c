"""Folders of text or Markdown: one file is one document."""

from __future__ import annotations

from collections.abc import Iterator

from streaming_sbp.data.sources.reading import RawDocument, Reading

SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst")


def read(reading: Reading) -> Iterator[RawDocument]:
    for file in reading.files(SUFFIXES):
        stream = reading.open(file)
        if stream is None:
            continue
        try:
            with stream:
                content = stream.read()
        except OSError as error:
            reading.unreadable(file, error)
            continue
        # A document that is still being written would be cut short: nothing of it is taken.
        if not reading.unchanged(file):
            continue
        text = reading.text(content, str(file.path))
        if text is not None:
            yield RawDocument(text, str(file.path))

"""The documents of one ingest: read once, each distinct text kept once, on disk, held-out ones apart."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from streaming_sbp.config import ConfigError
from streaming_sbp.data import sources
from streaming_sbp.data.documents import ALL_SPLITS, SPLITS, document_id, sampling_key, split_of
from streaming_sbp.data.sources.reading import RawDocument, Reading
from streaming_sbp.data.spool import Batch, Spool


class Corpus:
    """Reads all of ``reading`` into ``folder``; memory holds a digest and a key per document.

    Attributes: ``num_documents`` and ``num_bytes`` by split; the bytes are those before sampling.
    Raises InputError for bad input, and ConfigError when no document is left for training.
    """

    def __init__(self, reading: Reading, folder: Path):
        self._reading, self._data = reading, reading.data
        self._spools = {split: Spool(folder / f"{split}.arrow") for split in ALL_SPLITS}
        self._seen: set[bytes] = set()
        self._keys = {split: array("Q") for split in ALL_SPLITS}  # what the even sample is drawn by
        self._sampled_below: dict[str, int] = {}  # by split, where it is sampled
        num_read = sum(1 for _ in map(self._take, sources.read(reading)))
        for spool in self._spools.values():
            spool.close()
        self._seen.clear()
        self._sample()
        self._check_left(num_read)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those every data set has, and others that hold documents."""
        return tuple(split for split in ALL_SPLITS if split in SPLITS or self._keys[split])

    @property
    def num_documents(self) -> dict[str, int]:
        return {split: len(self._keys[split]) for split in self.splits}

    @property
    def num_bytes(self) -> dict[str, int]:
        return {split: self._spools[split].num_bytes for split in self.splits}

    def batches(self, split: str) -> Iterator[Batch]:
        """The documents of a split, in the order in which they were read."""
        for batch in self._spools[split].batches():
            below = self._sampled_below.get(split)
            yield batch if below is None else _below(batch, below)

    def delete(self) -> None:
        for spool in self._spools.values():
            spool.delete()

    def _take(self, document: RawDocument) -> None:
        text = document.text
        try:
            id = document_id(text)
        except UnicodeEncodeError as error:
            problem = f"not text: lone surrogate at character {error.start}"
            self._reading.bad("not_utf8", document.origin, problem, "correct the document")
            return
        key = bytes.fromhex(id)
        if len(text.strip()) < self._data.min_characters:
            self._reading.leave_out("too_short")
        elif 0 < self._data.max_characters < len(text):
            self._reading.leave_out("too_long")
        elif key in self._seen:
            self._reading.leave_out("duplicate")
        else:
            self._seen.add(key)
            self._keep(id, document)

    def _keep(self, id: str, document: RawDocument) -> None:
        split = split_of(id, self._data.heldout_share, document.group, self._data.heldout_groups_share)
        printable = document.origin.encode("utf-8", "backslashreplace").decode()  # file names need not be UTF-8
        self._spools[split].append(id, document.text, len(document.text.encode()), printable)
        self._keys[split].append(sampling_key(id, "sample"))

    def _sample(self) -> None:
        """Keep the documents with the smallest keys: those of the same text in any order of the input."""
        self._keep_smallest(self._data.max_documents, ALL_SPLITS)
        self._keep_smallest(self._data.max_train_documents, ("train",))

    def _keep_smallest(self, limit: int, splits: Sequence[str]) -> None:
        keys = {split: np.array(self._keys[split], dtype=np.uint64) for split in splits}
        together = np.concatenate(list(keys.values()))
        if not 0 < limit < len(together):
            return
        below = np.partition(together, limit)[limit]
        for split, values in keys.items():
            self._sampled_below[split] = int(below)
            self._keys[split] = array("Q", values[values < below].tolist())
        self._reading.leave_out("not_sampled", len(together) - limit)

    def _check_left(self, num_read: int) -> None:
        if self.num_documents["train"]:
            return
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in self._reading.skipped.items()) or "none"
        read = f"{num_read:,} documents read, left out: {skipped}"
        if sum(self.num_documents.values()):
            share = self._data.heldout_share
            raise ConfigError(
                f"only held-out documents are left ({read}): lower data.heldout_share = {share} "
                f"or data.heldout_groups_share = {self._data.heldout_groups_share}, or add text"
            )
        raise ConfigError(
            f"no document is left ({read}): correct data.inputs, or lower data.min_characters = "
            f"{self._data.min_characters}"
        )


def _below(batch: Batch, limit: int) -> Batch:
    keep = [i for i, id in enumerate(batch.ids) if sampling_key(id, "sample") < limit]
    return Batch(*([values[i] for i in keep] for values in (batch.ids, batch.texts, batch.origins)))

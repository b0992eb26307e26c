"""The documents of one ingest: read once, each distinct text kept once, on disk, held-out ones apart.

Neighbourhoods that are held out (data/neighbourhoods.py) are known only when all has been read: their documents stay in
the spool of the training documents, and are passed over there.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from streaming_sbp.config import ConfigError
from streaming_sbp.data import neighbourhoods, sources
from streaming_sbp.data.documents import ALL_SPLITS, HELDOUT_GROUPS, SPLITS, document_id, sampling_key, split_of
from streaming_sbp.data.sources.reading import RawDocument, Reading
from streaming_sbp.data.spool import Batch, Spool


class Corpus:
    """Reads all of ``reading`` into ``folder``; memory holds a digest and a key per document. Then `divide`.

    Attributes: ``num_documents`` and ``num_bytes`` by split; the bytes are those before sampling.
    Raises InputError for bad input.
    """

    def __init__(self, reading: Reading, folder: Path):
        self._reading, self._data, self._folder = reading, reading.data, folder
        self._spools = {split: Spool(folder / f"{split}.arrow") for split in ALL_SPLITS}
        self._seen: set[bytes] = set()
        self._keys = {split: array("Q") for split in ALL_SPLITS}  # what the even sample is drawn by
        self._sampled_below: dict[str, int] = {}  # by split, where it is sampled
        self._knows_groups = False  # the source says what a document is about
        self._moved: frozenset[str] = frozenset()  # documents of neighbourhoods: held out, but in the spool of "train"
        self._num_read = sum(1 for _ in map(self._take, sources.read(reading)))
        for spool in self._spools.values():
            spool.close()
        self._seen.clear()
        self._keep_smallest(self._data.max_documents, ALL_SPLITS)

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
        below = self._sampled_below.get(split)
        for batch in self._spools[split].batches():
            yield _where(batch, lambda id: id not in self._moved, below)
        for batch in self._spools["train"].batches() if split == HELDOUT_GROUPS and self._moved else ():
            yield _where(batch, lambda id: id in self._moved, below)

    def divide(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Hold out neighbourhoods, where the source knows no groups, and then sample the training documents: those of a
        part and of the whole are held out by the same text. ``advance`` is told how many documents were looked at.
        Raises ConfigError when no document is left for training.
        """
        share = self._data.heldout_neighbourhoods_share
        if share and not self._knows_groups:
            found = neighbourhoods.find(
                self.batches("train"), self.num_documents["train"], share, self._folder, advance
            )
            self._move([id for documents in found for id in documents])
        self._keep_smallest(self._data.max_train_documents, ("train",))
        self._check_left()

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
        self._knows_groups |= bool(document.group)

    def _move(self, ids: Sequence[str]) -> None:
        """From training to the held-out groups."""
        self._moved = frozenset(ids)
        keys = np.array([sampling_key(id, "sample") for id in ids], dtype=np.uint64)
        trained = np.array(self._keys["train"], dtype=np.uint64)
        self._keys["train"] = array("Q", trained[~np.isin(trained, keys)].tolist())
        self._keys[HELDOUT_GROUPS] = array("Q", keys.tolist())

    def _keep_smallest(self, limit: int, splits: Sequence[str]) -> None:
        """Keep the documents with the smallest keys: those of the same text in any order of the input."""
        keys = {split: np.array(self._keys[split], dtype=np.uint64) for split in splits}
        together = np.concatenate(list(keys.values()))
        if not 0 < limit < len(together):
            return
        below = np.partition(together, limit)[limit]
        for split, values in keys.items():
            self._sampled_below[split] = int(below)
            self._keys[split] = array("Q", values[values < below].tolist())
        self._reading.leave_out("not_sampled", len(together) - limit)

    def _check_left(self) -> None:
        if self.num_documents["train"]:
            return
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in self._reading.skipped.items()) or "none"
        read = f"{self._num_read:,} documents read, left out: {skipped}"
        if sum(self.num_documents.values()):
            data = self._data
            raise ConfigError(
                f"only held-out documents are left ({read}): lower data.heldout_share = {data.heldout_share}, "
                f"data.heldout_groups_share = {data.heldout_groups_share} or data.heldout_neighbourhoods_share = "
                f"{data.heldout_neighbourhoods_share}, or add text"
            )
        raise ConfigError(
            f"no document is left ({read}): correct data.inputs, or lower data.min_characters = "
            f"{self._data.min_characters}"
        )


def _where(batch: Batch, chosen: Callable[[str], bool], below: int | None) -> Batch:
    """The documents with a chosen id, whose key is below a limit if there is one."""
    ids = ((i, id) for i, id in enumerate(batch.ids) if chosen(id))
    keep = [i for i, id in ids if below is None or sampling_key(id, "sample") < below]
    if len(keep) == len(batch.ids):
        return batch
    return Batch(*([values[i] for i in keep] for values in (batch.ids, batch.texts, batch.origins)))

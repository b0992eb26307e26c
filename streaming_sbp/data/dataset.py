"""Reading an ingested data set: any document's tokens at once, through memory-mapped shards.

DATASET/train-000000.tar ...     tokenised documents, WebDataset shards
DATASET/heldout-000000.tar ...
DATASET/heldout_groups-000000.tar ...   groups or neighbourhoods of documents, where some are held out as a whole
DATASET/documents.parquet        one row per document: where it is, how long, where it came from
DATASET/tokenizer/               Hugging Face tokenizer folder
DATASET/manifest.json            written last: counts, settings, digests
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streaming_sbp.config import ConfigError
from streaming_sbp.data.documents import ALL_SPLITS, HELDOUT_GROUPS
from streaming_sbp.data.shards import INDEX_NAME, Shard
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.files import read_json, sha256_of_file

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer"


@dataclass(frozen=True)
class Manifest:
    """What a data set holds. The counts are by split (data/documents.py)."""

    format_version: int
    digest: str  # of the document ids in order, their splits, and the tokenizer
    tokenizer_digest: str
    vocab_size: int
    token_dtype: str  # NumPy name: "<u2" or "<u4"
    source: str  # kind of input
    num_documents: dict[str, int]
    num_tokens: dict[str, int]  # without special tokens
    num_bytes: dict[str, int]  # of the text in UTF-8
    skipped: dict[str, int]  # documents or files left out, by reason
    tokenizer_training_bytes: int  # of text that trained the tokenizer; 0 when it came from elsewhere
    settings: dict[str, Any]  # [data] of the configuration, but where the data set lies
    shards: list[Shard]
    versions: dict[str, str]  # of the packages that made it
    created: float  # seconds since the epoch

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a run's state and its losses belong to: the documents in their order, and the tokenizer."""
        return {"data set": self.digest, "tokenizer": self.tokenizer_digest}


class Dataset:
    """An ingested data set. Attributes: ``path``, ``manifest``."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.manifest = path, manifest
        self._splits: dict[str, Split] = {}

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Whether a complete data set is there."""
        return (Path(path) / MANIFEST_NAME).exists()

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Raises ConfigError when there is no data set, or a half-written, damaged or foreign one."""
        path = Path(path)
        manifest = _read_manifest(path)
        for shard in manifest.shards:
            _check_size(path / shard.name, shard.num_bytes)
        return cls(path, manifest)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.path / TOKENIZER_NAME)

    def split(self, name: str) -> Split:
        if name not in ALL_SPLITS:
            raise ConfigError(f"split {name!r}: expected one of {', '.join(ALL_SPLITS)}")
        return self._joined(name)

    def pairable(self) -> Split:
        """The training documents, numbered as in their split, then those of the groups held out as a whole: what
        pairs are sought in. A pair of the latter judges the synthesizer; no one trains on them.
        """
        return self._joined("train", HELDOUT_GROUPS)

    def _joined(self, *names: str) -> Split:
        key = "+".join(names)
        if key not in self._splits:
            self._splits[key] = Split(self.path, names, np.dtype(self.manifest.token_dtype))
        return self._splits[key]

    def verify(self) -> None:
        """Read every shard and compare its digest. Raises ConfigError that names the first one that differs."""
        for shard in self.manifest.shards:
            found = sha256_of_file(self.path / shard.name)
            if found != shard.sha256:
                raise _damaged(self.path / shard.name, f"sha256 {found}", shard.sha256)


class Split:
    """The documents of a split, or of one after the other, numbered from 0 in the order in which they were read.

    Attributes: ``names`` of the splits, ``path`` of the data set, ``ids`` (list of str), ``num_tokens`` and
    ``num_bytes`` (int64 arrays).
    """

    def __init__(self, path: Path, names: tuple[str, ...], dtype: np.dtype):
        self.names = names
        self.path, self._dtype = path, dtype
        table = self._read_index(["shard", "offset", "num_tokens", "num_bytes", "checksum"])
        self.num_tokens: np.ndarray = table["num_tokens"].to_numpy()
        self.num_bytes: np.ndarray = table["num_bytes"].to_numpy()
        self._checksums: np.ndarray = table["checksum"].to_numpy()
        self._offsets: np.ndarray = table["offset"].to_numpy()
        shards = pc.dictionary_encode(table["shard"]).combine_chunks()
        self._shard_names: list[str] = shards.dictionary.to_pylist()
        self._shard_of: np.ndarray = shards.indices.to_numpy()
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.num_tokens)

    @cached_property
    def ids(self) -> list[str]:
        return self._read_index(["id"])["id"].to_pylist()

    @cached_property
    def origins(self) -> list[str]:
        """Where each document came from: file and line, or the name of the documented object."""
        return self._read_index(["origin"])["origin"].to_pylist()

    def shard(self, i: int) -> str:
        """Name of the shard that holds document ``i``."""
        return self._shard_names[int(self._shard_of[i])]

    def tokens(self, i: int) -> np.ndarray:
        """The ids of document ``i``: read-only view of the shard, uint16 or uint32, no special tokens.

        Raises ConfigError when they are not those that were written: a damaged disk must not become a wrong result.
        """
        start = int(self._offsets[i])
        end = start + int(self.num_tokens[i]) * self._dtype.itemsize
        stored = self._mapped(int(self._shard_of[i]))[start:end]
        if zlib.crc32(stored.data) != self._checksums[i]:
            raise ConfigError(
                f"{self.path / self.shard(i)}: document {self.ids[i]} is damaged; restore the shard, or remove "
                f"{self.path} and run `sbp ingest` again"
            )
        return stored.view(self._dtype)

    def _mapped(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            # A plain array over the map: slices of np.memmap itself are several times slower.
            mapped = np.memmap(self.path / self._shard_names[shard], dtype=np.uint8, mode="r")
            self._maps[shard] = mapped.view(np.ndarray)
        return self._maps[shard]

    def _read_index(self, columns: list[str]) -> pa.Table:
        return pq.read_table(self.path / INDEX_NAME, columns=columns, filters=[("split", "in", self.names)])


def _read_manifest(path: Path) -> Manifest:
    way_out = f"remove {path} and run `sbp ingest` again"
    try:
        found = read_json(path / MANIFEST_NAME)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data set {path}: {error}; {way_out}") from None
    if found is None and path.exists():
        raise ConfigError(f"data set {path}: no {MANIFEST_NAME}: half-written, or not a data set; {way_out}")
    if found is None:
        raise ConfigError(f"data set {path}: not there; `sbp ingest` makes it")
    version = found.get("format_version") if isinstance(found, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(f"data set {path}: format {version!r}, expected {FORMAT_VERSION}; {way_out}")
    try:
        return msgspec.convert(found, Manifest)
    except msgspec.ValidationError as error:
        raise ConfigError(f"data set {path}: {MANIFEST_NAME}: {error}; {way_out}") from None


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise _damaged(path, "no file", f"{expected} bytes") from None
    if found != expected:
        raise _damaged(path, f"{found} bytes", str(expected))


def _damaged(path: Path, found: str, expected: str) -> ConfigError:
    return ConfigError(f"{path}: {found}, expected {expected}; remove {path.parent} and run `sbp ingest` again")

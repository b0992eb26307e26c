"""The pair table: which documents are related, of training and of held-out groups.

RUN/pairs/pairs.parquet     one row per ordered pair: seed_id, target_id, seed, target, similarity, heldout
RUN/pairs/statistics.json   what was found and what was left out (pairing/statistics.py)
RUN/pairs/similarity.png    its histogram of similarities, where matplotlib is installed

The table is complete when pairs.parquet is there: it is renamed into place, after the statistics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.files import fsync_directory, write_json

TABLE_NAME = "pairs.parquet"
STATISTICS_NAME = "statistics.json"
FIGURE_NAME = "similarity.png"
_METADATA_KEY = b"streaming_sbp"
_COLUMNS = {"seed": pa.int64(), "target": pa.int64(), "similarity": pa.float32(), "heldout": pa.bool_()}


@dataclass(frozen=True)
class MadeFrom:
    """What the pairs depend on. Empty for a table that does not say."""

    dataset_digest: str = ""
    settings: dict[str, Any] = field(default_factory=dict)  # [pairing] of the configuration, and the seed


def made_from(dataset: Dataset, settings: config.Pairing, seed: int) -> MadeFrom:
    """What the table of these arguments will say it was made from."""
    return MadeFrom(dataset.manifest.digest, {**settings.model_dump(mode="json"), "seed": seed})


@dataclass(frozen=True)
class PairTable:
    """Ordered pairs of documents, numbered as by `Dataset.pairable`; all arrays have one entry per pair."""

    seed: np.ndarray  # int64
    target: np.ndarray  # int64
    similarity: np.ndarray  # float32, inner product of the embeddings
    heldout: np.ndarray  # bool: the pair only judges the synthesizer
    made_from: MadeFrom = MadeFrom()

    def __len__(self) -> int:
        return len(self.seed)

    def paired_documents(self) -> np.ndarray:
        """The documents that have a pair, as seed or as target: int64, ascending."""
        return np.unique(np.concatenate([self.seed, self.target]))

    @classmethod
    def load(cls, folder: Path, dataset_digest: str | None = None) -> PairTable | None:
        """The table of a folder; None when there is none yet.

        Raises ConfigError when it is damaged, or when ``dataset_digest`` is given and it was made from another one.
        """
        path = Path(folder) / TABLE_NAME
        if not path.exists():
            return None
        try:
            table = _read(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: damaged pair table: {error}; remove it, and `sbp pair` makes it again"
            ) from None
        if dataset_digest is not None and table.made_from.dataset_digest != dataset_digest:
            raise ConfigError(
                f"{path}: pairs of data set {table.made_from.dataset_digest or 'unknown'}, expected {dataset_digest}; "
                "remove it, and `sbp pair` makes it again, or go back to the old data.dataset"
            )
        return table

    @classmethod
    def load_made_from(cls, folder: Path, wanted: MadeFrom) -> PairTable | None:
        """`load`; None also while the pairer has still to replace the table of another data set or other settings."""
        table = cls.load(folder)
        return table if table is not None and table.made_from in (wanted, MadeFrom()) else None

    def save(self, folder: Path, document_ids: Sequence[str], statistics: dict[str, Any]) -> None:
        """Write both files; a crash leaves the old table or the new. ``document_ids``: of `Dataset.pairable`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STATISTICS_NAME, statistics)
        _write(folder / TABLE_NAME, self._as_arrow(pa.array(document_ids, pa.string())))

    def _as_arrow(self, ids: pa.Array) -> pa.Table:
        values = {name: pa.array(getattr(self, name), type) for name, type in _COLUMNS.items()}
        columns = {"seed_id": ids.take(values["seed"]), "target_id": ids.take(values["target"]), **values}
        made_from = {"dataset_digest": self.made_from.dataset_digest, "settings": self.made_from.settings}
        return pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(made_from)})


def delete_table(folder: Path) -> None:
    """So that nobody reads it while another one is made."""
    (Path(folder) / TABLE_NAME).unlink(missing_ok=True)


def _write(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def _read(path: Path) -> PairTable:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        _check_schema(schema)
        columns = file.read(columns=list(_COLUMNS))
    if any(column.null_count for column in columns.columns):
        raise ValueError("empty cells, expected none")
    seed, target, similarity, heldout = (columns[name].to_numpy() for name in _COLUMNS)
    if len(columns) and min(seed.min(), target.min()) < 0:
        raise ValueError("negative document numbers, expected 0 or more")
    return PairTable(seed, target, similarity, heldout, _made_from((schema.metadata or {}).get(_METADATA_KEY)))


def _check_schema(schema: pa.Schema) -> None:
    for name, expected in _COLUMNS.items():
        found = schema.field(name).type if name in schema.names else "missing"
        if found != expected:
            raise ValueError(f"column {name} is {found}, expected {expected}")


def _made_from(metadata: bytes | None) -> MadeFrom:
    try:
        return MadeFrom() if metadata is None else MadeFrom(**json.loads(metadata))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: {error}") from None

"""Published synthesizers: Hugging Face folders with a manifest, in a local folder or any fsspec address.

    STORE/<digest>/...            config, tokenizer, safetensors
    STORE/<digest>/manifest.json  written last: what a folder without it holds is not a snapshot
    STORE/current.json            the newest one; replaced by one rename (on an object store, one put)

The digest covers the content of every file; a reader copies a snapshot to itself and checks it there, so neither
damage nor pruning can reach a model that serves.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from streaming_sbp.files import fsync_directory, sha256_of_file, write_atomically

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
POINTER = "current.json"
log = logging.getLogger("sbp")


class SnapshotError(RuntimeError):
    """A snapshot that is not there, not complete, or does not have the digest it should have."""


@dataclass(frozen=True)
class SnapshotInfo:
    digest: str  # 32 hex characters, over the content of all files
    path: str  # of its folder in the store
    version: int  # 1, 2, ... in order of publication
    parent_checkpoint: str  # name of the trainer's checkpoint it was tuned from
    parent_tokens: int  # trained tokens behind that checkpoint
    num_pairs: int  # training pairs it was tuned on
    measures: dict[str, float]  # of the gate
    created: float  # Unix time


class SnapshotStore:
    """Snapshots under one fsspec address. One process publishes and prunes; any number read."""

    def __init__(self, url: str | Path):
        self._fs, self._root = fsspec.core.url_to_fs(str(url))
        self._local = isinstance(self._fs, LocalFileSystem)

    def publish(
        self,
        folder: Path,
        *,
        parent_checkpoint: str,
        parent_tokens: int,
        num_pairs: int,
        measures: Mapping[str, float],
    ) -> SnapshotInfo:
        """Copy ``folder`` in and make it the current snapshot. The same content again gives the snapshot it was."""
        files = _file_digests(folder)
        digest = _digest_of(files)
        known = self._read_info(digest)
        if known is None:
            facts = {
                "parent_checkpoint": parent_checkpoint,
                "parent_tokens": parent_tokens,
                "num_pairs": num_pairs,
                "measures": dict(measures),
            }
            version = 1 + max((info.version for info in self.list()), default=0)
            self._copy_in(folder, digest, list(files))
            manifest = {"digest": digest, "version": version, **facts, "created": time.time()}
            self._write(f"{digest}/{MANIFEST}", {"format_version": FORMAT_VERSION, **manifest, "files": files})
            known = SnapshotInfo(path=f"{self._root}/{digest}", **manifest)  # type: ignore[arg-type]
        self._write(POINTER, {key: value for key, value in asdict(known).items() if key != "path"})
        return known

    def current(self) -> SnapshotInfo | None:
        """The snapshot that serves, or None while there is none. A damaged pointer is logged, and counts as none."""
        found = self._read(POINTER)
        try:
            return SnapshotInfo(path=f"{self._root}/{found['digest']}", **found) if found else None
        except (TypeError, KeyError) as error:
            log.warning("%s/%s is not a pointer to a snapshot: %s", self._root, POINTER, error)
            return None

    def list(self) -> builtins.list[SnapshotInfo]:
        """All complete snapshots, by version."""
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._root):
            return []
        names = [Path(entry).name for entry in self._fs.ls(self._root, detail=False)]
        found = (self._read_info(name) for name in names if not name.startswith(".") and name != POINTER)
        return sorted((info for info in found if info), key=lambda info: info.version)

    def fetch(self, digest: str, to: Path) -> SnapshotInfo:
        """Copy a snapshot to the local folder ``to`` (replaced) and check it there.

        Raises SnapshotError when it is not there (any more), incomplete, or damaged.
        """
        manifest = self._read(f"{digest}/{MANIFEST}")
        info = self._read_info(digest)
        if manifest is None or info is None:
            raise SnapshotError(f"snapshot {digest}: no readable {MANIFEST} in {self._root}: pruned or not published")
        shutil.rmtree(to, ignore_errors=True)
        try:
            for name in manifest["files"]:
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{self._root}/{digest}/{name}", str(to / name))
        except (OSError, KeyError) as error:
            raise SnapshotError(f"snapshot {digest}: {name} cannot be read: {error}") from None
        self._check(digest, manifest["files"], to)
        return info

    def prune(self, keep_last: int, grace_s: float) -> builtins.list[str]:
        """Remove all but the last ``keep_last``; returns the digests removed.

        Never the current one, nor one that was current less than ``grace_s`` ago: a generator may be loading it.
        For the publisher only: what a publication that a crash cut short left behind goes too.
        """
        infos = self.list()
        current = self.current()
        removed = []
        for info, successor in pairwise(infos):
            expendable = info.version <= infos[-1].version - keep_last and time.time() - successor.created > grace_s
            if expendable and (current is None or info.digest != current.digest):
                self._fs.rm_file(f"{self._root}/{info.digest}/{MANIFEST}")  # first: half a snapshot must not look whole
                self._fs.rm(f"{self._root}/{info.digest}", recursive=True)
                removed.append(info.digest)
        return removed

    def _copy_in(self, folder: Path, digest: str, names: builtins.list[str]) -> None:
        target = f"{self._root}/{digest}"
        if self._fs.exists(target):
            self._fs.rm(target, recursive=True)  # a publication that a crash cut short
        for name in names:
            path = f"{target}/{name}"
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(folder / name), path)
            if self._local:
                _fsync(Path(path))

    def _check(self, digest: str, files: Mapping[str, str], folder: Path) -> None:
        if _digest_of(files) != digest:
            raise SnapshotError(f"snapshot {digest}: its {MANIFEST} lists the files of {_digest_of(files)}")
        for name, expected in files.items():
            if (found := sha256_of_file(folder / name)) != expected:
                raise SnapshotError(f"snapshot {digest}: {name} is damaged: sha256 {found}, expected {expected}")

    def _read_info(self, digest: str) -> SnapshotInfo | None:
        manifest = self._read(f"{digest}/{MANIFEST}")
        if manifest is None or manifest.get("format_version") != FORMAT_VERSION:
            return None
        facts = {key: value for key, value in manifest.items() if key not in ("format_version", "files")}
        return SnapshotInfo(path=f"{self._root}/{digest}", **facts)

    def _read(self, name: str) -> Any | None:
        """A JSON object of the store, or None when it is not there or not JSON (which is logged)."""
        try:
            found = json.loads(self._fs.cat_file(f"{self._root}/{name}"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            log.warning("%s/%s is damaged: %s", self._root, name, error)
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, value: Any) -> None:
        content = (json.dumps(value, indent=1) + "\n").encode()
        if self._local:
            Path(self._root).mkdir(parents=True, exist_ok=True)
            write_atomically(f"{self._root}/{name}", content)
        else:
            self._fs.pipe_file(f"{self._root}/{name}", content)


def digest_of_folder(folder: Path) -> str:
    """The digest that `SnapshotStore.publish` would give it."""
    return _digest_of(_file_digests(folder))


def _file_digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in files}


def _digest_of(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()[:32]


def _fsync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    fsync_directory(path.parent)

"""Published synthesizers: Hugging Face folders with a manifest, in a local folder or any fsspec address.

    STORE/<digest>/...              config, tokenizer, safetensors
    STORE/<digest>/manifest.json    written last: what a folder without it holds is not a snapshot
    STORE/pointers/0000000012.json  which one serves, by revision: the newest counts (rules in pointer.py)
    STORE/current.json              a copy of the newest pointer, for people and scripts; nothing here reads it
    STORE/leases/<reader>.json      what a generator loads or serves

A pointer is created, never replaced: locally by a link, on an object store by a conditional put. Whoever comes second
fails, and reads again. The digest covers the content of every file; a reader copies a snapshot to itself and checks it
there, so damage cannot reach a model that serves.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from streaming_sbp.files import create_atomically, fsync_directory, sha256_of_file, write_atomically
from streaming_sbp.synthesizer import pointer
from streaming_sbp.synthesizer.pointer import Pointer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
POINTER = "current.json"
POINTERS = "pointers"
LEASES = "leases"
LEASE_S = 300.0  # a generator that has not been heard of for so long reads no more; clocks may differ by less
KEEP_POINTERS = 100  # revisions
MAX_CONFLICTS = 20
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
    """Snapshots under one fsspec address. One process publishes and prunes; any number read, and move the pointer."""

    def __init__(self, url: str | Path):
        self._fs, self._root = fsspec.core.url_to_fs(str(url))
        self._local = isinstance(self._fs, LocalFileSystem)
        self._superfluous: set[str] = set()  # at the last call of `prune`

    def publish(
        self,
        folder: Path,
        *,
        parent_checkpoint: str,
        parent_tokens: int,
        num_pairs: int,
        measures: Mapping[str, float],
    ) -> SnapshotInfo:
        """Copy ``folder`` in and make it the current snapshot, unless one is pinned.

        The same content again gives the snapshot it was.
        """
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
        self.change("tuner", f"version {known.version} passed the gate", lambda p, _: pointer.published(p, digest))
        return known

    def pointer(self) -> Pointer:
        """The newest pointer; revision 0 while there is none. One that is damaged is logged, the one before counts."""
        revisions = self._revisions()
        for revision in reversed(revisions):
            found = self._read(_pointer_name(revision))
            try:
                if found:
                    return Pointer(**found | {"revision": revisions[-1], "bad": tuple(found["bad"])})
            except (TypeError, KeyError) as error:
                log.warning("%s/%s is not a pointer: %s", self._root, _pointer_name(revision), error)
        return Pointer(revision=revisions[-1] if revisions else 0)

    def change(self, by: str, reason: str, rule: Callable[[Pointer, builtins.list[SnapshotInfo]], Pointer]) -> Pointer:
        """Make ``rule(pointer, snapshots)`` the newest pointer, unless it is what it was; returns the newest.

        When somebody else is first, the rule is asked again. Raises what the rule raises, and SnapshotError when
        others are first again and again.
        """
        for _ in range(MAX_CONFLICTS):
            before = self.pointer()
            after = rule(before, self.list())
            if after == before:
                return before
            after = replace(after, revision=before.revision + 1, by=by, reason=reason, created=time.time())
            try:
                self._create(_pointer_name(after.revision), asdict(after))
            except FileExistsError:
                continue
            self._write(POINTER, asdict(after))
            return after
        raise SnapshotError(f"{self._root}: the pointer was changed by others {MAX_CONFLICTS} times in a row")

    def current(self) -> SnapshotInfo | None:
        """The snapshot that serves, or None while there is none."""
        digest = self.pointer().digest
        return self._read_info(digest) if digest else None

    def info(self, digest: str) -> SnapshotInfo | None:
        """None when it is not there (any more). ``digest`` may be anything: others send it."""
        return self._read_info(digest) if re.fullmatch("[0-9a-f]{32}", digest) else None

    def list(self) -> builtins.list[SnapshotInfo]:
        """All complete snapshots, by version."""
        found = (self._read_info(name) for name in self._names("") if name not in (POINTER, POINTERS, LEASES))
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

    def lease(self, reader: str, digest: str) -> None:
        """``reader`` loads or serves this snapshot: it is not pruned for `LEASE_S`. Call again now and then.

        Raises OSError when the store cannot be written.
        """
        self._write(f"{LEASES}/{reader}.json", {"digest": digest, "time": time.time()})

    def release(self, reader: str) -> None:
        """The reader ends. Raises OSError when the store cannot be written."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{LEASES}/{reader}.json")

    def leased(self) -> dict[str, builtins.list[str]]:
        """The readers of each snapshot that has a fresh lease."""
        found: dict[str, builtins.list[str]] = {}
        for name in self._names(LEASES):
            lease = self._read(f"{LEASES}/{name}")
            if lease and time.time() - lease["time"] < LEASE_S:
                found.setdefault(lease["digest"], []).append(name.removesuffix(".json"))
        return found

    def prune(self, keep_last: int) -> builtins.list[str]:
        """Remove all but the last ``keep_last``, and the last ``keep_last`` good ones; returns the digests removed.

        Never the one that serves, nor one with a fresh lease. It must have been superfluous at the call before this
        one, too: a generator that was just told of it has time to take its lease. For the publisher only.
        """
        infos, now = self.list(), self.pointer()
        good = [info for info in infos if info.digest not in now.bad]
        kept = {info.digest for info in (*infos[-keep_last:], *good[-keep_last:])} | {now.digest, *self.leased()}
        superfluous = [info.digest for info in infos if info.digest not in kept]
        removed = [digest for digest in superfluous if digest in self._superfluous]
        for digest in removed:
            self._fs.rm_file(f"{self._root}/{digest}/{MANIFEST}")  # first: half a snapshot must not look whole
            self._fs.rm(f"{self._root}/{digest}", recursive=True)
        self._superfluous = set(superfluous)
        self._prune_small_files()
        return removed

    def _prune_small_files(self) -> None:
        for revision in self._revisions()[:-KEEP_POINTERS]:
            self._fs.rm_file(f"{self._root}/{_pointer_name(revision)}")
        fresh = {reader for readers in self.leased().values() for reader in readers}
        for name in self._names(LEASES):
            if name.removesuffix(".json") not in fresh:
                self.release(name.removesuffix(".json"))

    def _revisions(self) -> builtins.list[int]:
        return sorted(int(stem) for name in self._names(POINTERS) if (stem := name.removesuffix(".json")).isdigit())

    def _names(self, folder: str) -> builtins.list[str]:
        """Of the files in a folder of the store; temporary ones are left out."""
        self._fs.invalidate_cache()
        try:
            names = [Path(entry).name for entry in self._fs.ls(f"{self._root}/{folder}", detail=False)]
        except FileNotFoundError:
            return []
        return [name for name in names if not name.startswith(".")]

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
        path, content = f"{self._root}/{name}", _json(value)
        if self._local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        else:
            self._fs.pipe_file(path, content)

    def _create(self, name: str, value: Any) -> None:
        """Write a file that must not be there yet, at once as a whole. Raises FileExistsError."""
        path, content = f"{self._root}/{name}", _json(value)
        if self._local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            create_atomically(path, content)
        else:
            self._fs.pipe_file(path, content, mode="create")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _pointer_name(revision: int) -> str:
    return f"{POINTERS}/{revision:010d}.json"


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

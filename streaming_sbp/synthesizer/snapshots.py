"""Published synthesizers: Hugging Face folders with a manifest, in a local folder or any fsspec address.

    STORE/<digest>/...              config, tokenizer, safetensors
    STORE/<digest>/manifest.json    written last: what a folder without it holds is not a snapshot
    STORE/pointers/0000000012.json  which one serves, by revision: the newest counts (rules in pointer.py)
    STORE/current.json              a copy of the newest pointer, for people and scripts; nothing here reads it
    STORE/leases/<reader>.json      what a generator loads or serves

A pointer is created, never replaced: locally by a link, on an object store by a conditional put. Whoever comes second
fails, and reads again. The digest covers the content of every file; a reader copies a snapshot to itself and checks it
there, so damage cannot reach a model that serves. A snapshot whose manifest is damaged is not there.

What a file system raises, each its own exceptions, is raised as `SnapshotStoreUnavailable`: the store is away, and what
is in it is not known.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import msgspec
from fsspec.implementations.local import LocalFileSystem

from streaming_sbp.config import ConfigError
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
DIGEST = re.compile("[0-9a-f]{32}")
# A store that is away must say so within seconds: s3fs asks again by itself, and callers do. Other protocols: theirs.
OPTIONS: dict[str, dict[str, Any]] = {
    protocol: {"config_kwargs": {"connect_timeout": 5, "retries": {"max_attempts": 1}}} for protocol in ("s3", "s3a")
}
log = logging.getLogger("sbp")


class SnapshotError(RuntimeError):
    """A snapshot that is not there, not complete, or does not have the digest it should have."""


class SnapshotStoreUnavailable(SnapshotError):
    """The store cannot be read or written now. ``lasting``: waiting does not help, somebody has to change something."""

    def __init__(self, message: str, lasting: bool):
        super().__init__(message)
        self.lasting = lasting


T = TypeVar("T")


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


class _Manifest(msgspec.Struct):
    format_version: int
    digest: str
    version: int
    parent_checkpoint: str
    parent_tokens: int
    num_pairs: int
    measures: dict[str, float]
    created: float
    files: dict[str, str]  # name -> sha256


class _PointerFile(msgspec.Struct):
    revision: int
    digest: str | None
    pinned: bool
    bad: tuple[str, ...]
    by: str
    reason: str
    created: float


class _Lease(msgspec.Struct):
    digest: str
    time: float


class SnapshotStore:
    """Snapshots under one fsspec address. One process publishes and prunes; any number read, and move the pointer."""

    def __init__(self, url: str | Path):
        """Asks the store nothing yet. Raises ConfigError when there is no file system for such an address."""
        self.url = str(url)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **OPTIONS.get(self.url.partition("://")[0], {}))
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"snapshots.url = {self.url!r}: {_said(error)}; expected a folder, or an address whose protocol is "
                "installed, as in s3://bucket/run (pip install 'streaming-sbp[s3]')"
            ) from None
        self._local = isinstance(self._fs, LocalFileSystem)
        self._superfluous: set[str] = set()  # at the last call of `prune`
        self._warned: set[str] = set()

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
        known = self.info(digest)
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
            if found := self._read_pointer(revision):
                return replace(found, revision=revisions[-1])
        return Pointer(revision=revisions[-1] if revisions else 0)

    def reasons_for_bad(self) -> dict[str, str]:
        """Digest -> who found it bad, and why, as far back as pointers are kept."""
        reasons: dict[str, str] = {}
        before: set[str] = set()
        for found in filter(None, map(self._read_pointer, self._revisions())):
            reasons |= dict.fromkeys(set(found.bad) - before, f"{found.by}: {found.reason}")
            before = set(found.bad)
        return reasons

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
        return self.info(digest) if digest else None

    def info(self, digest: str) -> SnapshotInfo | None:
        """None when it is not there (any more), or its manifest is damaged. ``digest``: anything, others send it."""
        manifest = self._read_manifest(digest)
        return manifest[0] if manifest else None

    def list(self) -> builtins.list[SnapshotInfo]:
        """All complete snapshots, by version."""
        found = map(self.info, self._names(""))
        return sorted((info for info in found if info), key=lambda info: info.version)

    def missing_files(self, digest: str) -> builtins.list[str]:
        """Of those that its manifest lists; one question to the store, and no content is read."""
        manifest = self._read_manifest(digest)
        with self._asking():
            there = {Path(path).relative_to(self._root) for path in map(str, self._fs.find(f"{self._root}/{digest}"))}
        return [name for name in (manifest[1] if manifest else ()) if Path(digest, name) not in there]

    def fetch(self, digest: str, to: Path) -> SnapshotInfo:
        """Copy a snapshot to the local folder ``to`` (replaced) and check it there.

        Raises SnapshotError when it is not there (any more), incomplete, or damaged.
        """
        manifest = self._read_manifest(digest)
        if manifest is None:
            raise SnapshotError(f"snapshot {digest}: no readable {MANIFEST} in {self._root}: pruned or not published")
        info, files = manifest
        shutil.rmtree(to, ignore_errors=True)
        for name, expected in files.items():
            try:
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                with self._asking(FileNotFoundError, IsADirectoryError):
                    self._fs.get_file(f"{self._root}/{digest}/{name}", str(to / name))
                found = sha256_of_file(to / name)
            except OSError as error:
                raise SnapshotError(f"snapshot {digest}: {name} cannot be read: {error}") from None
            if found != expected:
                raise SnapshotError(f"snapshot {digest}: {name} is damaged: sha256 {found}, expected {expected}")
        return info

    def lease(self, reader: str, digest: str) -> None:
        """``reader`` loads or serves this snapshot: it is not pruned for `LEASE_S`. Call again now and then."""
        self._write(f"{LEASES}/{reader}.json", {"digest": digest, "time": time.time()})

    def release(self, reader: str) -> None:
        """The reader ends."""
        with suppress(FileNotFoundError), self._asking(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{LEASES}/{reader}.json")

    def leased(self) -> dict[str, builtins.list[str]]:
        """The readers of each snapshot that has a fresh lease."""
        found: dict[str, builtins.list[str]] = {}
        for name in self._names(LEASES):
            lease = self._read(f"{LEASES}/{name}", _Lease)
            if lease and time.time() - lease.time < LEASE_S:
                found.setdefault(lease.digest, []).append(name.removesuffix(".json"))
        return found

    def prune(self, keep_last: int) -> builtins.list[str]:
        """Remove all but the last ``keep_last``, and the last ``keep_last`` good ones; returns the digests removed.

        Never the one that serves, nor one with a fresh lease. It must have been superfluous at the call before this
        one, too: a generator that was just told of it has time to take its lease. For the publisher only. What it could
        not remove, the next call does.
        """
        infos, now = self.list(), self.pointer()
        good = [info for info in infos if info.digest not in now.bad]
        kept = {info.digest for info in (*infos[-keep_last:], *good[-keep_last:])} | {now.digest, *self.leased()}
        superfluous = [info.digest for info in infos if info.digest not in kept]
        removed = [digest for digest in superfluous if digest in self._superfluous]
        halves = (self._superfluous & set(self._names(""))) - {info.digest for info in infos}
        for digest in (*removed, *halves):
            with self._asking():
                with suppress(FileNotFoundError):  # first: half a snapshot must not look whole
                    self._fs.rm_file(f"{self._root}/{digest}/{MANIFEST}")
                self._fs.rm(f"{self._root}/{digest}", recursive=True)
        self._superfluous = set(superfluous)
        self._prune_small_files()
        return removed

    def make(self) -> None:
        """Its folder or bucket, when it is not there yet."""
        with self._asking():
            self._fs.makedirs(self._root, exist_ok=True)

    @contextmanager
    def _asking(self, *answers: type[Exception]) -> Iterator[None]:
        """Around every call of the file system: what it raises is SnapshotStoreUnavailable, but for ``answers``."""
        try:
            yield
        except Exception as error:
            if isinstance(error, answers):
                raise
            message = f"snapshot store {self.url}: {_said(error)}; {_way_out(error)}"
            raise SnapshotStoreUnavailable(message, _is_lasting(error)) from error

    def _prune_small_files(self) -> None:
        for revision in self._revisions()[:-KEEP_POINTERS]:
            with self._asking():
                self._fs.rm_file(f"{self._root}/{_pointer_name(revision)}")
        fresh = {reader for readers in self.leased().values() for reader in readers}
        for name in self._names(LEASES):
            if name.removesuffix(".json") not in fresh:
                self.release(name.removesuffix(".json"))

    def _revisions(self) -> builtins.list[int]:
        return sorted(int(stem) for name in self._names(POINTERS) if (stem := name.removesuffix(".json")).isdigit())

    def _names(self, folder: str) -> builtins.list[str]:
        """Of the files in a folder of the store; temporary ones are left out."""
        try:
            with self._asking(FileNotFoundError):
                self._fs.invalidate_cache()
                names = [Path(entry).name for entry in self._fs.ls(f"{self._root}/{folder}", detail=False)]
        except FileNotFoundError:
            return []
        return [name for name in names if not name.startswith(".")]

    def _copy_in(self, folder: Path, digest: str, names: builtins.list[str]) -> None:
        target = f"{self._root}/{digest}"
        with self._asking():
            if self._fs.exists(target):
                self._fs.rm(target, recursive=True)  # a publication that a crash cut short
            for name in names:
                path = f"{target}/{name}"
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(folder / name), path)
                if self._local:
                    _fsync(Path(path))

    def _read_manifest(self, digest: str) -> tuple[SnapshotInfo, dict[str, str]] | None:
        """What is known of a snapshot, and the sha256 of each of its files."""
        name = f"{digest}/{MANIFEST}"
        manifest = self._read(name, _Manifest) if DIGEST.fullmatch(digest) else None
        if manifest is None:
            return None
        if manifest.format_version != FORMAT_VERSION:
            self._damaged(name, f"format_version = {manifest.format_version}, expected {FORMAT_VERSION}")
            return None
        if manifest.digest != digest or _digest_of(manifest.files) != digest:
            self._damaged(name, f"it lists the files of {_digest_of(manifest.files)}")
            return None
        facts = {field.name: getattr(manifest, field.name) for field in fields(SnapshotInfo) if field.name != "path"}
        return SnapshotInfo(path=f"{self._root}/{digest}", **facts), manifest.files

    def _read_pointer(self, revision: int) -> Pointer | None:
        found = self._read(_pointer_name(revision), _PointerFile)
        return Pointer(**msgspec.structs.asdict(found)) if found else None

    def _read(self, name: str, kind: type[T]) -> T | None:
        """A JSON object of the store; None when it is not there, or is no ``kind`` (which is logged)."""
        try:
            with self._asking(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                content = self._fs.cat_file(f"{self._root}/{name}")
            return msgspec.convert(json.loads(content), kind)  # keys that a later version added are ignored
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (IsADirectoryError, ValueError, RecursionError) as error:
            self._damaged(name, str(error))
            return None

    def _damaged(self, name: str, problem: str) -> None:
        """Said once: the trainer looks every second."""
        if name not in self._warned:
            log.warning("%s/%s is damaged, and counts as not there: %s", self._root, name, problem)
        self._warned.add(name)

    def _write(self, name: str, value: Any) -> None:
        path, content = f"{self._root}/{name}", _json(value)
        with self._asking():
            if self._local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, content)
            else:
                self._fs.pipe_file(path, content)

    def _create(self, name: str, value: Any) -> None:
        """Write a file that must not be there yet, at once as a whole. Raises FileExistsError."""
        path, content = f"{self._root}/{name}", _json(value)
        with self._asking(FileExistsError):
            if self._local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                create_atomically(path, content)
            else:
                self._fs.pipe_file(path, content, mode="create")


def require_usable(url: str) -> None:
    """Write into the store, read, and remove what was written. Raises ConfigError when waiting would not help."""
    store = SnapshotStore(url)
    try:
        store.make()
        store.lease("sbp-run", "")
        store.pointer()
        store.release("sbp-run")
    except SnapshotStoreUnavailable as error:
        if error.lasting:
            raise ConfigError(f"{error}; expected a store that can be read and written (snapshots.url)") from None
        log.warning("%s; the run begins without it, and asks again", error)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_lasting(error: Exception) -> bool:
    """Each cloud's library has its own exception for missing credentials, and all call it so."""
    kinds = (NotADirectoryError, FileExistsError, PermissionError, FileNotFoundError, ValueError, ImportError)
    return isinstance(error, kinds) or "Credential" in type(error).__name__


def _way_out(error: Exception) -> str:
    if "Credential" in type(error).__name__:
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what else the address asks for"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "remove the file that is there, or choose another folder"
    if isinstance(error, FileNotFoundError):
        return "make the bucket, or the folder above"
    if isinstance(error, PermissionError):
        return "let this process read and write there"
    return "is the store reachable from here? for s3://, AWS_ENDPOINT_URL says where it is"


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

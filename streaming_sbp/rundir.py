"""The run directory: the one place where everything a run writes lives, and what each part is called.

RUN/config.toml         the resolved configuration, read by every process
RUN/run.json            run id, when it was made, versions
RUN/pairs/              pairs.parquet, statistics.json, similarity.png        (pairer)
RUN/checkpoints/        step-00000400/ ...                                    (trainer)
RUN/snapshots/          one folder per published synthesizer, current.json    (tuner)
RUN/quarantine/         candidates the gate refused, with the reason          (tuner)
RUN/reference/          what sampled documents are compared with              (tuner)
RUN/journal/            accepted synthetic documents, WebDataset shards       (trainer)
RUN/model               link to the newest checkpoint's Hugging Face folder   (trainer)
RUN/steps.jsonl         every step: decisions, digest of its batch, losses    (trainer)
RUN/records/ROLE.jsonl  what happened, one JSON object a line, old ones thinned (each role)
RUN/roles/ROLE.json     what a role is doing now, rewritten every second      (each role)
RUN/logs/ROLE.log       its output                                            (supervisor)
RUN/prometheus/ROLE.json where Prometheus finds its metrics                   (each role)
RUN/tensorboard/, RUN/wandb/ curves for those who look there, and how far they are (exporter)
RUN/report/             index.html and PNGs                                   (sbp report)
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import shutil
import subprocess
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from streaming_sbp import config as configuration
from streaming_sbp.config import Config, ConfigError
from streaming_sbp.files import AppendLog, read_json, write_atomically, write_json
from streaming_sbp.telemetry.records import Record, read_records
from streaming_sbp.telemetry.thinning import thinned

# What may not be left out can exceed the bound: then thinning again and again would be of no use.
GROWTH_BETWEEN_THINNINGS = 1.5
FOLDERS = ("pairs", "checkpoints", "snapshots", "quarantine", "journal", "records", "roles", "logs", "prometheus")


class RunDir:
    """Paths and small files of one run. Raises ConfigError when the folder is not a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            info = read_json(self.path / "run.json")
        except NotADirectoryError:
            info = None
        except ValueError as error:
            raise ConfigError(f"{error}; restore it, or start a new run") from None
        if info is None:
            inside = sorted(self.path.glob("runs/*/*/run.json"))  # the folder of an experiment
            hint = f"one of its runs is {inside[0].parent}" if inside else "`sbp run` makes one"
            raise ConfigError(f"{self.path}: not a run directory (no run.json); {hint}")
        _check_run_info(self.path / "run.json", info)
        self.run_id: str = info["run_id"]
        self.created: float = info["created"]
        self.versions: dict[str, str] = info["versions"]
        self.pairs = self.path / "pairs"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.quarantine = self.path / "quarantine"
        self.reference = self.path / "reference"
        self.journal = self.path / "journal"
        self.records = self.path / "records"
        self.roles = self.path / "roles"
        self.logs = self.path / "logs"
        self.prometheus = self.path / "prometheus"
        self.steps = self.path / "steps.jsonl"

    @classmethod
    def open_or_create(cls, config: Config, *, accept_changes: bool = False) -> RunDir:
        """The run of this configuration, made if it does not exist.

        Raises ConfigError when it exists with another configuration (unless ``accept_changes``), when that would change
        it below processes that work on it, or when it cannot be written.
        """
        path = Path(config.run.dir)
        try:
            for folder in FOLDERS:
                (path / folder).mkdir(parents=True, exist_ok=True)
            if read_json(path / "run.json") is None:
                write_atomically(path / "config.toml", configuration.to_toml(config))
                write_json(path / "run.json", _new_run_info())
        except OSError as error:
            raise ConfigError(f"run directory {path}: cannot be written: {error}; choose another run.dir") from None
        run = cls(path)
        changes = configuration.differences(run.config(), config)
        if changes and not accept_changes:
            raise ConfigError(
                f"{path} holds a run with another configuration:\n  " + "\n  ".join(changes) + "\n"
                "go on with the new values by --accept-changes, start over by `sbp run --fresh`, or choose another "
                "run.dir"
            )
        if changes:
            check_nobody_works_on(path)
            write_atomically(path / "config.toml", configuration.to_toml(config))
        return run

    def config(self) -> Config:
        return configuration.load(self.path / "config.toml")

    def record(self, role: str) -> Recorder:
        return Recorder(self.records / f"{role}.jsonl", self.config().telemetry.record_bytes)

    def read_records(self, role: str) -> list[Record]:
        """The records of a role, oldest first; a line that a crash cut short is passed over."""
        return read_records(self.records / f"{role}.jsonl")

    def read_roles(self) -> dict[str, dict[str, Any]]:
        """What each role last said of itself, by name; an unreadable file counts as empty."""
        found = {}
        for path in sorted(self.roles.glob("[!.]*.json")):
            try:
                said = read_json(path)
            except ValueError:  # status files are not fsynced: a crash of the machine may leave an empty one
                said = None
            found[path.stem] = said if isinstance(said, dict) else {}
        return found


class Recorder:
    """Appends one JSON object a line; a reader sees it at once, and a full disk delays it.

    A file that grows above ``most_bytes`` is thinned: `telemetry/thinning.py` says what is kept.
    """

    def __init__(self, path: Path, most_bytes: int):
        self._path, self._most_bytes, self._thin_above = path, most_bytes, most_bytes
        self._log = AppendLog(path)

    def __call__(self, event: str, **fields: Any) -> None:
        record = {"time": round(time.time(), 3), "event": event, **fields}
        self._log.append(json.dumps(record).encode() + b"\n")
        if self._log.size > self._thin_above:
            self._thin()

    def _thin(self) -> None:
        # on a full disk the file stays as it is, until it has grown further
        with suppress(OSError):
            self._log.replace(thinned(self._path.read_bytes(), self._most_bytes))
        self._thin_above = max(self._most_bytes, int(GROWTH_BETWEEN_THINNINGS * self._log.size))


def lock_role(path: Path, name: str) -> int:
    """Hold RUN/roles/.NAME.lock until the returned descriptor is closed. Raises ConfigError that names who has it."""
    return lock(path / "roles" / f".{name}.lock", f"{path}: another {name}", "this run", "another run.dir")


def lock(file: Path, who: str, what: str, instead: str) -> int:
    """Hold ``file`` until the returned descriptor is closed; the kernel lets go of it when the process ends.

    Raises ConfigError "WHO (process N) works on WHAT; stop it first, or choose INSTEAD".
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode() or "unknown"
        os.close(descriptor)
        raise ConfigError(f"{who} (process {holder}) works on {what}; stop it first, or choose {instead}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def check_nobody_works_on(path: Path) -> None:
    """Raises ConfigError that names a living process of the run, the supervisor if it lives."""
    names = {lock.name.removeprefix(".").removesuffix(".lock") for lock in path.glob("roles/.*.lock")}
    for name in sorted(names, key=lambda name: (name != "supervisor", name)):
        os.close(lock_role(path, name))


def set_aside(path: str | Path) -> Path | None:
    """Move a run out of the way, for a fresh start; nothing is deleted. Returns where it is now.

    Raises ConfigError for what is no run, and for a run on which processes still work.
    """
    path = Path(path)
    if not path.exists():
        return None
    if not (path / "run.json").exists():
        raise ConfigError(f"{path}: exists and is not a run directory; --fresh moves only runs")
    check_nobody_works_on(path)
    target = path.with_name(f"{path.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    shutil.move(path, target)
    return target


def _check_run_info(path: Path, info: Any) -> None:
    expected = {"run_id": str, "created": int | float, "versions": dict}
    said = info if isinstance(info, dict) else {}
    wrong = [name for name, kind in expected.items() if not isinstance(said.get(name), kind)]
    if wrong or not math.isfinite(said["created"]):
        got = f"{', '.join(wrong or ['created'])} missing or of another kind"
        raise ConfigError(f"{path}: {got}; expected what `sbp run` writes; restore the file, or move the run away")


def _commit() -> str:
    """Of the checkout that this program runs from, "-dirty" with changes; "" for an installed one, or without git."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # it may lie in somebody else's repository
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _new_run_info() -> dict[str, Any]:
    names = ("streaming-sbp", "torch", "transformers", "webdataset", "faiss-cpu", "pyzmq", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    if commit := _commit():
        versions["commit"] = commit
    return {"run_id": secrets.token_hex(8), "created": time.time(), "versions": versions, "made_by_pid": os.getpid()}

"""A trainer's whole state in one folder, complete or not there.

    step-00000400/model/          Hugging Face folder: config, tokenizer, safetensors (fp32)
    step-00000400/optimizer/      optimizer and RNG tensors, torch.distributed.checkpoint over safetensors (no pickle)
    step-00000400/state.json      cursors, mixer, bins, counters, ledger, configuration, versions
    step-00000400/manifest.json   written last: step, tokens, a digest of every file

A save copies the tensors (the only time a step waits), then a thread writes to a hidden folder beside, fsyncs, and
renames. Loading walks back to the newest checkpoint whose digests hold.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from transformers import PreTrainedModel

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.files import fsync_directory, read_json, sha256_of_file, write_json

# A trainer of one rank has no process group, and needs none.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
FORMAT_VERSION = 2
log = logging.getLogger("sbp")


@dataclass(frozen=True)
class CheckpointInfo:
    path: Path
    step: int
    tokens: int  # trained tokens
    digest: str  # over the digests of all files
    heldout_loss: float | None = None  # the last one measured
    journal_from: int = 0  # the first synthetic document that a trainer going on from here would read

    @property
    def model_path(self) -> Path:
        return self.path / "model"


@dataclass(frozen=True)
class SaveResult:
    step: int
    tokens: int
    path: Path
    blocked_s: float
    seconds: float
    error: str = ""


def newest_checkpoint(folder: Path) -> CheckpointInfo | None:
    """The newest complete checkpoint (by manifest; `load_checkpoint` checks the digests), or None."""
    return next(complete_checkpoints(folder), None)


def complete_checkpoints(folder: Path) -> Iterator[CheckpointInfo]:
    """The newest first (by manifest; `verify_checkpoint` checks the digests)."""
    return (info for path in _newest_first(folder) if (info := _read_info(path)))


def newest_before(folder: Path, step: int) -> tuple[CheckpointInfo, Any] | None:
    """The newest whole checkpoint of a step before ``step``, with its state; None when there is none."""
    for path in _newest_first(folder):
        info = _read_info(path)
        if info and info.step < step and not verify_checkpoint(info):
            return info, read_json(path / "state.json")
    return None


def verify_checkpoint(info: CheckpointInfo) -> str:
    """The reason why the files do not match the manifest, or ""."""
    manifest = read_json(info.path / "manifest.json") or {"files": {"manifest.json": ""}}
    for name, digest in manifest["files"].items():
        path = info.path / name
        if not path.exists():
            return f"{name} is missing"
        if sha256_of_file(path) != digest:
            return f"{name} does not have the digest in manifest.json"
    return ""


class CheckpointStore:
    """Saves and loads the checkpoints of one run. One save is under way at most."""

    def __init__(self, folder: Path, settings: config.Checkpoint, tokenizer: Tokenizer):
        self.folder, self._settings, self._tokenizer = folder, settings, tokenizer
        self._thread: threading.Thread | None = None
        self._result: SaveResult | None = None
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)

    def save(
        self,
        step: int,
        tokens: int,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        heldout_loss: float | None = None,
        journal_from: int = 0,
    ) -> None:
        """Copy now, write in the background. Waits for a save that is still under way."""
        started = time.monotonic()
        self.wait()
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        tensors = {
            name: tensor.detach().to("cpu", copy=True) for name, tensor in training_tensors(model, optimizer).items()
        }
        state = copy.deepcopy(state)
        facts = {"step": step, "tokens": tokens, "heldout_loss": heldout_loss, "journal_from": journal_from}
        blocked_s = time.monotonic() - started
        self._thread = threading.Thread(
            target=self._write,
            args=(facts, model, weights, tensors, state, started, blocked_s),
            name="checkpoint",
        )
        self._thread.start()

    def poll(self) -> SaveResult | None:
        """The result of a save that has ended since the last call."""
        result, self._result = self._result, None
        return result

    def wait(self, timeout_s: float = 600.0) -> None:
        """Until no save is under way. Raises TimeoutError when the disk takes longer."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise TimeoutError(f"{self.folder}: a checkpoint has been writing for over {timeout_s:.0f} s")
            self._thread = None

    def load_newest(
        self, model: PreTrainedModel, optimizer: torch.optim.Optimizer
    ) -> tuple[CheckpointInfo, Any] | None:
        """Load the newest checkpoint that is whole into model, optimizer and RNG; returns it with its state.

        Walks back over damaged ones, and says so in the log. None when there is no checkpoint at all.
        Raises ConfigError when there are some and none is whole: starting over would silently lose a run.
        """
        problems = []
        for path in _newest_first(self.folder):
            info, problem = _inspect(path)
            if info and not problem:
                _load_tensors(info, model, optimizer)
                return info, read_json(path / "state.json")
            log.warning("checkpoint %s passed over: %s", path.name, problem)
            problems.append(f"{path.name}: {problem}")
        if problems:
            raise ConfigError(
                f"{self.folder}: no checkpoint is whole ({'; '.join(problems)}); "
                "restore one, or start over with `sbp run --fresh` (the run is moved aside, not deleted)"
            )
        return None

    def load(self, name: str, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> tuple[CheckpointInfo, Any]:
        """A certain checkpoint. Raises ValueError when it is not whole."""
        info, problem = _inspect(self.folder / name)
        if info is None or problem:
            raise ValueError(f"{self.folder / name}: {problem}")
        _load_tensors(info, model, optimizer)
        return info, read_json(info.path / "state.json")

    def journal_from(self) -> int:
        """The first synthetic document that any of the checkpoints still needs."""
        infos = [info for path in _newest_first(self.folder) if (info := _read_info(path))]
        return min((info.journal_from for info in infos), default=0)

    def _write(
        self,
        facts: dict[str, Any],
        model: PreTrainedModel,
        weights: dict[str, torch.Tensor],
        tensors: dict[str, torch.Tensor],
        state: dict[str, Any],
        started: float,
        blocked_s: float,
    ) -> None:
        step, tokens = facts["step"], facts["tokens"]
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        error = ""
        try:
            model.save_pretrained(temporary / "model", state_dict=weights)
            self._tokenizer.save(temporary / "model")
            writer = HuggingFaceStorageWriter(str(temporary / "optimizer"), dict.fromkeys(tensors, 1))
            dcp.save(tensors, storage_writer=writer, no_dist=True)
            write_json(temporary / "state.json", state)
            _seal(temporary, facts | {"created": time.time()})
            if final.exists():
                shutil.rmtree(final)  # the same step, saved again after a resume
            os.rename(temporary, final)
            fsync_directory(self.folder)
            self._prune()
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            log.exception("checkpoint at step %d failed; the run goes on with the one before", step)
            shutil.rmtree(temporary, ignore_errors=True)
        self._result = SaveResult(step, tokens, final, blocked_s, time.monotonic() - started, error)

    def _prune(self) -> None:
        """Keep the last `keep_last`, every `keep_every`-th by tokens, and the one with the lowest held-out loss."""
        infos = [info for path in _newest_first(self.folder) if (info := _read_info(path))]
        kept = {info.step for info in infos[: self._settings.keep_last]}
        if self._settings.keep_every:
            stride = self._settings.keep_every * self._settings.every_tokens
            first_of_each = {info.tokens // stride: info.step for info in infos if info.tokens >= stride}
            kept |= set(first_of_each.values())
        judged = [info for info in infos if info.heldout_loss is not None]
        if judged and self._settings.keep_best:
            kept.add(min(judged, key=lambda info: (info.heldout_loss, -info.step)).step)
        for info in infos:
            if info.step not in kept:
                # the manifest first: a half-deleted checkpoint must not look complete
                (info.path / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(info.path, ignore_errors=True)


def training_tensors(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Optimizer state by parameter name, and the RNG; zeros where the optimizer has not stepped yet."""
    tensors: dict[str, torch.Tensor] = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state.update(
                step=torch.zeros((), dtype=torch.float32, device=parameter.device),
                exp_avg=torch.zeros_like(parameter),
                exp_avg_sq=torch.zeros_like(parameter),
            )
        tensors |= {f"{name}.{key}": value for key, value in state.items()}
    return tensors


def _load_tensors(info: CheckpointInfo, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    saved = type(model).from_pretrained(info.model_path, dtype=torch.float32)
    model.load_state_dict(saved.state_dict())
    tensors = training_tensors(model, optimizer)
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(info.path / "optimizer")), no_dist=True)
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"].cpu())


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    """Fsync every file, then write the manifest with their digests."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {}
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        digests[str(path.relative_to(folder))] = sha256_of_file(path)
    for directory in {path.parent for path in files}:
        fsync_directory(directory)
    whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, **facts, "digest": whole, "files": digests})


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda path: path.name, reverse=True)


def _inspect(path: Path) -> tuple[CheckpointInfo | None, str]:
    """The checkpoint, and the reason why it is not whole, or ""."""
    info = _read_info(path)
    return info, verify_checkpoint(info) if info else _why_no_info(path)


def _why_no_info(path: Path) -> str:
    try:
        found = (read_json(path / "manifest.json") or {}).get("format_version")
    except ValueError:
        found = None
    if found in (None, FORMAT_VERSION):
        return "manifest.json is missing or damaged"
    return f"format {found}, expected {FORMAT_VERSION}: written by another version of streaming-sbp"


def _read_info(path: Path) -> CheckpointInfo | None:
    try:
        manifest = read_json(path / "manifest.json")
    except ValueError:
        return None
    if manifest is None or manifest["format_version"] != FORMAT_VERSION:
        return None
    loss, journal_from = manifest["heldout_loss"], manifest["journal_from"]
    return CheckpointInfo(path, manifest["step"], manifest["tokens"], manifest["digest"], loss, journal_from)

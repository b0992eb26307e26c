"""`sbp eval`: EleutherAI's lm-evaluation-harness on a checkpoint of a run (extra `eval`).

A checkpoint's model is a Hugging Face folder with its tokenizer, so the harness reads it as any other model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from streaming_sbp.config import ConfigError
from streaming_sbp.files import write_atomically
from streaming_sbp.rundir import RunDir
from streaming_sbp.training.checkpoint import CheckpointInfo, complete_checkpoints, verify_checkpoint
from streaming_sbp.training.model import choose_device, choose_precision


@dataclass(frozen=True)
class Request:
    """``include_path``: a folder with tasks of your own, in the harness's YAML; ``limit``: examples a task, 0: all."""

    tasks: tuple[str, ...]
    include_path: Path | None = None
    num_fewshot: int | None = None  # None: as the task says
    limit: int = 0
    batch_size: int = 16


def choose_checkpoint(run: RunDir, name: str = "") -> CheckpointInfo:
    """The newest one, or the one named (``step-00001000``). Raises ConfigError when it is missing or damaged."""
    found = list(complete_checkpoints(run.checkpoints))
    chosen = next((info for info in found if name in ("", info.path.name)), None)
    if chosen is None:
        known = ", ".join(info.path.name for info in found) or "none yet"
        raise ConfigError(f"{run.path}: no complete checkpoint {name!r}; there are: {known}")
    if reason := verify_checkpoint(chosen):
        raise ConfigError(f"{chosen.path}: damaged: {reason}; choose another one by --checkpoint")
    return chosen


def evaluate(run: RunDir, checkpoint: CheckpointInfo, request: Request) -> dict[str, Any]:
    """The harness's results by task, with what was evaluated; also written to RUN/evaluations.

    Raises ConfigError when the harness is not installed, or does not know or cannot load a task.
    """
    if not request.tasks:
        raise ConfigError("--tasks: got none; expected names of tasks, as in hellaswag,piqa")
    try:
        from lm_eval import __version__ as version
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness: cannot be imported: {error}; install the extra: pip install 'streaming-sbp[eval]'"
        ) from None
    if request.include_path and not request.include_path.is_dir():
        raise ConfigError(f"--include-path {request.include_path}: expected a folder with tasks in YAML")
    manager = TaskManager(include_path=str(request.include_path) if request.include_path else None)
    if unknown := [task for task in request.tasks if not manager.match_tasks([task])]:
        where = f" and in {request.include_path}" if request.include_path else "; your own: --include-path FOLDER"
        raise ConfigError(f"tasks {', '.join(unknown)}: not among the {len(manager.all_tasks)} of the harness{where}")
    training = run.config().training
    device = choose_device(training.device)
    dtype = "bfloat16" if choose_precision(training.precision, device) == "bf16" else "float32"
    model = HFLM(str(checkpoint.model_path), device=str(device), dtype=dtype, batch_size=request.batch_size)
    try:
        found = simple_evaluate(
            model,
            tasks=list(request.tasks),
            num_fewshot=request.num_fewshot,
            limit=request.limit or None,
            task_manager=manager,
            log_samples=False,
        )
    except (OSError, ValueError, ConnectionError) as error:
        raise ConfigError(
            f"tasks {', '.join(request.tasks)}: {error}. A task's data come from the Hugging Face hub, or from local "
            "files that a task of your own names (docs/guide.md#with-lm-evaluation-harness)"
        ) from error
    result = {
        "run": str(run.path),
        "checkpoint": checkpoint.path.name,
        "tokens": checkpoint.tokens,
        "lm_eval": version,
        "num_fewshot": request.num_fewshot,
        "limit": request.limit or None,
        "results": {task: _numbers(measured) for task, measured in found["results"].items()},
    }
    parts = [checkpoint.path.name, "-".join(request.tasks)[:150]]
    parts += [f"{request.num_fewshot}-shot"] if request.num_fewshot is not None else []
    parts += [f"first-{request.limit}"] if request.limit else []
    name = "-".join(parts).replace("/", "_")
    folder = run.path / "evaluations"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")
    return result


def table(result: dict[str, Any]) -> Table:
    """Task, measure, value, standard error."""
    found = Table(title=f"{result['run']}, {result['checkpoint']}, {result['tokens']:,} tokens", title_justify="left")
    for name in ("task", "measure", "value", "standard error"):
        found.add_column(name, justify="left" if name in ("task", "measure") else "right")
    for task, measured in result["results"].items():
        for measure, value in measured.items():
            if "_stderr" in measure:
                continue
            name, _, variant = measure.partition(",")
            error = measured.get(f"{name}_stderr,{variant}")
            shown = name if variant in ("", "none") else f"{name} ({variant})"
            found.add_row(task, shown, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    return found


def _numbers(measured: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in measured.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "sample_len"
    }

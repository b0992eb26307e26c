"""What `sbp run` and `sbp ingest` do: ingest when there is no data set yet, then supervise, then report."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sbp_services.service import set_up_process
from sbp_services.supervisor import Supervisor
from streaming_sbp.config import Config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.experiment import advice
from streaming_sbp.pairing.embedders import require_embedder
from streaming_sbp.rundir import RunDir, set_aside
from streaming_sbp.stream.keys import generator_names, require_keys_off_loopback
from streaming_sbp.synthesizer.engines import require_engine
from streaming_sbp.synthesizer.given import require_model
from streaming_sbp.synthesizer.snapshots import require_usable
from streaming_sbp.telemetry import sinks
from streaming_sbp.telemetry.status import collect
from streaming_sbp.telemetry.view import LastingConsole, LiveView

if TYPE_CHECKING:
    from streaming_sbp.data.ingest import IngestProgress, IngestSummary

NOTHING_LEFT = (
    "this run has trained all its tokens; start over with --fresh (make demo FRESH=1), or raise training.total_tokens"
)


def ingest_with_progress(config: Config) -> IngestSummary:
    """Ingest as section `data` of the configuration says, with a progress bar."""
    from streaming_sbp.data.ingest import ingest  # see `_conclude`

    console = Console()
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        tasks: dict[str, int] = {}

        def show(progress: IngestProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bar.add_task(progress.phase, unit=progress.unit)
            bar.update(tasks[progress.phase], completed=progress.done, total=progress.total)  # type: ignore[arg-type]

        summary = ingest(config.data, show)
    console.print(f"data set: {escape(str(summary))}", soft_wrap=True)
    return summary


def run_to_the_end(config: Config, fresh: bool, accept_changes: bool, metrics_port: int) -> int:
    """`sbp run`; returns the exit status."""
    set_up_process()
    console = LastingConsole()
    _require(config)
    if fresh and (moved := set_aside(config.run.dir)):
        console.print(f"the earlier run is now in {moved}")
    run = RunDir.open_or_create(config, accept_changes=accept_changes)
    require_keys_off_loopback(config.stream, "stream.host", config.stream.host, generator_names(config.generator.count))
    if not Dataset.exists(config.data.dataset):
        ingest_with_progress(config)
    if collect(run)["run"]["state"] == "done":
        console.print(f"{run.path}: {NOTHING_LEFT}")
        return _conclude(run, console)
    with LiveView(console) as view:
        status = Supervisor(run, view.update, view.abandon, metrics_port, accept_changes).main()
    return status or _conclude(run, console)


def _require(config: Config) -> None:
    """What a process would miss only after minutes of training. Raises ConfigError."""
    for sink in sinks.wanted(config.telemetry):
        sinks.require_installed(sink)
    if config.needs_pairs:
        require_embedder(config.pairing.embedder)
    if config.synthesizer.mode == "off":
        return
    require_engine(config.generator)
    if config.synthesizer.mode == "given":
        require_model(config.synthesizer)
    if config.snapshots.url:
        require_usable(config.snapshots.url)


def _conclude(run: RunDir, console: Console) -> int:
    """Say where the results are, and what to do next."""
    from streaming_sbp.experiment.report import build  # a supervisor of weeks need not hold what this brings

    report, sbp, status = build(run), program(), collect(run)
    state = status["run"]["state"]
    console.print()
    if run.config().synthesizer.mode != "off" and (why := advice.why_nothing_synthetic(run.config(), status)):
        console.print(f"[bold yellow]no synthetic text:[/] {escape(why)}", soft_wrap=True)
    console.print(f"[bold]report[/]   {report}")
    if state == "done":
        console.print(f"[bold]model[/]    {run.path / 'model'}   (a Hugging Face folder)")
    else:
        console.print(f"[bold]go on[/]    {sbp} run --config {escape(str(run.path / 'config.toml'))}")
    console.print(f"[bold]look at[/]  {sbp} status {escape(str(run.path))}    {sbp} peek {escape(str(run.path))}")
    return 0


def program() -> str:
    """How the user can call `sbp` again: by its name where that is found, else by the path it was called with."""
    return "sbp" if shutil.which("sbp") else escape(os.path.relpath(sys.argv[0]))

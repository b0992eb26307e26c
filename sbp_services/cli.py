"""The command line, `sbp`. Each command reads the configuration and calls one function of the library or a service."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from streaming_sbp import __version__
from streaming_sbp import config as configuration
from streaming_sbp.config import Config, ConfigError
from streaming_sbp.rundir import RunDir

app = typer.Typer(
    name="sbp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Streaming SBP: pretrain on real text and on synthetic documents that stream in from the run's own model.",
)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the configuration.")]
PresetOption = Annotated[str | None, typer.Option("--preset", "-p", help="Shipped configuration; see `sbp presets`.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="Existing run directory: use its configuration.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as in mix.synthetic_share=0.25")]
AcceptOption = Annotated[bool, typer.Option("--accept-changes", help="Go on with a changed configuration.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start over; an earlier run is moved aside, not deleted.")]
OnErrorOption = Annotated[
    str | None,
    typer.Option("--on-error", metavar="skip|stop", help="Bad input: skip and count it, or stop; over data.on_error."),
]
WandbOption = Annotated[str, typer.Option("--wandb", metavar="PROJECT", help="Curves in Weights & Biases.")]
TensorBoardOption = Annotated[bool, typer.Option("--tensorboard", help="Curves in RUN/tensorboard.")]
PortOption = Annotated[int, typer.Option("--metrics-port", min=0, max=65535, help="Of /metrics; 0: a free one.")]
RunArgument = Annotated[Path, typer.Argument(help="Run directory, as in runs/demo")]


def main() -> None:
    """Entry point: a ConfigError is one message on standard error and exit status 2."""
    try:
        app()
    except ConfigError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _config(config: Path | None, preset: str | None, overrides: list[str] | None) -> Config:
    """Raises ConfigError also when nothing at all is said: the defaults are meant to be started from, not run."""
    if config is None and preset is None and not overrides:
        raise ConfigError(
            f"no configuration: give --preset ({', '.join(configuration.preset_names())}), --config FILE, or settings"
        )
    return configuration.load(config, preset, overrides or ())


def _open_run(
    config: Path | None, preset: str | None, run: Path | None, overrides: list[str] | None, accept: bool
) -> RunDir:
    """A run directory is made only when what every role needs is there."""
    if run is None:
        from streaming_sbp.data.dataset import Dataset
        from streaming_sbp.pairing.embedders import require_embedder

        settings = _config(config, preset, overrides)
        Dataset.open(settings.data.dataset)
        if settings.needs_pairs:
            require_embedder(settings.pairing.embedder)
        return RunDir.open_or_create(settings, accept_changes=accept)
    if config or preset or overrides:
        raise ConfigError(
            "--run uses the run's own configuration: expected no --config, --preset or overrides beside it"
        )
    return RunDir(run)


# --- the main job ---


@app.command()
def run(
    overrides: Overrides = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    fresh: FreshOption = False,
    accept_changes: AcceptOption = False,
    metrics_port: PortOption = 0,
    tensorboard: TensorBoardOption = False,
    wandb: WandbOption = "",
) -> None:
    """Train online: ingest if needed, then trainer, pairer, tuner and generators, supervised, with a live view.

    Ctrl-C once stops cleanly with a checkpoint; the same command goes on from there.
    """
    from sbp_services.run import run_to_the_end

    chosen = list(overrides or ())
    if tensorboard:
        chosen.append("telemetry.tensorboard=true")
    if wandb:
        chosen.append(f"telemetry.wandb={configuration.toml_text(wandb)}")
    sys.exit(run_to_the_end(_config(config, preset, chosen), fresh, accept_changes, metrics_port))


@app.command()
def ingest(
    overrides: Overrides = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    on_error: OnErrorOption = None,
) -> None:
    """Turn text into tokenised WebDataset shards with an index, as section `data` of the configuration says."""
    from sbp_services.run import ingest_with_progress

    chosen = [] if on_error is None else [f"data.on_error={on_error}"]  # the last override of a key counts
    ingest_with_progress(_config(config, preset, [*(overrides or ()), *chosen]))


@app.command()
def experiment(
    name: Annotated[
        str | None,
        typer.Argument(help="A shipped experiment (concepts, pydocs), or a TOML file.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    scale: Annotated[
        str,
        typer.Option("--scale", help="Arms, seeds, tokens: tiny takes minutes, small half an hour, full hours."),
    ] = "small",
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="As many as the scale says by default.", show_default=False)
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="Beside the baseline and the oracle, separated by commas; those of the scale if empty; see --list.",
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Folder; experiments/NAME-SCALE by default.")] = None,
    cores: Annotated[int, typer.Option("--cores", min=0, help="To be used at once; 0: all.")] = 0,
    list_arms: Annotated[
        bool, typer.Option("--list", help="Say which arms there are (without a name: which experiments), and run none.")
    ] = False,
) -> None:
    """Does it help? Runs every arm as `sbp run` does, and compares them: a table, a page, one JSON line.

    Ctrl-C stops cleanly; the same command goes on, and trains nothing twice.
    """
    from sbp_services import experiment as service
    from streaming_sbp.experiment import arms as experiments
    from streaming_sbp.experiment import results

    if name is None:
        if not list_arms:
            raise ConfigError(f"which experiment? expected {' or '.join(experiments.names())}, or a TOML file")
        for shipped in experiments.names():
            typer.echo(f"{shipped:10}  {experiments.title(shipped)}")
        return
    chosen = tuple(filter(None, (arm.strip() for arm in arms.split(","))))
    if list_arms:
        choice = experiments.choice(name, scale, chosen)
        width = max(map(len, choice))
        for arm, (title, when) in choice.items():
            typer.echo(f"{arm:{width}}  {when:16}  {title}")
        return
    out = out or Path("experiments", f"{Path(name).stem}-{scale}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file, expected a folder; choose another")
    beside = {trial.arm for trial in results.load(out / "results.json")[0]}
    found = experiments.load(name, scale, seeds or 0, chosen, tuple(overrides or ()), beside)
    sys.exit(service.main(found, out, cores))


# --- one role each ---


def _serve(
    start: Callable[[RunDir], int],
    config: Path | None,
    preset: str | None,
    run: Path | None,
    overrides: list[str] | None,
    accept: bool,
) -> None:
    if "SBP_PARENT_PID" not in os.environ:
        typer.echo("loading the program, which may take half a minute ...", err=True)
    from sbp_services.service import set_up_process

    set_up_process()
    sys.exit(start(_open_run(config, preset, run, overrides, accept)))


@app.command()
def pair(
    overrides: Overrides = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    run: RunOption = None,
    accept_changes: AcceptOption = False,
    metrics_port: PortOption = 0,
) -> None:
    """Find pairs of related documents, once."""

    def start(run_dir: RunDir) -> int:
        from sbp_services import pairer

        return pairer.main(run_dir, metrics_port)

    _serve(start, config, preset, run, overrides, accept_changes)


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    run: RunOption = None,
    accept_changes: AcceptOption = False,
    metrics_port: PortOption = 0,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Run to train again, from its journal and log of steps.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Of --replay: RUN-replay by default.")] = None,
) -> None:
    """Train on real shards and on what generators send; under torchrun, with further ranks.

    With --replay, train a finished run again and compare every batch and every loss; or, with settings of the training,
    see what would have come of the same documents.
    """

    def start(run_dir: RunDir) -> int:
        from sbp_services import trainer

        return trainer.main(run_dir, metrics_port, accept_changes)

    if replay is None:
        _serve(start, config, preset, run, overrides, accept_changes)
    if config or preset or run:
        raise ConfigError("--replay uses the configuration of that run: expected no other beside it")
    from sbp_services import replayer
    from sbp_services.service import set_up_process

    set_up_process()
    sys.exit(replayer.replay(RunDir(replay), out, tuple(overrides or ()), metrics_port))  # type: ignore[arg-type]


@app.command()
def tune(
    overrides: Overrides = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    run: RunOption = None,
    accept_changes: AcceptOption = False,
    metrics_port: PortOption = 0,
) -> None:
    """Tune each new checkpoint into a synthesizer, and publish it when it passes the gate."""

    def start(run_dir: RunDir) -> int:
        from sbp_services import tuner

        return tuner.main(run_dir, metrics_port)

    _serve(start, config, preset, run, overrides, accept_changes)


@app.command()
def generate(
    overrides: Overrides = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    run: RunOption = None,
    accept_changes: AcceptOption = False,
    metrics_port: PortOption = 0,
    index: Annotated[int, typer.Option("--index", min=0, help="Distinguishes generators of one run.")] = 0,
    connect: Annotated[
        str | None, typer.Option("--connect", help="tcp://HOST:PORT of a trainer elsewhere; see docs/security.md.")
    ] = None,
) -> None:
    """Sample synthetic documents from the newest snapshot and stream them to the trainer."""

    def start(run_dir: RunDir) -> int:
        from sbp_services import generator

        return generator.main(run_dir, index, metrics_port, connect)

    _serve(start, config, preset, run, overrides, accept_changes)


@app.command()
def export(
    run: Annotated[Path, typer.Option("--run", help="Run directory; the run may live, or have ended long ago.")],
    tensorboard: TensorBoardOption = False,
    wandb: WandbOption = "",
    metrics_port: PortOption = 0,
) -> None:
    """Write a run's curves for TensorBoard or Weights & Biases; goes on until the run ends, and adds what is new."""
    if tensorboard == bool(wandb):
        raise ConfigError("export: expected --tensorboard or --wandb PROJECT, one of them (run it twice for both)")

    def start(run_dir: RunDir) -> int:
        from sbp_services import exporter
        from streaming_sbp.telemetry import sinks

        return exporter.main(run_dir, sinks.TENSORBOARD if tensorboard else sinks.WANDB, wandb, metrics_port)

    _serve(start, None, None, run, None, False)


# --- looking at a run ---


@app.command()
def status(run: RunArgument, as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """What each role does, the mix, losses, snapshots and the ledger."""
    from streaming_sbp.telemetry import status as run_status
    from streaming_sbp.telemetry import view

    collected = run_status.collect(RunDir(run))
    if as_json:
        typer.echo(json.dumps(collected, indent=1))
    else:
        console = Console()
        if console.is_terminal:
            console.print(view.render(collected, console.width))
        else:
            typer.echo("\n".join(view.plain_lines(collected)))


@app.command()
def dashboard(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run directories, or folders that hold runs; runs/ by default.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Where to listen; off loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8600,
    token: Annotated[bool, typer.Option("--token", help="Ask for a token on loopback, too.")] = False,
) -> None:
    """A local web page of live and past runs: curves, mix, roles, ledger, snapshots, documents. Ctrl-C ends it."""
    from streaming_sbp.webpage.runs import RunList
    from streaming_sbp.webpage.server import serve

    found = RunList(runs or [])

    def say(url: str) -> None:
        typer.echo(f"{len(found)} {'run' if len(found) == 1 else 'runs'}; open {url} (Ctrl-C ends)")

    serve(found, host, port, token, say)


@app.command()
def report(
    run: RunArgument, out: Annotated[Path | None, typer.Option("--out", help="Folder; RUN/report by default.")] = None
) -> None:
    """One self-contained HTML page, and PNGs, from the run's records."""
    from streaming_sbp.experiment.report import build

    typer.echo(f"report: {build(RunDir(run), out)}")


@app.command()
def peek(
    run: RunArgument,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many documents.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Which ones.")] = 0,
) -> None:
    """Synthetic documents beside their seed documents, with provenance."""
    from streaming_sbp.experiment import peek as peeking

    run_dir = RunDir(run)
    console = Console()
    console.print(peeking.render(peeking.sample(run_dir, count, seed)))
    _say_why_nothing_synthetic(run_dir, console)


def _say_why_nothing_synthetic(run: RunDir, console: Console) -> None:
    from streaming_sbp.experiment.advice import why_nothing_synthetic
    from streaming_sbp.telemetry.status import collect

    if why := why_nothing_synthetic(run.config(), collect(run)):
        console.print(f"no snapshot: {escape(why)}", soft_wrap=True)


@app.command("eval")
def evaluate(
    run: RunArgument,
    tasks: Annotated[str, typer.Option("--tasks", help="Of lm-evaluation-harness, as in hellaswag,piqa.")],
    include_path: Annotated[Path | None, typer.Option("--include-path", help="Folder with tasks of your own.")] = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="As in step-00001000; the newest by default.")] = "",
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="As the task says by default.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Examples of each task; 0: all.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences at once.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Benchmarks: lm-evaluation-harness (extra `eval`) on a checkpoint; kept in RUN/evaluations."""
    from streaming_sbp.experiment import lm_eval

    run_dir = RunDir(run)
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    request = lm_eval.Request(names, include_path, num_fewshot, limit, batch_size)
    result = lm_eval.evaluate(run_dir, lm_eval.choose_checkpoint(run_dir, checkpoint), request)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        Console().print(lm_eval.table(result))


@app.command()
def snapshots(
    run: RunArgument,
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--compare", help="Two snapshots, by version or digest.")
    ] = None,
    pin: Annotated[str | None, typer.Option("--pin", help="Let this one serve until --unpin.")] = None,
    unpin: Annotated[bool, typer.Option("--unpin", help="Let the newest good one serve.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Let the last good one before serve.")] = False,
    to: Annotated[str | None, typer.Option("--to", help="Of --rollback: an earlier one.")] = None,
    quarantine: Annotated[str | None, typer.Option("--quarantine", help="Never let this one serve again.")] = None,
    quality: Annotated[bool, typer.Option("--quality", help="The first and the last one beside real text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """The published synthesizers with their measures; compare, pin, roll back, quarantine, also while the run lives."""
    from streaming_sbp.synthesizer import manage

    asked = (compare is not None, pin is not None, unpin, rollback, quarantine is not None, quality)
    if sum(asked) > 1 or (to is not None and not rollback):
        raise ConfigError(
            "snapshots: expected one of --compare, --quality, --pin, --unpin, --rollback (--to), --quarantine"
        )
    if quality:
        from streaming_sbp.experiment import quality as table

        found = table.quality(RunDir(run))
        if as_json:
            typer.echo(json.dumps(found, indent=1))
        else:
            Console().print(table.render(found))
            _say_why_nothing_synthetic(RunDir(run), Console())
        return
    manager = manage.Manager(RunDir(run))
    if compare:
        found = manager.comparison(*compare)
        typer.echo(json.dumps(found, indent=1)) if as_json else Console().print(manage.render_comparison(found))
        return
    if pin is not None:
        manager.pin(pin)
    elif unpin:
        manager.unpin()
    elif rollback:
        manager.roll_back(to)
    elif quarantine is not None:
        manager.quarantine(quarantine)
    listing = manager.listing()
    if as_json:
        typer.echo(json.dumps(listing, indent=1))
    else:
        Console().print(manage.render_listing(listing))
        _say_why_nothing_synthetic(RunDir(run), Console())


@app.command()
def trace(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", min=1, help="Optimizer step, 1 for the first.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Where every token of one step came from: real shard and document, or seed, snapshot and generator."""
    from streaming_sbp.training import trace as tracing

    past, pieces = tracing.trace(RunDir(run), step)
    if as_json:
        typer.echo(json.dumps(tracing.as_json(past, pieces), indent=1))
    else:
        Console().print(tracing.render(past, pieces))


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Folder of keys, for stream.keys.")],
    generator: Annotated[list[str], typer.Option("--generator", help="Name, as in generator-0; may be repeated.")],
) -> None:
    """Make the keys with which generators on other machines may stream to the trainer. Never overwrites one."""
    from streaming_sbp.stream import keys as stream_keys

    made = stream_keys.make(folder, generator)
    typer.echo(stream_keys.instructions(folder, generator, made))


@app.command()
def presets() -> None:
    """The shipped configurations."""
    for name in configuration.preset_names():
        typer.echo(name)


@app.command("config")
def show_config(overrides: Overrides = None, config: ConfigOption = None, preset: PresetOption = None) -> None:
    """The resolved configuration as TOML, every setting with its value."""
    typer.echo(configuration.to_toml(configuration.load(config, preset, overrides or ())))


@app.callback(invoke_without_command=True)
def _version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        typer.echo(f"streaming-sbp {__version__}")
        raise typer.Exit

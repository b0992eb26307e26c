"""Where the points of a run are written to: event files of TensorBoard, a run of Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any, Protocol

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.points import Points

TENSORBOARD, WANDB = "tensorboard", "wandb"
FOLDERS = {TENSORBOARD: "tensorboard", WANDB: "wandb"}  # in the run directory


class Sink(Protocol):
    def write(self, points: Iterable[Points]) -> None:
        """Returns when they are on disk, or with who sends them."""

    def close(self) -> None: ...


class TensorBoardSink:
    """Event files in RUN/tensorboard; one a process, which TensorBoard reads as one curve."""

    def __init__(self, run: RunDir, after_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(run.path / FOLDERS[TENSORBOARD]))
        if after_step:
            # what a process that was killed may have written beyond it is taken back, and written again
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(event_pb2.Event(step=after_step + 1, session_log=start))

    def write(self, points: Iterable[Points]) -> None:
        for at in points:
            values = [self._summaries.Summary.Value(tag=tag, simple_value=v) for tag, v in at.values.items()]
            summary = self._summaries.Summary(value=values)
            self._writer.add_event(self._events.Event(wall_time=at.time, step=at.step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """One run of Weights & Biases for one run here, however often it is resumed: they have the same id.

    The environment says the rest, as everywhere (WANDB_API_KEY, WANDB_ENTITY, WANDB_MODE=offline). Raises ConfigError
    when nobody is logged in.
    """

    def __init__(self, run: RunDir, project: str):
        import wandb

        try:
            self._run: Any = wandb.init(
                project=project,
                id=run.run_id,
                name=run.path.resolve().name,
                dir=str(run.path),
                resume="allow",
                config=run.config().model_dump(mode="json"),
                settings=wandb.Settings(console="off", x_disable_stats=True),
            )
        except wandb.errors.UsageError as error:  # a restart would not help
            raise ConfigError(f"Weights & Biases: {error} Or set WANDB_MODE=offline; then `sbp export`") from None

    def write(self, points: Iterable[Points]) -> None:
        for at in points:
            self._run.log(at.values | {"_timestamp": at.time}, step=at.step)

    def close(self) -> None:
        self._run.finish()


def open_sink(run: RunDir, name: str, project: str, after_step: int) -> Sink:
    """``after_step``: the points up to it have been written. Raises ConfigError when the package is missing."""
    require_installed(name)
    return TensorBoardSink(run, after_step) if name == TENSORBOARD else WandbSink(run, project)


def wanted(telemetry: config.Telemetry) -> list[str]:
    """The sinks that a configuration asks for."""
    return [TENSORBOARD] * telemetry.tensorboard + [WANDB] * bool(telemetry.wandb)


def require_installed(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"the package {name} is not installed: pip install 'streaming-sbp[{name}]' (in a checkout: "
            f"pip install -e '.[{name}]'), or leave telemetry.{name} (--{name}) out"
        )

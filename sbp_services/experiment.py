"""`sbp experiment`: runs every trial as `sbp run` does, several at once where cores allow, and compares what came out.

Resumable: a trial whose run is done is only read again, one that was cut short goes on from its checkpoint. What
results.json holds as done is not run again either, so runs can be deleted, or come from another machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sbp_services.service import set_up_process
from streaming_sbp import config as configuration
from streaming_sbp.config import Config, ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.ingest import ingest
from streaming_sbp.experiment import arms, comparison, results
from streaming_sbp.experiment.arms import Experiment, Trial
from streaming_sbp.experiment.compute import cost_of_newest_snapshot
from streaming_sbp.experiment.results import TrialResult
from streaming_sbp.files import write_atomically
from streaming_sbp.rundir import RunDir
from streaming_sbp.synthesizer.snapshots import SnapshotStore
from streaming_sbp.telemetry.status import collect
from streaming_sbp.telemetry.text import duration, quantity

SAY_EVERY_S = 30.0
LOOK_EVERY_S = 1.0
STOP_TIMEOUT_S = 120.0


@dataclass
class Running:
    trial: Trial
    config: Config
    process: subprocess.Popen[bytes]
    started: float
    tokens_before: int  # trained by earlier attempts

    @property
    def num_cores(self) -> int:
        return _cores_of(self.config)

    @property
    def tokens(self) -> int:
        return _progress(self.config)[1]


class ExperimentRunner:
    """Call ``run`` once. Ctrl-C stops the trials that run, each with a checkpoint, and the next call goes on."""

    def __init__(self, experiment: Experiment, out: Path, num_cores: int):
        self.experiment, self.out, self._num_cores = experiment, out, num_cores
        self._console = Console(soft_wrap=True, highlight=False)
        self._found: dict[Trial, TrialResult] = {}
        self._recorded: dict[Trial, TrialResult] = {}  # by an earlier call
        self._running: list[Running] = []
        self._rates: dict[int, float] = {}  # cores of a trial -> tokens per second, of the last that has ended
        self._stopping = False

    def run(self) -> int:
        """Returns the exit status: 0 when all trials are done."""
        self.experiment.check(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self._recorded = results.load_trials(self.out / "results.json")
        self._say(f"{self.experiment.title}: {len(self.experiment.arms)} arms, seeds {self.experiment.num_seeds}")
        with self._signals():
            for seed in range(self.experiment.num_seeds):
                self._run_seed(seed)
                if self._stopping:
                    break
        return self._conclude()

    # --- trials ---

    def _run_seed(self, seed: int) -> None:
        """All trials of a seed; with the first one, also those of the points of grids."""
        waiting = [trial for arm in self.experiment.arms for trial in self._wanted(arm, seed)]
        self._ingest(seed)
        said = time.monotonic()
        while (waiting or self._running) and not self._stopping:
            self._start_what_fits(waiting)
            for running in [r for r in self._running if r.process.poll() is not None]:
                self._running.remove(running)
                self._ended(running)
            if time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                self._say_progress(waiting, seed)
            time.sleep(LOOK_EVERY_S if self._running else 0.0)

    def _wanted(self, arm: str, seed: int) -> list[Trial]:
        trials = self.experiment.trials(arm, seed)
        if seed == 0 or len(trials) == 1:
            return trials
        first = [self._found[trial] for trial in self.experiment.trials(arm, 0)]
        point = results.best_point(first)
        return [trial for trial in trials if dict(trial.point) == point]

    def _ingest(self, seed: int) -> None:
        """The real text of all arms; the baseline's first, for all others use its tokenizer."""
        arms = [self.experiment.baseline, *(a for a in self.experiment.arms if a != self.experiment.baseline)]
        for arm in arms:
            trial = self.experiment.trials(arm, seed)[0]
            config = self.experiment.run_config(trial, self.out, "given")
            if not Dataset.exists(config.data.dataset):
                self._say(f"data set: {ingest(config.data)}")

    def _start_what_fits(self, waiting: list[Trial]) -> None:
        for trial in list(waiting):
            free = self._num_cores - sum(running.num_cores for running in self._running)
            if free < 1 and self._running:
                return
            given = self._given(trial)
            if given is None:
                continue  # it needs the snapshot of an arm that is not done
            config = self.experiment.run_config(trial, self.out, given)
            if _cores_of(config) > free and self._running:
                continue
            waiting.remove(trial)
            self._check_unchanged(trial, config)
            if _progress(config)[0] == "done":
                self._read(trial, config)
            elif trial in self._recorded:
                self._keep(self._recorded[trial])
            else:
                self._start(trial, config)

    def _check_unchanged(self, trial: Trial, config: Config) -> None:
        """What there is of the trial must have had this configuration. Raises ConfigError."""
        recorded = self._recorded.get(trial)
        if recorded and recorded.settings != arms.fingerprint(config):
            raise ConfigError(
                f"{trial}: {self.out / 'results.json'} has it with other settings; choose another --out, or delete "
                "that file"
            )
        try:
            before = RunDir(config.run.dir).config()
        except ConfigError:
            return  # there is no run yet
        if changes := configuration.differences(before, config):
            raise ConfigError(
                f"{trial}: {config.run.dir} was made with another configuration ({'; '.join(changes)}); choose another "
                "--out, or delete that folder to run this arm again"
            )

    def _given(self, trial: Trial) -> str | None:
        """The folder of the snapshot that the trial is given, "" when it needs none, None when there is none yet."""
        source = self._source(trial)
        if source is None:
            return ""
        if source not in self._found:
            return None
        store = SnapshotStore(str(self.out / source.folder / "snapshots"))
        newest = store.current()
        if newest is None:
            raise ConfigError(f"{trial}: {source} has published no snapshot; look at {self.out / source.folder}")
        return newest.path

    def _source(self, trial: Trial) -> Trial | None:
        name = self.experiment.arms[trial.arm].snapshot_of
        return self.experiment.trials(name, trial.seed)[0] if name else None

    def _file(self, trial: Trial, suffix: str) -> Path:
        """Beside the run: its configuration (.toml), its output (.log)."""
        folder = self.out / trial.folder
        return folder.with_name(folder.name + suffix)

    def _start(self, trial: Trial, config: Config) -> None:
        Path(config.run.dir).mkdir(parents=True, exist_ok=True)
        write_atomically(self._file(trial, ".toml"), configuration.to_toml(config))
        with open(self._file(trial, ".log"), "ab") as log:
            process = subprocess.Popen(
                _command(self._file(trial, ".toml")),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(Running(trial, config, process, time.monotonic(), _progress(config)[1]))
        self._say(f"started  {trial}")

    def _ended(self, running: Running) -> None:
        trial, log = running.trial, self._file(running.trial, ".log")
        if running.process.returncode != 0 or _progress(running.config)[0] != "done":
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ConfigError(f"{trial}: `sbp run` ended with {running.process.returncode}; {log}: " + " / ".join(last))
        seconds = time.monotonic() - running.started
        self._rates[running.num_cores] = (running.tokens - running.tokens_before) / max(seconds, 1e-9)
        found = self._read(trial, running.config)
        known = f", {found.end.accuracy:.1%} of facts" if found.end.accuracy is not None else ""
        self._say(f"done     {trial}: held-out loss {found.end.heldout_loss:.3f}{known}, {duration(seconds)}")

    def _read(self, trial: Trial, config: Config) -> TrialResult:
        source, file = self._source(trial), self._file(trial, ".toml")
        given = cost_of_newest_snapshot(RunDir(self.out / source.folder)) if source else 0.0
        return self._keep(results.read_trial(RunDir(config.run.dir), trial, f"sbp run --config {file}", given))

    def _keep(self, found: TrialResult) -> TrialResult:
        self._found[found.trial] = found
        self._write()
        return found

    # --- the end ---

    def _write(self) -> list[results.ArmResult]:
        """results.json and the page, with what is there so far."""
        trials = list(self._found.values())
        compared = results.compare(self.experiment, trials)
        everything = results.as_json(self.experiment, trials, compared)
        everything["trials"] += [asdict(found) for trial, found in self._recorded.items() if trial not in self._found]
        write_atomically(self.out / "results.json", json.dumps(everything, indent=1))
        return compared

    def _conclude(self) -> int:
        if not self._found:
            return 1
        compared = self._write()
        page = comparison.build(self.experiment, list(self._found.values()), compared, self.out)
        self._console.print()
        self._console.print(comparison.table(self.experiment, compared))
        self._say(f"page     {page}\nresults  {self.out / 'results.json'}")
        if self._stopping:
            self._say("stopped: the same command goes on")
            return 1
        sys.stdout.write(json.dumps(results.headline(self.experiment, compared)) + "\n")
        return 0

    def _say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {escape(text)}")

    def _say_progress(self, waiting: list[Trial], seed: int) -> None:
        now = "; ".join(
            f"{r.trial}: {quantity(r.tokens)} of {quantity(r.config.training.total_tokens)} tokens"
            for r in self._running
        )
        left = self._seconds_left(waiting, seed)
        self._say(f"running  {now}" + (f"; about {duration(left)} left" if left is not None else ""))

    def _seconds_left(self, waiting: list[Trial], seed: int) -> float | None:
        """Of the whole experiment, at the rates so far; None before there is one for each kind of trial."""
        rates = dict(self._rates)
        for r in self._running:
            seconds = time.monotonic() - r.started
            if seconds > SAY_EVERY_S and r.tokens > r.tokens_before:
                rates.setdefault(r.num_cores, (r.tokens - r.tokens_before) / seconds)
        later = [trial for s in range(seed + 1, self.experiment.num_seeds) for trial in self._first_points(s)]
        core_seconds = 0.0
        for trial in [*(r.trial for r in self._running), *waiting, *later]:
            config = self.experiment.run_config(trial, self.out, "given")
            cores = _cores_of(config)
            if cores not in rates:
                return None
            left = config.training.total_tokens - _progress(config)[1]
            core_seconds += max(left, 0) / rates[cores] * min(cores, self._num_cores)
        return core_seconds / self._num_cores

    def _first_points(self, seed: int) -> Iterator[Trial]:
        return (self.experiment.trials(arm, seed)[0] for arm in self.experiment.arms)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the runs in order; nothing is left behind, whatever happens."""

        def stop(*_: object) -> None:
            self._stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for running in self._running:
                running.process.send_signal(signal.SIGTERM)
            for running in self._running:
                try:
                    running.process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    running.process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)


def _command(file: Path) -> list[str]:
    return [sys.executable, "-u", "-m", "sbp_services", "run", "--config", str(file)]


def _cores_of(config: Config) -> int:
    """The trainer's, and one for tuner and generators together."""
    return 1 if config.synthesizer.mode == "off" else 2


def _progress(config: Config) -> tuple[str, int]:
    """State of the run, and the tokens that it has trained."""
    try:
        run = collect(RunDir(config.run.dir))["run"]
    except ConfigError:
        return "new", 0
    return run["state"], run["tokens"] or 0


def main(experiment: Experiment, out: Path, num_cores: int = 0) -> int:
    """``num_cores``: to be used at once; 0: all of this machine."""
    set_up_process()
    return ExperimentRunner(experiment, out, num_cores or len(os.sched_getaffinity(0))).run()

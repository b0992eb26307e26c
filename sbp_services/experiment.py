"""`sbp experiment`: runs every trial as `sbp run` does, several at once where cores allow, and compares what came out.

Resumable: a trial whose run is done is only read again, one that was cut short goes on from its checkpoint. What
results.json holds as done is not run again either, so runs can be deleted, or come from another machine. A trial that
fails is named, and those that do not need it go on.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from sbp_services.service import set_up_process
from streaming_sbp import config as configuration
from streaming_sbp.config import Config, ConfigError
from streaming_sbp.data.dataset import Dataset, Manifest
from streaming_sbp.data.ingest import ingest
from streaming_sbp.experiment import arms, comparison, history, results
from streaming_sbp.experiment.arms import Experiment, Trial
from streaming_sbp.experiment.compute import cost_of_newest_snapshot
from streaming_sbp.experiment.results import Texts, TrialResult
from streaming_sbp.files import write_atomically
from streaming_sbp.rundir import RunDir, lock
from streaming_sbp.synthesizer.snapshots import SnapshotStore
from streaming_sbp.telemetry.status import collect
from streaming_sbp.telemetry.text import duration, quantity

SAY_EVERY_S = 30.0
LOOK_EVERY_S = 1.0
STOP_TIMEOUT_S = 120.0
COMMAND = shlex.join(["sbp", *sys.argv[1:]])


class Progress(NamedTuple):
    state: str  # of the run
    tokens: int  # trained
    waits: str = ""  # the trainer, "for the first snapshot"


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
        return _progress(self.config).tokens


class ExperimentRunner:
    """Call ``run`` once. Ctrl-C stops the trials that run, each with a checkpoint, and the next call goes on."""

    def __init__(self, experiment: Experiment, out: Path, num_cores: int):
        self.experiment, self.out, self._num_cores = experiment, out, num_cores
        self._console = Console(soft_wrap=True, highlight=False)
        self._found: dict[Trial, TrialResult] = {}
        self._recorded: dict[Trial, TrialResult] = {}  # by an earlier call
        self._commands: list[str] = []  # of earlier calls, and this one
        self._texts = Texts()
        self._failed: dict[Trial, str] = {}  # why
        self._running: list[Running] = []
        self._rates: dict[int, float] = {}  # cores of a trial -> tokens per second, of the last that has ended
        self._stopping = False

    def run(self) -> int:
        """Returns the exit status: 0 when all trials are done."""
        self.experiment.check(self.out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            held = lock(self.out / ".lock", f"{self.out}: another `sbp experiment`", "this folder", "another --out")
        except OSError as error:
            raise ConfigError(f"--out {self.out}: cannot be written: {error}; choose another folder") from None
        try:
            return self._run()
        finally:
            os.close(held)

    def _run(self) -> int:
        self._recorded, earlier = results.load(self.out / "results.json")
        self._commands = [*(command for command in earlier if command != COMMAND), COMMAND]
        self._say(f"{self.experiment.title}: {len(self.experiment.to_run)} arms, seeds {self.experiment.num_seeds}")
        self._look_at_data_sets()
        self._take_over()
        for key, names in self.experiment.own_settings.items():
            self._say(f"{key}: unchanged in {', '.join(names)}, set there")
        with self._signals():
            self._run_trials()
        return self._conclude()

    def _look_at_data_sets(self) -> None:
        """Those that are there already."""
        seeds = {*range(self.experiment.num_seeds), *(trial.seed for trial in self._recorded)}
        trees = (self.experiment.data_tree(arm, seed, self.out) for arm in self.experiment.arms for seed in seeds)
        for path in dict.fromkeys(tree["dataset"] for tree in trees):
            if Dataset.exists(path):
                self._check_data_set(Path(path), Dataset.open(path).manifest)

    def _take_over(self) -> None:
        """What earlier calls have found for arms, and for seeds, that this one does not run."""
        for trial, found in self._recorded.items():
            to_run = trial.arm in self.experiment.to_run and trial.seed < self.experiment.num_seeds
            if to_run or trial.arm not in self.experiment.arms:
                continue
            config = self.experiment.run_config(trial, self.out, "given")
            if trial not in self.experiment.trials(trial.arm, trial.seed):
                self._say(f"{trial}: not compared, the grid has no such point")
            elif difference := self._difference(trial, config, found.settings, found.fingerprints):
                self._say(f"{trial}: not compared, it was trained {difference}")
            else:
                self._found[trial] = found
        for arm in {trial.arm for trial in self._found} & self.experiment.beside:
            if missing := [str(t) for t in self.experiment.trials(arm, 0) if t not in self._found]:
                self._say(f"{arm}: not compared, it lacks {'; '.join(missing)}: --arms {arm} runs what is missing")

    # --- trials ---

    def _run_trials(self) -> None:
        """Seed after seed; where cores are free, those of the next seed beside the last of one."""
        seeds = range(self.experiment.num_seeds)
        waiting = [t for seed in seeds for arm in self.experiment.to_run for t in self.experiment.trials(arm, seed)]
        for trial in waiting:
            if trial.seed == 0:  # before hours of others; of later seeds not every point of a grid is wanted
                self._check_unchanged(trial, self.experiment.run_config(trial, self.out, "given"))
        said = time.monotonic()
        while (waiting or self._running) and not self._stopping:
            self._start_what_fits(waiting)
            for running in [r for r in self._running if r.process.poll() is not None]:
                self._running.remove(running)
                self._ended(running)
            if time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                self._say_progress(waiting)
            time.sleep(LOOK_EVERY_S if self._running else 0.0)

    def _is_wanted(self, trial: Trial) -> bool | None:
        """All points of a grid with the first seed, then the best one; None while that is not known."""
        first = self.experiment.trials(trial.arm, 0)
        if trial.seed == 0 or len(first) == 1:
            return True
        if any(point in self._failed for point in first):
            if trial.point == first[0].point:
                self._say(f"{trial.arm}: left out of seed {trial.seed}, for not all points of its grid are done")
            return False
        if any(point not in self._found for point in first):
            return None
        return dict(trial.point) == results.best_point([self._found[point] for point in first])

    def _ingest(self, trial: Trial) -> None:
        """Its real text, after the baseline's, whose tokenizer all others use; what is there already stays."""
        for arm in dict.fromkeys((self.experiment.baseline, trial.arm)):
            first = self.experiment.trials(arm, trial.seed)[0]
            made = ingest(self.experiment.run_config(first, self.out, "given").data)
            self._check_data_set(made.path, made.manifest)
            if not made.existed:
                self._say(f"data set: {made}")

    def _start_what_fits(self, waiting: list[Trial]) -> None:
        last_seed = self.experiment.num_seeds
        for trial in list(waiting):
            free = self._num_cores - sum(running.num_cores for running in self._running)
            if trial.seed > last_seed or (free < 1 and self._running):
                return
            wanted = self._is_wanted(trial)
            if wanted is None:
                continue
            if not wanted or self._is_known(trial) or self._lacks_snapshot(trial):
                waiting.remove(trial)
                continue
            given = self._given(trial)
            if given is None:
                continue  # it needs the snapshot of an arm that is not done
            config = self.experiment.run_config(trial, self.out, given)
            if _cores_of(config) > free and self._running:
                last_seed = trial.seed  # later ones would take what it waits for
                continue
            waiting.remove(trial)
            self._start(trial, config)

    def _is_known(self, trial: Trial) -> bool:
        """Whether its run is done, or results.json has it; then it is taken over, not run."""
        config = self.experiment.run_config(trial, self.out, "given")
        self._check_unchanged(trial, config)
        source = self._source(trial)
        if _progress(config).state == "done" and (source is None or source in self._found):
            self._read(trial, config)
        elif trial in self._recorded:
            self._keep(self._recorded[trial])
        return trial in self._found

    def _check_unchanged(self, trial: Trial, config: Config) -> None:
        """What there is of the trial, wherever it lay, must have had these settings and documents. ConfigError."""
        recorded, file = self._recorded.get(trial), self.out / "results.json"
        if recorded and (difference := self._difference(trial, config, recorded.settings, recorded.fingerprints)):
            raise ConfigError(
                f"{trial}: {file} has it, trained {difference}; choose another --out, or delete that file"
            )
        try:
            run = RunDir(config.run.dir)
            before = run.config()
        except ConfigError:
            return  # there is no run yet
        if difference := self._difference(trial, config, arms.settings(before), history.fingerprints(run)):
            raise ConfigError(
                f"{trial}: {run.path} was trained {difference}; choose another --out, or delete that folder to run "
                "this arm again"
            )

    def _difference(self, trial: Trial, config: Config, settings: arms.Tree, fingerprints: dict[str, str]) -> str:
        """How what there is of the trial was made otherwise than ``config`` says; "" if it was not."""
        if changes := configuration.tree_differences(settings, arms.settings(config)):
            return f"with other settings ({'; '.join(changes)})"
        difference = self._texts.difference(str(trial), Path(config.data.dataset), fingerprints)
        return difference and f"on other documents ({difference})"

    def _check_data_set(self, path: Path, manifest: Manifest) -> None:
        """It must hold what trials that are done were trained on. Raises ConfigError."""
        if difference := self._texts.difference(str(path), path, manifest.fingerprints):
            raise ConfigError(
                f"{path}: other documents than before ({difference}), so losses could not be compared; put back the "
                "data set that was there, or choose another --out"
            )

    def _lacks_snapshot(self, trial: Trial) -> bool:
        """Whether the arm whose snapshot it needs will never have one; then it has failed, too."""
        source = self._source(trial)
        if source in self._failed:
            self._failed[trial] = f"it needs the snapshot of {source}, which failed"
        elif source in self._found and self._store(source).current() is None:
            self._failed[trial] = (
                f"it needs the snapshot of {source}, and {self.out / source.folder} has none; look at its report, or "
                "delete its run and what results.json says of it to run it again"
            )
        return trial in self._failed

    def _given(self, trial: Trial) -> str | None:
        """The folder of the snapshot that the trial is given, "" when it needs none, None when there is none yet."""
        source = self._source(trial)
        if source is None:
            return ""
        newest = self._store(source).current() if source in self._found else None
        return newest.path if newest else None

    def _store(self, trial: Trial) -> SnapshotStore:
        return SnapshotStore(str(self.out / trial.folder / "snapshots"))

    def _source(self, trial: Trial) -> Trial | None:
        name = self.experiment.arms[trial.arm].snapshot_of
        return self.experiment.trials(name, trial.seed)[0] if name else None

    def _file(self, trial: Trial, suffix: str) -> Path:
        """Beside the run: its configuration (.toml), its output (.log)."""
        folder = self.out / trial.folder
        return folder.with_name(folder.name + suffix)

    def _start(self, trial: Trial, config: Config) -> None:
        self._ingest(trial)
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
        self._running.append(Running(trial, config, process, time.monotonic(), _progress(config).tokens))
        self._say(f"started  {trial}")

    def _ended(self, running: Running) -> None:
        trial, log = running.trial, self._file(running.trial, ".log")
        if running.process.returncode != 0 or _progress(running.config).state != "done":
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            reason = f"`sbp run` ended with {running.process.returncode}; {log}: " + " / ".join(last)
            self._failed[trial] = reason
            self._say(f"FAILED   {trial}: {reason}")
            return
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
        everything = results.as_json(self.experiment, trials, compared, self._commands)
        everything["trials"] += [asdict(found) for trial, found in self._recorded.items() if trial not in self._found]
        write_atomically(self.out / "results.json", json.dumps(everything, indent=1))
        return compared

    def _conclude(self) -> int:
        compared = self._write() if self._found else []
        if compared:
            self._show(compared)
        for trial, reason in self._failed.items():
            self._say(f"FAILED   {trial}: {reason}")
        if self._stopping:
            self._say("stopped: the same command goes on")
        elif compared:
            sys.stdout.write(json.dumps(results.headline(self.experiment, compared)) + "\n")
        return int(bool(self._stopping or self._failed))

    def _show(self, compared: list[results.ArmResult]) -> None:
        page = comparison.build(self.experiment, list(self._found.values()), compared, self.out)
        self._console.print()
        self._console.print(comparison.table(self.experiment, compared))
        for sentence in comparison.sentences(self.experiment, compared):
            self._console.print(escape(sentence))
        self._console.print()
        self._say(f"page     {page}\nresults  {self.out / 'results.json'}")

    def _say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {escape(text)}")

    def _say_progress(self, waiting: list[Trial]) -> None:
        now = "; ".join(f"{r.trial}: {_position(r)}" for r in self._running)
        left, known = self._seconds_left(waiting)
        self._say(f"running  {now}" + (f"; {'about' if known else 'at least'} {duration(left)} left" if left else ""))

    def _seconds_left(self, waiting: list[Trial]) -> tuple[float, bool]:
        """Of the whole experiment, at the rates so far, 0 before there is any; whether each kind of trial has one."""
        rates = dict(self._rates)
        for r in self._running:
            seconds, now = time.monotonic() - r.started, _progress(r.config)
            if seconds > SAY_EVERY_S and now.tokens > r.tokens_before and not now.waits:
                rates.setdefault(r.num_cores, (now.tokens - r.tokens_before) / seconds)
        if not rates:
            return 0.0, False
        first = [trial for trial in waiting if trial.seed == 0]
        later = {(trial.arm, trial.seed): trial for trial in waiting if trial.seed}.values()  # one point of a grid
        core_seconds, known = 0.0, True
        for trial in [*(r.trial for r in self._running), *first, *later]:
            config = self.experiment.run_config(trial, self.out, "given")
            cores = _cores_of(config)
            known &= cores in rates
            left = config.training.total_tokens - _progress(config).tokens
            core_seconds += max(left, 0) / rates.get(cores, max(rates.values())) * min(cores, self._num_cores)
        return core_seconds / self._num_cores, known

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
    """Changes were found above, and refused, but that the folder may lie elsewhere now."""
    return [sys.executable, "-u", "-m", "sbp_services", "run", "--config", str(file), "--accept-changes"]


def _position(running: Running) -> str:
    now, total = _progress(running.config), running.config.training.total_tokens
    if now.tokens >= total:
        return "trained, ending"
    return f"{quantity(now.tokens)} of {quantity(total)} tokens" + (f", waits {now.waits}" if now.waits else "")


def _cores_of(config: Config) -> int:
    """The trainer's, and one for tuner and generators together."""
    return 1 if config.synthesizer.mode == "off" else 2


def _progress(config: Config) -> Progress:
    try:
        status = collect(RunDir(config.run.dir))
    except ConfigError:
        return Progress("new", 0)
    trainer = status["roles"]["trainer"]
    waits = (trainer["detail"] or "") if trainer["state"] == "waiting" else ""
    return Progress(status["run"]["state"], status["run"]["tokens"] or 0, waits)


def main(experiment: Experiment, out: Path, num_cores: int = 0) -> int:
    """``num_cores``: to be used at once; 0: all of this machine."""
    set_up_process()
    return ExperimentRunner(experiment, out, num_cores or len(os.sched_getaffinity(0))).run()

"""Which trials `sbp experiment` starts, and when; what a run itself does is in tests/processes/test_experiment.py."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from sbp_services.experiment import ExperimentRunner, Running
from streaming_sbp.config import Config
from streaming_sbp.experiment import arms
from streaming_sbp.experiment.arms import Trial
from streaming_sbp.experiment.results import Point, TrialResult


class Started(ExperimentRunner):
    """Its runs are processes that have ended already; what they found is given by ``end``."""

    def __init__(self, out: Path, num_cores: int, num_seeds: int = 3, only: tuple[str, ...] = ("online", "offline")):
        super().__init__(arms.load("concepts", "small", num_seeds, only), out, num_cores)
        seeds = range(num_seeds)
        self.waiting = [t for s in seeds for arm in self.experiment.to_run for t in self.experiment.trials(arm, s)]

    def _start(self, trial: Trial, config: Config) -> None:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        self._running.append(Running(trial, config, process, 0.0, 0))

    def start(self) -> list[str]:
        before = len(self._running)
        self._start_what_fits(self.waiting)
        return [str(running.trial) for running in self._running[before:]]

    def end(self, name: str, loss: float | None = 1.0) -> None:
        """The run of that trial ends, with this held-out loss, or fails."""
        running = next(r for r in self._running if str(r.trial) == name)
        self._running.remove(running)
        trial = running.trial
        if loss is None:
            self._failed[trial] = "it was to fail"
            return
        self._found[trial] = done(trial, loss)


def done(trial: Trial, loss: float, settings: arms.Tree | None = None) -> TrialResult:
    curve = [Point(t, float(t), 0.0, loss, loss / 3, None, None) for t in (0, 1000)]
    point, costs = dict(trial.point), (0, 0, 0, 0.0)
    return TrialResult(
        trial.arm, point, trial.seed, "done", curve, [], {}, *costs, None, 0, "sbp run", settings or {}, {}
    )


GRID = [
    f"repetition (training.learning_rate = {rate}, training.weight_decay = 1.0, training.dropout = {dropout})"
    for rate in (0.002, 0.003)
    for dropout in (0.15, 0.2)
]


def test_cores_that_one_seed_leaves_free_are_for_the_next(tmp_path: Path) -> None:
    runner = Started(tmp_path, num_cores=64)
    first = ["oracle, seed 0", "online, seed 0", "pretrained, seed 0"]
    later = [f"{arm}, seed {seed}" for seed in (1, 2) for arm in ("oracle", "online", "pretrained")]
    assert runner.start() == [*(f"{point}, seed 0" for point in GRID), *first, *later]
    assert runner.start() == []
    for point, loss in zip(GRID[1:], (1.0, 2.0, 3.0), strict=True):
        runner.end(f"{point}, seed 0", loss)
        assert runner.start() == []
    runner.end(f"{GRID[0]}, seed 0", loss=4.0)
    assert runner.start() == [f"{GRID[1]}, seed 1", f"{GRID[1]}, seed 2"]


def test_a_trial_that_needs_more_cores_than_are_free_is_not_overtaken_by_later_seeds(tmp_path: Path) -> None:
    runner = Started(tmp_path, num_cores=2, only=("online",))
    for two, losses in ((GRID[:2], (2.0, 1.0)), (GRID[2:], (3.0, 4.0))):
        assert runner.start() == [f"{point}, seed 0" for point in two]
        for point, loss in zip(two, losses, strict=True):
            runner.end(f"{point}, seed 0", loss)
    assert runner.start() == ["oracle, seed 0"]  # the online run waits for its second core
    runner.end("oracle, seed 0")
    assert runner.start() == ["online, seed 0"]
    runner.end("online, seed 0")
    assert runner.start() == [f"{GRID[1]}, seed 1", "oracle, seed 1"]


def test_a_grid_with_a_point_that_failed_is_left_out_of_later_seeds(tmp_path: Path, capsys) -> None:
    runner = Started(tmp_path, num_cores=64, num_seeds=2, only=("online",))
    runner.start()
    runner.end(f"{GRID[0]}, seed 0", loss=None)
    for point in GRID[1:]:
        runner.end(f"{point}, seed 0")
    assert runner.start() == []
    assert runner.waiting == []
    assert capsys.readouterr().out.count("repetition: left out of seed 1") == 1


def test_an_arm_that_needs_a_snapshot_fails_with_the_one_that_makes_it(tmp_path: Path) -> None:
    runner = Started(tmp_path, num_cores=64, num_seeds=1)
    runner.start()
    assert [str(trial) for trial in runner.waiting] == ["offline, seed 0"]
    runner.end("pretrained, seed 0", loss=None)
    assert runner.start() == []
    assert runner.waiting == []
    assert [trial.arm for trial in runner._failed] == ["pretrained", "offline"]
    assert os.listdir(tmp_path) == []


def test_an_arm_that_lacks_a_point_of_its_grid_is_said_not_to_be_compared(tmp_path: Path, capsys) -> None:
    experiment = arms.load("concepts", "small", 1, ("online",), beside=("longer", "stale"))
    runner = ExperimentRunner(experiment, tmp_path, 1)
    *known, missing = [*experiment.trials("stale", 0), *experiment.trials("longer", 0)]
    no_longer = replace(missing, point=tuple((key, 0.9) for key, _ in missing.point))
    for trial in (*known, no_longer):
        runner._recorded[trial] = done(trial, 1.0, arms.settings(experiment.run_config(trial, tmp_path)))
    runner._take_over()
    assert set(runner._found) == set(known)
    said = capsys.readouterr().out
    assert f"{no_longer}: not compared, the grid has no such point" in said
    assert f"longer: not compared, it lacks {missing}: --arms longer runs what is missing" in said
    assert "stale" not in said


def test_an_arm_that_had_other_documents_is_not_compared(tmp_path: Path, capsys) -> None:
    experiment = arms.load("concepts", "small", 1, ("online",), beside=("stale", "offline", "pretrained", "in-context"))
    runner = ExperimentRunner(experiment, tmp_path, 1)
    ours = {"data set": "a" * 64, "tokenizer": "b" * 64}
    told = {"stale": ours, "pretrained": ours | {"data set": "c" * 64}, "offline": {}, "in-context": ours}
    for arm, fingerprints in told.items():
        (trial,) = experiment.trials(arm, 0)
        settings = arms.settings(experiment.run_config(trial, tmp_path, "given"))
        runner._recorded[trial] = replace(done(trial, 1.0, settings), fingerprints=fingerprints)
    runner._take_over()
    assert {trial.arm for trial in runner._found} == {"stale", "offline", "in-context"}
    said = capsys.readouterr().out
    assert (
        "pretrained, seed 0: not compared, it was trained on other documents "
        "(data set cccccccccccc, expected aaaaaaaaaaaa as in stale, seed 0)" in said
    )

"""What an experiment has found: each trial's curve and costs, and arms compared with baseline and oracle.

The share of the oracle's gain: how far an arm comes on the way from the baseline to the oracle, 0 for the baseline, 1
for the oracle. The baseline is the point of its grid, and the step, with the lowest held-out loss: repetition that
somebody stopped in time. All other arms count at their end. Arms are paired by seed: a share is taken within a seed,
then the mean over seeds with a 95 % interval (Student's t, n - 1 degrees of freedom); one seed has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from scipy import stats

from streaming_sbp.config import ConfigError
from streaming_sbp.experiment import history
from streaming_sbp.experiment.arms import Experiment, Tree, Trial, effective, settings
from streaming_sbp.experiment.compute import Compute
from streaming_sbp.experiment.history import RunHistory
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import collect

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """One evaluation. Losses in nats per token; ``compute_tokens``, see compute.py; ``seconds`` since the first."""

    tokens: int
    compute_tokens: float
    seconds: float
    heldout_loss: float
    bits_per_byte: float
    accuracy: float | None  # of questions on known facts
    question_loss: float | None
    question_rank: float | None = None  # mean, of the right answer; None also in results recorded without it


@dataclass(frozen=True)
class SnapshotResult:
    """``at_tokens``: trained when it was published."""

    version: int | None
    verdict: str
    parent_tokens: int
    at_tokens: int
    tuned_tokens: int
    reasons: list[str]
    measures: dict[str, float]


@dataclass(frozen=True)
class TrialResult:
    arm: str
    point: dict[str, Any]
    seed: int
    state: str  # of the run: "done" when it has trained all its tokens
    curve: Annotated[list[Point], msgspec.Meta(min_length=1)]
    snapshots: list[SnapshotResult]
    trained_tokens: dict[str, int]  # by source
    tuned_tokens: float
    sampled_tokens: float
    given_tokens: float  # what the snapshot had cost that another arm gave to this one, in tokens trained
    real_epochs: float
    realised_share: float | None
    ledger_imbalance: int | None
    command: str
    settings: Tree  # of the run, those that differ from their defaults
    versions: dict[str, str]
    fingerprints: dict[str, str] = field(default_factory=dict)  # see Manifest; empty in results recorded without them

    @property
    def trial(self) -> Trial:
        return Trial(self.arm, tuple(self.point.items()), self.seed)

    @property
    def unique_real_tokens(self) -> float:
        """Of its training documents, all of which may not have been read; 0 without any."""
        return self.trained_tokens.get("real", 0) / self.real_epochs if self.real_epochs else 0.0

    @property
    def end(self) -> Point:
        return self.curve[-1]

    @property
    def best(self) -> Point:
        return min(self.curve, key=lambda point: point.heldout_loss)

    def within(self, compute_tokens: float) -> Point | None:
        """The last evaluation that cost no more; None if what the trial was given had cost more by itself."""
        return next((p for p in reversed(self.curve) if p.compute_tokens <= compute_tokens), None)


@dataclass(frozen=True)
class Estimate:
    """``low`` and ``high``: the interval; None with one seed."""

    mean: float
    low: float | None
    high: float | None
    values: list[float]


@dataclass(frozen=True)
class ArmResult:
    """Estimates over the seeds that are done; ``gain_...`` over the baseline; ``share_...`` of the oracle's gain.

    None where it cannot be told. A seed whose oracle gains nothing has no share, and is left out of those.
    """

    arm: str
    title: str
    point: dict[str, Any]
    seeds: list[int]
    end_loss: Estimate
    best_loss: Estimate
    end_bits_per_byte: Estimate
    end_accuracy: Estimate | None
    compute_tokens: Estimate
    gain_loss: Estimate | None  # nats per token, over the best step of the baseline
    share_of_gain_loss: Estimate | None
    share_of_gain_loss_over_end: Estimate | None  # over the end of the baseline, instead of its best step
    share_of_gain_accuracy: Estimate | None
    share_at_equal_compute_loss: Estimate | None
    share_at_equal_compute_accuracy: Estimate | None
    tokens_at_equal_compute: Estimate | None  # trained by then
    data_efficiency: Estimate | None


class _Recorded(msgspec.Struct):
    trials: list[TrialResult]
    commands: list[str] = []
    command: str = ""  # in its place in files of earlier versions


# --- trials ---


def read_trial(run: RunDir, trial: Trial, command: str, given_tokens: float = 0.0) -> TrialResult:
    """From the records of a run. Raises ValueError when it has no evaluation yet."""
    told = history.load(run)
    evaluations = told.evaluations
    if not evaluations:
        raise ValueError(f"{run.path}: no evaluation on held-out documents; raise data.heldout_share")
    compute, started = Compute(run), evaluations[0]["time"]
    curve = [
        Point(
            record["tokens"],
            given_tokens + compute.total(record["tokens"], record["time"]),
            record["time"] - started,
            record["heldout_loss"],
            record["heldout_bits_per_byte"],
            record.get("question_accuracy"),
            record.get("question_loss"),
            record.get("question_rank"),
        )
        for record in evaluations
    ]
    status, ended = collect(run), evaluations[-1]["time"]
    return TrialResult(
        arm=trial.arm,
        point=dict(trial.point),
        seed=trial.seed,
        state=status["run"]["state"],
        curve=curve,
        snapshots=_snapshots(told),
        trained_tokens=status["mix"]["trained_tokens"] or {},
        tuned_tokens=compute.tuned_tokens(ended),
        sampled_tokens=compute.sampled_tokens(ended),
        given_tokens=given_tokens,
        real_epochs=status["throughput"]["real_epochs"] or 0.0,
        realised_share=status["mix"]["realised"],
        ledger_imbalance=status["ledger"]["imbalance"],
        command=command,
        settings=settings(run.config()),
        versions=run.versions,
        fingerprints=history.fingerprints(run),
    )


def load(file: Path) -> tuple[dict[Trial, TrialResult], list[str]]:
    """The trials that a results.json holds as done, and the commands that made it; none without the file.

    Raises ConfigError when it is not one of ours.
    """
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_Recorded)
        trials = {t.trial: replace(t, settings=effective(t.settings)) for t in found.trials if t.state == "done"}
    except FileNotFoundError:
        return {}, []
    except NotADirectoryError:
        raise ConfigError(f"{file.parent}: is below a file, expected a folder; choose another --out") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error}; move it away, or choose another --out") from None
    except (msgspec.DecodeError, TypeError) as error:  # TypeError: a point that is no key
        raise ConfigError(
            f"{file}: not a results.json of this version: {error}; move it away, or choose another --out"
        ) from None
    return trials, found.commands or [found.command] * bool(found.command)


class Texts:
    """Which documents there are: one data set wherever its folder is named, one tokenizer for all folders beside it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Path], tuple[str, str]] = {}  # (what, where) -> digest, and who had it first

    def difference(self, whose: str, folder: Path, fingerprints: Mapping[str, str]) -> str:
        """From those that others have told of this data set, "" for none; see Manifest for ``fingerprints``."""
        for what, where in (("data set", folder), ("tokenizer", folder.parent)):
            if what in fingerprints:
                digest, first = self._known.setdefault((what, where), (fingerprints[what], whose))
                if digest != fingerprints[what]:
                    return f"{what} {fingerprints[what][:12]}, expected {digest[:12]} as in {first}"
        return ""


def _snapshots(told: RunHistory) -> list[SnapshotResult]:
    at_tokens = history.tokens_at(told.trains, [snapshot.time for snapshot in told.snapshots])
    return [
        SnapshotResult(
            version=snapshot.version,
            verdict=snapshot.verdict,
            parent_tokens=snapshot.parent_tokens or 0,
            at_tokens=int(tokens or 0),
            tuned_tokens=snapshot.tuned_tokens or 0,
            reasons=list(snapshot.reasons),
            measures=snapshot.measures,
        )
        for snapshot, tokens in zip(told.snapshots, at_tokens, strict=True)
    ]


def best_point(trials: Iterable[TrialResult]) -> dict[str, Any]:
    """The point of a grid with the lowest held-out loss at any step."""
    return min(trials, key=lambda trial: trial.best.heldout_loss).point


# --- arms ---


def compare(experiment: Experiment, trials: Sequence[TrialResult]) -> list[ArmResult]:
    """Each arm with at least one seed that is done, in the experiment's order."""
    done = [trial for trial in trials if trial.state == "done"]
    chosen = {arm: _chosen(arm, experiment, done) for arm in experiment.arms}
    baseline, oracle = chosen[experiment.baseline], chosen[experiment.oracle]
    return [
        _arm_result(experiment, arm, by_seed, baseline, oracle, chosen) for arm, by_seed in chosen.items() if by_seed
    ]


def _chosen(arm: str, experiment: Experiment, done: list[TrialResult]) -> dict[int, TrialResult]:
    """By seed, in their order, the trials of the point that is best with the first seed."""
    own = sorted((trial for trial in done if trial.arm == arm), key=lambda trial: trial.seed)
    first = [trial for trial in own if trial.seed == 0]
    if len(first) < len(experiment.arms[arm].points):
        return {}
    point = best_point(first)
    return {trial.seed: trial for trial in own if trial.point == point}


def _arm_result(
    experiment: Experiment,
    arm: str,
    by_seed: dict[int, TrialResult],
    baseline: dict[int, TrialResult],
    oracle: dict[int, TrialResult],
    chosen: dict[str, dict[int, TrialResult]],
) -> ArmResult:
    trials = list(by_seed.values())
    paired = [(by_seed[s], baseline[s], oracle[s]) for s in by_seed if s in baseline and s in oracle]
    accuracies = [trial.end.accuracy for trial in trials]
    at_compute = [(own.within(base.end.compute_tokens), base, orac) for own, base, orac in paired]
    is_baseline = arm == experiment.baseline
    counted = [(own.best if is_baseline else own.end, base, orac) for own, base, orac in paired]
    return ArmResult(
        arm=arm,
        title=experiment.arms[arm].title,
        point=trials[0].point,
        seeds=sorted(by_seed),
        end_loss=estimate([t.end.heldout_loss for t in trials]),
        best_loss=estimate([t.best.heldout_loss for t in trials]),
        end_bits_per_byte=estimate([t.end.bits_per_byte for t in trials]),
        end_accuracy=estimate(accuracies) if None not in accuracies else None,  # type: ignore[arg-type]
        compute_tokens=estimate([t.end.compute_tokens for t in trials]),
        gain_loss=_estimate(base.best.heldout_loss - point.heldout_loss for point, base, _ in counted),
        share_of_gain_loss=_shares(counted, _loss_gain),
        share_of_gain_loss_over_end=_shares([(own.end, base, orac) for own, base, orac in paired], _loss_gain_over_end),
        share_of_gain_accuracy=_shares([(own.end, base, orac) for own, base, orac in paired], _accuracy_gain),
        share_at_equal_compute_loss=_shares(at_compute, _loss_gain),
        share_at_equal_compute_accuracy=_shares(at_compute, _accuracy_gain),
        tokens_at_equal_compute=_estimate(point.tokens if point else None for point, _, _ in at_compute),
        data_efficiency=_data_efficiency(experiment, by_seed, chosen),
    )


def _loss_gain(point: Point, baseline: TrialResult, oracle: TrialResult) -> float | None:
    start = baseline.best.heldout_loss
    return _share(start - point.heldout_loss, start - oracle.end.heldout_loss)


def _loss_gain_over_end(point: Point, baseline: TrialResult, oracle: TrialResult) -> float | None:
    start = baseline.end.heldout_loss
    return _share(start - point.heldout_loss, start - oracle.end.heldout_loss)


def _accuracy_gain(point: Point, baseline: TrialResult, oracle: TrialResult) -> float | None:
    """Over the baseline at whichever step knows most, so that nothing is gained by stopping it at another."""
    known = [p.accuracy for p in baseline.curve if p.accuracy is not None]
    if not known or point.accuracy is None or oracle.end.accuracy is None:
        return None
    return _share(point.accuracy - max(known), oracle.end.accuracy - max(known))


def _share(gain: float, whole: float) -> float | None:
    """None when the oracle gains nothing: then there is no share of it."""
    return gain / whole if whole > 0 else None


def _shares(points: Iterable[tuple[Point | None, TrialResult, TrialResult]], share: Any) -> Estimate | None:
    return _estimate(share(point, base, orac) if point else None for point, base, orac in points)


def _estimate(values: Iterable[float | None]) -> Estimate | None:
    """Of those that there are."""
    known = [value for value in values if value is not None]
    return estimate(known) if known else None


def _data_efficiency(
    experiment: Experiment, by_seed: dict[int, TrialResult], chosen: dict[str, dict[int, TrialResult]]
) -> Estimate | None:
    """How many times the unique real text the baseline needs for this arm's loss.

    Interpolated between the baseline and the arms with ``more_real_text``, in the logarithm of its amount, each at its
    best step; None with fewer than three of them. Beyond the largest it is that one. More text that has a higher loss
    than less of it had is passed over.
    """
    scales = [
        chosen[name] for name, arm in experiment.arms.items() if name == experiment.baseline or arm.more_real_text
    ]
    found = []
    for seed, own in by_seed.items():
        real = [trials[seed] for trials in scales if seed in trials and trials[seed].unique_real_tokens]
        if len(real) < 3 or chosen[experiment.baseline].get(seed) not in real:
            continue
        least = chosen[experiment.baseline][seed].unique_real_tokens
        known = [(trial.unique_real_tokens / least, trial.best.heldout_loss) for trial in real]
        ever_lower = [
            (loss, times) for times, loss in known if loss <= min(other for less, other in known if less <= times)
        ]
        losses, times = zip(*sorted(ever_lower), strict=True)
        found.append(math.exp(float(np.interp(own.best.heldout_loss, losses, np.log(times)))))
    return _estimate(found)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values. Raises ValueError without any."""
    if not values:
        raise ValueError("values: got none, expected at least one")
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Estimate(mean, None, None, list(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, list(values))


# --- as JSON ---


def as_json(
    experiment: Experiment, trials: Sequence[TrialResult], arms: Sequence[ArmResult], commands: Sequence[str]
) -> dict[str, Any]:
    """Everything, for results.json. ``commands``: all that worked on it, the last one last."""
    return {
        "commands": list(commands),
        "experiment": experiment.name,
        "title": experiment.title,
        "scale": experiment.scale,
        "seeds": len({trial.seed for trial in trials}),
        "baseline": experiment.baseline,
        "oracle": experiment.oracle,
        "main": experiment.main,
        "control": experiment.control,
        "arms": [asdict(arm) for arm in arms],
        "trials": [asdict(trial) for trial in trials],
    }


def headline(experiment: Experiment, arms: Sequence[ArmResult]) -> dict[str, Any]:
    """The one line: what the arm that the experiment names as its main one reached, and the control."""
    by_name = {arm.arm: arm for arm in arms}
    main, control = by_name.get(experiment.main), by_name.get(experiment.control)
    return {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "gain_nats": _mean(main.gain_loss if main else None),
        "oracle_gain_nats": _mean(by_name[experiment.oracle].gain_loss if experiment.oracle in by_name else None),
        "share_of_oracle_gain_loss": _mean(main.share_of_gain_loss if main else None),
        "share_of_oracle_gain_accuracy": _mean(main.share_of_gain_accuracy if main else None),
        "share_at_equal_compute_loss": _mean(main.share_at_equal_compute_loss if main else None),
        "random_pair_share": _mean(control.share_of_gain_loss if control else None),
        "seeds": min((_num_seeds(arm.gain_loss) for arm in (main, control) if arm), default=0),
    }


def _num_seeds(found: Estimate | None) -> int:
    return len(found.values) if found else 0


def _mean(found: Estimate | None) -> float | None:
    return None if found is None else round(found.mean, 4)

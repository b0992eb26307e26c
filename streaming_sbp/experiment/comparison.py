"""What an experiment has found, for people: a table in the terminal, and one self-contained HTML page with figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from streaming_sbp import __version__
from streaming_sbp.experiment import comparison_plots, page
from streaming_sbp.experiment.arms import Experiment
from streaming_sbp.experiment.results import ArmResult, Estimate, TrialResult
from streaming_sbp.telemetry.text import NOTHING, decimal, percent, quantity


def table(experiment: Experiment, arms: Sequence[ArmResult]) -> Table:
    """For 80 columns and more: loss, facts known, share of the oracle's gain, compute."""
    caption = "At the end of the run; the baseline's loss at its best step."
    result = Table(
        title=experiment.title, title_justify="left", pad_edge=False, caption=caption, caption_justify="left"
    )
    for name in ("arm", "seeds", "loss", "facts", "share of gain", "of facts'", "compute"):
        result.add_column(name, justify="left" if name == "arm" else "right", overflow="fold")
    for arm in arms:
        result.add_row(
            arm.title,
            str(len(arm.seeds)),
            decimal((arm.best_loss if arm.arm == experiment.baseline else arm.end_loss).mean),
            percent(arm.end_accuracy.mean if arm.end_accuracy else None),
            _in_two_lines(share)(arm.share_of_gain_loss),
            _in_two_lines(share)(arm.share_of_gain_accuracy),
            quantity(arm.compute_tokens.mean),
        )
    return result


def build(experiment: Experiment, trials: Sequence[TrialResult], arms: Sequence[ArmResult], out: Path) -> Path:
    """Write ``out``/index.html and the figures as PNGs beside it; returns the page's path."""
    chosen = {arm.arm: [t for t in trials if _belongs(t, arm)] for arm in arms}
    content = {
        "experiment": experiment,
        "headline": sentences(experiment, arms),
        "arms": arms,
        "trials": trials,
        "snapshots": [(t, s) for found in chosen.values() for t in found[:1] for s in t.snapshots],
        "program_version": __version__,
        "versions": trials[0].versions if trials else {},
    }
    figures = comparison_plots.draw_all(experiment, chosen)
    filters = {"estimate": _in_two_lines(estimate), "share": _in_two_lines(share)}
    return page.write(out, "experiment.html.j2", content, figures, filters)


def sentences(experiment: Experiment, arms: Sequence[ArmResult]) -> list[str]:
    """What came out, in words; a result that does not help is said as plainly."""
    by_name = {arm.arm: arm for arm in arms}
    missing = [a for a in (experiment.baseline, experiment.oracle, experiment.main) if a not in by_name]
    if missing:
        return [f"Not all arms are done yet; missing: {', '.join(missing)}."]
    main, control = by_name[experiment.main], by_name.get(experiment.control)
    oracle, baseline = by_name[experiment.oracle], by_name[experiment.baseline]
    if main.gain_loss is None or oracle.gain_loss is None:
        return [f"No seed has all of {baseline.arm}, {oracle.arm} and {main.arm} yet."]
    found = [
        f"{main.title}: {_apart(main.gain_loss)} in held-out loss than {baseline.title.lower()}, at equally many "
        f"trained tokens; {oracle.title.lower()}: {_apart(oracle.gain_loss)}."
    ]
    helped = main.gain_loss.mean > 0
    if main.share_of_gain_loss is None:
        found += [] if helped else [f"{main.title} did not help here."]
        return [*found, "The oracle gains nothing over the baseline, so there is no share of its gain."]
    found.append(
        f"{'That is' if helped else f'{main.title} did not help here:'} {share(main.share_of_gain_loss)} of what "
        f"{oracle.title.lower()} gains in held-out loss over {baseline.title.lower()}."
    )
    if without := len(main.gain_loss.values) - len(main.share_of_gain_loss.values):
        found.append(f"Seeds without a share, for their oracle gains nothing: {without}.")
    if main.share_of_gain_accuracy is not None:
        found.append(f"In facts known: {share(main.share_of_gain_accuracy)}.")
    if main.share_at_equal_compute_loss is not None and main.tokens_at_equal_compute is not None:
        found.append(
            f"At equal total compute, tuning and sampling counted: {share(main.share_at_equal_compute_loss)}; it had "
            f"trained {quantity(main.tokens_at_equal_compute.mean)} tokens by then, and was not meant to end there."
        )
    if control is not None and control.share_of_gain_loss is not None:
        found.append(f"The control, {control.title.lower()}: {share(control.share_of_gain_loss)}.")
    if len(main.seeds) == 1:
        found.append("One seed: no interval.")
    return found


def _apart(gain: Estimate) -> str:
    return f"{abs(gain.mean):.3f} nats per token {'lower' if gain.mean > 0 else 'higher'}"


def estimate(found: Estimate | None, digits: int = 3) -> str:
    """Mean and interval: ``1.006 [0.98, 1.03]``."""
    if found is None:
        return NOTHING
    mean = decimal(found.mean, digits)
    return mean if found.low is None else f"{mean} [{decimal(found.low, digits)}, {decimal(found.high, digits)}]"


def share(found: Estimate | None) -> str:
    """Mean and interval: ``81 % [78, 84]``."""
    if found is None:
        return NOTHING
    mean = percent(found.mean, 0)
    if found.low is None or found.low == found.high:  # the baseline's and the oracle's own shares
        return mean
    return f"{mean} [{100 * found.low:.0f}, {100 * (found.high or 0.0):.0f}]"


def _in_two_lines(shown: Callable[..., str]) -> Callable[..., str]:
    """The interval below the mean, so that a table of many columns fits a page."""
    return lambda *values: shown(*values).replace(" [", "\n[")


def _belongs(trial: TrialResult, arm: ArmResult) -> bool:
    return trial.arm == arm.arm and trial.point == arm.point and trial.state == "done"

"""The figures of an experiment: every arm over tokens and over compute, what is gained when, quality by snapshot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from streaming_sbp.experiment.arms import Experiment
from streaming_sbp.experiment.plots import AVAILABLE, GREY, Plot, figure_and_axes, to_plot
from streaming_sbp.experiment.results import Point, TrialResult

if AVAILABLE:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

# Okabe and Ito's palette without its yellow, in an order that keeps neighbours apart; then again, dashed.
COLOURS = ("#0072B2", "#000000", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^")
LEGEND_COLUMNS = 28  # longer titles are wrapped, or the legend leaves the axes no room
LEGEND_LINE_INCHES = 0.2  # with the space between entries
GRID_POINTS = 60

Curves = Mapping[str, Sequence[TrialResult]]  # by arm, the seeds of the point that was chosen


def draw_all(experiment: Experiment, curves: Curves) -> list[Plot]:
    """Every figure for which there are results. Empty without matplotlib."""
    if not AVAILABLE or not curves:
        return []
    draws = [_loss_over_tokens, _gain_over_tokens, _accuracy_over_tokens, _loss_over_compute, _quality, _recovery]
    return [drawn for draw in draws if (drawn := draw(experiment, curves)) is not None]


def _loss_over_tokens(experiment: Experiment, curves: Curves) -> Plot:
    figure = _losses(experiment, curves, lambda point: point.tokens, "trained tokens")
    text = "On held-out real documents; the mean of the seeds, and their range where there are several."
    return to_plot("loss-tokens", "Held-out loss over trained tokens", text, figure)


def _loss_over_compute(experiment: Experiment, curves: Curves) -> Plot:
    x = "tokens trained, tuned and sampled"
    figure = _losses(experiment, curves, lambda point: point.compute_tokens, x, held=True)
    text = (
        "The same losses over everything that was spent; a sampled token counts a third of a trained one. Level: the "
        "trainer waited while the synthesizer was tuned. What begins in the middle was given a synthesizer that had "
        "cost so much."
    )
    return to_plot("loss-compute", "Held-out loss over total compute", text, figure)


def _losses(
    experiment: Experiment, curves: Curves, x: Callable[[Point], float], x_label: str, held: bool = False
) -> Figure:
    figure, axes = figure_and_axes()
    _lines(axes, experiment, curves, x, lambda point: point.heldout_loss, held)
    _finish(axes, x_label, "held-out loss (nats per token)")
    _limit(axes, [point.heldout_loss for trials in curves.values() for trial in trials for point in trial.curve])
    return figure


def _accuracy_over_tokens(experiment: Experiment, curves: Curves) -> Plot | None:
    if any(trial.end.accuracy is None for trials in curves.values() for trial in trials):
        return None
    figure, axes = figure_and_axes()
    _lines(axes, experiment, curves, lambda point: point.tokens, lambda point: 100 * (point.accuracy or 0.0))
    _finish(axes, "trained tokens", "facts known (%)")
    axes.set_ylim(0, 102)
    text = "Questions on facts of the training documents, the right answer among all values of the attribute."
    return to_plot("accuracy-tokens", "Facts known over trained tokens", text, figure)


def _gain_over_tokens(experiment: Experiment, curves: Curves) -> Plot | None:
    """What an arm is better by than the baseline's best loss so far: it starts below 0, and overtakes.

    With the seeds that all arms have: seeds differ by as much as arms do.
    """
    baseline = curves.get(experiment.baseline)
    if not baseline or len(curves) < 2:
        return None
    figure, axes = figure_and_axes()
    by_seed = {trial.seed: trial for trial in baseline}
    common = set(by_seed).intersection(*({trial.seed for trial in trials} for trials in curves.values()))
    colours = _looks(experiment)
    for arm, trials in curves.items():
        pairs = [(trial, by_seed[trial.seed]) for trial in trials if trial.seed in common]
        if arm == experiment.baseline or not pairs:
            continue
        tokens = np.linspace(0, min(trial.end.tokens for trial, _ in pairs), GRID_POINTS)
        gains = [_best_so_far(base, tokens) - _best_so_far(trial, tokens) for trial, base in pairs]
        axes.plot(tokens, np.mean(gains, axis=0), label=experiment.arms[arm].title, **colours[arm])
    axes.axhline(0, color=GREY, lw=1)
    served = [s.at_tokens for t in curves.get(experiment.main, ()) for s in t.snapshots if s.verdict == "published"]
    if served:
        axes.axvline(min(served), color=GREY, lw=1, ls=":")
    _finish(axes, "trained tokens", "gain over repetition (nats)")
    text = "Best held-out loss so far of tuned repetition, minus that of the arm: above 0 the arm is ahead."
    if len(common) < len(by_seed):
        text += f" Of the seeds that all arms have: {', '.join(map(str, sorted(common))) or 'none'}."
    if served:
        main = experiment.arms[experiment.main].title
        text += (
            f" Left of the dotted line, the first snapshot of {main}, arms differ only in their real text and in how "
            "they are regularised; repetition is tuned for its end."
        )
    return to_plot("gain-tokens", "What is gained over repetition, and when", text, figure)


def _quality(experiment: Experiment, curves: Curves) -> Plot | None:
    """Facts stated by the trial documents of each snapshot: true, and true though not in the seed document."""
    figure, axes = figure_and_axes()
    colours, drawn = _looks(experiment), False
    for arm, trials in curves.items():
        for trial in trials[:1]:
            known = [s for s in trial.snapshots if "true_fact_share" in s.measures]
            if not known:
                continue
            drawn = True
            parents = [s.parent_tokens for s in known]
            look = colours[arm] | {"marker": _marker(colours[arm]), "clip_on": False}
            title = experiment.arms[arm].title
            axes.plot(parents, [100 * s.measures["true_fact_share"] for s in known], label=title, **look)
            axes.plot(parents, [100 * s.measures["true_new_fact_share"] for s in known], alpha=0.5, **look)
    if not drawn:
        return None
    _finish(axes, "trained tokens of the checkpoint", "stated facts that are true (%)")
    axes.set_ylim(0, 102)
    text = "Of the trial documents of each snapshot, also of those that the gate refused; pale: facts not in the seed."
    return to_plot("quality", "How true the synthetic documents are", text, figure)


def _recovery(experiment: Experiment, curves: Curves) -> Plot | None:
    """The Bayesian reading of the paper: a seed document speaks of a concept, and what is synthesised speaks of that.

    How well each snapshot recovers it, against how far ahead of the baseline the arm is when its service ends.
    """
    baseline = {trial.seed: trial for trial in curves.get(experiment.baseline, ())}
    figure, axes = figure_and_axes()
    looks, drawn = _looks(experiment), False
    for arm, trials in curves.items():
        found = [p for trial in trials if trial.seed in baseline for p in recovered(trial, baseline[trial.seed])]
        if not found:
            continue
        drawn = True
        look = looks[arm] | {"ls": looks[arm]["ls"] if len(trials) == 1 else "", "lw": 1.0}
        facts, leads = [100 * p.facts for p in found], [p.lead for p in found]
        axes.plot(
            facts, leads, marker=_marker(looks[arm]), clip_on=False, label=_title(experiment, curves, arm), **look
        )
    if not drawn:
        return None
    axes.axhline(0, color=GREY, lw=1)
    _finish(axes, "facts of the seed's concept that a document states truly (%)", "lead when its service ends (nats)")
    text = (
        "One point for each snapshot that was published while synthetic text was still trained on, in their order. "
        "Across: how much of the concept behind the seed document its documents recover. Up: best held-out loss so far "
        "of tuned repetition, minus the arm's, when the next snapshot took over: what all snapshots until then have "
        "brought, and the arm's other settings."
    )
    return to_plot("recovery", "What the synthesizer recovers, and what its documents bring", text, figure)


class Recovered(NamedTuple):
    """Of one snapshot."""

    facts: float  # share of the facts about its seed's concept that a document states truly
    lead: float  # nats, of the best losses so far, over the baseline at the end of its service


def recovered(trial: TrialResult, baseline: TrialResult) -> list[Recovered]:
    """Of each snapshot whose truth is known, and which was published while synthetic text was still trained on.

    The last one serves until the shorter curve ends.
    """
    last = min(trial.end.tokens, baseline.end.tokens)
    synthetic_until = min(last, trial.end.tokens - trial.settings.get("mix", {}).get("final_real_tokens", 0))
    known = [s for s in trial.snapshots if s.verdict == "published" and "expressed_fact_share" in s.measures]
    served = [s for s in known if s.at_tokens < synthetic_until]
    if not served:
        return []
    ends = np.minimum([*(s.at_tokens for s in served[1:]), last], last)
    leads = _best_so_far(baseline, ends) - _best_so_far(trial, ends)
    return [
        Recovered(snapshot.measures["expressed_fact_share"], float(lead))
        for snapshot, lead in zip(served, leads, strict=True)
    ]


# --- parts ---


def _lines(
    axes: Axes,
    experiment: Experiment,
    curves: Curves,
    x: Callable[[Point], float],
    y: Callable[[Point], float],
    held: bool = False,
) -> None:
    """``held``: each value holds until the next evaluation; else lines lead from one to the next."""
    looks = _looks(experiment)
    step = "steps-post" if held else "default"
    for arm, trials in curves.items():
        title, look = _title(experiment, curves, arm), looks[arm]
        if len(trials) == 1:
            (only,) = trials
            axes.plot([x(p) for p in only.curve], [y(p) for p in only.curve], label=title, drawstyle=step, **look)
            continue
        # Their compute differs a little: where one has ended it holds its last value, so that the mean ends as they do.
        first, ends = max(x(t.curve[0]) for t in trials), [x(t.end) for t in trials]
        last = max(ends) if held else min(ends)
        grid = np.linspace(first, last, GRID_POINTS * (4 if held else 1))
        values = np.array([_at(grid, [x(p) for p in t.curve], [y(p) for p in t.curve], held) for t in trials])
        axes.plot(grid, values.mean(axis=0), label=title, drawstyle=step, **look)
        axes.fill_between(
            grid,
            values.min(axis=0),
            values.max(axis=0),
            color=look["color"],
            alpha=0.15,
            lw=0,
            step="post" if held else None,
        )


def _at(grid: np.ndarray, x: Sequence[float], y: Sequence[float], held: bool) -> np.ndarray:
    if not held:
        return np.interp(grid, x, y)
    return np.asarray(y)[np.searchsorted(x, grid, side="right") - 1]


def _best_so_far(trial: TrialResult, tokens: np.ndarray) -> np.ndarray:
    best = np.minimum.accumulate([point.heldout_loss for point in trial.curve])
    return np.interp(tokens, [point.tokens for point in trial.curve], best)


def _looks(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Colour and line style of each arm: the same in every figure, and for the four roles in every experiment."""
    roles = (experiment.baseline, experiment.oracle, experiment.main, experiment.control)
    return {
        arm: {"color": COLOURS[i % len(COLOURS)], "ls": STYLES[i // len(COLOURS) % len(STYLES)], "lw": 1.8}
        for i, arm in enumerate(dict.fromkeys((*roles, *experiment.arms)))
    }


def _title(experiment: Experiment, curves: Curves, arm: str) -> str:
    """With its seeds where it has fewer than others: means over other seeds are not to be compared with its."""
    num, most = len(curves[arm]), max(map(len, curves.values()))
    return experiment.arms[arm].title + (f" ({num} of {most} seeds)" if num < most else "")


def _marker(look: dict[str, Any]) -> str:
    """Another one for each line style, for points that no line leads to."""
    return dict(zip(STYLES, MARKERS, strict=True)).get(look["ls"], MARKERS[0])


def _limit(axes: Axes, losses: list[float]) -> None:
    """Leave the first steep fall, and a baseline that runs away, out of view."""
    low = min(losses)
    high = float(np.percentile(losses, 90))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(left=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    lines, titles = axes.get_legend_handles_labels()
    titles = [textwrap.fill(title, LEGEND_COLUMNS) for title in titles]
    needed = LEGEND_LINE_INCHES * sum(title.count("\n") + 1 for title in titles)
    if isinstance(axes.figure, Figure):
        axes.figure.set_figheight(max(axes.figure.get_figheight(), needed))
    axes.legend(lines, titles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)

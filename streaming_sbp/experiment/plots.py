"""The report's figures as PNGs. Needs the extra `plots` (matplotlib); the Agg backend and no global state."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from streaming_sbp.experiment.history import RunHistory
from streaming_sbp.telemetry.records import Record

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

# Okabe and Ito's palette, told apart by readers with any colour vision; line styles differ beside.
REAL, SYNTHETIC, HELDOUT, GREY, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#6b7280", "#CC79A7", "#56B4E9"
SIZE_INCHES, DPI = (6.6, 3.7), 180
MARGIN_OF_LOSS = 0.08  # share of the range left above and below
NUM_WINDOWS = 40


@dataclass(frozen=True)
class Plot:
    """One figure: ``name`` is its file name without .png, ``description`` says in words what it shows."""

    name: str
    title: str
    description: str
    png: bytes


def draw_all(history: RunHistory) -> list[Plot]:
    """Every figure for which there are records. Empty without matplotlib (see ``AVAILABLE``)."""
    if not AVAILABLE:
        return []
    plots = [draw(history) for draw in (_loss, _mix, _deviation, _throughput)]
    plots.append(similarity(history.pairs))
    return [plot for plot in plots if plot is not None]


def similarity(statistics: dict[str, Any]) -> Plot | None:
    """The similarities that the pairer found (RUN/pairs/statistics.json). None without them, or without matplotlib."""
    known = statistics.get("similarity") or {}
    if not AVAILABLE or not any(known.get("all_neighbours") or ()):
        return None
    figure, axes = figure_and_axes()
    edges = np.array(known["bin_edges"])
    for key, colour, style, label in (
        ("random_pairs", GREY, ":", "random pairs"),
        ("all_neighbours", REAL, "--", "nearest neighbours"),
        ("kept_pairs", SYNTHETIC, "-", "pairs kept"),
    ):
        counts = np.array(known.get(key) or [0], dtype=np.float64)
        if counts.any():
            axes.stairs(100 * counts / counts.sum(), edges, color=colour, ls=style, lw=1.8, label=label)
    axes.axvline(statistics["threshold"], color="black", lw=1.2, label=f"threshold {statistics['threshold']:.2f}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("similarity of two documents")
    axes.set_ylabel("share of each kind (%, log scale)")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, ncols=2)  # above: the lines are anywhere
    text = "How similar the documents of pairs are, beside all neighbours that were found, and random pairs."
    return to_plot("similarity", "Similarity of pairs", text, figure)


def _loss(history: RunHistory) -> Plot | None:
    figure, axes = figure_and_axes()
    drawn = [
        _train_loss(axes, history.trains, "real", REAL, "train, real"),
        _train_loss(axes, history.trains, "synthetic", SYNTHETIC, "train, synthetic"),
        _heldout_loss(axes, history.evaluations),
    ]
    if not any(drawn):
        return None
    _limit_loss(axes, history)
    _mark_snapshots(axes, history)
    _finish_token_axis(axes, history)
    axes.set_ylabel("loss (nats per token)")
    axes.legend(loc="upper right", frameon=False)
    text = "Thin lines are single records, thick ones their running mean. Dotted: a snapshot is swapped in."
    return to_plot("loss", "Loss", text, figure)


def _mix(history: RunHistory) -> Plot | None:
    mixed = [r for r in history.trains if r.get("scheduled_share") is not None and r.get("realised_share") is not None]
    if not mixed or not any(r["scheduled_share"] or r["realised_share"] for r in mixed):
        return None
    figure, axes = figure_and_axes()
    tokens = _column(mixed, "tokens")
    middles, shares = windowed_share(mixed)
    axes.plot(middles, 100 * shares, color=SYNTHETIC, lw=1, alpha=0.55, label="realised, per window")
    axes.plot(tokens, 100 * _column(mixed, "realised_share"), color=SYNTHETIC, lw=2, label="realised, so far")
    axes.step(tokens, 100 * _column(mixed, "scheduled_share"), color="black", lw=1.5, ls="--", label="scheduled")
    _mark_snapshots(axes, history)
    _finish_token_axis(axes, history)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("synthetic share of tokens (%)")
    axes.legend(loc="lower right", frameon=False)
    text = "The share of trained tokens that is synthetic: what the schedule asks for and what was trained."
    return to_plot("mix", "Synthetic share", text, figure)


def _deviation(history: RunHistory) -> Plot | None:
    known = [r for r in history.trains if r.get("deviation_tokens") is not None and r.get("scheduled_share")]
    if not known:
        return None
    figure, axes = figure_and_axes()
    tokens = _column(known, "tokens")
    axes.plot(tokens, _column(known, "deviation_tokens"), color=SYNTHETIC, lw=1.2, label="deviation")
    owed = np.array([float(r.get("debt_tokens") or 0) for r in known])
    if owed.any():
        axes.plot(tokens, owed, color=PURPLE, lw=1.2, ls="--", label="owed by fallbacks")
        axes.legend(loc="upper right", frameon=False)
    _finish_token_axis(axes, history)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("tokens")
    text = "How far the mix is from its schedule while both sources have data: at most one document is promised."
    return to_plot("deviation", "Deviation from the schedule", text, figure)


def _throughput(history: RunHistory) -> Plot | None:
    if not history.rates:
        return None
    figure, axes = figure_and_axes()
    colours = {"trainer": REAL, "tuner": HELDOUT}
    others = iter((SYNTHETIC, PURPLE, SKY, "#E69F00", GREY) * len(history.rates))
    for rate in history.rates:
        colour = colours.get(rate.role) or next(others)
        style = "-" if rate.role == "trainer" else "--" if rate.role == "tuner" else "-."
        minutes = history.active_minutes(rate.times)
        axes.plot(minutes, rate.tokens_per_second, color=colour, ls=style, lw=1.4, label=rate.role)
    for resume in history.resumes:
        axes.axvline(history.active_minutes(np.array([resume["time"]]))[0], color=GREY, lw=1, ls=":")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of running")
    axes.set_ylabel("tokens per second (log scale)")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, ncols=4)  # above: the lines are anywhere
    text = "Tokens trained, tuned and sampled per second. Time in which the run was stopped is left out."
    return to_plot("throughput", "Throughput by role", text, figure)


# --- parts ---


def windowed_share(trains: list[Record], num_windows: int = NUM_WINDOWS) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic share of the tokens trained in each of ``num_windows`` windows: (tokens at their middles, shares)."""
    tokens = _column(trains, "tokens")
    synthetic = np.array([float((r.get("trained_tokens") or {}).get("synthetic") or 0) for r in trains])
    edges = np.linspace(tokens[0], tokens[-1], num_windows + 1)
    if edges[0] == edges[-1]:
        return np.array([]), np.array([])
    at_edges = np.interp(edges, tokens, synthetic)
    return (edges[:-1] + edges[1:]) / 2, np.diff(at_edges) / np.diff(edges)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over ``window`` neighbours, fewer at the ends."""
    window = max(1, min(window, len(values)))
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _train_loss(axes: Axes, trains: list[Record], source: str, colour: str, label: str) -> bool:
    known = [r for r in trains if (r.get("loss") or {}).get(source) is not None]
    if not known:
        return False
    tokens, losses = _column(known, "tokens"), np.array([float(r["loss"][source]) for r in known])
    axes.plot(tokens, losses, color=colour, lw=0.7, alpha=0.35)
    style = "-" if source == "real" else "--"
    axes.plot(tokens, running_mean(losses, max(3, len(losses) // 40)), color=colour, lw=1.8, ls=style, label=label)
    return True


def _heldout_loss(axes: Axes, evaluations: list[Record]) -> bool:
    known = [r for r in evaluations if r.get("heldout_loss") is not None]
    if known:
        losses = _column(known, "heldout_loss")
        axes.plot(_column(known, "tokens"), losses, color=HELDOUT, lw=2, marker="o", ms=4, label="held-out, real")
    return bool(known)


def _limit_loss(axes: Axes, history: RunHistory) -> None:
    """Leave the first steep fall out of view, where it would press everything else flat."""
    losses = [r["heldout_loss"] for r in history.evaluations if r.get("heldout_loss") is not None]
    losses += [v for r in history.trains for v in (r.get("loss") or {}).values() if v is not None]
    finite = np.array(losses)[np.isfinite(losses)]
    if not len(finite):
        return
    low, high = finite.min(), np.percentile(finite, 97)
    margin = max(0.05, MARGIN_OF_LOSS * (high - low))
    axes.set_ylim(low - margin, high + margin)


def _mark_snapshots(axes: Axes, history: RunHistory) -> None:
    for snapshot in history.snapshots:
        if snapshot.swapped_tokens is not None:
            axes.axvline(snapshot.swapped_tokens, color=GREY, lw=1, ls=":")
            axes.annotate(
                f"v{snapshot.version}",
                xy=(snapshot.swapped_tokens, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(2, 3),
                textcoords="offset points",
                color=GREY,
                fontsize=9,
            )


def _finish_token_axis(axes: Axes, history: RunHistory) -> None:
    axes.set_xlabel("trained tokens")
    axes.set_xlim(0, max(float(history.trains[-1]["tokens"]) if history.trains else 0.0, 1.0))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _column(records: list[Record], key: str) -> np.ndarray:
    return np.array([float(record[key]) for record in records])


def figure_and_axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def to_plot(name: str, title: str, description: str, figure: Figure) -> Plot:
    buffer = io.BytesIO()
    save: Callable[..., Any] = figure.savefig
    save(buffer, format="png", metadata={"Software": None})
    return Plot(name, title, description, buffer.getvalue())

"""`sbp report`: one self-contained HTML page that tells what happened in a run, from its records.

The page has no scripts and loads nothing; texts of documents are untrusted: escaped by jinja2, and cleaned of control
characters. A part for which the run has no records says so.
"""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import Any

from streaming_sbp import __version__
from streaming_sbp import config as configuration
from streaming_sbp.config import Config
from streaming_sbp.experiment import advice, history, page, peek, plots, quality
from streaming_sbp.experiment.history import RunHistory
from streaming_sbp.files import read_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry import text
from streaming_sbp.telemetry.status import Status, collect

NUM_SAMPLES = 10
NUM_SNAPSHOTS = 40  # rows of the timeline; the newest
NUM_EVENTS = 60
MEASURE_NAMES = {
    "pair_loss": "pair loss",
    "untuned_pair_loss": "before tuning",
    "repetitive_share": "repetitive",
    "copied_share": "copied",
    "duplicate_share": "duplicates",
    "empty_share": "too short",
    "unfinished_share": "unfinished",
    "mean_tokens": "mean length",
    "real_mean_tokens": "of real text",
    "distinct_ngrams": "distinct n-grams",
    "real_distinct_ngrams": "of real text",
    "mean_log_prob": "log-likelihood",
}


def build(run: RunDir, out: Path | None = None) -> Path:
    """Write ``out``/index.html (RUN/report by default) and the figures as PNGs beside it; returns the page's path.

    Without the extra `plots` (matplotlib) the page has no figures and says how to get them.
    """
    status, told = collect(run), history.load(run)
    return page.write(
        Path(out) if out else run.path / "report",
        "report.html.j2",
        _content(run, status, told) | _FUNCTIONS,
        plots.draw_all(told),
        {"measure": _measure, "quality": quality.shown},
    )


def _content(run: RunDir, status: Status, told: RunHistory) -> dict[str, Any]:
    """What the template fills in."""
    config = run.config()
    samples, samples_problem = _samples(run)
    return {
        "title": run.path.resolve().name,
        "status": status,
        "headline": headline(status, told),
        "tiles": _tiles(status, told),
        "deviation": _largest(told.trains, "deviation_tokens"),
        "padding_share": _padding_share(told),
        "snapshots": told.snapshots[-NUM_SNAPSHOTS:],
        "num_snapshots": len(told.snapshots),
        "measures": _measure_columns(told),
        "quality": quality.quality(run),
        "filter_reasons": list(dict.fromkeys(reason for counts in told.filtered.values() for reason in counts)),
        "phases": sorted(told.phases.items(), key=lambda item: -item[1]),
        "phases_total": sum(told.phases.values()),
        "processes": _processes(run, status),
        "told": told,
        "events": told.events[-NUM_EVENTS:],
        "samples": samples,
        "samples_problem": samples_problem,
        "advice": advice.suggest(run, config, status),
        "changed_settings": configuration.differences(Config(), config),
        "settings": configuration.to_toml(config),
        "versions": (read_json(run.path / "run.json") or {}).get("versions", {}),
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "program_version": __version__,
        "run_argument": shlex.quote(str(run.path)),
    }


# --- the page in words ---


def headline(status: Status, told: RunHistory) -> list[str]:
    """What happened, in a few sentences."""
    run = status["run"]
    if run["tokens"] is None:
        return ["This run has not trained anything yet."]
    state = {
        "done": "is done",
        "running": "is running",
        "stopping": "is stopping",
        "stopped": "was stopped",
        "failed": "failed",
    }[run["state"]]
    trained = f"{text.quantity(run['tokens'])} of {text.quantity(run['total_tokens'])} tokens"
    verb = "has trained" if run["state"] == "running" else "trained"
    sentences = [f"This run {state}: it {verb} {trained} in {text.duration(told.active_s)}."]
    sentences += _loss_sentence(told)
    return sentences + [s for tell in (_snapshot_sentence, _mix_sentence, _ledger_sentence) for s in tell(status)]


def _loss_sentence(told: RunHistory) -> list[str]:
    losses = [r["heldout_loss"] for r in told.evaluations if r.get("heldout_loss") is not None]
    if not losses:
        return []
    if len(losses) == 1:
        return [f"Held-out loss on real text is {losses[0]:.2f} nats per token."]
    verb = "fell" if losses[-1] < losses[0] else "rose" if losses[-1] > losses[0] else "stayed"
    return [f"Held-out loss on real text {verb} from {losses[0]:.2f} to {losses[-1]:.2f} nats per token."]


def _snapshot_sentence(status: Status) -> list[str]:
    snapshots = status["snapshots"]
    if not snapshots["published"]:
        refused = f"; {_plural(snapshots['quarantined'], 'candidate')} quarantined" if snapshots["quarantined"] else ""
        return [f"No snapshot of the synthesizer was published{refused}, so all text was real."]
    sentence = f"{_plural(snapshots['swapped_in'], 'synthesizer snapshot')} swapped in while it trained"
    if snapshots["quarantined"]:
        sentence += f", and {_plural(snapshots['quarantined'], 'candidate')} quarantined"
    return [sentence + "."]


def _mix_sentence(status: Status) -> list[str]:
    scheduled, realised = status["mix"]["scheduled"], status["mix"]["realised"]
    if not realised or scheduled is None:
        return []
    verdict = "as scheduled" if abs(realised - scheduled) < 0.005 else f"against {text.percent(scheduled)} scheduled"
    return [f"Since the first snapshot, {text.percent(realised)} of the trained tokens were synthetic, {verdict}."]


def _ledger_sentence(status: Status) -> list[str]:
    imbalance, sent = status["ledger"]["imbalance"], status["ledger"]["sent"]
    if imbalance is None or not sent:
        return []
    if imbalance:
        lost = f"{imbalance:+d} of {text.whole(sent)} synthetic documents unaccounted for"
        return [f"THE LEDGER DOES NOT BALANCE: {lost}."]
    return [f"The ledger balances: each of the {text.whole(sent)} synthetic documents sent is accounted for."]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun} was" if count == 1 else f"{count} {noun}s were"


def _tiles(status: Status, told: RunHistory) -> list[tuple[str, str, str]]:
    """(label, figure, what it means)"""
    run, loss, mix, snapshots, ledger = (status[key] for key in ("run", "loss", "mix", "snapshots", "ledger"))
    imbalance = ledger["imbalance"]
    balance = text.NOTHING if imbalance is None else "balanced" if imbalance == 0 else f"{imbalance:+d}"
    return [
        ("tokens trained", text.quantity(run["tokens"]), f"of {text.quantity(run['total_tokens'])}"),
        (
            "held-out loss",
            text.decimal(loss["heldout_real"], 2),
            f"{text.decimal(loss['heldout_bits_per_byte'], 2)} bits per byte",
        ),
        ("synthetic share", text.percent(mix["realised"]), f"scheduled {text.percent(mix['scheduled'])}"),
        ("snapshots swapped in", str(snapshots["swapped_in"]), f"{snapshots['quarantined']} quarantined"),
        ("ledger", balance, f"{text.whole(ledger['trained'])} synthetic documents trained"),
        (
            "trainer waited for data",
            text.percent(_share(told.phases.get("data_wait"), sum(told.phases.values()))),
            f"of {text.duration(told.active_s) if told.trains else text.NOTHING}",
        ),
    ]


# --- tables ---


def _measure_columns(told: RunHistory) -> list[tuple[str, str]]:
    """(key, heading) of every measure that any candidate has."""
    keys = dict.fromkeys(key for snapshot in told.snapshots for key in snapshot.measures)
    known = [key for key in MEASURE_NAMES if key in keys]
    others = [key for key in keys if key not in known]
    return [(key, MEASURE_NAMES.get(key, key.replace("_", " "))) for key in [*known, *others]]


def _measure(value: Any, key: str) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return text.NOTHING
    return text.percent(value) if key.endswith("_share") else text.decimal(value, 1 if key.endswith("tokens") else 3)


def _processes(run: RunDir, status: Status) -> list[dict[str, Any]]:
    """Time and memory of the last process of each role that has run."""
    files = run.read_roles()
    rows = []
    for name, role in status["roles"].items():
        if role["pid"] is None:
            continue
        said = files.get(name, {})
        lived_s = (said.get("updated") or 0.0) - (said.get("started") or 0.0)
        rows.append({"name": name, **role, "lived_s": lived_s, "cpu_share": _share(role["cpu_seconds"], lived_s)})
    return rows


def _padding_share(told: RunHistory) -> float | None:
    last = told.trains[-1] if told.trains else {}
    padding, tokens = last.get("padding_tokens"), last.get("tokens")
    return None if padding is None or not tokens else padding / (padding + tokens)


def _largest(records: list[dict[str, Any]], key: str) -> float | None:
    return max((record[key] for record in records if record.get(key) is not None), default=None)


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None or whole <= 0 else part / whole


def _samples(run: RunDir) -> tuple[list[peek.PeekedDocument], str]:
    """Documents to show, or the reason why they cannot be read."""
    try:
        return peek.sample(run, NUM_SAMPLES, seed=0), ""
    except (OSError, ValueError, LookupError) as error:
        return [], str(error)


_FUNCTIONS = {  # of the template
    "provenance": peek.provenance,
    "lineage": peek.lineage,
    "comparison": peek.comparison,
    "seed_heading": peek.seed_heading,
    "missing": peek.MISSING,
    "share": _share,
    "quality_heading": quality.heading,
}

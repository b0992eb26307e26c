"""What the page says, in words, tiles and tables, made from a run's status and history; the page only lays it out.

A table is ``columns`` (heading, and whether its cells are numbers) and ``rows`` of cells. A cell is text, or an object
with ``text`` and ``tone`` (good, bad, warn or plain), or one with ``time`` (Unix), which the page shows in the reader's
time zone. What processes and documents say is untrusted: cleaned of control characters here, shown as text there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streaming_sbp.experiment import advice, peek, quality
from streaming_sbp.experiment.history import RunHistory, Snapshot
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import ENDED, Status, is_silent, which_serves
from streaming_sbp.telemetry.text import (
    NOTHING,
    decimal,
    duration,
    one_line,
    percent,
    printable,
    quantity,
    size,
    whole,
)

Json = dict[str, Any]
Cell = str | Json
NUM_SNAPSHOTS = 40  # rows; the newest
NOTHING_RUNS = (*ENDED, "new")  # states of a run
TONES = {
    "training": "good",
    "running": "good",
    "done": "good",
    "published": "good",
    "failed": "bad",
    "dead": "bad",
    "quarantined": "bad",
    "stopped": "warn",
    "stopping": "warn",
    "waiting": "warn",
}
TERMS = {  # of the ledger: heading
    "sent": "sent",
    "trained": "trained",
    "buffered": "waiting",
    "in_flight": "on their way",
    "dropped": "dropped",
    "imbalance": "unaccounted for",
}


def of_status(run: RunDir, status: Status) -> Json:
    """JSON-able: state, tiles and tables."""
    config = run.config()
    problems = advice.repairs(run, config, status)
    others = [one for one in advice.suggest(run, config, status) if one not in problems]
    return {
        "state": state(status),
        "live": status["run"]["state"] not in NOTHING_RUNS,
        "progress": _progress(status),
        "problems": [_suggestion(one) for one in problems],
        "all_well": _all_well(status),
        "advice": [_suggestion(one) for one in others],
        "tiles": tiles(status),
        "comparison": comparison(status),
        "roles": _roles(status),
        "equation": _equation(status),
        "ledger": _ledger(status),
        "reasons": _reasons(status),
        "events": _events(status),
    }


def brief(run: RunDir, status: Status) -> Json:
    tokens, loss = quantity(status["run"]["tokens"]), decimal(status["loss"]["heldout_real"])
    return {"created": run.created, "state": state(status), "line": f"{tokens} tokens, held-out {loss}"}


# --- in words ---


def state(status: Status) -> Json:
    """``word``, ``tone``, and ``sentence``: is it training, how far, and why not."""
    word = _word(status)
    tone = "bad" if word.startswith("no heartbeat") or word.endswith("down") else TONES.get(word, "plain")
    return {"word": word, "tone": tone, "sentence": _sentence(status, word)}


def _word(status: Status) -> str:
    run, trainer = status["run"], status["roles"]["trainer"]
    if run["state"] == "new":
        return "not started"
    if run["state"] != "running":
        return str(run["state"])
    if is_silent(trainer):
        return f"no heartbeat for {duration(trainer['age_s'])}"
    if trainer["state"] in ("failed", "dead"):
        return "trainer is down"
    if trainer["state"] is None:
        return "starting"
    return "training" if trainer["state"] == "running" else one_line(trainer["state"])


def _sentence(status: Status, word: str) -> str:
    run, trainer, supervisor = status["run"], status["roles"]["trainer"], status["roles"]["supervisor"]
    rate = status["throughput"]["tokens_per_second"]
    trained = f"{quantity(run['tokens'] or 0)} of {quantity(run['total_tokens'])} tokens"
    if word == "training":
        left = f", {duration(run['eta_s'])} left" if run["eta_s"] is not None else ""
        return f"{trained} trained, {whole(rate)} tokens/s{left}."
    if run["state"] not in NOTHING_RUNS:
        return f"{trained} trained. {one_line(trainer['detail'] or '')}".strip()
    if run["state"] == "new":
        return "No process of this run has started yet."
    makers = [role for role in status["roles"].values() if role["role"] != "exporter"]  # one may look at an old run
    seen = [role["age_s"] for role in makers if role["age_s"] is not None]
    ended = f"{trained} trained; ended {duration(min(seen))} ago." if seen else f"{trained} trained."
    why = (supervisor if supervisor["state"] == "failed" else trainer)["detail"]
    return f"{ended} {one_line(why)}" if run["state"] == "failed" and why else ended


def _progress(status: Status) -> float:
    return min(1.0, (status["run"]["tokens"] or 0) / status["run"]["total_tokens"])


def _all_well(status: Status) -> Json:
    """What is said when there are no problems."""
    if not status["run"]["tokens"]:
        return {"text": "Nothing has been trained yet, so little is known.", "tone": "plain"}
    return {"text": "Nothing is known to be wrong.", "tone": "good"}


def _suggestion(one: advice.Suggestion) -> Json:
    return {"reason": one_line(one.reason), "command": one_line(one.command)}


# --- tiles ---


def tiles(status: Status) -> list[Json]:
    """The figures that matter most, each with what it means."""
    run, mix, throughput = status["run"], status["mix"], status["throughput"]
    left, accuracy = (
        f"{duration(run['eta_s'])} left" if run["eta_s"] is not None else "",
        status["loss"]["question_accuracy"],
    )
    found = [
        _tile(
            "tokens trained",
            quantity(run["tokens"]),
            f"of {quantity(run['total_tokens'])}, {percent(_progress(status), 0)}",
        ),
        *([_tile("tokens per second", _rate(status), left)] if run["state"] not in NOTHING_RUNS else []),
        _heldout_tile(status),
        _tile("synthetic share", percent(mix["realised"]), f"scheduled {percent(mix['scheduled'])}"),
        _snapshots_tile(status),
        _ledger_tile(status),
        _tile("real text read", f"{decimal(throughput['real_epochs'], 2)}×", "how often it was repeated"),
    ]
    return found if accuracy is None else [*found, _tile("facts known", percent(accuracy), "of the questions asked")]


def _tile(label: str, figure: str, meaning: str, tone: str = "plain") -> Json:
    return {"label": label, "figure": figure, "meaning": meaning, "tone": tone}


def _rate(status: Status) -> str:
    """Of trained tokens, now: a run that has ended has none."""
    ended = status["run"]["state"] in NOTHING_RUNS
    return NOTHING if ended else whole(status["throughput"]["tokens_per_second"])


def _heldout_tile(status: Status) -> Json:
    now, best = status["loss"]["heldout_real"], status["loss"]["heldout_best"]
    known = [loss for _, loss in status["loss"]["heldout_history"] if loss is not None]
    if now is None or best is None:
        return _tile("held-out loss", decimal(now), "nats/token; no evaluation yet")
    if now <= best[1]:
        meaning, tone = ("the best so far, falling", "good") if len(known) > 1 else ("nats/token", "plain")
    else:
        meaning, tone = f"best {decimal(best[1])}, at {quantity(best[0])} tokens", "warn"
    return _tile("held-out loss", decimal(now), meaning, tone)


def _snapshots_tile(status: Status) -> Json:
    snapshots = status["snapshots"]
    newest = snapshots["newest"]
    refused = f", {snapshots['quarantined']} quarantined" if snapshots["quarantined"] else ""
    age = f"newest {duration(newest['age_s'])} old" if newest and status["run"]["state"] == "running" else "published"
    serves = f", {which_serves(snapshots)}" if which_serves(snapshots) else ""
    return _tile("snapshots", whole(snapshots["published"]), age + refused + serves, "warn" if refused else "plain")


def _ledger_tile(status: Status) -> Json:
    ledger = status["ledger"]
    if ledger["imbalance"] is None:
        return _tile("documents lost", NOTHING, "no synthetic documents yet")
    if ledger["imbalance"]:
        return _tile("documents lost", f"{ledger['imbalance']:+,d}", "THE LEDGER DOES NOT BALANCE", "bad")
    return _tile("documents lost", "0", f"each of {whole(ledger['sent'])} is accounted for", "good")


# --- tables ---


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], texts: Sequence[str] = ()) -> Json:
    """``texts``: headings of the columns that hold no numbers."""
    return {"columns": [{"title": title, "number": title not in texts} for title in columns], "rows": rows}


def comparison(status: Status) -> Json:
    """One row of the table of several runs, by heading. Beside it the page puts the loss at equal tokens."""
    best = status["loss"]["heldout_best"]
    return {
        "tokens": quantity(status["run"]["tokens"]),
        "held-out loss": decimal(status["loss"]["heldout_real"]),
        "best": decimal(best[1] if best else None),
        "synthetic share": percent(status["mix"]["realised"]),
        "tokens/s": _rate(status),
        "real text read": f"{decimal(status['throughput']['real_epochs'], 2)}×",
    }


def _roles(status: Status) -> Json:
    rows: list[list[Cell]] = []
    for name, role in status["roles"].items():
        state_cell = _toned(role["state"] or "not started")
        heard = duration(role["age_s"]) + " ago" if role["age_s"] is not None else NOTHING
        restarts = role["restarts"]
        memory = size(role["rss_bytes"]) if role["alive"] else NOTHING
        rows.append(
            [
                one_line(name),
                state_cell,
                one_line(role["detail"] or ""),
                _share(role["progress"]),
                {"text": heard, "tone": "bad" if is_silent(role) else "plain"},
                {"text": whole(restarts), "tone": "warn" if restarts else "plain"},
                memory,
            ]
        )
    columns = ("role", "state", "doing", "progress", "heard from", "restarts", "memory")
    return table(columns, rows, texts=columns[:3])


def _share(progress: Json | None) -> str:
    if not progress or not progress.get("total"):
        return ""
    return percent(min(1.0, progress["done"] / progress["total"]), 0)


def _toned(word: str) -> Cell:
    return {"text": one_line(word), "tone": TONES.get(word, "plain")}


def _ledger(status: Status) -> Json:
    """The total first, then each generator."""
    ledger = status["ledger"]
    accounts = {"all": ledger, **(ledger["by_generator"] or {})}
    rows = [[one_line(name), *(_term(account, term) for term in TERMS)] for name, account in accounts.items()]
    return table(["documents of", *TERMS.values()], rows, texts=["documents of"])


def _equation(status: Status) -> str:
    ledger = status["ledger"]
    if ledger["sent"] is None:
        return "None yet: they arrive after the first snapshot is published."
    parts = " + ".join(f"{whole(ledger[term])} {name}" for term, name in TERMS.items() if term != "sent")
    return f"{whole(ledger['sent'])} sent = {parts}"


def _term(account: Json, term: str) -> Cell:
    value = account.get(term)
    if term == "imbalance" and value is not None:
        return {"text": whole(value), "tone": "bad" if value else "good"}
    return whole(value)


def _reasons(status: Status) -> Json:
    """Why documents were dropped by the trainer, and not even sent by generators."""
    dropped, filtered = status["ledger"]["dropped_by_reason"] or {}, status["throughput"]["filtered"]
    rows = [
        ["dropped by the trainer", one_line(reason).replace("_", " "), whole(n)] for reason, n in dropped.items() if n
    ]
    rows += [
        ["not sent by generators", one_line(reason).replace("_", " "), whole(n)] for reason, n in filtered.items() if n
    ]
    return table(["documents", "why", "how many"], rows, texts=["documents", "why"])


def _events(status: Status) -> Json:
    """The newest first."""
    rows: list[list[Cell]] = [
        [{"time": event["time"]}, one_line(event["role"]), {"text": one_line(event["text"]), "tone": event["tone"]}]
        for event in reversed(status["events"])
    ]
    return table(["time", "role", "what happened"], rows, texts=["time", "role", "what happened"])


# --- snapshots ---


def snapshots(told: RunHistory, status: Status) -> Json:
    """The newest first, each with what the gate measured; what real text measures, below."""
    shown = list(reversed(told.snapshots[-NUM_SNAPSHOTS:]))
    rows_of = [row for row in quality.ROWS if any(row.measure in s.measures for s in shown)]
    trained_from = status["snapshots"]["trained_from"] or {}
    columns = ["snapshot", "verdict", "from tokens", "swapped in at", "documents trained", "pair loss"]
    columns += [row.name for row in rows_of]
    rows = [[*_snapshot(s, trained_from), *(_measured(s.measures, row, "") for row in rows_of)] for s in shown]
    for row, snapshot in zip(rows, shown, strict=True):
        row.append(one_line("; ".join(snapshot.reasons)))
    if shown:
        real = [_measured(shown[0].measures, row, "real_") for row in rows_of]
        rows.append(["real text", "", "", "", "", "", *real, ""])
    return table([*columns, "why not"], rows, texts=["snapshot", "verdict", "why not"])


def _snapshot(snapshot: Snapshot, trained_from: dict[str, int]) -> list[Cell]:
    name = f"v{snapshot.version}" if snapshot.version is not None else one_line(snapshot.digest[:8])
    documents = trained_from.get(snapshot.digest, snapshot.trained_documents)
    return [
        name,
        _toned(snapshot.verdict),
        quantity(snapshot.parent_tokens),
        quantity(snapshot.swapped_tokens),
        whole(documents),
        decimal(snapshot.measures.get("pair_loss")),
    ]


def _measured(measures: dict[str, float], row: quality.Row, prefix: str) -> str:
    value = measures.get(prefix + row.measure)
    return quality.shown(value, row.unit) if isinstance(value, int | float) else NOTHING


# --- documents ---


def document(peeked: peek.PeekedDocument) -> Json:
    seed = peeked.seed_text
    return {
        "number": peeked.index,
        "seed": None if seed is None else printable(seed).strip(),
        "text": printable(peeked.text).strip(),
        "notes": [printable(peek.provenance(peeked)), printable(peek.comparison(peeked))],
    }

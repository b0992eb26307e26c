"""The status object for people: one screen of a terminal, readable at 80 columns, and a view that follows a run.

What processes and documents say is untrusted: it is put into rich ``Text`` (which reads no markup) after `printable`.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import Status, StatusCollector, is_silent, which_serves
from streaming_sbp.telemetry.text import (
    NOTHING,
    clock_time,
    counted,
    decimal,
    duration,
    one_line,
    percent,
    quantity,
    size,
    whole,
)

REFRESH_EVERY_S = 1.0
PLAIN_LINE_EVERY_S = 10.0
MANY_GENERATORS = 4  # so many, or more, that are well have one row together
NUM_EVENTS = 6
WIDE_ENOUGH_FOR_MEMORY = 96  # columns
WIDEST = 110  # columns; a wider terminal shows nothing more
STATE_STYLES = {
    "running": "green",
    "done": "bold green",
    "waiting": "yellow",
    "starting": "cyan",
    "stopping": "yellow",
    "stopped": "yellow",
    "failed": "bold red",
    "dead": "bold red",
}
TONES = {"good": "green", "bad": "red", "plain": "default"}
_BLOCKS = "▁▂▃▄▅▆▇█"


def render(status: Status, width: int, num_events: int = NUM_EVENTS, short: bool = False) -> RenderableType:
    """The whole status as one renderable, ``width`` columns wide at most, with the last events below.

    ``short`` leaves out what is less often looked at: one line for each figure, no roles that are done.
    """
    width = min(width, WIDEST)
    parts = [_header(status, width), _roles(status, width, short), _rule(width), _figures(status, width, short)]
    if status["events"] and num_events > 0:
        parts += [_rule(width), _events(status, width, num_events)]
    return Group(*parts)


def fit(status: Status, console: Console) -> RenderableType:
    """The status for the screen of `sbp run`: all of it, or in short, and as many events as there is room for."""
    if status["run"]["state"] == "stopping":
        supervisor = status["roles"]["supervisor"]
        detail = f"{supervisor['detail'] or ''} · Ctrl-C again: end at once"
        status = status | {"roles": status["roles"] | {"supervisor": supervisor | {"detail": detail}}}
    room = console.height - 1  # the last row stays free: a terminal scrolls when it is written to
    for short in (False, True):
        left = room - _num_rows(console, render(status, console.width, 0, short)) - 1  # a rule above the events
        if left >= min(NUM_EVENTS, len(status["events"])) or short:
            break
    return render(status, console.width, max(0, min(NUM_EVENTS, left)), short)


def _num_rows(console: Console, renderable: RenderableType) -> int:
    return len(console.render_lines(renderable, console.options.update(height=None), pad=False))


def summary_line(status: Status) -> str:
    """The status in one line without colours, for logs."""
    run, loss, mix, ledger = status["run"], status["loss"], status["mix"], status["ledger"]
    parts = [
        clock_time(time.time()),
        run["state"],
        f"{quantity(run['tokens'])} of {quantity(run['total_tokens'])} tokens",
        f"held-out {decimal(loss['heldout_real'])}",
        f"synthetic {percent(mix['realised'])} (scheduled {percent(mix['scheduled'])})",
        counted(status["snapshots"]["published"], "snapshot"),
        *filter(None, [which_serves(status["snapshots"])]),
        f"ledger {_balance_word(ledger['imbalance'])}",
    ]
    trainer = status["roles"]["trainer"]
    if trainer["state"] and (run["tokens"] is None or trainer["state"] == "starting"):
        figures = [] if run["tokens"] is None else [parts[2]]
        parts = [*parts[:2], *figures, one_line(f"trainer {trainer['state']}: {trainer['detail']}")]
    if mix["pair_share"] and mix["trained_tokens"]:
        parts.append(f"pairs {percent(_pairs_share(mix))} (scheduled {percent(mix['pair_share'])})")
    if run["eta_s"] is not None:
        parts.append(f"{duration(run['eta_s'])} left")
    dead = [name for name, role in status["roles"].items() if role["state"] in ("dead", "failed")]
    silent = [f"{name} for {duration(role['age_s'])}" for name, role in status["roles"].items() if is_silent(role)]
    parts += [f"DOWN: {', '.join(dead)}"] if dead else []
    parts += [f"SILENT: {', '.join(silent)}"] if silent else []
    return "  ".join(parts)


def plain_lines(status: Status) -> list[str]:
    """The status for what is no terminal: the figures, a line for each role, the last events."""
    lines = [summary_line(status)]
    for name, role in status["roles"].items():
        silent = f", silent for {duration(role['age_s'])}" if is_silent(role) else ""
        detail = f": {role['detail']}" if role["detail"] else ""
        lines.append(one_line(f"{name}  {role['state'] or 'not started'}{silent}{detail}"))
    for event in status["events"][-NUM_EVENTS:]:
        lines.append(one_line(f"{clock_time(event['time'])}  {event['role']}  {event['text']}"))
    return lines


class LastingConsole(Console):
    """A console whose reader may go away (`sbp run | head`): then it is silent, and the program goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LiveView:
    """Follows one run: redrawn in place on a terminal, otherwise a line every ten seconds.

    Use as a context manager; ``update`` may be called as often as one likes, and draws about once a second.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._collector: StatusCollector | None = None
        self._last = float("-inf")

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def update(self, run: RunDir) -> None:
        every_s = REFRESH_EVERY_S if self._live else PLAIN_LINE_EVERY_S
        if time.monotonic() - self._last < every_s:
            return
        if self._collector is None:
            self._collector = StatusCollector(run)
        self._draw(self._collector)

    def abandon(self, message: str) -> None:
        """The program ends now, from a signal handler: leave the terminal as it was, with a last line."""
        out = sys.stderr if self._live is None else self._console.file
        out.write(("\x1b[?25h\n" if self._live else "") + message + "\n")
        out.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._collector is not None:
            self._draw(self._collector)  # how it ended
        if self._live:
            self._live.stop()

    def _draw(self, collector: StatusCollector) -> None:
        self._last = time.monotonic()
        status = collector.collect()
        if self._live:
            self._live.update(fit(status, self._console), refresh=True)
        else:
            self._console.print(Text(summary_line(status)), soft_wrap=True)


# --- the parts of the screen ---


def _header(status: Status, width: int) -> RenderableType:
    run = status["run"]
    tokens, total = run["tokens"] or 0, run["total_tokens"]
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    left = f"{duration(run['eta_s'])} left" if run["eta_s"] is not None else ""
    bar.add_row(
        Text(f"{quantity(run['tokens'])} of {quantity(total)} tokens", style="bold"),
        ProgressBar(total=total, completed=tokens),
        Text(f"{percent(tokens / total, 0)}  {left}".strip()),
    )
    title = Text.assemble(("Streaming SBP ", "bold"), _shortened(run["dir"], width - 36), " ", _state(run["state"]))
    body = Group(bar, _pace(status))
    return Panel(body, title=title, title_align="left", box=ROUNDED, width=width, border_style="blue")


def _pace(status: Status) -> Text:
    """How fast it goes; how it ends, where that is more important."""
    throughput, supervisor = status["throughput"], status["roles"]["supervisor"]
    if supervisor["state"] == "failed":
        return Text(one_line(supervisor["detail"] or ""), style="red")
    if status["run"]["state"] == "stopping":
        return Text(one_line(supervisor["detail"] or ""), style="yellow", no_wrap=True, overflow="ellipsis")
    text = Text(style="dim", no_wrap=True, overflow="ellipsis")
    text.append(f"{whole(throughput['tokens_per_second'])} tokens/s")
    text.append(f" · {percent(throughput['data_wait_share'])} of the time waiting for data")
    return text.append(f" · real text read {decimal(throughput['real_epochs'], 2)}×")


def _roles(status: Status, width: int, short: bool) -> RenderableType:
    table = Table(box=None, width=width, padding=(0, 1), header_style="dim")
    table.add_column("role", no_wrap=True, overflow="ellipsis", max_width=16)
    table.add_column("state", no_wrap=True)
    table.add_column("doing", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("progress", width=13, no_wrap=True)
    wide = width >= WIDE_ENOUGH_FOR_MEMORY
    if wide:
        table.add_column("memory", justify="right", no_wrap=True)
    for names in _rows(status["roles"], short and status["run"]["state"] == "running"):
        role = status["roles"][names[0]]
        title = one_line(names[0]) if len(names) == 1 else f"{len(names)} generators"
        memory = [size(role["rss_bytes"]) if role["alive"] else NOTHING] if wide else []
        table.add_row(Text(title), _state(role["state"]), _doing(role), _progress(role["progress"]), *memory)
    return table


def _rows(roles: dict[str, dict[str, Any]], only_at_work: bool) -> list[list[str]]:
    """The names of the roles that are shown, those that share a row together."""
    shown = [name for name, role in roles.items() if name != "supervisor" and not (only_at_work and _is_over(role))]
    alike = [name for name in shown if roles[name]["role"] == "generator" and _is_well(roles[name])]
    if len(alike) < MANY_GENERATORS:
        return [[name] for name in shown]
    return [alike if name == alike[0] else [name] for name in shown if name == alike[0] or name not in alike]


def _is_over(role: dict[str, Any]) -> bool:
    return role["state"] == "done" and not role["alive"]


def _is_well(role: dict[str, Any]) -> bool:
    return role["state"] in ("running", "waiting") and not role["restarts"] and not is_silent(role)


def _doing(role: dict[str, Any]) -> Text:
    text = Text(one_line(role["detail"] or ""), style="red" if role["state"] in ("failed", "dead") else "")
    if role["restarts"]:
        text = Text.assemble((f"restarted {role['restarts']}× ", "yellow"), text)
    if is_silent(role):
        text = Text.assemble((f"silent for {duration(role['age_s'])} ", "bold red"), text)
    return text


def _progress(progress: dict[str, Any] | None) -> RenderableType:
    if not progress or not progress.get("total"):
        return Text("")
    share = min(1.0, progress["done"] / progress["total"])
    row = Table.grid(padding=(0, 1))
    row.add_column(width=7)
    row.add_column(justify="right", width=5)
    row.add_row(ProgressBar(total=1.0, completed=share, width=7), percent(share, 0))
    return row


def _figures(status: Status, width: int, short: bool) -> RenderableType:
    """Each figure's first line says what matters, the others the details."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True, width=10)
    grid.add_column(ratio=1)
    figures = {
        "loss": _loss(status["loss"]),
        "mix": _mix(status["mix"]),
        "stream": _stream(status),
        "snapshots": _snapshots(status["snapshots"]),
        "ledger": _ledger(status["ledger"]),
    }
    for name, lines in figures.items():
        shown = lines[:1] if short else lines
        for line in shown[:1] if short else ():
            line.no_wrap, line.overflow = True, "ellipsis"
        grid.add_row(name, Group(*shown))
    grid.width = width - 2
    return Padding(grid, (0, 1))


def _rule(width: int) -> RenderableType:
    return Padding(Text("─" * (width - 2), style="dim"), (0, 1))


def _loss(loss: dict[str, Any]) -> list[Text]:
    history = [value for _, value in loss["heldout_history"] if value is not None]
    text = Text.assemble("held-out ", (decimal(loss["heldout_real"]), "bold"))
    if len(history) > 1:
        word, style = ("falling", "green") if history[-1] < history[-2] else ("rising", "yellow")
        text.append(f" {sparkline(history)} {word}", style=style)
    text.append(f" · train {decimal(loss['train_real'])}")
    text.append(f", synthetic {decimal(loss['train_synthetic'])}" if loss["train_synthetic"] is not None else "")
    details = Text(f"nats per token; held-out {decimal(loss['heldout_bits_per_byte'])} bits per byte", style="dim")
    if loss["question_accuracy"] is not None:
        details.append(f" · {percent(loss['question_accuracy'])} of facts known", style="not dim")
    return [text, details]


def _mix(mix: dict[str, Any]) -> list[Text]:
    text = Text.assemble((percent(mix["realised"]), "bold"), " synthetic")
    text.append(f", scheduled {percent(mix['scheduled'])}")
    if mix["pair_share"]:
        text.append(f" · {percent(_pairs_share(mix))} pairs, scheduled {percent(mix['pair_share'])}")
    if mix["debt_tokens"]:
        text.append(f" · {quantity(mix['debt_tokens'])} tokens late", style="yellow")
    details = Text(f"within {counted(_rounded(mix['deviation_tokens']), 'token')} of the schedule", style="dim")
    return [text, details.append(f" · {counted(_rounded(mix['forgiven_tokens']), 'late token')} written off")]


def _pairs_share(mix: dict[str, Any]) -> float | None:
    tokens = mix["trained_tokens"] or {}
    return tokens["pairs"] / max(1, sum(tokens.values())) if "pairs" in tokens else None


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def _stream(status: Status) -> list[Text]:
    throughput, buffered = status["throughput"], status["ledger"]["buffered"]
    if not throughput["peers"] and not status["ledger"]["sent"]:
        return [Text("no synthetic documents yet", style="dim")]
    text = Text(f"{counted(buffered, 'document')} buffered")
    if throughput["documents_per_second"] is not None:
        rate = Text.assemble((decimal(throughput["documents_per_second"], 1), "bold"), " documents/s from ")
        text = rate.append(f"{counted(throughput['peers'], 'generator')} · ").append(text)
    lines = [text, Text(f"trained {quantity(throughput['staleness_tokens'])} tokens after their snapshot", style="dim")]
    reasons = [f"{whole(n)} {reason.replace('_', ' ')}" for reason, n in sorted(throughput["filtered"].items())]
    return [*lines, Text(f"not sent: {', '.join(reasons)}", style="dim")] if reasons else lines


def _snapshots(snapshots: dict[str, Any]) -> list[Text]:
    text = Text.assemble((str(snapshots["published"]), "bold"), " published · ")
    text.append(f"{snapshots['quarantined']} quarantined", style="yellow" if snapshots["quarantined"] else "")
    newest = snapshots["newest"]
    if newest:
        text.append(f" · v{newest['version']} is {duration(newest['age_s'])} old")
        text.append(f", of {quantity(newest['parent_tokens'])} tokens")
    if serves := which_serves(snapshots):
        text.append(f" · {serves}", style="yellow")
    details = Text(f"{snapshots['swapped_in']} swapped in by generators", style="dim")
    return [text, details.append(f" · documents of {len(snapshots['trained_from'] or {})} trained")]


def _ledger(ledger: dict[str, Any]) -> list[Text]:
    word = _balance_word(ledger["imbalance"])
    text = Text(word, style={"balanced": "green", NOTHING: "dim"}.get(word, "bold white on red"))
    if ledger["sent"] is None:
        return [text]
    names = ("trained", "buffered", "in_flight", "dropped")
    short = ", ".join(f"{quantity(ledger[name])} {name.replace('_', ' ')}" for name in names if ledger[name])
    exact = " + ".join(f"{whole(ledger[name])} {name.replace('_', ' ')}" for name in names)
    text.append(f"  {quantity(ledger['sent'])} sent{': ' if short else ''}{short}", style="default")
    return [text, Text(f"{whole(ledger['sent'])} sent = {exact}", style="dim")]


def _balance_word(imbalance: int | None) -> str:
    if imbalance is None:
        return NOTHING
    return "balanced" if imbalance == 0 else f"IMBALANCE {imbalance:+d}"


def _events(status: Status, width: int, count: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.width = width - 2
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for event in status["events"][-count:]:
        text = Text(one_line(event["text"]), style=TONES[event["tone"]])
        grid.add_row(clock_time(event["time"]), Text(one_line(event["role"])), text)
    return Padding(grid, (0, 1))


def _state(state: str | None) -> Text:
    return Text(state or "not started", style=STATE_STYLES.get(state or "", "dim"))


def _shortened(path: str, width: int) -> str:
    path = one_line(path)
    return path if len(path) <= width else "…" + path[-(width - 1) :]


def sparkline(values: list[float], width: int = 12) -> str:
    """The last ``width`` values as a row of blocks, lowest to highest."""
    recent = values[-width:]
    low, high = min(recent), max(recent)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in recent)

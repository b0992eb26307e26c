"""The status object for people: one screen of a terminal, readable at 80 columns, and a view that follows a run.

What processes and documents say is untrusted: it is put into rich ``Text`` (which reads no markup) after `printable`.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.status import Status, StatusCollector, is_silent
from streaming_sbp.telemetry.text import (
    NOTHING,
    clock_time,
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
NUM_ROWS = 18  # of the screen, roles and events apart
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


def render(status: Status, width: int, num_events: int = 6) -> RenderableType:
    """The whole status as one renderable, ``width`` columns wide at most, with the last events below."""
    width = min(width, WIDEST)
    parts = [_header(status, width), _roles(status, width), _rule(width), _figures(status, width)]
    if status["events"] and num_events > 0:
        parts += [_rule(width), _events(status, width, num_events)]
    return Group(*parts)


def summary_line(status: Status) -> str:
    """The status in one line without colours, for logs."""
    run, loss, mix, ledger = status["run"], status["loss"], status["mix"], status["ledger"]
    parts = [
        clock_time(time.time()),
        run["state"],
        f"{quantity(run['tokens'])} of {quantity(run['total_tokens'])} tokens",
        f"held-out {decimal(loss['heldout_real'])}",
        f"synthetic {percent(mix['realised'])} (scheduled {percent(mix['scheduled'])})",
        f"{status['snapshots']['published']} snapshots",
        f"ledger {_balance_word(ledger['imbalance'])}",
    ]
    if run["eta_s"] is not None:
        parts.append(f"{duration(run['eta_s'])} left")
    dead = [name for name, role in status["roles"].items() if role["state"] in ("dead", "failed")]
    return "  ".join(parts) + (f"  DOWN: {', '.join(dead)}" if dead else "")


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
            left_rows = self._console.height - NUM_ROWS - len(status["roles"])
            self._live.update(render(status, self._console.width, min(6, max(1, left_rows))), refresh=True)
        else:
            self._console.print(Text(summary_line(status)), soft_wrap=True)


# --- the parts of the screen ---


def _header(status: Status, width: int) -> RenderableType:
    run, throughput = status["run"], status["throughput"]
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
    pace = Text(style="dim")
    pace.append(f"{whole(throughput['tokens_per_second'])} tokens/s")
    pace.append(f" · {percent(throughput['data_wait_share'])} of the time waiting for data")
    pace.append(f" · real text read {decimal(throughput['real_epochs'], 2)}×")
    title = Text.assemble(("Streaming SBP ", "bold"), _shortened(run["dir"], width - 36), " ", _state(run["state"]))
    return Panel(Group(bar, pace), title=title, title_align="left", box=ROUNDED, width=width, border_style="blue")


def _roles(status: Status, width: int) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, width=width, padding=(0, 1), show_edge=False, header_style="dim", border_style="dim")
    table.add_column("role", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("doing", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("progress", width=13, no_wrap=True)
    wide = width >= WIDE_ENOUGH_FOR_MEMORY
    if wide:
        table.add_column("memory", justify="right", no_wrap=True)
    for name, role in status["roles"].items():
        if name == "supervisor" and role["state"] not in ("failed", "dead"):
            continue  # the header says how the run is
        memory = [size(role["rss_bytes"]) if role["alive"] else NOTHING] if wide else []
        table.add_row(Text(one_line(name)), _state(role["state"]), _doing(role), _progress(role["progress"]), *memory)
    return table


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


def _figures(status: Status, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True, width=11)
    grid.add_column()
    grid.add_row("loss", _loss(status["loss"]))
    grid.add_row("mix", _mix(status["mix"]))
    grid.add_row("stream", _stream(status))
    grid.add_row("snapshots", _snapshots(status["snapshots"]))
    grid.add_row("ledger", _ledger(status["ledger"]))
    grid.width = width - 2
    return Padding(grid, (0, 1))


def _rule(width: int) -> RenderableType:
    return Padding(Text("─" * (width - 2), style="dim"), (0, 1))


def _loss(loss: dict[str, Any]) -> Text:
    history = [value for _, value in loss["heldout_history"] if value is not None]
    text = Text.assemble("held-out real ", (decimal(loss["heldout_real"]), "bold"))
    text.append(f" ({decimal(loss['heldout_bits_per_byte'])} bits/byte)")
    if len(history) > 1:
        word, style = ("falling", "green") if history[-1] < history[-2] else ("rising", "yellow")
        text.append(f" {sparkline(history)} {word}", style=style)
    if loss["question_accuracy"] is not None:
        text.append(f" · {percent(loss['question_accuracy'])} of facts known")
    text.append(f"\ntrain real {decimal(loss['train_real'])} · train synthetic {decimal(loss['train_synthetic'])}")
    return text.append(" nats/token", style="dim")


def _mix(mix: dict[str, Any]) -> Text:
    text = Text.assemble("synthetic share: scheduled ", (percent(mix["scheduled"]), "bold"))
    text.append_text(Text.assemble(" · realised ", (percent(mix["realised"]), "bold")))
    text.append(f"\ndeviation {whole(mix['deviation_tokens'])} tokens · owed {whole(mix['debt_tokens'])}")
    return text.append(f" · written off {whole(mix['forgiven_tokens'])}")


def _stream(status: Status) -> Text:
    throughput = status["throughput"]
    text = Text.assemble((decimal(throughput["documents_per_second"], 1), "bold"), " documents/s")
    text.append(f" from {whole(throughput['peers'])} generators · {whole(status['ledger']['buffered'])} buffered")
    text.append(f" · {quantity(throughput['staleness_tokens'])} tokens old")
    reasons = [f"{whole(n)} {reason.replace('_', ' ')}" for reason, n in sorted(throughput["filtered"].items())]
    return text.append(f"\nnot sent: {', '.join(reasons)}" if reasons else "")


def _snapshots(snapshots: dict[str, Any]) -> Text:
    text = Text.assemble((str(snapshots["published"]), "bold"), " published · ")
    text.append(f"{snapshots['quarantined']} quarantined", style="yellow" if snapshots["quarantined"] else "")
    text.append(f" · {snapshots['swapped_in']} swapped in · {len(snapshots['trained_from'] or {})} trained from")
    newest = snapshots["newest"]
    if newest:
        text.append(f"\nnewest v{newest['version']}, {duration(newest['age_s'])} old, ")
        text.append(f"from a checkpoint at {quantity(newest['parent_tokens'])} tokens")
    return text


def _ledger(ledger: dict[str, Any]) -> Text:
    word = _balance_word(ledger["imbalance"])
    text = Text(word, style={"balanced": "green", NOTHING: "dim"}.get(word, "bold white on red"))
    names = ("trained", "buffered", "in_flight", "dropped")
    terms = " + ".join(f"{whole(ledger[name])} {name.replace('_', ' ')}" for name in names)
    return Text.assemble(text, f"  {whole(ledger['sent'])} sent = {terms}")


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

import io
import os
import re
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp.telemetry import view
from streaming_sbp.telemetry.status import collect
from tests.unit.run_records import FakeRun, RecordWriter, make_run

EVIL = "\x1b[31mred\x1b]0;title\x07 [bold]markup[/bold] [/] \u202etxet\nsecond line"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("running") / "run")
    FakeRun(run, seconds=200, resume_at_s=120, finished=False, pid=os.getpid()).write()
    return run


def drawn(status, width=80, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(view.render(status, width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_it_fits_and_shows_every_part(running, width):
    lines = [line.rstrip() for line in drawn(collect(running), width).splitlines()]
    assert max(map(len, lines)) <= min(width, view.WIDEST)
    text = "\n".join(lines)
    for part in ("loss", "mix", "stream", "snapshots", "ledger", "trainer", "pairer", "tuner", "generator-1"):
        assert part in text
    assert "balanced" in text
    assert ("memory" in text) == (width >= view.WIDE_ENOUGH_FOR_MEMORY)


def test_80_columns_are_enough_for_the_figures(running):
    """Nothing that matters is cut by an ellipsis or wrapped within a number."""
    status = collect(running)
    text = drawn(status)
    ledger = status["ledger"]
    squeezed = " ".join(text.split())
    assert f"{ledger['sent']:,} sent = {ledger['trained']:,} trained + {ledger['buffered']:,} buffered" in squeezed
    assert "30.0 % synthetic, scheduled 30.0 %" in squeezed.replace("30.1", "30.0")
    assert f"{100 * status['run']['tokens'] / 6_000_000:.0f} %" in squeezed
    assert "restarted 1×" in squeezed
    assert "published snapshot v3 from 4.00M tokens" in squeezed
    figures = text[text.index("loss") : text.index("ledger")]
    assert "…" not in figures


def test_without_colours_no_escape_is_written(running):
    assert "\x1b" not in drawn(collect(running))
    assert "\x1b[" in drawn(collect(running), force_terminal=True, color_system="standard")


def test_what_roles_and_documents_say_steers_nothing(tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=60, finished=False, pid=os.getpid())
    fake.write()
    fake.role_file("tuner", "running", detail=EVIL)
    fake.role_file("generator-1", "failed", detail=EVIL)
    fake.role_file("x\x1b[2J[red]y", "running", detail="")
    RecordWriter(run, "tuner")(fake.started + 59, "snapshot", verdict="quarantined", parent_tokens=1, reasons=[EVIL])
    text = drawn(collect(run), width=110)
    assert "red [bold]markup[/bold] [/] txet second line" in text
    assert not set(text) & set("\x1b\x07\u202e")
    line = view.summary_line(collect(run))
    assert not set(line) & set("\x1b\x07\n")


def test_a_new_run(tmp_path):
    status = collect(make_run(tmp_path / "run"))
    text = drawn(status)
    assert "new" in text
    assert "not started" in text
    assert "ledger –" in view.summary_line(status)


def test_what_is_wrong_stands_out(running):
    status = collect(running)
    status["ledger"]["imbalance"] = 3
    status["roles"]["generator-0"] |= {"state": "dead", "alive": False}
    status["roles"]["tuner"]["age_s"] = 60.0
    text = drawn(status)
    assert "IMBALANCE +3" in text
    assert "silent for 1 min 0 s" in text
    line = view.summary_line(status)
    assert "ledger IMBALANCE +3" in line
    assert line.endswith("DOWN: generator-0  SILENT: tuner for 1 min 0 s")


def test_the_line_tells_the_figures(running):
    status = collect(running)
    line = view.summary_line(status)
    assert re.match(r"\d\d:\d\d:\d\d  running  3\.40M of 6\.00M tokens  held-out \d\.\d{3}  ", line)
    assert "synthetic 30.0 % (scheduled 30.0 %)  3 snapshots  ledger balanced" in line.replace("30.1", "30.0")
    assert re.search(r"  2 min \d+ s left$", line)


def on_screen(status, width=80, height=24):
    """The lines that the live view draws on a terminal of this size."""
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(view.fit(status, console))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


LONG = "a-very-long-name-" * 6


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 40), (60, 24), (120, 50), (40, 12)])
@pytest.mark.parametrize("state", ["running", "stopping", "failed"])
def test_it_fits_any_screen_however_long_the_names_are(running, width, height, state):
    status = collect(running)
    status["run"] |= {"state": state, "dir": f"/{LONG}/{LONG}"}
    status["roles"]["supervisor"] |= {"detail": LONG * 2} | ({"state": "failed"} if state == "failed" else {})
    status["roles"] |= {LONG: status["roles"]["tuner"] | {"detail": LONG, "restarts": 3}}
    status["events"] += [{"time": 0.0, "role": LONG, "text": LONG * 3, "tone": "bad"}]
    lines = on_screen(status, width, height)
    assert max(map(len, lines)) <= width
    if height >= 24 and state != "failed":
        assert len(lines) < height


def test_a_screen_of_80_by_24_has_the_figures_and_the_last_events(running):
    status = collect(running)
    lines = on_screen(status)
    text = "\n".join(lines)
    for part in ("loss", "mix", "stream", "snapshots", "ledger", "trainer", "tuner", "generator-0", "generator-1"):
        assert part in text
    assert "held-out" in text
    assert sum(event["text"][:30] in text for event in status["events"][-6:]) >= 5
    tall = "\n".join(on_screen(status, height=50))
    assert "bits per byte" in tall
    assert "bits per byte" not in text


def test_many_generators_share_a_row_but_those_in_trouble(running):
    status = collect(running)
    one = status["roles"]["generator-0"]
    status["roles"] |= {f"generator-{k}": one | {"restarts": 0} for k in range(40)}
    status["roles"]["generator-7"] = one | {"state": "dead", "alive": False}
    lines = on_screen(status)
    assert len(lines) < 24
    text = "\n".join(lines)
    assert "39 generators" in text
    assert "generator-7 " in text


def test_pairs_are_the_third_part_of_the_mix(running):
    status = collect(running)
    assert "pairs, scheduled" not in drawn(status)
    status["mix"] |= {"pair_share": 0.3, "trained_tokens": {"real": 50, "synthetic": 20, "pairs": 30}}
    assert "30.0 % pairs, scheduled 30.0 %" in drawn(status)


def test_why_it_failed_and_what_it_waits_for_stand_at_the_top(running):
    status = collect(running)
    status["run"]["state"] = "failed"
    status["roles"]["supervisor"] |= {"state": "failed", "detail": "the trainer cannot start"}
    assert "the trainer cannot start" in "".join(on_screen(status)[:4])
    status["run"]["state"] = "stopping"
    status["roles"]["supervisor"] |= {"state": "stopping", "detail": "waiting for trainer to stop"}
    assert "Ctrl-C" not in drawn(status)  # of `sbp status`, whose Ctrl-C ends nothing
    assert "waiting for trainer to stop · Ctrl-C again: end at once" in "".join(on_screen(status)[:4])


def test_one_is_no_plural(running):
    status = collect(running)
    status["throughput"]["peers"] = status["ledger"]["buffered"] = status["snapshots"]["published"] = 1
    assert "from 1 generator · 1 document buffered" in " ".join(drawn(status).split())
    assert "  1 snapshot  " in view.summary_line(status)


def test_a_line_before_there_are_figures_says_what_the_trainer_does(tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, finished=False, pid=os.getpid())
    fake.started = time.time()
    fake.role_file("trainer", "starting", detail="reading the data set")
    assert view.summary_line(collect(run)).endswith("  running  trainer starting: reading the data set")


def test_a_line_while_a_resumed_trainer_loads_does_not_look_like_progress(running):
    status = collect(running)
    status["roles"]["trainer"] |= {"state": "starting", "detail": "loading the program"}
    status["run"]["eta_s"] = None
    line = view.summary_line(status)
    assert line.endswith("M tokens  trainer starting: loading the program")
    assert "held-out" not in line


# --- following a run ---


def test_no_terminal_gets_whole_lines(running):
    console = Console(file=io.StringIO(), width=40, force_terminal=False)
    with view.LiveView(console) as live:
        for _ in range(5):
            live.update(running)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2  # the first, and how it ended; ten seconds did not pass
    assert all("ledger balanced" in line for line in lines)
    assert "\x1b" not in console.file.getvalue()


def test_a_terminal_is_redrawn_in_place(running):
    console = Console(file=io.StringIO(), width=80, height=40, force_terminal=True)
    with view.LiveView(console) as live:
        live.update(running)
    assert "Streaming SBP" in console.file.getvalue()
    assert "\x1b[?25h" in console.file.getvalue()  # the cursor is back


class CountedWrites(io.StringIO):
    written = 0

    def write(self, text):
        self.written += bool(text)
        return super().write(text)


def test_a_frame_is_one_write_so_that_it_does_not_flicker(running):
    file = CountedWrites()
    console = Console(file=file, width=80, height=24, force_terminal=True)
    with view.LiveView(console) as live:
        live.update(running)
        for _ in range(3):
            before = file.written
            live._last = float("-inf")  # a second has passed
            live.update(running)
            assert file.written == before + 1


def test_ended_at_once_the_terminal_has_its_cursor_back(running):
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    with view.LiveView(console) as live:
        live.update(running)
        live.abandon("ended at once")
        assert console.file.getvalue().endswith("\x1b[?25h\nended at once\n")


def test_a_view_that_never_saw_a_run_draws_nothing():
    console = Console(file=io.StringIO(), force_terminal=False)
    with view.LiveView(console):
        pass
    assert console.file.getvalue() == ""


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([1.0], "▁"),
        ([1.0, 1.0], "▁▁"),
        ([8.0, 1.0], "█▁"),
        (list(range(1, 9)), "▁▂▃▄▅▆▇█"),
        ([9.0] * 5 + [1.0, 2.0], "█████▁▂"),
    ],
)
def test_sparkline(values, line):
    assert view.sparkline(values) == line


def test_the_command(running):
    result = CliRunner().invoke(app, ["status", str(running.path)], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "ledger balanced" in lines[0]
    assert any(line.startswith("trainer running") for line in lines)
    assert sum(line.startswith(("tuner ", "pairer ", "generator-0 ")) for line in lines) == 3
    assert not set("─│╭█▁\x1b") & set(result.stdout)

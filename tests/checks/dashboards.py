"""`make check-dashboards`: a real Prometheus watches a short real run. Ends in one JSON line.

Every query of every panel, every selector in it, and every selector of every rule must return data (a mistyped name
is an empty success), and every metric of the catalogue must have been scraped from the roles that export it. Then
faults are provoked, and the alert for each must fire, and resolve when the fault has gone. Durations in those alerts'
rules are shortened; nothing else is changed in them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from dashboards.rules import ALERTS, RECORDING, Alert, rules
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream import keys
from streaming_sbp.telemetry.catalogue import CATALOGUE, OWN
from tests.checks import runs
from tests.checks.chaos import pid_of, trained_synthetic
from tests.checks.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
WATCHED = ("trainer", "tuner", "generator", "supervisor")  # the pairer has ended before it is scraped
WITHIN_S = 240.0
VARIABLES = {"$run": "main", "$__rate_interval": "20s", "$__range": "5m", "$__interval": "5s"}
SELECTOR = re.compile(r"\b(?:sbp[_:][\w:]+|process_\w+|up|scrape_\w+)\b(?:\{[^}]*\})?")
MAIN = (
    "stream.dead_after_s=2",
    "supervisor.backoff_s=1",
    "supervisor.max_backoff_s=4",
    "telemetry.peak_flops=1e12",
    "data.source=concepts",  # so that there are questions on facts, too
    "data.difficulty=tiny",
    "data.min_characters=1",
)
DIVERGES = ("training.learning_rate=1e30", "training.on_non_finite=skip", "training.warmup_tokens=0")
PROVOKED = (
    "SbpRoleDown",
    "SbpRoleRestarts",
    "SbpNoGenerators",
    "SbpLossNotFinite",
    "SbpJournalPaused",
    "SbpGateFailing",
    "SbpTunerStalled",
    "SbpTrainerStuck",
    "SbpRoleSilent",
    "SbpProcessDown",
    "SbpUnauthenticatedPeer",
)
QUICK_WINDOW = "30s"


# --- what there is to ask ---


def panel_queries() -> Iterator[tuple[str, str]]:
    """("dashboard/panel", query) of the committed JSON, with the variables of the run put in; annotations as well."""
    for path in sorted((ROOT / "dashboards" / "grafana").glob("*.json")):
        board = json.loads(path.read_text())
        for annotation in board["annotations"]["list"]:
            # what is marked is rare: the series behind the comparison must be there
            yield f"{path.stem}/{annotation['name']}", substituted(re.sub(r" [<>] 0$", "", annotation["expr"]))
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}/{panel['title']}", substituted(target["expr"])


def substituted(expr: str) -> str:
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    return expr


def questions() -> dict[str, str]:
    """What must return data -> where it is asked."""
    asked = {}
    for where, expr in panel_queries():
        asked[expr] = where
        asked |= dict.fromkeys(SELECTOR.findall(expr), where)
    for name in RECORDING:
        asked[name] = "recording rule"
    for alert in ALERTS:
        asked |= dict.fromkeys(SELECTOR.findall(alert.expr), alert.name)
    return asked


def empty_ones(prometheus: Prometheus) -> list[str]:
    """Asked again while the run goes on, for some series take a while to appear."""
    left, end = questions(), time.monotonic() + WITHIN_S
    while left and time.monotonic() < end:
        left = {expr: where for expr, where in left.items() if not prometheus.query(expr)}
        time.sleep(1.0)
    return [f"{where}: {expr}" for expr, where in left.items()]


def unexported(prometheus: Prometheus) -> list[str]:
    """Metrics of the catalogue that were not scraped from a role that exports them; scraped ones that are not in it."""
    known = {}
    for metric in CATALOGUE:
        names = [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
        known |= dict.fromkeys(names if metric.type == "histogram" else [metric.name], metric)
    scraped = {(name, role) for name, role in prometheus.exported() if name.startswith(("sbp_", "process_"))}
    strange = [f"{name}: exported by {role}" for name, role in scraped if role not in known[name].roles]
    missing = [
        f"{name}: not exported by {role}"
        for name, metric in known.items()
        if metric in OWN
        for role in metric.roles
        if role in WATCHED and (name, role) not in scraped
    ]
    return sorted(strange + missing)


# --- faults ---


def quick(alert: Alert) -> Alert:
    """Durations and thresholds of time, shortened."""
    expr = re.sub(r"\[\d+[mh]\]", f"[{QUICK_WINDOW}]", alert.expr)
    for old, new in alert.quick:
        assert old in expr
        expr = expr.replace(old, new)
    return replace(alert, expr=expr, for_="0s")


class Faults:
    """Provokes each, and waits for its alerts. ``fired`` and ``resolved`` collect (alert, run)."""

    def __init__(self, prometheus: Prometheus, main: RunDir, diverging: RunDir, folder: Path):
        self.prometheus, self.main, self.diverging, self.folder = prometheus, main, diverging, folder
        self.fired: dict[str, float] = {}  # alert -> seconds from the fault until it fired
        self.resolved: dict[str, float] = {}

    def await_firing(self, *names: str, run: str = "main", meanwhile: Callable[[], None] | None = None) -> None:
        """Raises TimeoutError that says which did not fire."""
        started = time.monotonic()
        while missing := [name for name in names if name not in self.fired]:
            firing = self.prometheus.firing()
            now = time.monotonic() - started
            self.fired |= {name: round(now, 1) for name in missing if (name, run) in firing}
            if now > WITHIN_S:
                raise TimeoutError(f"did not fire within {WITHIN_S:.0f} s: {', '.join(missing)}")
            if meanwhile:
                meanwhile()
            time.sleep(0.3)
        say(f"fired: {', '.join(names)}")

    def await_none(self, *names: str, run: str = "main") -> None:
        """Before a fault, so that what fires afterwards fires for it."""
        end = time.monotonic() + WITHIN_S
        expected = {(name, run) for name in names}
        while (firing := self.prometheus.firing() & expected) and time.monotonic() < end:
            time.sleep(0.5)
        if firing:
            raise TimeoutError(f"fired before the fault: {', '.join(sorted(name for name, _ in firing))}")

    def await_quiet(self) -> None:
        """What has fired ends, the faults being gone."""
        started = time.monotonic()
        while missing := [name for name in self.fired if name not in self.resolved]:
            firing = {name for name, _ in self.prometheus.firing()}
            now = time.monotonic() - started
            self.resolved |= {name: round(now, 1) for name in missing if name not in firing}
            if now > WITHIN_S:
                return
            time.sleep(0.5)

    def unauthenticated_peer(self) -> None:
        self.await_none("SbpUnauthenticatedPeer")
        with self._stranger():
            self.await_firing("SbpUnauthenticatedPeer")

    @contextmanager
    def _stranger(self) -> Iterator[None]:
        """Knows the trainer's public key, and has one of its own that the trainer does not list."""
        strangers, ours = self.folder / "strangers", self.folder / "keys"
        keys.make(strangers, ["generator-0"])
        shutil.copy(ours / "trainer.key", strangers / "trainer.key")
        endpoint = self.main.read_roles()["trainer"]["facts"]["stream_endpoint"]
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            keys.Credentials(str(strangers), "generator-0").apply(dealer)
            dealer.connect(endpoint)
            yield

    def killed_generators_and_stalled_tuner(self) -> None:
        """The generator is killed again as soon as it is back."""

        def kill() -> None:
            if pid := pid_of(self.main, "generator-0"):
                os.kill(pid, signal.SIGKILL)

        alerts = ("SbpRoleDown", "SbpRoleRestarts", "SbpNoGenerators", "SbpTunerStalled")
        self.await_none(*alerts)
        with stopped(runs.wait_for("the tuner", lambda: pid_of(self.main, "tuner"))):
            self.await_firing(*alerts, meanwhile=kill)

    def full_journal_disk(self) -> None:
        """The journal lies on a file system of its own; a file fills it up."""
        self.await_none("SbpJournalPaused")
        filler = self.main.journal / ".filler"
        with open(filler, "wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(2**12)):
                pass
        self.await_firing("SbpJournalPaused")
        filler.unlink()

    def failing_gate(self) -> None:
        """The tuner reads its configuration when it starts: one that no candidate passes, then the old one."""
        self.await_none("SbpGateFailing")
        path = self.main.path / "config.toml"
        before = path.read_text()
        path.write_text(re.sub(r"(?m)^max_length_ratio = .*$", "max_length_ratio = 0.0001", before))
        self._restart_tuner()
        self.await_firing("SbpGateFailing")
        path.write_text(before)
        self._restart_tuner()

    def _restart_tuner(self) -> None:
        before = runs.wait_for("the tuner", lambda: pid_of(self.main, "tuner"))
        os.kill(before, signal.SIGKILL)
        runs.wait_for("another tuner", lambda: pid_of(self.main, "tuner") not in (None, before))

    def stuck_trainer(self) -> None:
        alerts = ("SbpTrainerStuck", "SbpRoleSilent", "SbpProcessDown")
        self.await_none(*alerts)
        with stopped(runs.wait_for("the trainer", lambda: pid_of(self.main, "trainer"))):
            self.await_firing(*alerts)

    def diverged(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """What the runbook says: stop, and go on from a checkpoint before it (here: none) with a lower rate."""
        self.await_firing("SbpLossNotFinite", run="diverging")
        runs.end(process, signal.SIGTERM)
        for checkpoint in self.diverging.checkpoints.glob("step-*"):
            shutil.rmtree(checkpoint)
        settings = runs.settings(self.folder, "diverging", *DIVERGES, "training.learning_rate=1e-3")
        command = ("-m", "sbp_services", "train", "--accept-changes", *settings)
        return runs.spawn(self.folder / "diverging.log", *command)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def file_system(path: Path, megabytes: int) -> Iterator[bool]:
    """A small one of its own at ``path``; False where this process may not mount."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:.0f} s: {text}", file=sys.stderr, flush=True)


STARTED = time.monotonic()


def check(folder: Path) -> dict[str, Any]:
    runs.prepare(folder)
    keys.make(folder / "keys", ["generator-0"])
    extra = (*MAIN, f'stream.keys="{folder / "keys"}"', f'data.dataset="{folder / "facts"}"')
    main, diverging = runs.make_run(folder, "main", *extra), runs.make_run(folder, "diverging", *DIVERGES)
    chosen = tuple(quick(alert) if alert.name in PROVOKED else alert for alert in ALERTS)
    skipped: list[str] = []
    with (
        file_system(main.journal, 64) as small_disk,
        Prometheus(folder, [main.path, diverging.path], rules(chosen)) as prometheus,
    ):
        whole = runs.spawn(folder / "main.log", "-m", "sbp_services", "run", *runs.settings(folder, "main", *extra))
        alone = runs.train(diverging)
        try:
            runs.wait_for("synthetic documents are trained", lambda: trained_synthetic(main) > 500, whole)
            say("synthetic documents are trained")
            empty = empty_ones(prometheus) + unexported(prometheus)
            say(f"asked everything; without data: {empty}")
            faults = Faults(prometheus, main, diverging, folder)
            provoke: list[Callable[[], None]] = [
                faults.unauthenticated_peer,
                *([faults.full_journal_disk] if small_disk else []),
                faults.failing_gate,
                faults.killed_generators_and_stalled_tuner,
                faults.stuck_trainer,
            ]
            if not small_disk:
                skipped.append("SbpJournalPaused: mounting a tmpfs needs privileges")
            alone = faults.diverged(alone)
            failures = []
            for fault in provoke:
                say(fault.__name__)
                try:
                    fault()
                except TimeoutError as error:
                    failures.append(str(error))
                    say(failures[-1])
            faults.await_quiet()
            series = int(prometheus.value('sum(scrape_samples_scraped{run="main"})'))
        finally:
            runs.end(alone, signal.SIGKILL)
            runs.end(whole, signal.SIGTERM)
    queries = list(panel_queries())
    return {
        "panels": len({where for where, _ in queries}),
        "queries": len(queries),
        "selectors_and_queries": len(questions()),
        "empty": empty,
        "series": series,
        "alerts": len(ALERTS),
        "fired": faults.fired,
        "resolved": faults.resolved,
        "failures": failures,
        "skipped": skipped,
        "seconds": round(time.monotonic() - STARTED),
    }


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="sbp-dashboards-"))
    try:
        result = check(folder)
    except RuntimeError as error:
        print(f"check-dashboards: {error} (files are in {folder})", file=sys.stderr)
        return 2
    missing = set(PROVOKED) - set(result["resolved"]) - {name.partition(":")[0] for name in result["skipped"]}
    passed = not result["empty"] and not result["failures"] and not missing
    print(json.dumps(result | {"passed": passed}), flush=True)
    if passed:
        shutil.rmtree(folder)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

"""`sbp run`: starts the roles, restarts what dies, stops everything in order, and shows what happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from sbp_services.service import Service
from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry import sinks, targets

DIES_WITHIN_S = 5.0  # a process after kill -9, on a busy machine
BAD_CONFIGURATION = 2  # exit status of a role that cannot work with its configuration: a restart would not help


@dataclass
class Role:
    """One process that the supervisor keeps alive."""

    kind: str  # one of `catalogue.PROCESS_KINDS`
    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    done: bool = False  # ended with status 0: nothing to restart
    deaths: deque[float] = field(default_factory=deque)  # monotonic times, within the restart window
    start_at: float = 0.0
    started: float = 0.0  # Unix time
    needed: bool = True  # the run ends when this cannot be kept alive

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Supervisor(Service):
    """Ends when the trainer is done, when a signal comes, or when a role cannot be kept alive.

    ``show`` draws the run, about once a second; ``last_words`` says one line when a second signal ends everything.
    """

    role = "supervisor"

    def __init__(
        self,
        run: RunDir,
        show: Callable[[RunDir], None],
        last_words: Callable[[str], None],
        metrics_port: int = 0,
        accept_changes: bool = False,
    ):
        super().__init__(run, metrics_port=metrics_port)
        self._say_at_the_end = last_words
        self._settings: config.Supervisor = self.config.supervisor
        self._show = show
        self.roles = [
            Role("trainer", "trainer", ["train", "--accept-changes"] if accept_changes else ["train"]),
            *_others(self.config),
            *_exporters(self.config.telemetry),
        ]

    def startup(self) -> None:
        for stale in self.run.roles.glob("*.json"):
            if stale.stem != self.name:
                stale.unlink()  # of the last time: nobody must connect to its ports
        targets.forget_dead(self.run)
        for role in self.roles:
            self._start(role)
        self.report("running", f"{len(self.roles)} roles")

    def tick(self) -> bool:
        try:
            for role in self.roles:
                self._look_after(role)
        except ConfigError as error:
            self._stop_all()
            self.record("run_finished", reason=f"failed: {error}")
            raise
        self._count_up()
        self._look_at_the_machine()
        self.report("running", f"{sum(role.alive for role in self.roles)} of {len(self.roles)} processes run")
        self._show(self.run)
        self.sleep(0.5)
        return not self.roles[0].done

    def shutdown(self) -> None:
        self._stop_all()
        self.record("run_finished", reason="the trainer is done" if self.roles[0].done else "stopped")
        self._show(self.run)

    def _stop_all(self) -> None:
        """Generators first, so that the trainer can still acknowledge; then the trainer, with its checkpoint."""
        for kinds in (("generator",), ("tuner", "pairer"), ("trainer",), ("exporter",)):
            self._stop([role for role in self.roles if role.kind in kinds])
        targets.forget_dead(self.run)

    def abort(self) -> None:
        for role in self.roles:
            if role.process is not None and role.alive:
                role.process.kill()
        end = time.monotonic() + DIES_WITHIN_S
        for role in self.roles:
            if role.process is not None:
                with suppress(subprocess.TimeoutExpired):  # so that nobody works on the run when this has ended
                    role.process.wait(max(0.0, end - time.monotonic()))
        self.report("stopped", "ended at once")
        self._say_at_the_end(
            "ended at once. Nothing is lost: the same command goes on from the newest checkpoint, and trains the steps "
            "since then again as they were"
        )

    def _start(self, role: Role) -> None:
        command = [sys.executable, "-m", "sbp_services", *role.arguments, "--run", str(self.run.path)]
        environment = os.environ | {"SBP_PARENT_PID": str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        nice = 0 if role.kind == "trainer" else self._settings.background_nice
        with open(self.run.logs / f"{role.name}.log", "ab") as log_file:
            role.process = _spawn(command, environment, log_file, nice)
        role.started = time.time()
        self.record("role_started", name=role.name, pid=role.process.pid)

    def _look_after(self, role: Role) -> None:
        if role.done or role.alive:
            return
        if role.process is not None:
            self._note_end(role, role.process.returncode)
        elif time.monotonic() >= role.start_at:
            self._start(role)
            self.metrics.inc("sbp_role_restarts_total", kind=role.kind)

    def _note_end(self, role: Role, exit_code: int) -> None:
        pid = role.process.pid if role.process else 0
        role.process = None
        if exit_code == 0 and role.kind in ("pairer", "trainer"):
            role.done = True
            return
        try:
            if exit_code == BAD_CONFIGURATION:
                raise ConfigError(f"{role.name} cannot start: {self._last_words(role)}")
            wait_s = self._next_wait_s(role)
        except ConfigError as error:
            died = {"name": role.name, "pid": pid, "exit_code": exit_code}
            self.record("role_died", **died, restart_in_s=None, reason=str(error))
            if role.needed:
                raise
            role.done = True  # the run goes on without it
            return
        role.start_at = time.monotonic() + wait_s
        self.record("role_died", name=role.name, pid=pid, exit_code=exit_code, restart_in_s=round(wait_s, 1))

    def _next_wait_s(self, role: Role) -> float:
        now = time.monotonic()
        role.deaths.append(now)
        while now - role.deaths[0] > self._settings.restart_window_s:
            role.deaths.popleft()
        if len(role.deaths) > self._settings.max_restarts:
            raise ConfigError(
                f"{role.name} died {len(role.deaths)} times within {self._settings.restart_window_s:.0f} s, "
                f"last: {self._last_words(role)}; see {self.run.logs / role.name}.log"
            )
        return min(self._settings.backoff_s * 2 ** (len(role.deaths) - 1), self._settings.max_backoff_s)

    def _last_words(self, role: Role) -> str:
        status = self.run.read_roles().get(role.name, {})
        return status.get("detail") or f"see {self.run.logs / role.name}.log"

    def _stop(self, roles: list[Role]) -> None:
        for role in roles:
            if role.process is not None and role.alive:
                role.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + self._settings.stop_timeout_s
        while any(role.alive for role in roles) and time.monotonic() < end:
            names = ", ".join(role.name for role in roles if role.alive)
            self.report("stopping", f"waiting for {names} to stop")
            self._show(self.run)
            time.sleep(0.1)
        for role in roles:
            if role.process is not None and role.alive:
                self.record("role_killed", name=role.name, pid=role.process.pid, waited_s=self._settings.stop_timeout_s)
                role.process.kill()
                role.process.wait(10.0)

    def _count_up(self) -> None:
        for kind in {role.kind for role in self.roles}:
            alike = [role for role in self.roles if role.kind == kind]
            self.metrics.set("sbp_role_up", sum(role.alive for role in alike), kind=kind)
            self.metrics.set("sbp_role_wanted", sum(not role.done for role in alike), kind=kind)
            silent_s = max((self._silent_s(role) for role in alike if role.alive), default=0.0)
            self.metrics.set("sbp_role_silent_seconds", silent_s, kind=kind)

    def _silent_s(self, role: Role) -> float:
        """How long ago its process started, or last rewrote its status."""
        try:
            written = (self.run.roles / f"{role.name}.json").stat().st_mtime
        except FileNotFoundError:
            written = 0.0
        return max(0.0, time.time() - max(written, role.started))

    def _look_at_the_machine(self) -> None:
        memory = psutil.virtual_memory()
        self.metrics.set("sbp_disk_free_bytes", psutil.disk_usage(str(self.run.path)).free)
        self.metrics.set("sbp_memory_available_bytes", memory.available)
        self.metrics.set("sbp_memory_total_bytes", memory.total)


def _others(settings: config.Config) -> list[Role]:
    """The roles beside the trainer that this run needs."""
    pairs = [Role("pairer", "pairer", ["pair"])] if settings.needs_pairs else []
    if settings.synthesizer.mode == "off":
        return pairs
    generators = [
        Role("generator", f"generator-{k}", ["generate", "--index", str(k)]) for k in range(settings.generator.count)
    ]
    return [*pairs, Role("tuner", "tuner", ["tune"]), *generators]


def _exporters(telemetry: config.Telemetry) -> list[Role]:
    arguments = {sinks.TENSORBOARD: ["--tensorboard"], sinks.WANDB: ["--wandb", telemetry.wandb]}
    return [Role("exporter", sink, ["export", *arguments[sink]], needed=False) for sink in sinks.wanted(telemetry)]


def _spawn(command: list[str], environment: dict[str, str], log_file: IO[bytes], nice: int) -> subprocess.Popen[bytes]:
    """A child in a session of its own: Ctrl-C in the terminal reaches the supervisor only, which stops it in order."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log_file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    nicer = max(nice, os.getpriority(os.PRIO_PROCESS, 0))  # lowering it would need a privilege
    os.setpriority(os.PRIO_PROCESS, process.pid, nicer)
    # where Linux groups processes by session, niceness counts within a group only, and this is the group's
    with suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text(str(nicer))
    return process

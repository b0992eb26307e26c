import json
import os

from streaming_sbp.rundir import RunDir, lock_role
from streaming_sbp.telemetry import targets


def test_a_process_is_announced_and_withdrawn(tiny_config):
    run = RunDir.open_or_create(tiny_config)
    targets.announce(run, "generator", "generator-0", "127.0.0.1", 9001)
    targets.announce(run, "generator", "generator-0", "::1", 9002)  # restarted
    said = json.loads((run.prometheus / "generator-0.json").read_text())
    labels = {"run": "run", "role": "generator", "name": "generator-0"}
    assert said == [{"targets": ["[::1]:9002"], "labels": labels}]
    targets.announce(run, "trainer", "trainer", "0.0.0.0", 9003)
    assert "0.0.0.0" not in (run.prometheus / "trainer.json").read_text()  # nobody can connect to that
    targets.withdraw(run, "trainer")
    targets.withdraw(run, "trainer")
    assert [path.name for path in run.prometheus.iterdir()] == ["generator-0.json"]


def test_only_the_dead_are_forgotten(tiny_config):
    run = RunDir.open_or_create(tiny_config)
    for name in ("trainer", "tuner"):
        targets.announce(run, name, name, "127.0.0.1", 9001)
    lock = lock_role(run.path, "trainer")
    try:
        targets.forget_dead(run)
    finally:
        os.close(lock)
    assert [path.name for path in run.prometheus.iterdir()] == ["trainer.json"]

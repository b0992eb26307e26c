"""What `sbp experiment` says of a run that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sbp_services.experiment import Running, _position
from streaming_sbp.experiment.arms import Trial
from tests.unit.run_records import FakeRun, make_run


def test_a_run_that_waits_says_for_what(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=200, finished=False, pid=os.getpid())
    fake.write()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    running = Running(Trial("online", (), 0), run.config(), process, started=0.0, tokens_before=0)
    assert _position(running).endswith(" of 6.00M tokens")
    fake.role_file("trainer", "waiting", detail="for the first snapshot")
    assert _position(running).endswith(" of 6.00M tokens, waits for the first snapshot")

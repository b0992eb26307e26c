"""`make soak MINUTES=n`: a real run as fast as it goes, a kill -9 a minute, and the memory of each role.

What must be none is that of `chaos.py`. Besides, for each role: ``rss_mib`` at the end, and ``rss_slope_mib_per_hour``,
the line through resident size over the age of a process, one height for each process that lived long enough (the first
half minute, in which imports and buffers grow, is left out).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from streaming_sbp.rundir import RunDir
from tests.checks import runs
from tests.checks.chaos import conclude, finish, pid_of, trained_steps, trained_synthetic

EXTRA = ("generator.count=2", "mix.synthetic_share=0.5", "stream.capacity_documents=1024")
VICTIMS = ("generator-0", "generator-1", "tuner", "generator-0", "trainer")  # in turn, one a minute
ROLES = ("supervisor", "trainer", "tuner", "generator-0", "generator-1")
WARM_UP_S = 30.0
SAMPLE_EVERY_S = 2.0
Samples = dict[str, dict[int, list[tuple[float, float]]]]  # role, pid: (age in s, MiB)


def soak(folder: Path, minutes: float) -> dict[str, Any]:
    run = runs.make_run(folder, "soak", *EXTRA)
    process = runs.spawn(folder / "run.log", "-m", "sbp_services", "run", *runs.settings(folder, "soak", *EXTRA))
    runs.wait_for("synthetic documents are trained", lambda: trained_synthetic(run) > 500, process)
    samples: Samples = defaultdict(lambda: defaultdict(list))
    killed: Counter[str] = Counter()
    rng, began = random.Random(0), time.monotonic()
    next_kill = 60.0
    while (now := time.monotonic() - began) < 60 * minutes:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself, with status {process.returncode}")
        sample(run, samples)
        if now >= next_kill:
            name = VICTIMS[killed.total() % len(VICTIMS)]
            time.sleep(rng.uniform(0.0, 1.5))
            if pid := pid_of(run, name):
                os.kill(pid, signal.SIGKILL)
                killed[name] += 1
                next_kill += 60.0
                print(f"{now:.0f} s: killed {name}, step {trained_steps(run)}", file=sys.stderr, flush=True)
        time.sleep(SAMPLE_EVERY_S)
    seconds = time.monotonic() - began
    last = {role: round(max(lives.values(), key=lambda life: life[-1])[-1][1]) for role, lives in samples.items()}
    slopes = {role: slope(list(lives.values())) for role, lives in samples.items()}
    result = finish(run, process)
    rate = round(result["documents"] / seconds, 1)
    return {
        "kills": killed.total(),
        "killed": dict(killed),
        "documents_per_second": rate,
        **result,
        "rss_mib": last,
        "rss_slope_mib_per_hour": slopes,
    }


def sample(run: RunDir, samples: Samples) -> None:
    """Resident size of each role that runs now."""
    for role, found in run.read_roles().items():
        if role not in ROLES or not found.get("pid"):
            continue
        try:
            process = psutil.Process(found["pid"])
            age = time.time() - process.create_time()
            samples[role][process.pid].append((age, process.memory_info().rss / 2**20))
        except psutil.NoSuchProcess:
            continue


def slope(lives: list[list[tuple[float, float]]]) -> float | None:
    """MiB per hour: least squares over age, each life around its own mean; None when no process lived long enough."""
    ages, sizes = [], []
    for life in lives:
        kept = np.array([point for point in life if point[0] > WARM_UP_S])
        if len(kept) > 10:
            ages.append(kept[:, 0] - kept[:, 0].mean())
            sizes.append(kept[:, 1] - kept[:, 1].mean())
    if not ages:
        return None
    x, y = np.concatenate(ages), np.concatenate(sizes)
    return round(float(x @ y / (x @ x)) * 3600, 1)


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    folder = Path(tempfile.mkdtemp(prefix="sbp-soak-"))
    runs.prepare(folder)
    result = soak(folder, minutes)
    return conclude({"minutes": minutes, **result}, folder)


if __name__ == "__main__":
    sys.exit(main())

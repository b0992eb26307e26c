"""`make chaos KILLS=n`: kill -9 at random moments in a real run, then prove that nothing is lost or trained twice.

Victims are drawn among all roles, half of the time the trainer; half of its kills wait for a moment that is meant to
hurt: a journal shard, or a checkpoint, that is being written. After each kill of the trainer it must have trained at
least 200 further steps. In the end, for every step from the first to the last:

hash_mismatches  batches that differ from those of a loader that was never interrupted, made from journal and log
history_changes  resumes in which the steps since the checkpoint could not be trained again as they were
twice            synthetic documents that are in the journal twice, or were trained twice
lost             accepted documents that were neither trained nor wait to be, and acknowledged ones not accepted
imbalance        of the ledger
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.telemetry.status import collect, is_alive
from tests.checks import runs

STEPS_BETWEEN_KILLS = 200
NAMES = ("trainer", "tuner", "generator-0", "generator-1", "pairer")
MOMENTS = {"journal": "journal/.*.tmp", "checkpoint": "checkpoints/.*.tmp"}
MOMENT_WITHIN_S = 5.0
MUST_BE_NONE = ("hash_mismatches", "history_changes", "twice", "lost", "imbalance", "died_by_themselves")


def chaos(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    run = runs.make_run(folder, "chaos", "generator.count=2")
    process = runs.spawn(
        folder / "run.log", "-m", "sbp_services", "run", *runs.settings(folder, "chaos", "generator.count=2")
    )
    runs.wait_for("synthetic documents are trained", lambda: trained_synthetic(run) > 500, process)
    killed: Counter[str] = Counter()
    for number in range(kills):
        name, moment = kill_one(run, rng)
        killed[name] += 1
        if moment:
            killed[f"in the middle of a {moment}"] += 1
        goal = runs.num_steps(run) + STEPS_BETWEEN_KILLS
        runs.wait_for(
            f"200 steps after kill {number + 1} ({name})", lambda goal=goal: trained_steps(run) >= goal, process
        )
        if number % 10 == 9:
            print(f"{number + 1} kills: {dict(killed)}, step {trained_steps(run)}", file=sys.stderr, flush=True)
    return {"killed": dict(killed), **finish(run, process)}


def kill_one(run: RunDir, rng: random.Random) -> tuple[str, str]:
    """Kill a role that runs, perhaps in the middle of something; returns its name and the moment."""
    while True:
        name = "trainer" if rng.random() < 0.5 else rng.choice(NAMES)
        moment = rng.choice(("", "", *MOMENTS)) if name == "trainer" else ""
        time.sleep(rng.uniform(0.0, 1.5))
        if moment:
            wait_for_moment(run, MOMENTS[moment])
        pid = pid_of(run, name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            return name, moment


def pid_of(run: RunDir, name: str) -> int | None:
    found = run.read_roles().get(name, {})
    return found["pid"] if found.get("state") in ("running", "waiting") and is_alive(found) else None


def wait_for_moment(run: RunDir, pattern: str) -> None:
    end = time.monotonic() + MOMENT_WITHIN_S
    while time.monotonic() < end and not any(run.path.glob(pattern)):
        pass  # such a moment is short


def finish(run: RunDir, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    runs.wait_for("the trainer runs at the end", lambda: pid_of(run, "trainer"), process)
    runs.end(process, signal.SIGINT)
    status = collect(run)
    logged = runs.steps(run)
    digests, trained, batches = runs.uninterrupted_digests(run)
    mismatches = sum(past.digest != digest for past, digest in zip(logged, digests, strict=True))
    journal = Journal(run.journal)
    keys = Counter((e.generator, e.session, e.seq) for e in journal.entries())
    waiting = [piece.position for piece in batches.packer.pieces() if piece.source == "synthetic" and piece.last]
    unread = range(batches.sources["synthetic"].cursor, len(journal))
    places = Counter([*trained, *waiting, *unread])
    ledger = status["ledger"]
    return {
        "steps": len(logged),
        "hash_mismatches": mismatches + (runs.num_steps(run) - len(logged)),
        "history_changes": sum(r["event"] == "history_changed" for r in run.read_records("trainer")),
        "documents": len(journal),
        "trained": len(trained),
        "twice": sum(count - 1 for count in keys.values()) + sum(count - 1 for count in places.values()),
        "lost": len(set(range(len(journal))) - places.keys()) + (len(journal) - keys.total()) + ledger["in_flight"],
        "imbalance": abs(ledger["imbalance"]) + sum(abs(g["imbalance"]) for g in ledger["by_generator"].values()),
        "trained_by_ledger": ledger["trained"],
        "dropped": ledger["dropped_by_reason"],
        "died_by_themselves": [
            f"{r['name']}: exit status {r['exit_code']}"
            for r in run.read_records("supervisor")
            if r["event"] == "role_died" and r["exit_code"] != -signal.SIGKILL
        ],
        "restarts": sum(role["restarts"] for role in status["roles"].values()),
    }


def trained_synthetic(run: RunDir) -> int:
    facts = run.read_roles().get("trainer", {}).get("facts", {})
    return facts.get("mix", {}).get("trained_tokens", {}).get("synthetic", 0)


def trained_steps(run: RunDir) -> int:
    """Steps of the trainer that runs now; those it repeats after a kill are no progress."""
    found = run.read_roles().get("trainer", {})
    return found.get("facts", {}).get("step", 0) if is_alive(found) else 0


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="sbp-chaos-"))
    runs.prepare(folder)
    result = chaos(folder, kills, seed)
    return conclude({"kills": kills, **result, "seconds": round(time.monotonic() - started)}, folder)


def conclude(result: dict[str, Any], folder: Path) -> int:
    """Print the line; exit status 1, and the run is kept, when something is not as it must be."""
    print(json.dumps(result))
    wrong = [key for key in MUST_BE_NONE if result[key]]
    if wrong or result["trained"] != result["trained_by_ledger"]:
        print(f"not as it must be: {', '.join(wrong)}; the run is kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

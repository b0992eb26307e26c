"""`make resume-check`: resumes, other numbers of ranks, and replay, with the real trainer. Ends in one JSON line.

resumes_equal   five resumes in a row (kill -9 and SIGTERM in turn), across epochs, against one uninterrupted run:
                batches and losses, bit for bit
elastic_equal   saved at 2 ranks, resumed at 1, 2 and 4: the same global batches
replay_equal    an asynchronous run with generators, trained again from its journal and log of steps: batches and
                losses, bit for bit
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from streaming_sbp.rundir import RunDir
from tests.checks import runs


def asynchronous_run(folder: Path, num_steps: int) -> RunDir:
    """A real run with pairer, tuner and a generator, ended by Ctrl-C."""
    run = runs.make_run(folder, "async")
    process = runs.spawn(folder / "run.log", "-m", "sbp_services", "run", *runs.settings(folder, "async"))

    def went_far_enough() -> bool:
        shares = [sum(past.loss["synthetic"] is not None for past in runs.steps(run)[-200:])]
        return runs.num_steps(run) >= num_steps and min(shares) > 50

    runs.wait_for("an asynchronous run", went_far_enough, process)
    runs.end(process, signal.SIGINT)
    return run


def replay(run: RunDir) -> dict[str, object]:
    process = runs.spawn(run.path / "logs" / "replay.log", "-m", "sbp_services", "train", "--replay", str(run.path))
    process.wait(runs.WITHIN_S)
    return json.loads((run.path / "logs" / "replay.log").read_text().splitlines()[-1])


def with_the_documents_of(source: RunDir, folder: Path, name: str) -> RunDir:
    """A new run that finds a journal and a snapshot from its first step on: what it trains depends on nobody."""
    run = runs.make_run(folder, name)
    for part in ("journal", "snapshots"):
        shutil.rmtree(run.path / part)
        shutil.copytree(source.path / part, run.path / part)
    return run


def check_resumes(source: RunDir, folder: Path, num_steps: int) -> tuple[RunDir, dict[str, object]]:
    whole = with_the_documents_of(source, folder, "whole")
    runs.train_until(whole, num_steps)
    resumed = with_the_documents_of(source, folder, "resumed")
    for k in range(1, 6):
        runs.train_until(resumed, num_steps * k // 6, number=signal.SIGKILL if k % 2 else signal.SIGTERM)
    runs.train_until(resumed, num_steps)
    compared = min(runs.num_steps(whole), runs.num_steps(resumed))
    different = runs.num_different(runs.steps(whole), runs.steps(resumed), losses=True)
    starts = [record for record in resumed.read_records("trainer") if record["event"] == "start"]
    epochs = [record["real_epochs"] for record in resumed.read_records("trainer") if record["event"] == "train"]
    return whole, {
        "resumes_equal": different == 0 and compared >= num_steps and len(starts) == 6 and max(epochs) > 1,
        "resumes": len(starts) - 1,
        "steps_compared": compared,
        "steps_different": different,
        "real_epochs": max(epochs),
    }


def check_ranks(source: RunDir, whole: RunDir, folder: Path, num_steps: int) -> dict[str, object]:
    saved = with_the_documents_of(source, folder, "ranks")
    runs.train_until(saved, num_steps // 3, ranks=2)
    different = {}
    for ranks in (1, 2, 4):
        name = f"ranks-{ranks}"
        run = with_the_documents_of(source, folder, name)
        for part in ("checkpoints", "steps.jsonl"):
            origin = saved.path / part
            if origin.is_dir():
                shutil.rmtree(run.path / part)
                shutil.copytree(origin, run.path / part)
            else:
                shutil.copy(origin, run.path / part)
        runs.train_until(run, num_steps, ranks=ranks)
        found = runs.steps(run)
        different[ranks] = runs.num_different(runs.steps(whole), found, losses=False) + (len(found) < num_steps)
    return {"elastic_equal": not any(different.values()), "elastic_steps_different": different}


def main() -> int:
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sbp-resume-") as name:
        folder = Path(name)
        runs.prepare(folder)
        source = asynchronous_run(folder, num_steps)
        replayed = replay(source)
        whole, resumes = check_resumes(source, folder, num_steps)
        elastic = check_ranks(source, whole, folder, num_steps)
    result = {**resumes, **elastic, **{f"replay_{k.removeprefix('replay_')}": v for k, v in replayed.items()}}
    print(json.dumps(result | {"seconds": round(time.monotonic() - started)}))
    return 0 if all(result[key] for key in ("resumes_equal", "elastic_equal", "replay_equal")) else 1


if __name__ == "__main__":
    sys.exit(main())

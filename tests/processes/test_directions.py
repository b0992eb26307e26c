"""`sbp experiment concepts --scale tiny`, whole: the directions that a broken mixer, tuner or pairer would turn round.

docs/experiments.md ("Directions, in small") has the figures of three such faults, each of which fails this test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checks import runs

pytestmark = pytest.mark.processes


def wrong_directions(results: dict[str, Any]) -> list[str]:
    """What does not hold of a results.json, with its figures. Losses in nats per token, held-out."""
    arms = {arm["arm"]: arm for arm in results["arms"]}
    best = {name: arm["best_loss"]["mean"] for name, arm in arms.items()}
    end = {name: arm["end_loss"]["mean"] for name, arm in arms.items()}
    trial = next(trial for trial in results["trials"] if trial["arm"] == "online")
    published = [s["measures"] for s in trial["snapshots"] if s["verdict"] == "published"] or [{}]
    first, last = published[0], published[-1]
    saved_by_seed = first.get("unrelated_pair_loss", 0.0) - first.get("pair_loss", 0.0)
    about_seed = last.get("about_seed_share", 0.0)
    share = trial["realised_share"] or 0.0
    holds = {
        f"oracle {best['oracle']:.3f}, repetition at its best {best['repetition']:.3f}: expected 0.06 less": (
            best["oracle"] <= best["repetition"] - 0.06
        ),
        f"SBP {best['online']:.3f}, repetition at its best {best['repetition']:.3f}: expected 0.015 less": (
            best["online"] <= best["repetition"] - 0.015
        ),
        f"SBP at the end {end['online']:.3f}, repetition {end['repetition']:.3f}: expected 0.06 less": (
            end["online"] <= end["repetition"] - 0.06
        ),
        f"{saved_by_seed:.3f} nats saved by the own seed document, first snapshot: expected 0.25": saved_by_seed
        >= 0.25,
        f"{about_seed:.2f} of the documents about their seed's person, last snapshot: expected 0.6": about_seed >= 0.6,
        f"{share:.3f} of the tokens synthetic since the first snapshot: expected 0.5": abs(share - 0.5) <= 0.01,
        f"ledger imbalance {trial['ledger_imbalance']}: expected 0": trial["ledger_imbalance"] == 0,
    }
    return [what for what, held in holds.items() if not held]


def test_directions_of_the_tiny_experiment(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sbp_services", "experiment", "concepts", "--scale", "tiny", "--arms", "online"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=1200, env=runs.ENVIRONMENT
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    headline = json.loads(ended.stdout.splitlines()[-1])
    assert headline["seeds"] == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert wrong_directions(results) == []

"""The tiny experiment, sound or with one part broken, and which directions turn round: one JSON line.

    python -m tests.checks.directions [pairer | tuner | mixer]

Each fault is a setting, so the broken part is the real one: random pairs that the gate lets through, a tuner that does
not learn, a mixer that gives a third of the share. `tests/processes/test_directions.py` runs the sound one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.checks import runs

SHARE = 0.5  # of `--scale tiny`
FAULTS = {
    "sound": (),
    "pairer": ("pairing.relation=random", "gate.min_relatedness_ratio=0"),
    "tuner": ("synthesizer.learning_rate=1e-12",),
    "mixer": ("mix.synthetic_share=0.15",),
}


def run_tiny(out: Path, *overrides: str) -> dict[str, Any]:
    """Its results.json. Raises RuntimeError when the command fails."""
    command = [sys.executable, "-m", "sbp_services", "experiment", "concepts", "--scale", "tiny", "--arms", "online"]
    ended = subprocess.run(
        [*command, "--out", str(out), *overrides], capture_output=True, text=True, timeout=1200, env=runs.ENVIRONMENT
    )
    if ended.returncode != 0:
        raise RuntimeError(ended.stderr + ended.stdout)
    assert json.loads(ended.stdout.splitlines()[-1])["seeds"] == 1
    return json.loads((out / "results.json").read_text())


def wrong_directions(results: dict[str, Any]) -> list[str]:
    return [what for what, held in directions(results).items() if not held]


def directions(results: dict[str, Any]) -> dict[str, bool]:
    """Whether each holds of a results.json; its key has the figures. Losses in nats per token, held-out."""
    arms = {arm["arm"]: arm for arm in results["arms"]}
    best = {name: arm["best_loss"]["mean"] for name, arm in arms.items()}
    end = {name: arm["end_loss"]["mean"] for name, arm in arms.items()}
    trials = {trial["arm"]: trial for trial in results["trials"] if not trial["point"]}
    trial = trials["online"]
    published = [s["measures"] for s in trial["snapshots"] if s["verdict"] == "published"] or [{}]
    first, last = published[0], published[-1]
    saved_by_seed = first.get("unrelated_pair_loss", 0.0) - first.get("pair_loss", 0.0)
    about_seed = last.get("about_seed_share", 0.0)
    share = trial["realised_share"] or 0.0
    ranks = {arm: [point["question_rank"] for point in trials[arm]["curve"]] for arm in ("oracle", "online")}
    return {
        f"oracle {best['oracle']:.3f}, repetition at its best {best['repetition']:.3f}: expected 0.06 less": (
            best["oracle"] <= best["repetition"] - 0.06
        ),
        f"SBP {best['online']:.3f}, repetition at its best {best['repetition']:.3f}: expected 0.03 less": (
            best["online"] <= best["repetition"] - 0.03
        ),
        f"SBP at the end {end['online']:.3f}, repetition {end['repetition']:.3f}: expected 0.06 less": (
            end["online"] <= end["repetition"] - 0.06
        ),
        f"{saved_by_seed:.3f} nats saved by the own seed document, first snapshot: expected 0.25": saved_by_seed
        >= 0.25,
        f"{about_seed:.2f} of the documents about their seed's person, last snapshot: expected 0.6": about_seed >= 0.6,
        f"{share:.3f} of the tokens synthetic since the first snapshot: expected {SHARE}": abs(share - SHARE) <= 0.01,
        # 256 questions, a dozen answers each: guesses have a mean with a standard error of 0.2, a difference of 0.3.
        **{
            f"right answers ranked {ranks[arm][0]:.1f} at first by {arm}, {ranks[arm][-1]:.1f} at the end: expected "
            f"{better} better": ranks[arm][-1] <= ranks[arm][0] - better
            for arm, better in (("oracle", 2.5), ("online", 1))
        },
        f"ledger imbalance {trial['ledger_imbalance']}: expected 0": trial["ledger_imbalance"] == 0,
    }


def main() -> int:
    fault = sys.argv[1] if len(sys.argv) > 1 else "sound"
    if fault not in FAULTS:
        sys.exit(f"fault {fault!r}: expected one of {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory() as folder:
        found = directions(run_tiny(Path(folder, "out"), *FAULTS[fault]))
    wrong = [what for what, held in found.items() if not held]
    print(json.dumps({"fault": fault, "wrong": wrong, "right": [what for what in found if what not in wrong]}))
    return int(bool(wrong) != (fault != "sound"))


if __name__ == "__main__":
    sys.exit(main())

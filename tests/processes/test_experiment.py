"""`sbp experiment` with real runs: what is done is not done again, what was made otherwise is refused, and an arm that
fails, or never gets its snapshot, does not take the others with it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sbp_services.experiment import ExperimentRunner
from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.experiment import arms, results
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

# The gate refuses every synthesizer of the one; the pairer of the other fails, so that it waits in vain.
TROUBLE = """
[scales.other]
seeds = 1
arms = []
config.data.vocab_size = 410

[arms.refused]
title = "A gate that nothing passes"
[arms.refused.config.synthesizer]
mode = "tuned"
tuning_tokens = 2_000
heldout_pairs = 4
[arms.refused.config.checkpoint]
every_tokens = 6_000
[arms.refused.config.mix]
starvation_policy = "wait"
start_by_tokens = 6_000
[arms.refused.config.gate]
trial_documents = 4
min_relatedness_ratio = 1.0
min_seed_gain = 100.0
min_length_ratio = 0.0
max_length_ratio = 0.001

[arms.fails]
title = "No such embedder"
[arms.fails.config.synthesizer]
mode = "tuned"
[arms.fails.config.pairing]
embedder = "/no/such/model"
[arms.fails.config.checkpoint]
every_tokens = 6_000
[arms.fails.config.mix]
starvation_policy = "wait"
start_by_tokens = 6_000
wait_timeout_s = 1

[arms.needs]
title = "Given what does not come"
snapshot_of = "fails"
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


def here(folder: Path, out: Path, scale: str = "small", seeds: int = 1, only: tuple[str, ...] = (), **more: Any) -> int:
    """The same without a process of its own, where nothing is left to train."""
    return ExperimentRunner(arms.load(str(folder / "own.toml"), scale, seeds, only, **more), out, 1).run()


def test_what_is_done_is_not_done_again(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus.jsonl"
    shutil.copy(tiny_folder / "corpus.jsonl", corpus)
    (tmp_path / "own.toml").write_text(EXPERIMENT.format(corpus=corpus))
    out = tmp_path / "out"
    first = experiment(tmp_path, "--seeds", "1")
    assert first.stdout.count("started") == 3  # two points of the grid, and the oracle
    found = line(first)
    assert found["seeds"] == 1
    assert found["share_of_oracle_gain_loss"] == 1.0  # main and oracle are one arm here
    assert (out / "index.html").exists()

    shutil.move(out / "runs", tmp_path / "runs")  # results.json keeps what they found
    second = experiment(tmp_path, "--seeds", "2")
    assert second.stdout.count("started") == 2  # the better point, and the oracle, with the second seed
    both = line(second)
    assert both["seeds"] == 2
    recorded = json.loads((out / "results.json").read_text())
    assert [arm["seeds"] for arm in recorded["arms"]] == [[0, 1], [0, 1]]
    assert len(recorded["trials"]) == 5
    assert recorded["seeds"] == 2
    assert [command[command.index("--seeds") :] for command in recorded["commands"]] == ["--seeds 1", "--seeds 2"]

    assert here(tmp_path, out) == 0
    third = capsys.readouterr().out
    assert "started" not in third
    assert json.loads(third.splitlines()[-1]) == both  # the second seed is there, and is shown
    assert len(json.loads((out / "results.json").read_text())["trials"]) == 5

    for changed in (["--seeds", "1", "training.learning_rate=1e-4"], ["--seeds", "2", "training.learning_rate=1e-4"]):
        refused = experiment(tmp_path, *changed)
        assert refused.returncode == 2
        assert "other settings" in refused.stderr or "another configuration" in refused.stderr

    # the documents are others now: what was found with those before is nothing to compare with
    before = Dataset.open(out / "data" / "real").manifest.fingerprints
    assert [t["fingerprints"] == before for t in recorded["trials"]] == [t["arm"] == "few" for t in recorded["trials"]]
    shutil.move(out / "data", tmp_path / "data")
    corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:-20]))
    assert here(tmp_path, out) == 0  # nothing to train, nothing to ingest
    for left in ("results.json", "runs"):
        if left == "runs":
            shutil.rmtree(out / "runs")
            shutil.move(tmp_path / "runs", out / "runs")
            (out / "results.json").rename(tmp_path / "results.json")
        for data_set in ("ingested now", "there already"):
            refused = experiment(tmp_path, "--seeds", "3")
            assert refused.returncode == 2, (left, data_set)
            assert "other documents" in refused.stderr
            assert "started" not in refused.stdout
        shutil.rmtree(out / "data")
    (tmp_path / "results.json").rename(out / "results.json")
    shutil.move(tmp_path / "data", out / "data")
    assert here(tmp_path, out, seeds=2) == 0

    own = (tmp_path / "own.toml").read_text()
    shutil.rmtree(out / "runs")
    kept = [trial for trial in recorded["trials"] if trial["arm"] == "all"]
    (out / "results.json").write_text(json.dumps({"trials": kept}))
    (tmp_path / "own.toml").write_text(own + "\n[arms.all.config.training]\nlearning_rate = 1e-4\n")
    refused = experiment(tmp_path, "--seeds", "1")
    assert refused.returncode == 2
    assert "all, seed 0: " in refused.stderr
    assert "started" not in refused.stdout  # the arm before it is not run first
    (tmp_path / "own.toml").write_text(own)

    refused = experiment(tmp_path, "--out", str(tmp_path / "own.toml"))
    assert refused.returncode == 2
    assert "own.toml: is a file, expected a folder" in refused.stderr
    with pytest.raises(ConfigError, match=r"own\.toml/out: is below a file, expected a folder"):
        results.load(tmp_path / "own.toml" / "out" / "results.json")

    (out / "results.json").write_text('{"trials": [{"arm": 3}]}')
    refused = experiment(tmp_path)
    assert refused.returncode == 2
    assert "not a results.json of this version" in refused.stderr
    trial = recorded["trials"][0]
    for damaged in (trial | {"curve": []}, trial | {"point": {"training.dropout": [1]}}):
        (out / "results.json").write_text(json.dumps({"trials": [damaged]}))
        with pytest.raises(ConfigError, match=r"not a results\.json of this version"):
            here(tmp_path, out)


def test_trouble_in_one_arm_is_not_that_of_the_others(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = EXPERIMENT.replace("[0.1, 1.0]", "[0.1]").format(corpus=tiny_folder / "corpus.jsonl") + TROUBLE
    (tmp_path / "own.toml").write_text(text)
    out = tmp_path / "out"
    ended = experiment(tmp_path, "--seeds", "1", "--arms", "fails,needs,refused")
    assert ended.returncode == 1
    assert "FAILED   fails, seed 0" in ended.stdout
    assert "it needs the snapshot of fails, seed 0, which failed" in ended.stdout
    recorded = {trial["arm"]: trial for trial in json.loads((out / "results.json").read_text())["trials"]}
    assert set(recorded) == {"few", "all", "refused"}
    # it waited for the verdict on each checkpoint, and went on with real text
    refused = recorded["refused"]
    assert refused["curve"][-1]["tokens"] >= 20_000
    assert [s["verdict"] for s in refused["snapshots"]][:2] == ["quarantined"] * 2
    assert refused["trained_tokens"].get("synthetic", 0) == 0

    # the whole folder lies elsewhere now, and another experiment works on it
    moved = shutil.move(out, tmp_path / "moved")
    with open(moved / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another `sbp experiment`"):
            here(tmp_path, moved, only=("refused",))
    assert here(tmp_path, moved, only=("refused",)) == 0  # nothing is left to do but to compare
    assert "started" not in capsys.readouterr().out
    assert here(tmp_path, moved, beside=("refused", "no longer there")) == 0  # not asked for, but known
    compared = json.loads((moved / "results.json").read_text())["arms"]
    assert {arm["arm"]: arm["seeds"] for arm in compared} == {"few": [0], "all": [0], "refused": [0]}
    with pytest.raises(ConfigError, match="vocab_size"):
        here(tmp_path, moved, scale="other")
    with pytest.raises(ConfigError, match="cannot be written"):
        here(tmp_path, tmp_path / "own.toml")

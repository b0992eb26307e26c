"""What tests share: a small real data set, made once a session by the real ingest."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from streaming_sbp import config
from streaming_sbp.config import Config

torch.set_num_threads(1)

CUDA = pytest.param(
    torch.device("cuda"),
    id="cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


DEVICES = [pytest.param(torch.device("cpu"), id="cpu"), CUDA]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """What a test asks for that holds on every device; `pytest -m gpu` runs those for CUDA."""
    return request.param


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n 2`, tests of whole runs follow one another, for each of them has several processes."""
    from xdist.scheduler import LoadScopeScheduling

    class WholeRunsInOrder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "processes" if nodeid.startswith("tests/processes/") else nodeid

    return WholeRunsInOrder(config, log)


_TOPICS = ("river", "engine", "bread", "violin", "glacier", "harbour", "comet", "orchard", "loom", "lantern")
_VERBS = ("carries", "holds", "follows", "changes", "repairs", "measures", "paints", "guards")
_THINGS = ("stone", "copper", "winter", "music", "salt", "paper", "shadow", "grain", "glass", "wind")


def sentences(topic: str, rng: random.Random, count: int) -> str:
    return " ".join(
        f"The {topic} {rng.choice(_VERBS)} the {rng.choice(_THINGS)} of the {rng.choice(_THINGS)}."
        for _ in range(count)
    )


def write_corpus(path: Path, num_documents: int = 400, seed: int = 0) -> None:
    """A JSON-lines corpus of distinct small documents, each about one of a few topics."""
    rng = random.Random(seed)
    with open(path, "w") as file:
        for number in range(num_documents):
            topic = _TOPICS[number % len(_TOPICS)]
            file.write(json.dumps({"text": f"Note {number}. {sentences(topic, rng, rng.randint(2, 6))}"}) + "\n")


def tiny_overrides(folder: Path) -> list[str]:
    """Settings of a model and a corpus that train in seconds."""
    return [
        f'run.dir="{folder / "run"}"',
        f'data.dataset="{folder / "data"}"',
        'data.source="jsonl"',
        f'data.inputs=["{folder / "corpus.jsonl"}"]',
        "data.heldout_share=0.1",
        "data.vocab_size=400",
        "data.min_characters=1",
        "model.hidden_size=32",
        "model.num_layers=2",
        "model.num_heads=2",
        "model.num_kv_heads=2",
        "model.intermediate_size=64",
        "model.max_position_embeddings=256",
        "synthesizer.max_seed_tokens=96",
        "synthesizer.max_target_tokens=96",
        "generator.max_new_tokens=96",
        "generator.min_new_tokens=2",
        "training.sequence_tokens=128",
        "training.batch_sequences=4",
        "training.total_tokens=40000",
        "training.warmup_tokens=2000",
        "evaluation.heldout_sequences=4",
    ]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus.jsonl and data/, ingested."""
    from streaming_sbp.data.ingest import ingest

    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "corpus.jsonl")
    ingest(config.load(overrides=tiny_overrides(folder)).data)
    return folder


@pytest.fixture
def tiny_config(tiny_folder: Path, tmp_path: Path) -> Config:
    """The tiny data set, and a run directory of this test's own."""
    return config.load(overrides=[*tiny_overrides(tiny_folder), f'run.dir="{tmp_path / "run"}"'])

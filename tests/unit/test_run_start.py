"""What `sbp run` refuses before any process starts, and before there is a run directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sbp_services.run import run_to_the_end
from streaming_sbp import config
from streaming_sbp.config import Config, ConfigError


def refused(settings: Config, *overrides: str) -> str:
    changed = config.build(config.apply_overrides(settings.model_dump(mode="json"), overrides))
    with pytest.raises(ConfigError) as caught:
        run_to_the_end(changed, fresh=False, accept_changes=False, metrics_port=0)
    assert not Path(settings.run.dir).exists()
    return str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_an_engine_that_is_not_installed(tiny_config: Config) -> None:
    assert "pip install 'streaming-sbp[vllm]'" in refused(tiny_config, "generator.engine=vllm")


def test_a_given_synthesizer_that_is_not_there(tiny_config: Config, tmp_path: Path) -> None:
    given = 'synthesizer.mode="given"'
    assert "is not a folder" in refused(tiny_config, given, "synthesizer.snapshot=/nowhere")
    assert "has no config.json" in refused(tiny_config, given, f'synthesizer.snapshot="{tmp_path}"')


def test_an_embedder_that_there_is_not(tiny_config: Config) -> None:
    assert "/no/such/folder" in refused(tiny_config, "pairing.embedder=/no/such/folder")


def test_a_store_of_an_unknown_kind(tiny_config: Config) -> None:
    assert "nosuch" in refused(tiny_config, 'snapshots.url="nosuch://bucket/run"')

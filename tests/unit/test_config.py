import subprocess
import tomllib
from pathlib import Path

import pytest

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.rundir import RunDir, set_aside

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", config.preset_names())
def test_every_preset_loads_and_survives_a_round_trip(name):
    loaded = config.load(preset=name)
    assert config.build(tomllib.loads(config.to_toml(loaded))) == loaded


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mix.sintetic_share=0.2", "did you mean 'synthetic_share'"),
        ("mxi.synthetic_share=0.2", "did you mean 'mix'"),
        ("training.synthetic_share=0.2", "did you mean 'mix.synthetic_share'"),
        ("mix.synthetic_share=1.4", "mix.synthetic_share = 1.4"),
        ("pairing.pairs_per_document=inf", "pairing.pairs_per_document = inf: Input should be a finite number"),
        ("pairing.pairs_per_document=nan", "pairing.pairs_per_document = nan: Input should be"),
        ("pairing.pairs_per_document=-1", "pairing.pairs_per_document = -1: Input should be greater"),
        ("training.weight_decay=inf", "training.weight_decay = inf: Input should be a finite number"),
        ("pairing.heldout_share=1", "pairing.heldout_share = 1: Input should be less than 1"),
        ("pairing.near_duplicate_jaccard=0", "pairing.near_duplicate_jaccard = 0: Input should be greater than 0"),
        ("pairing.embedder=tf-idf", "did you mean 'tfidf'?"),
        ("pairing.embedder=TFIDF", "did you mean 'tfidf'?"),
        ("pairing.embedder=Self", "did you mean 'self'?"),
        ("pairing.embedder=", "pairing.embedder = '': expected tfidf, self, or"),
        ("mix.schedule=sometimes", "mix.schedule = 'sometimes'"),
        ("mix.synthetic_share", "expected section.key=value"),
        ("model.max_position_embeddings=64", "expected at least"),
        ("mix.schedule=steps", 'exactly when mix.schedule = "steps"'),
    ],
)
def test_wrong_settings_say_what_was_expected(override, message):
    with pytest.raises(ConfigError) as caught:
        config.load(overrides=[override])
    assert message in str(caught.value)


@pytest.mark.parametrize("mode", ["joint", "off"])
@pytest.mark.parametrize(
    "schedule",
    [
        {"synthetic_share": 0.5},
        {"schedule": "ramp", "initial_share": 0.5, "synthetic_share": 0.1, "ramp_tokens": 9},
        {"schedule": "steps", "steps": [{"tokens": 0, "share": 0.5}, {"tokens": 9, "share": 0.1}]},
    ],
)
def test_pairs_and_synthetic_text_must_fit_into_the_mix(mode, schedule):
    """Before a run starts, not when its trainer does."""
    settings = {"training": {"sequence_tokens": 512}, "model": {"max_position_embeddings": 512}}
    settings |= {"synthesizer": {"mode": mode}, "mix": {"pair_share": 0.6, **schedule}}
    with pytest.raises(ConfigError, match=r"got 0\.6 and up to 0\.5: expected a sum of at most 1"):
        config.build(settings)
    settings["mix"]["pair_share"] = 0.5
    assert config.build(settings).mix.largest_synthetic_share == 0.5


def test_nothing_waits_for_a_snapshot_before_its_checkpoint():
    settings = {
        "mix": {"starvation_policy": "wait", "start_by_tokens": 599_999},
        "checkpoint": {"every_tokens": 200_000},
        "synthesizer": {"first_checkpoint_tokens": 500_000},
    }
    with pytest.raises(ConfigError, match=r"start_by_tokens = 599999: expected at least 600000"):
        config.build(settings)
    assert config.build({**settings, "mix": {**settings["mix"], "start_by_tokens": 600_000}})
    given = {"mode": "given", "snapshot": "somewhere"}
    assert config.build({**settings, "synthesizer": given})


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        config.load(overrides=["mix.a=1", "stream.b=2"])
    assert "mix.a" in str(caught.value)
    assert "stream.b" in str(caught.value)


def test_strings_with_quotes_and_control_characters_survive():
    loaded = config.load(overrides=['data.inputs=["a\\"b\\n", "ü\\\\"]'])
    assert loaded.data.inputs == ('a"b\n', "ü\\")
    assert config.build(tomllib.loads(config.to_toml(loaded))) == loaded


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml: not found"):
        config.load(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("[mix\n")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        config.load(tmp_path / "broken.toml")


def test_a_run_refuses_another_configuration_until_told(tmp_path):
    here = f'run.dir="{tmp_path / "run"}"'
    RunDir.open_or_create(config.load(overrides=[here]))
    changed = config.load(overrides=[here, "mix.synthetic_share=0.5"])
    with pytest.raises(ConfigError, match=r"mix\.synthetic_share: 0\.3 -> 0\.5"):
        RunDir.open_or_create(changed)
    assert RunDir.open_or_create(changed, accept_changes=True).config() == changed


def test_fresh_moves_a_run_aside_and_nothing_else(tmp_path):
    run = RunDir.open_or_create(config.load(overrides=[f'run.dir="{tmp_path / "run"}"']))
    moved = set_aside(run.path)
    assert moved is not None
    assert RunDir(moved).run_id == run.run_id
    assert set_aside(run.path) is None
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="not a run directory"):
        set_aside(tmp_path / "other")


def test_records_survive_a_line_cut_short(tmp_path):
    run = RunDir.open_or_create(config.load(overrides=[f'run.dir="{tmp_path / "run"}"']))
    run.record("trainer")("start", tokens=1)
    with open(run.records / "trainer.jsonl", "a") as file:
        file.write('{"event": "tra')
    run.record("trainer")("start", tokens=2)
    assert [record["tokens"] for record in run.read_records("trainer")] == [1, 2]


def test_a_command_without_any_configuration_says_what_to_give():
    from typer.testing import CliRunner

    from sbp_services.cli import app

    for command in ("run", "train", "ingest"):
        with pytest.raises(ConfigError, match="give --preset"):
            CliRunner().invoke(app, [command], catch_exceptions=False)


def test_a_path_that_is_no_run_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a run directory"):
        RunDir(tmp_path / "file")


def test_a_string_for_a_list_is_explained():
    with pytest.raises(ConfigError, match=r"data.inputs = 'x': expected a list"):
        config.load(overrides=["data.inputs=x"])


@pytest.mark.parametrize(
    "override", ["generator.count=true", "mix.synthetic_share=true", "training.total_tokens=false"]
)
def test_true_is_no_number(override):
    with pytest.raises(ConfigError, match=rf"{override.split('=')[0]} = (True|False): expected a number"):
        config.load(overrides=[override])
    assert config.load(overrides=["telemetry.tensorboard=true"]).telemetry.tensorboard is True


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["generator.min_new_tokens=500"], "min_new_tokens = 500: expected at most generator.max_new_tokens = 192"),
        (["gate.min_length_ratio=1", "gate.max_length_ratio=0.5"], "expected at most gate.max_length_ratio = 0.5"),
        (["mix.final_real_tokens=10_000_000"], "final_real_tokens = 10,000,000: expected less than training.total_tok"),
        (["stream.max_staleness_tokens=1"], "max_staleness_tokens = 1: expected 0 .* or at least checkpoint.every_tok"),
    ],
)
def test_settings_with_which_nothing_synthetic_can_come_are_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        config.load(overrides=overrides)


def test_a_run_knows_the_commit_of_the_checkout_that_it_was_made_from(tmp_path):
    run = RunDir.open_or_create(config.load(overrides=[f'run.dir="{tmp_path / "run"}"']))
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    commit = run.versions["commit"].removesuffix("-dirty")
    assert len(commit) >= 12
    assert head.startswith(commit)

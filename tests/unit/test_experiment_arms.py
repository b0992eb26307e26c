"""Arms are configurations: what they share, what they add, and what is refused before hours of work."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp import config as configuration
from streaming_sbp.config import ConfigError
from streaming_sbp.experiment import arms

OUT = Path("somewhere")


@pytest.mark.parametrize("name", arms.names())
def test_every_trial_of_every_shipped_experiment_is_a_configuration(name):
    for scale in configuration.read_preset(name, arms.PRESETS)["scales"]:
        arms.load(name, scale).check(OUT)
    every = tuple(configuration.read_preset(name, arms.PRESETS)["arms"])
    found = arms.load(name, "full", only=every)
    found.check(OUT)
    assert set(found.arms) == set(every)


def test_an_experiment_that_records_were_made_with_can_be_repeated():
    files = sorted((Path(__file__).parents[2] / "docs" / "experiments").glob("*/experiment.toml"))
    assert files
    for file in files:
        arms.load(str(file)).check(OUT)


def test_arms_differ_only_where_they_say():
    found = arms.load("concepts", "small")
    trees = {arm: found.run_config(found.trials(arm, 0)[0], OUT, "given").model_dump() for arm in found.arms}
    online, random = trees["online"], trees["random"]
    differing = {
        (section, key) for section in online for key in online[section] if online[section][key] != random[section][key]
    }
    assert differing == {("run", "dir"), ("pairing", "relation"), ("gate", "min_relatedness_ratio")}
    tuned = {"learning_rate": 0, "weight_decay": 0, "dropout": 0}
    assert trees["repetition"]["training"] | tuned == online["training"] | tuned


def test_all_arms_of_a_seed_have_one_tokenizer_and_one_world():
    found = arms.load("concepts", "full")
    for seed in (0, 1):
        data = {arm: found.data_tree(arm, seed, OUT) for arm in found.arms}
        real = data["repetition"]["dataset"]
        assert "tokenizer" not in data["repetition"]
        assert data["oracle"]["tokenizer"] == f"{real}/tokenizer"
        assert data["oracle"]["dataset"] != real
        assert data["online"] == data["repetition"]
        assert {d["concept_seed"] for d in data.values()} == {seed}
    assert found.data_tree("online", 0, OUT)["dataset"] != found.data_tree("online", 1, OUT)["dataset"]


def test_grid_and_folders():
    found = arms.load("concepts", "full")
    trials = found.trials("repetition", 2)
    training = [found.run_config(trial, OUT).training for trial in trials]
    assert [(t.learning_rate, t.dropout) for t in training] == [
        (r, d) for r in (1e-3, 2e-3, 3e-3, 4e-3) for d in (0.1, 0.15, 0.2, 0.3)
    ]
    assert {t.weight_decay for t in training} == {1.0}
    assert len({trial.folder for trial in trials}) == len(trials)
    assert all(found.run_config(trial, OUT).run.seed == 2 for trial in trials)


def test_what_a_smaller_scale_has_run_counts_in_a_larger_one():
    small, full = (arms.load("concepts", scale) for scale in ("small", "full"))
    of_small, of_full = (set(found.trials("repetition", 0)) for found in (small, full))
    assert of_small < of_full
    assert {trial.folder for trial in of_small} < {trial.folder for trial in of_full}
    for trial in of_small:
        assert arms.settings(small.run_config(trial, OUT)) == arms.settings(full.run_config(trial, OUT))


def test_a_trial_is_the_same_in_whatever_order_its_grid_names_the_settings(tmp_path):
    keys = ('"training.dropout" = [0.1]', '"training.weight_decay" = [0.2]')
    texts = [
        OWN.replace("[scales.small]", f"[scales.small]\ngrid = {{ {', '.join(order)} }}")
        for order in (keys, keys[::-1])
    ]
    (trial,), (swapped,) = (arms.load(write(tmp_path, text)).trials("a", 0) for text in texts)
    assert trial.point != swapped.point
    assert trial == swapped
    assert {trial: "known"}[swapped] == "known"
    (later,) = arms.load(write(tmp_path, texts[0])).trials("a", 1)
    assert trial != later


def test_the_choice_of_arms_says_which_run():
    small, tiny = (arms.choice("concepts", scale) for scale in ("small", "tiny"))
    assert {arm for arm, (_, when) in small.items() if when == "yes"} == {"repetition", "oracle", "online", "random"}
    assert small["stale"] == ("SBP with one snapshot", "when asked for")
    assert small["offline"][1] == "when asked for"
    assert tiny["longer"][1] == "at small or full"
    assert tiny["offline"][1] == "at small or full"  # as the arm whose snapshot it is given
    with pytest.raises(ConfigError, match="arm offline: the lengths of pretrained, whose snapshot it is given, are"):
        arms.load("concepts", "tiny", only=("offline",))
    asked = arms.choice("concepts", "small", ("stale",))
    assert {arm for arm, (_, when) in asked.items() if when == "yes"} == {"repetition", "oracle", "stale"}
    with pytest.raises(ConfigError, match="scale 'huge': expected one of tiny"):
        arms.choice("concepts", "huge")


def test_without_a_name_the_list_is_of_the_experiments():
    listed = CliRunner().invoke(app, ["experiment", "--list"])
    assert listed.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in listed.output.splitlines())
    assert list(shown) == arms.names()
    assert shown["concepts"] == arms.load("concepts").title
    refused = CliRunner().invoke(app, ["experiment"])
    assert isinstance(refused.exception, ConfigError)
    assert "expected concepts or pydocs, or a TOML file" in str(refused.exception)


def test_a_scale_has_a_grid_of_its_own(tmp_path):
    text = OWN.replace("[scales.small]", '[scales.small]\ngrid = { "training.weight_decay" = [2.0] }')
    assert [trial.point for trial in arms.load(write(tmp_path, text)).trials("a", 0)] == [
        (("training.weight_decay", 2.0),)
    ]
    assert [trial.point for trial in arms.load(write(tmp_path, OWN)).trials("a", 0)] == [()]


def test_seeds_arms_and_overrides_take_the_place_of_the_scale():
    found = arms.load("concepts", "small", 5, ("stale",), ("training.total_tokens=234567",))
    assert found.num_seeds == 5
    assert set(found.arms) == {"repetition", "oracle", "stale"}
    assert found.run_config(found.trials("stale", 0)[0], OUT).training.total_tokens == 234567


def write(tmp_path, text):
    file = tmp_path / "own.toml"
    file.write_text(text)
    return str(file)


OWN = """
title = "Own"
baseline = "a"
oracle = "b"
main = "b"
control = "a"
[config.training]
total_tokens = 1_000_000
[scales.small]
seeds = 2
arms = ["late"]
[arms.a]
title = "A"
config.synthesizer.mode = "off"
[arms.b]
title = "B"
[arms.late]
title = "Late"
snapshot_of = "b"
"""


def test_an_own_experiment_and_a_snapshot_of_another_arm(tmp_path):
    found = arms.load(write(tmp_path, OWN), "small")
    assert list(found.arms) == ["a", "b", "late"]
    settings = found.run_config(found.trials("late", 1)[0], OUT, "folder/of/snapshot").synthesizer
    assert (settings.mode, settings.snapshot) == ("given", "folder/of/snapshot")


@pytest.mark.parametrize(
    "case",
    [
        (('oracle = "b"', 'oracle = "c"'), "oracle = 'c': expected one of a, b, late"),
        (("[arms.b]\n", "[arms.b]\ntitel = 1\n"), "unknown titel"),
        (('title = "B"', ""), "missing key title"),
        (('snapshot_of = "b"', 'snapshot_of = "x"'), "x"),
        (("total_tokens = 1_000_000", "total_tokens = -1"), "total_tokens"),
        (('arms = ["late"]', 'arms = ["later"]'), "later"),
        (('arms = ["late"]', 'arms = "late"'), "scales.small: arms = 'late': Input should be a valid list"),
        (("seeds = 2", 'seeds = "two"'), "scales.small: seeds = 'two'"),
        (("seeds = 2", "seeds = 0"), "scales.small: seeds = 0: .* greater than or equal to 1"),
        (("seeds = 2", "seeds = 2\ngrid = { learning_rate = [0.1] }"), "learning_rate"),
        (('title = "A"', 'title = "A"\ngrid = { "training.dropout" = 0.1 }'), "arms.a.grid: training.dropout = 0.1"),
        (('title = "A"', 'title = "A"\ngrid = { "training.dropout" = [] }'), "at least 1 item"),
        (('title = "A"', "title = 3"), "arms.a: title = 3: Input should be a valid string"),
        (('title = "B"', 'title = "B"\nmore_real_text = "much"'), "arms.b: more_real_text = 'much'"),
        (("[config.training]\ntotal_tokens = 1_000_000", "[config]\ntraining = 3"), "config: training = 3"),
        (('oracle = "b"', 'oracle = "a"'), "baseline = oracle = 'a': expected two arms"),
        (("[arms.late]", '[arms."../late"]'), "late"),
        (('snapshot_of = "b"', 'snapshot_of = "late"'), "snapshot_of = 'late', which is given a snapshot itself"),
        (('snapshot_of = "b"', 'snapshot_of = "a"'), "snapshot_of = 'a', which makes no snapshot"),
        (('title = "B"', 'title = "B"\ngrid = { "training.dropout" = [0.1] }'), "snapshot_of = 'b', which has a grid"),
        (
            ("[scales.small]", "[scales.large]\nseeds = 1\narms = []\n[scales.small]"),
            ('title = "Late"', 'title = "Late"\nscales = ["large"]'),
            "arm late: its lengths are meant for scale large",
        ),
        (('title = "Late"', 'title = "Late"\nscales = ["smal"]'), "arm late: scales smal: expected some of small"),
        (('title = "B"', 'title = "B"\nconfig.run.dir = "x"'), "arm b: run.dir: each trial has its own"),
        (
            ('title = "B"', 'title = "B"\nconfig.training.sequence_tokens = 1024'),
            "arm b, seed 0: evaluation.heldout_sequences = 32 of .* = 1024: these hold 32768 .* of the baseline 16384",
        ),
        (('title = "A"', 'title = "A"\ngrid = { "run.seed" = [1, 2] }'), "arm a: run.seed: each trial has its own"),
        (('title = "A"', 'title = "A"\ngrid = { "data.vocab_size" = [1, 2] }'), "grid over data.vocab_size"),
        (('title = "A"', 'title = "A"\ngrid = { "training.dropout" = [0.1, 0.1] }'), "expected each value once"),
        (('title = "A"', 'title = "A"\ngrid = { "training.dropout" = [[0.1]] }'), "arms.a.grid.training.dropout"),
    ],
)
def test_mistakes_are_named(tmp_path, case):
    *changes, message = case
    text = OWN
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    with pytest.raises(ConfigError, match=message):
        arms.load(write(tmp_path, text), "small").check(OUT)


def test_a_run_that_ends_before_there_is_a_synthesizer_is_refused():
    short = arms.load("concepts", "small", overrides=("training.total_tokens=410000",))
    with pytest.raises(ConfigError, match=r"arm online, seed 0: training.total_tokens = 410000: expected more than"):
        short.check(OUT)
    arms.load("concepts", "small", overrides=("training.total_tokens=410001",)).check(OUT)


def test_longer_sequences_are_evaluated_on_the_same_documents(tmp_path):
    longer = 'title = "B"\nconfig.training.sequence_tokens = 1024\nconfig.evaluation.heldout_sequences = 16'
    arms.load(write(tmp_path, OWN.replace('title = "B"', longer)), "small").check(OUT)
    with pytest.raises(ConfigError, match=r"arm joint, seed 0: evaluation.heldout_sequences = 32"):
        arms.load("pydocs", "full", overrides=("evaluation.heldout_sequences=128",)).check(OUT)


def test_unknown_names(tmp_path):
    for name, got in (("concept", "unknown"), ("concept.toml", "no such file"), (str(tmp_path), "a folder")):
        with pytest.raises(ConfigError, match=f"{got}; expected one of concepts"):
            arms.load(name)
    with pytest.raises(ConfigError, match="arms are asked for with --arms"):
        arms.load("concepts", overrides=("online",))
    with pytest.raises(ConfigError, match="scale 'big': expected one of tiny"):
        arms.load("concepts", "big")


def test_overrides_reach_the_arms_that_do_not_set_the_key_themselves(tmp_path):
    own = write(tmp_path, OWN.replace('title = "Late"', 'title = "Late"\nconfig.training.weight_decay = 0.5'))
    found = arms.load(own, "small", overrides=("training.weight_decay=3", "training.dropout=0.2"))
    assert found.own_settings == {"training.weight_decay": ["late"]}
    decays = {arm: found.run_config(found.trials(arm, 0)[0], OUT, "given").training.weight_decay for arm in found.arms}
    assert decays == {"a": 3.0, "b": 3.0, "late": 0.5}
    for key in ("run.seed=3", "data.dataset=elsewhere", "data.concept_seed=1"):
        with pytest.raises(ConfigError, match="each trial has its own"):
            arms.load(own, "small", overrides=(key,))


def test_how_synthetic_text_is_made_does_not_count_where_there_is_none():
    plain, other = (
        arms.load("concepts", "small"),
        arms.load("concepts", "small", overrides=("mix.synthetic_share=0.5",)),
    )

    def settings_of(experiment, arm):
        return arms.settings(experiment.run_config(experiment.trials(arm, 0)[0], OUT))

    for arm in ("repetition", "oracle"):
        assert settings_of(plain, arm) == settings_of(other, arm)
        assert "training" in settings_of(plain, arm)
    assert settings_of(plain, "online") != settings_of(other, "online")
    pairs = arms.load("concepts", "small", only=("in-context",), overrides=("pairing.threshold=0.6",))
    assert settings_of(pairs, "in-context")["pairing"] == {"threshold": 0.6}  # without a synthesizer, not without pairs


def test_settings_are_compared_wherever_things_lie():
    found = arms.load("concepts", "small")
    (trial,) = found.trials("online", 0)
    here, there = (arms.settings(found.run_config(trial, Path(out))) for out in ("here", "there"))
    assert configuration.tree_differences(here, there) == []
    changed = {**there, "mix": {**there["mix"], "synthetic_share": 0.5}}
    assert configuration.tree_differences(here, changed) == ["mix.synthetic_share: 0.85 -> 0.5"]
    del changed["mix"]["synthetic_share"]
    assert configuration.tree_differences(here, changed) == ["mix.synthetic_share: 0.85 -> 'default'"]

"""Shares of the oracle's gain, intervals and compute, against numbers worked out by hand."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from streaming_sbp.experiment import arms, comparison, comparison_plots, plots, results
from streaming_sbp.experiment.arms import Arm, Experiment, Trial
from streaming_sbp.experiment.compute import Compute, cost_of_newest_snapshot
from streaming_sbp.experiment.results import Point, SnapshotResult, TrialResult
from tests.unit.run_records import RecordWriter, make_run

EXPERIMENT = Experiment(
    "own",
    "Own",
    "small",
    2,
    "base",
    "oracle",
    "sbp",
    "random",
    {n: Arm(n, n.title(), {}) for n in ("base", "oracle", "sbp", "random")},
)


def trial(arm, seed, losses, accuracies=None, compute_per_token=1.0, point=None):
    accuracies = accuracies or [None] * len(losses)
    curve = [
        Point(1000 * k, 1000 * k * compute_per_token, float(k), loss, loss / 3, accuracy, None)
        for k, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    return TrialResult(arm, point or {}, seed, "done", curve, [], {"real": 1}, 0, 0, 0, 1.0, None, 0, "sbp run", {}, {})


def compared(*trials, experiment=EXPERIMENT):
    return {arm.arm: arm for arm in results.compare(experiment, trials)}


def test_share_of_the_gain_counts_from_the_best_step_of_the_baseline():
    found = compared(
        trial("base", 0, [3.0, 2.0, 2.5], [0.1, 0.5, 0.4]),
        trial("oracle", 0, [3.0, 1.8, 1.0], [0.1, 0.6, 1.0]),
        trial("sbp", 0, [3.0, 1.1, 1.2], [0.1, 0.95, 0.9]),
    )
    sbp = found["sbp"]
    assert sbp.share_of_gain_loss.mean == pytest.approx(0.8)  # (2.0 - 1.2) / (2.0 - 1.0)
    assert sbp.share_of_gain_loss_over_end.mean == pytest.approx(1.3 / 1.5)
    assert sbp.share_of_gain_accuracy.mean == pytest.approx(0.8)  # (0.9 - 0.5) / (1.0 - 0.5)
    assert found["base"].share_of_gain_loss.mean == pytest.approx(0.0)
    assert found["oracle"].share_of_gain_loss.mean == pytest.approx(1.0)
    assert sbp.share_of_gain_loss.low is None


def test_equal_compute_counts_an_arm_before_it_has_spent_more():
    found = compared(
        trial("base", 0, [3.0, 2.0, 2.0]),
        trial("oracle", 0, [3.0, 2.0, 1.0]),
        trial("sbp", 0, [3.0, 1.5, 1.0], compute_per_token=1.5),
    )
    assert found["sbp"].share_of_gain_loss.mean == pytest.approx(1.0)
    assert found["sbp"].share_at_equal_compute_loss.mean == pytest.approx(0.5)  # 1,000 tokens cost 1,500; 2,000 3,000
    assert found["sbp"].tokens_at_equal_compute.mean == 1000


def test_shares_are_paired_by_seed_and_have_an_interval():
    found = compared(
        *(trial("base", s, [9.0, 2.0 + s]) for s in (0, 1, 2)),
        *(trial("oracle", s, [9.0, 1.0 + s]) for s in (0, 1, 2)),
        *(trial("sbp", s, [9.0, 1.0 + s + share]) for s, share in ((2, 0.3), (0, 0.5), (1, 0.4))),
    )
    # shares 0.5, 0.6, 0.7: mean 0.6, deviation 0.1, t(0.975, 2) = 4.3027, so 4.3027 * 0.1 / sqrt(3) = 0.2484
    share = found["sbp"].share_of_gain_loss
    assert share.values == pytest.approx([0.5, 0.6, 0.7])  # in the order of the seeds
    assert (share.mean, share.low, share.high) == pytest.approx((0.6, 0.3516, 0.8484), abs=1e-3)


def test_the_point_of_a_grid_is_chosen_with_the_first_seed_alone():
    tuned = replace(
        EXPERIMENT, arms=EXPERIMENT.arms | {"base": Arm("base", "Base", {}, {"training.weight_decay": [0.1, 1.0]})}
    )
    low, high = {"training.weight_decay": 0.1}, {"training.weight_decay": 1.0}
    trials = [
        trial("base", 0, [3.0, 2.2], point=low),
        trial("base", 0, [3.0, 2.0], point=high),
        trial("base", 1, [3.0, 2.1], point=high),
    ]
    assert compared(*trials, experiment=tuned)["base"].point == high
    assert compared(*trials, experiment=tuned)["base"].seeds == [0, 1]
    assert "base" not in compared(trials[0], experiment=tuned)  # half a grid says nothing


def test_an_oracle_that_gains_nothing_leaves_no_share():
    found = compared(trial("base", 0, [3.0, 1.0]), trial("oracle", 0, [3.0, 1.0]), trial("sbp", 0, [3.0, 1.0]))
    assert found["sbp"].share_of_gain_loss is None
    assert "gains nothing" in comparison.sentences(EXPERIMENT, list(found.values()))[-1]


def test_a_seed_whose_oracle_gains_nothing_leaves_the_others_their_share():
    found = compared(
        *(trial("base", seed, [3.0, 1.0]) for seed in (0, 1, 2)),
        *(trial("oracle", seed, [3.0, end]) for seed, end in enumerate((0.5, 1.1, 0.6))),
        *(trial("sbp", seed, [3.0, end]) for seed, end in enumerate((0.75, 1.5, 0.8))),
    )
    assert found["sbp"].share_of_gain_loss.values == pytest.approx([0.5, 0.5])
    assert found["sbp"].gain_loss.values == pytest.approx([0.25, -0.5, 0.2])
    said = " ".join(comparison.sentences(EXPERIMENT, list(found.values())))
    assert "Seeds without a share, for their oracle gains nothing: 1." in said
    assert "Sbp: 0.017 nats per token higher in held-out loss than base" in said
    assert "Sbp did not help here: 50 %" in said


def test_a_snapshot_that_cost_more_than_the_whole_baseline_leaves_nothing_at_equal_compute():
    given = trial("sbp", 0, [3.0, 0.75])
    given = replace(given, curve=[replace(p, compute_tokens=p.compute_tokens + 1001) for p in given.curve])
    found = compared(trial("base", 0, [3.0, 1.0]), trial("oracle", 0, [3.0, 0.5]), given)
    assert found["sbp"].share_of_gain_loss.mean == pytest.approx(0.5)
    assert found["sbp"].share_at_equal_compute_loss is None


def test_data_efficiency_is_interpolated_in_the_logarithm():
    epochs = {"base": 16.0, "twice": 8.0, "four": 4.0, "oracle": 1.0, "sbp": 10.0}
    more = ("twice", "four", "oracle")
    scaled = replace(EXPERIMENT, arms={n: Arm(n, n, {}, more_real_text=n in more) for n in epochs})
    losses = {"base": 2.0, "twice": 1.6, "four": 1.2, "oracle": 0.8, "sbp": 1.4}
    trials = [replace(trial(arm, 0, [3.0, loss]), real_epochs=epochs[arm]) for arm, loss in losses.items()]
    found = compared(*trials, experiment=scaled)
    assert found["sbp"].data_efficiency.mean == pytest.approx(2 * 2**0.5)
    assert found["twice"].data_efficiency.mean == pytest.approx(2.0)
    # four times as much is enough, more was no better
    trials[3] = replace(trials[3], curve=[replace(point, heldout_loss=1.21) for point in trials[3].curve])
    found = compared(*trials, experiment=scaled)
    assert found["sbp"].data_efficiency.mean == pytest.approx(2 * 2**0.5)
    assert found["four"].data_efficiency.mean == pytest.approx(4.0)


def snapshot(version, at_tokens, expressed, verdict="published"):
    measures = {"expressed_fact_share": expressed, "true_fact_share": 0.9, "true_new_fact_share": 0.1}
    return SnapshotResult(version, verdict, at_tokens, at_tokens, 100, [], measures)


def test_what_a_snapshot_recovers_stands_beside_the_lead_at_the_end_of_its_service():
    base = trial("base", 0, [3.0, 2.0, 2.4, 2.6])  # best so far at 2,000 and 3,000: 2.0
    sbp = replace(
        trial("sbp", 0, [3.0, 2.2, 1.8, 1.2]),
        snapshots=[snapshot(1, 1000, 0.5), snapshot(None, 1500, 0.1, "quarantined"), snapshot(2, 2000, 0.7)],
    )
    found = comparison_plots.recovered(sbp, base)
    assert [p.facts for p in found] == [0.5, 0.7]
    assert [p.lead for p in found] == pytest.approx([0.2, 0.8])
    assert comparison_plots.recovered(base, base) == []
    late = replace(sbp, snapshots=[*sbp.snapshots, snapshot(3, 3000, 0.9)])
    assert comparison_plots.recovered(late, base) == found  # the run had ended
    ends_real = replace(sbp, settings={"mix": {"final_real_tokens": 1000}})
    assert [p.facts for p in comparison_plots.recovered(ends_real, base)] == [0.5]
    figures = {plot.name for plot in comparison_plots.draw_all(EXPERIMENT, {"base": [base], "sbp": [sbp]})}
    assert figures >= {"recovery", "quality"}
    assert "recovery" not in {plot.name for plot in comparison_plots.draw_all(EXPERIMENT, {"base": [base]})}


@pytest.fixture
def drawn(monkeypatch):
    """Of each figure that is drawn, by its name: its axes, and what the page says of it."""
    found = {}

    def keep(name, title, text, figure):
        found[name] = figure.axes[0], text
        return plots.to_plot(name, title, text, figure)

    monkeypatch.setattr(comparison_plots, "to_plot", keep)
    return found


def ends_of_lines(axes):
    return {line.get_label(): line.get_xydata()[-1].tolist() for line in axes.get_lines()}


@pytest.mark.skipif(not plots.AVAILABLE, reason="needs the extra `plots`")
def test_a_figure_says_which_arms_have_fewer_seeds(drawn):
    two = {
        "base": [trial("base", seed, [3.0, 2.0]) for seed in (0, 1)],
        "oracle": [trial("oracle", seed, [3.0, 1.0 - seed]) for seed in (0, 1)],
    }
    comparison_plots.draw_all(EXPERIMENT, two | {"sbp": [trial("sbp", 0, [3.0, 1.5])]})
    legends = {
        name: [entry.get_text().replace("\n", " ") for entry in axes.get_legend().get_texts()]
        for name, (axes, _) in drawn.items()
    }
    assert legends["loss-tokens"] == ["Base", "Oracle", "Sbp (1 of 2 seeds)"]
    assert legends["gain-tokens"] == ["Oracle", "Sbp"]
    axes, text = drawn["gain-tokens"]
    assert "Of the seeds that all arms have: 0." in text
    gains = ends_of_lines(axes)
    assert (gains["Oracle"][1], gains["Sbp"][1]) == pytest.approx((1.0, 0.5))  # of the seed that both have


@pytest.mark.skipif(not plots.AVAILABLE, reason="needs the extra `plots`")
def test_over_compute_the_mean_ends_where_the_seeds_have_ended(drawn):
    seeds = [trial("sbp", seed, [3.0, 2.0, 1.0 + seed], compute_per_token=3 + seed / 10) for seed in (0, 1)]
    comparison_plots.draw_all(EXPERIMENT, {"base": [trial("base", 0, [3.0, 2.0])], "sbp": seeds})
    assert ends_of_lines(drawn["loss-compute"][0])["Sbp"] == [pytest.approx(6200), 1.5]


@pytest.mark.skipif(not plots.AVAILABLE, reason="needs the extra `plots`")
def test_arms_of_one_colour_have_markers_of_their_own_with_several_seeds(drawn):
    """The ninth arm has the colour of the second, and there is no line between points of several seeds."""
    names = [*EXPERIMENT.arms, "fifth", "sixth", "seventh", "eighth", "ninth"]
    many = replace(EXPERIMENT, arms={name: Arm(name, name.title(), {}) for name in names})
    two = {name: [trial(name, seed, [3.0, 2.0, 1.0]) for seed in (0, 1)] for name in names}
    for name in names[1:]:
        two[name] = [replace(found, snapshots=[snapshot(1, 1000, 0.5)]) for found in two[name]]
    comparison_plots.draw_all(many, two)
    looks = {line.get_label(): (line.get_color(), line.get_marker()) for line in drawn["recovery"][0].get_lines()[:-1]}
    assert list(looks) == [name.title() for name in names[1:]]
    assert len(set(looks.values())) == len(looks)


def test_one_line_and_page(tmp_path):
    trials = [
        trial("base", 0, [3.0, 2.0], [0.0, 0.5]),
        trial("oracle", 0, [3.0, 1.0], [0.0, 1.0]),
        trial("sbp", 0, [3.0, 1.2], [0.0, 0.95]),
        trial("random", 0, [3.0, 1.9], [0.0, 0.55]),
    ]
    found = results.compare(EXPERIMENT, trials)
    line = results.headline(EXPERIMENT, found)
    assert line["share_of_oracle_gain_loss"] == pytest.approx(0.8)
    assert line["share_of_oracle_gain_accuracy"] == pytest.approx(0.9)
    assert line["random_pair_share"] == pytest.approx(0.1)
    assert line["seeds"] == 1
    two = results.compare(EXPERIMENT, [*trials, trial("sbp", 1, [3.0, 1.1]), trial("random", 1, [3.0, 1.9])])
    assert results.headline(EXPERIMENT, two)["seeds"] == 1  # the second has no baseline
    json.dumps(results.as_json(EXPERIMENT, trials, found, ["sbp experiment own"]))
    html = comparison.build(EXPERIMENT, trials, found, tmp_path).read_text()
    assert "80 % of what oracle gains in held-out loss over base" in html
    assert "The control, random: 10 %" in html
    assert html.count("data:image/png") == 4
    assert "<script" not in html


def test_compute_counts_tuning_and_sampling_across_restarts(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run.records / "tuner.jsonl", "w") as file:
        for time, tokens in ((10.0, 0), (20.0, 300), (30.0, 0), (40.0, 200)):  # two tunings
            file.write(json.dumps({"time": time, "event": "tuning", "tuned_tokens": tokens}) + "\n")
    with open(run.records / "generator-0.jsonl", "w") as file:
        for time, tokens, prompts in ((10.0, 60, 30), (20.0, 120, 60), (30.0, 30, 0), (40.0, 60, 30)):  # killed at 25
            event = {"time": time, "event": "throughput", "documents": tokens // 10, "tokens": tokens}
            event |= {"prompt_tokens": prompts}
            file.write(json.dumps(event) + "\n")
    compute = Compute(run)
    assert compute.tuned_tokens(5.0) == 0
    assert compute.tuned_tokens(15.0) == 150
    assert compute.tuned_tokens(50.0) == 500
    assert compute.sampled_tokens(50.0) == 270
    assert compute.total(1000, 50.0) == pytest.approx(1000 + 500 + 90)


def test_a_trial_is_read_from_the_records_of_its_run(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run.records / "trainer.jsonl", "w") as file:
        for time, tokens, loss in ((1.0, 0, 3.0), (11.0, 1000, 2.0)):
            event = {"time": time, "event": "eval", "step": tokens // 100, "tokens": tokens, "heldout_loss": loss}
            file.write(json.dumps(event | {"heldout_bits_per_byte": 1.0, "question_accuracy": 0.5}) + "\n")
        for time, digest in ((12.0, "1"), (13.0, "2")):  # the second after a change that was accepted
            event = {"time": time, "event": "start", "tokens": 1000, "fingerprints": {"data set": digest}}
            file.write(json.dumps(event) + "\n")
    found = results.read_trial(run, Trial("sbp", (), 0), "sbp run", given_tokens=70.0)
    assert [(p.tokens, p.compute_tokens, p.seconds, p.heldout_loss) for p in found.curve] == [
        (0, 70.0, 0.0, 3.0),
        (1000, 1070.0, 10.0, 2.0),
    ]
    assert found.state != "done"
    assert found.fingerprints == {"data set": "2"}
    with pytest.raises(ValueError, match="no evaluation"):
        results.read_trial(make_run(tmp_path / "empty"), Trial("sbp", (), 0), "sbp run")


def test_a_record_is_known_in_whatever_order_it_names_the_settings(tmp_path):
    found = trial("base", 0, [1.0], point={"training.weight_decay": 1.0, "training.dropout": 0.2})
    (tmp_path / "results.json").write_text(json.dumps({"trials": [asdict(found)]}))
    known, _ = results.load(tmp_path / "results.json")
    assert Trial("base", (("training.dropout", 0.2), ("training.weight_decay", 1.0)), 0) in known


def test_all_that_have_one_data_set_have_the_same_documents_and_all_beside_it_one_tokenizer():
    texts, real, oracle = results.Texts(), Path("out/data/real"), Path("out/data/oracle")
    assert texts.difference("base", real, {"data set": "1" * 64, "tokenizer": "2" * 64}) == ""
    assert texts.difference("an earlier version", real, {}) == ""
    assert texts.difference("oracle", oracle, {"data set": "3" * 64, "tokenizer": "2" * 64}) == ""
    assert texts.difference("next seed", Path("out/data/seed-1/real"), {"data set": "4", "tokenizer": "5"}) == ""
    other = texts.difference("online", real, {"data set": "6" * 64, "tokenizer": "2" * 64})
    assert other == "data set 666666666666, expected 111111111111 as in base"
    other = texts.difference("five-times", Path("out/data/five-times"), {"data set": "7" * 64, "tokenizer": "8" * 64})
    assert other == "tokenizer 888888888888, expected 222222222222 as in base"


def test_names_of_trials():
    assert str(Trial("base", (("training.weight_decay", 0.1),), 1)) == "base (training.weight_decay = 0.1), seed 1"
    assert arms.names()


def test_a_generator_that_died_early_is_counted_though_the_next_one_counts_higher(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run.records / "generator-0.jsonl", "w") as file:
        for time, tokens in ((10.0, 50), (30.0, 80), (40.0, 100)):  # died at 20: 50 tokens, then a process with 100
            event = {"time": time, "event": "throughput", "documents": tokens, "tokens": tokens, "prompt_tokens": 0}
            file.write(json.dumps(event) + "\n")
    with open(run.records / "supervisor.jsonl", "w") as file:
        for time in (5.0, 21.0):
            file.write(json.dumps({"time": time, "event": "role_started", "name": "generator-0", "pid": 1}) + "\n")
    assert Compute(run).sampled_tokens(50.0) == 150


@pytest.mark.parametrize(
    ("start", "expected"),
    [("fresh", [0, 1000 + 10, 1000 + 10, 3000 + 25, 4000 + 40]), ("continue", [0, 1010, 1010, 3035, 4040])],
)
def test_the_newest_snapshot_has_cost_its_checkpoint_and_every_tuning_that_is_in_it(tmp_path, start, expected):
    run = make_run(tmp_path / "run", (f'synthesizer.start="{start}"',))
    record, costs = RecordWriter(run, "tuner"), [cost_of_newest_snapshot(run)]
    record(1.0, "pairs_read", num_heldout=3)
    for at, parent, tuned, verdict in (
        (2.0, 1000, 10, "published"),
        (3.0, 2000, 300, "quarantined"),  # what it had learnt is in none of the others
        (4.0, 3000, 25, "published"),
    ):
        record(at, "snapshot", verdict=verdict, parent_tokens=parent, tuned_tokens=tuned)
        costs.append(cost_of_newest_snapshot(run))
    record(5.0, "pairs_read", num_heldout=3)  # another process of the tuner begins with nothing learnt
    record(6.0, "snapshot", verdict="published", parent_tokens=4000, tuned_tokens=40)
    assert [*costs, cost_of_newest_snapshot(run)] == expected

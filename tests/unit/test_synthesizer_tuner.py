"""The tuner's service in this process: real data set, real checkpoints, real gate."""

import signal
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbp_services.tuner import TunerService
from streaming_sbp import config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.files import read_json, write_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.synthesizer.pointer import pinned
from streaming_sbp.synthesizer.snapshots import SnapshotStore
from streaming_sbp.training.checkpoint import CheckpointStore
from streaming_sbp.training.model import build_model
from streaming_sbp.training.optim import build_optimizer


@pytest.fixture
def run(tiny_config):
    return make_run(tiny_config)


def make_run(tiny_config, *extra):
    settings = [
        "synthesizer.tuning_tokens=40000",
        "synthesizer.batch_tokens=2048",
        "synthesizer.learning_rate=0.01",
        "synthesizer.evaluate_every_steps=5",
        "synthesizer.idle_s=0.05",
        "gate.trial_documents=16",
        "gate.max_unfinished_share=1.0",
        "gate.min_relatedness_ratio=0",
        "telemetry.status_every_s=0.05",
        *extra,
    ]
    tree = config.apply_overrides(tiny_config.model_dump(mode="json"), settings)
    return RunDir.open_or_create(config.build(tree))


def serve(run, until, timeout_s=60.0):
    """Run the tuner until ``until(status)`` holds for its status file, then send it what a signal would."""
    service, happened = TunerService(run), threading.Event()

    def watch():
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status = read_json(run.roles / "tuner.json")
            if status and status["state"] not in ("starting", "stopped") and until(status):
                happened.set()
                break
            time.sleep(0.05)
        service._signals = 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        exit_status = service.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    watcher.join()
    service.health.close()
    assert exit_status == 0
    assert happened.is_set(), read_json(run.roles / "tuner.json")
    return read_json(run.roles / "tuner.json")


def waits_for(what):
    return lambda status: status["state"] == "waiting" and what in status["detail"]


def write_pairs(run, num_pairs=300, num_heldout=40):
    """Pairs of documents about the same topic (the corpus repeats its topics every ten documents)."""
    documents = Dataset.open(run.config().data.dataset).split("train")
    tokenizer = Dataset.open(run.config().data.dataset).tokenizer()
    topics = [tokenizer.decode(documents.tokens(i)).split("The ")[1].split()[0] for i in range(len(documents))]
    rng = np.random.default_rng(0)
    pairs = []
    while len(pairs) < num_pairs:
        i, j = rng.integers(len(documents), size=2).tolist()
        if i != j and topics[i] == topics[j]:
            pairs.append((i, j))
    seed, target = map(np.array, zip(*pairs, strict=True)) if pairs else (np.zeros(0, int), np.zeros(0, int))
    columns = {
        "seed_id": [documents.ids[i] for i in seed],
        "target_id": [documents.ids[i] for i in target],
        "seed": seed.astype(np.int64),
        "target": target.astype(np.int64),
        "similarity": np.full(len(pairs), 0.8, dtype=np.float32),
        "heldout": np.arange(len(pairs)) < num_heldout,
    }
    schema = {"seed_id": pa.string(), "target_id": pa.string(), "similarity": pa.float32(), "heldout": pa.bool_()}
    table = pa.table({name: pa.array(values, schema.get(name, pa.int64())) for name, values in columns.items()})
    pq.write_table(table, run.pairs / "pairs.parquet")
    write_json(run.pairs / "statistics.json", {})


def write_checkpoint(run, step, tokens, seed=None):
    settings = run.config()
    tokenizer = Dataset.open(settings.data.dataset).tokenizer()
    model = build_model(settings.model, tokenizer, seed=step if seed is None else seed)
    store = CheckpointStore(run.checkpoints, run.config().checkpoint, tokenizer)
    store.save(step, tokens, model, build_optimizer(model, settings.training), {})
    store.wait()
    assert not store.poll().error
    return run.checkpoints / f"step-{step:08d}"


def snapshot_records(run):
    return [record for record in run.read_records("tuner") if record["event"] == "snapshot"]


def test_the_tuner_waits_for_pairs_and_says_so(run):
    status = serve(run, waits_for("pair table"))
    assert status["state"] == "stopped"
    write_pairs(run, num_pairs=0, num_heldout=0)
    assert "0 for training and 0 held out" in serve(run, waits_for("for pairs"))["detail"]


def test_checkpoints_become_snapshots_and_a_restart_goes_on_with_the_next(run):
    write_pairs(run)
    serve(run, waits_for("for the first checkpoint"))
    write_checkpoint(run, 10, 5000)
    status = serve(run, waits_for("at least 5,001"))
    first = SnapshotStore(run.snapshots).current()
    assert (first.version, first.parent_checkpoint, first.parent_tokens, first.num_pairs) == (
        1,
        "step-00000010",
        5000,
        260,
    )
    assert first.measures["pair_loss"] < first.measures["untuned_pair_loss"] - 0.5
    assert status["facts"]["published"] == 1
    assert status["facts"]["newest"]["digest"] == first.digest
    assert status["facts"]["tuned_tokens"] >= 40_000
    assert serve(run, waits_for("at least 5,001"))["facts"]["published"] == 1
    assert len(snapshot_records(run)) == 1

    write_checkpoint(run, 20, 9000)
    serve(run, waits_for("at least 9,001"))
    assert [record["parent_tokens"] for record in snapshot_records(run)] == [5000, 9000]
    tuning = [record for record in run.read_records("tuner") if record["event"] == "tuning"]
    assert tuning[0]["step"] == 0
    assert tuning[0]["train_loss"] is None
    assert all(record["pair_loss"] > 0 for record in tuning)


def test_a_candidate_the_gate_refuses_is_quarantined_and_not_tried_again(run):
    write_pairs(run)
    write_checkpoint(run, 10, 5000)
    strict = config.apply_overrides(run.config().model_dump(mode="json"), ["gate.max_unfinished_share=0.0"])
    strict = config.apply_overrides(strict, ["synthesizer.tuning_tokens=3000"])
    run = RunDir.open_or_create(config.build(strict), accept_changes=True)
    serve(run, waits_for("at least 5,001"))
    record = snapshot_records(run)[0]
    assert (record["verdict"], record["version"]) == ("quarantined", None)
    assert any("unfinished_share" in reason for reason in record["reasons"])
    folder = run.quarantine / record["digest"]
    assert read_json(folder / "reason.json")["reasons"] == record["reasons"]
    assert len(read_json(folder / "examples.json")) == 10
    assert SnapshotStore(run.snapshots).current() is None
    serve(run, waits_for("at least 5,001"))
    assert len(snapshot_records(run)) == 1


def test_a_damaged_checkpoint_is_passed_over(run):
    write_pairs(run)
    weights = write_checkpoint(run, 10, 5000) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    serve(run, waits_for("for the first checkpoint"))
    assert snapshot_records(run) == []
    write_checkpoint(run, 20, 6000)
    serve(run, waits_for("at least 6,001"))
    assert [record["parent_tokens"] for record in snapshot_records(run)] == [6000]


def test_a_signal_in_the_middle_of_tuning_abandons_it(run):
    write_pairs(run)
    write_checkpoint(run, 10, 5000)
    started = time.monotonic()
    serve(run, lambda status: "tuning step-" in status["detail"])
    assert time.monotonic() - started < 30
    assert snapshot_records(run) == []
    assert list(run.snapshots.iterdir()) == []
    assert list(run.quarantine.iterdir()) == []


def test_while_the_store_is_away_a_tuned_candidate_waits_and_is_published_when_it_is_back(run, monkeypatch):
    write_pairs(run)
    write_checkpoint(run, 10, 5000)
    away, tried, seen = run.path / "away", [], []
    try_candidate = TunerService._try

    def then_the_store_goes_away(self, *arguments):
        measured = try_candidate(self, *arguments)
        tried.append(measured)
        run.snapshots.rename(away)
        run.snapshots.write_text("")  # no folder: nothing can be read or written there
        return measured

    def back_when_it_was_missed(status):
        if "snapshot store" in status["detail"] and run.snapshots.is_file():
            seen.append(status["state"])
            run.snapshots.unlink()
            away.rename(run.snapshots)
        return waits_for("at least 5,001")(status)

    monkeypatch.setattr(TunerService, "_try", then_the_store_goes_away)
    serve(run, back_when_it_was_missed)
    assert (len(tried), seen) == (1, ["waiting"])
    (judged,) = snapshot_records(run)
    assert (judged["verdict"], judged["serves"], judged["pinned"]) == ("published", True, False)
    assert SnapshotStore(run.snapshots).current().digest == judged["digest"]
    events = [record["event"] for record in run.read_records("tuner") if record["event"].startswith("store")]
    assert events == ["store_unavailable", "store_available"]


def test_a_tuner_whose_store_is_away_at_its_start_waits_and_goes_on(run, monkeypatch):
    write_pairs(run)
    write_checkpoint(run, 10, 5000)
    serve(run, waits_for("at least 5,001"))
    first, away = snapshot_records(run)[0]["digest"], run.path / "away"
    run.snapshots.rename(away)
    run.snapshots.write_text("")

    def back_when_it_was_missed(status):
        if "snapshot store" in status["detail"] and run.snapshots.is_file():
            run.snapshots.unlink()
            away.rename(run.snapshots)
            SnapshotStore(run.snapshots).change("person", "", lambda p, _: pinned(p, first))
            write_checkpoint(run, 20, 9000)
        return waits_for("at least 9,001")(status)

    serve(run, back_when_it_was_missed)
    assert [record["parent_tokens"] for record in snapshot_records(run)] == [5000, 9000]
    assert [record["serves"] for record in snapshot_records(run)] == [True, False]
    assert snapshot_records(run)[1]["pinned"]


def test_a_tuning_that_continues_starts_better_than_the_checkpoint(tiny_config):
    run = make_run(tiny_config, 'synthesizer.start="continue"')
    write_pairs(run)
    write_checkpoint(run, 10, 5000)

    def next_checkpoint_when_published(status):
        if "at least 5,001" in status["detail"] and not (run.checkpoints / "step-00000020").exists():
            write_checkpoint(run, 20, 9000, seed=10)  # the same weights as before: only what was learnt helps
        return waits_for("at least 9,001")(status)

    serve(run, next_checkpoint_when_published)
    first, second = (record["measures"] for record in snapshot_records(run))
    assert second["untuned_pair_loss"] == pytest.approx(first["pair_loss"], abs=0.02)
    assert second["untuned_pair_loss"] < first["untuned_pair_loss"] - 0.5


def test_tuning_waits_while_it_would_take_more_than_its_share_of_the_compute(tiny_config):
    run = make_run(tiny_config, "synthesizer.max_compute_share=0.5")
    write_pairs(run)
    write_checkpoint(run, 10, 5000)
    assert "would exceed synthesizer.max_compute_share = 0.5" in serve(run, waits_for("more trained"))["detail"]
    assert not snapshot_records(run)
    write_checkpoint(run, 20, 100_000)
    facts = serve(run, waits_for("at least 100,001"))["facts"]
    assert len(snapshot_records(run)) == 1
    assert 0.4 < facts["compute_share"] < 0.5


def test_in_joint_mode_a_checkpoint_is_judged_as_it_is(tiny_config):
    short = ("synthesizer.max_seed_tokens=60", "synthesizer.max_target_tokens=60")
    run = make_run(tiny_config, 'synthesizer.mode="joint"', "mix.pair_share=0.3", "gate.max_empty_share=1.0", *short)
    write_pairs(run)
    checkpoint = write_checkpoint(run, 10, 5000)
    facts = serve(run, waits_for("at least 5,001"))["facts"]
    (judged,) = snapshot_records(run)
    assert facts["tuned_tokens"] == judged["tuned_tokens"] == 0
    assert judged["measures"]["pair_loss"] == judged["measures"]["untuned_pair_loss"]
    assert judged["verdict"] == "quarantined"  # random weights do not use the seed document
    assert any("unrelated seed documents" in reason for reason in judged["reasons"])
    assert checkpoint.exists()


def test_an_unconditional_synthesizer_is_the_checkpoint_without_seed_documents(tiny_config):
    lenient = ("gate.max_empty_share=1.0", "gate.max_length_ratio=1000", "gate.min_length_ratio=0")
    run = make_run(tiny_config, 'synthesizer.mode="unconditional"', "gate.min_distinct_ratio=0", *lenient)
    write_pairs(run)
    write_checkpoint(run, 10, 5000)
    facts = serve(run, waits_for("at least 5,001"))["facts"]
    (judged,) = snapshot_records(run)
    assert facts["tuned_tokens"] == judged["tuned_tokens"] == 0
    assert judged["measures"]["pair_loss"] == judged["measures"]["unrelated_pair_loss"]
    assert judged["verdict"] == "published", judged["reasons"]

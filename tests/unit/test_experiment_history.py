import numpy as np
import pytest

from streaming_sbp.experiment import history
from streaming_sbp.telemetry.records import read_records
from tests.unit.run_records import DIED_AT, DIGESTS, SECOND_TOKENS, TUNINGS, FakeRun, RecordWriter, make_run


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    fake = FakeRun(make_run(tmp_path_factory.mktemp("whole") / "run"))
    fake.write()
    return fake


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    fake = FakeRun(make_run(tmp_path_factory.mktemp("resumed") / "run"), resume_at_s=200)
    fake.write()
    return fake


def test_a_run_without_records(tmp_path):
    told = history.load(make_run(tmp_path / "run"))
    assert told.trains == told.evaluations == told.snapshots == told.rates == told.events == []
    assert told.active_s == 0.0
    assert told.active_minutes(np.array([1.0, 2.0])).tolist() == [0.0, 0.0]


def test_snapshots_and_what_became_of_them(fake):
    told = history.load(fake.run)
    assert [s.digest for s in told.snapshots] == list(DIGESTS)
    assert [s.version for s in told.snapshots] == [1, None, 2, 3]
    assert [s.verdict for s in told.snapshots] == [verdict for _, _, verdict in TUNINGS]
    assert [s.trained_documents for s in told.snapshots] == [400, None, 800, 1200]
    refused = told.snapshots[1]
    assert refused.reasons == ("repetitive_share 0.41 is above gate.max_repetitive_share 0.25",)
    assert refused.swapped_tokens is refused.first_trained_tokens is refused.pause_s is None
    for snapshot, (parent, tune_s, verdict) in zip(told.snapshots, TUNINGS, strict=True):
        assert (snapshot.parent_tokens, snapshot.tune_s) == (parent, tune_s)
        if verdict == "published":
            swapped_s = parent / SECOND_TOKENS + tune_s + 9  # the first of two generators
            assert snapshot.swapped_time == pytest.approx(fake.started + swapped_s, abs=0.01)
            assert snapshot.swapped_tokens == pytest.approx(swapped_s * SECOND_TOKENS, abs=100)
            assert snapshot.first_trained_tokens == pytest.approx((swapped_s + 5) * SECOND_TOKENS, abs=SECOND_TOKENS)


def test_superseded_records_are_left_out(resumed):
    told = history.load(resumed.run)
    for records in (told.trains, told.evaluations):
        tokens = [record["tokens"] for record in records]
        assert tokens == sorted(set(tokens))
    assert len(told.resumes) == 1
    assert told.resumes[0]["resumed_from"] == "step-00000400"
    every = history.read_records(resumed.run.records / "trainer.jsonl")
    lost = sum(r["event"] == "train" for r in every) - len(told.trains)
    assert lost == pytest.approx(30 / 2, abs=1)  # 30 s of records every 2 s


def test_phases_sum_over_processes(resumed, fake):
    # the clock starts again in each process: 0.82 of 200 s and of 100 s
    for one in (resumed, fake):
        phases = history.load(one.run).phases
        assert phases["forward_backward"] == pytest.approx(0.82 * 300, rel=0.02)
        assert phases["data_wait"] == pytest.approx(0.01 * 300, rel=0.02)


def test_counts_of_a_generator_that_was_restarted_add_up(fake):
    told = history.load(fake.run)
    first_s = TUNINGS[0][0] / SECOND_TOKENS + TUNINGS[0][1] + 9

    def sampled(k):
        return 60 * (k + 1) + 6 * k  # sent, then four, one and one filtered

    recorded = range(int(first_s) + 5, 300, 5)
    last = recorded[-1]
    assert told.sampled["generator-0"] == sampled(int((last - first_s) / 5))
    died_s = DIED_AT * 300
    before = max(second for second in recorded if second <= died_s)
    expected = sampled(int((before - first_s) / 5)) + sampled(int((last - died_s - 1) / 5))
    assert told.sampled["generator-1"] == expected
    filtered = told.filtered["generator-1"]
    assert filtered["unfinished"] == 4 * filtered["too_short"] == 4 * filtered["repetitive"] > 0


def test_a_restarted_generator_may_begin_with_more_than_it_had(tmp_path):
    run = make_run(tmp_path / "run")
    generator, supervisor = RecordWriter(run, "generator-0"), RecordWriter(run, "supervisor")
    supervisor(0.0, "role_started", name="generator-0", pid=1)
    generator(5.0, "throughput", documents=10, filtered={"copied": 1}, blocked_s=1.0)
    supervisor(6.0, "role_started", name="generator-1", pid=3)  # another one
    generator(7.0, "throughput", documents=12, filtered={"copied": 2}, blocked_s=2.0)
    supervisor(8.0, "role_started", name="generator-0", pid=2)
    generator(13.0, "throughput", documents=50, filtered={"too_short": 3}, blocked_s=0.5)
    generator(18.0, "throughput", documents=5, filtered={}, blocked_s=0.25)  # started by hand
    told = history.load(run)
    assert told.sampled == {"generator-0": 12 + 50 + 5}
    assert told.filtered == {"generator-0": {"copied": 2, "too_short": 3}}
    assert told.blocked_s == {"generator-0": 2.75}


def test_rates(fake):
    rates = {rate.role: rate for rate in history.load(fake.run).rates}
    assert set(rates) == {"trainer", "tuner", "generator-0", "generator-1"}
    assert np.mean(rates["trainer"].tokens_per_second) == pytest.approx(SECOND_TOKENS, rel=0.02)
    # 60,000 tokens in a sixth of each tuning; never across two candidates
    expected = [60_000 / (tune_s / 6) for _, tune_s, _ in TUNINGS for _ in range(5)]
    assert rates["tuner"].tokens_per_second == pytest.approx(expected, rel=1e-3)


def test_time_in_which_nothing_ran_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    record = RecordWriter(run, "trainer")
    times = [0.0, 20.0, 40.0, 10_000.0, 10_010.0]
    for at in times:
        record(at, "train", tokens=int(at))
    told = history.load(run)
    seconds = [0, 20, 40, 40 + history.LONGEST_GAP_S, 50 + history.LONGEST_GAP_S]
    assert told.active_minutes(np.array(times)) * 60 == pytest.approx(seconds)
    assert told.active_s == pytest.approx(seconds[-1])


def test_tokens_at():
    trains = [{"time": 10.0, "tokens": 100}, {"time": 20.0, "tokens": 300}]
    times = [99.0, 5.0, None, 10.0, 15.0, 20.0]
    assert history.tokens_at(trains, times) == [300, 100, None, 100, 200, 300]
    assert history.tokens_at([], times) == [None] * 6


def test_many_snapshots_do_not_read_all_records_again(tmp_path, monkeypatch):
    reads = 0

    class Counted(dict):
        def __getitem__(self, key):
            nonlocal reads
            reads += key == "tokens"
            return super().__getitem__(key)

    run = make_run(tmp_path / "run")
    trainer, tuner, generator = (RecordWriter(run, name) for name in ("trainer", "tuner", "generator-0"))
    for k in range(40):
        trainer(float(k), "train", tokens=100 * k)
        tuner(k + 0.25, "snapshot", digest=f"{k}", version=k, verdict="published")
        generator(k + 0.5, "swap", digest=f"{k}")
    monkeypatch.setattr(history, "read_records", lambda path: [Counted(r) for r in read_records(path)])
    told = history.load(run)
    assert [s.swapped_tokens for s in told.snapshots] == [*(100 * k + 50 for k in range(39)), 3900]
    assert reads <= 3 * 40


def test_events_of_all_roles_in_order(fake):
    told = history.load(fake.run)
    assert [event.time for event in told.events] == sorted(event.time for event in told.events)
    assert {event.role for event in told.events} == {"supervisor", "tuner", "generator-0", "generator-1", "trainer"}

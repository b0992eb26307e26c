import pytest

from streaming_sbp.telemetry.summary import EventSummary, RestartSummary, SnapshotSummary, TrainerSummary, describe


def record(event, time=1.0, **fields):
    return {"time": time, "event": event, **fields}


@pytest.mark.parametrize(
    ("said", "text", "tone"),
    [
        (
            record("snapshot", verdict="published", version=3, parent_tokens=1_250_000),
            "published snapshot v3 from 1.25M tokens",
            "good",
        ),
        (
            record("snapshot", verdict="published", version=5, parent_tokens=900, serves=False, pinned=True),
            "published snapshot v5 from 900 tokens; it does not serve: another one is pinned",
            "plain",
        ),
        (
            record("snapshot", verdict="published", version=5, parent_tokens=900, serves=True, pinned=False),
            "published snapshot v5 from 900 tokens",
            "good",
        ),
        (
            record("store_unavailable", reason="snapshot store s3://b: gone"),
            "no answer of the snapshot store s3://b: gone",
            "bad",
        ),
        (record("store_available"), "the snapshot store answers again", "good"),
        (
            record("snapshot", verdict="quarantined", parent_tokens=900, reasons=["too \x1b[31mlong\n", "bad"]),
            "quarantined a snapshot from 900 tokens: too long ; bad",
            "bad",
        ),
        (record("snapshot", verdict="quarantined"), "quarantined a snapshot from – tokens: no reason recorded", "bad"),
        (
            record("role_died", name="tuner", exit_code=-9, restart_in_s=2.0),
            "tuner died (signal 9), restart in 2.0 s",
            "bad",
        ),
        (record("role_died", name="tuner", exit_code=2), "tuner died (exit status 2), no restart", "bad"),
        (
            record("role_died", name="wandb", exit_code=2, restart_in_s=None, reason="No API key"),
            "wandb died (exit status 2), no restart: No API key",
            "bad",
        ),
        (record("role_died", name="tuner"), "tuner died (exit status unknown), no restart", "bad"),
        (record("role_killed", name="tuner"), "tuner did not stop in time and was killed", "bad"),
        (record("start", tokens=2000, resumed_from="step-1"), "resumed from step-1 at 2.00k tokens", "good"),
        (record("swap", version=2, pause_s=0.25), "swapped in snapshot v2, pause 0.2 s", "good"),
        (record("swap_failed", reason="gone"), "could not load a snapshot: gone", "bad"),
        (record("checkpoint_failed", reason="disk full"), "checkpoint failed: disk full", "bad"),
        (
            record("drift", snapshot="7eed474e99", reasons=["copied_share 0.4"], action="rolled_back"),
            "drift of snapshot 7eed474e, rolled back: copied_share 0.4",
            "bad",
        ),
        (
            record("announced", version=2, by="person", reason="rolled back by a person"),
            "snapshot v2 serves, as the person says: rolled back by a person",
            "plain",
        ),
        (
            record("history_changed", reason="the journal lost documents"),
            "steps could not be repeated as they were: the journal lost documents",
            "bad",
        ),
    ],
)
def test_events_in_words(said, text, tone):
    event = describe("role", said)
    assert (event.text, event.tone, event.role, event.time) == (text, tone, "role", 1.0)


@pytest.mark.parametrize(
    "said", [record("train"), record("start", resumed_from=None), record("announced", by="tuner"), record("unheard of")]
)
def test_routine_is_no_event(said):
    assert describe("role", said) is None


def test_event_summary_keeps_the_newest_in_any_order():
    summary = EventSummary()
    times = [(k * 37) % 1000 for k in range(1000)]  # every time once, out of order
    for time in times:
        summary.add("supervisor", record("role_killed", float(time), name=str(time)))
    assert [event.time for event in summary.newest(30)] == [float(time) for time in range(970, 1000)]


def test_rate_is_over_the_records_of_this_process():
    summary = TrainerSummary()
    summary.add(record("start", 0.0, tokens=0))
    for k in range(1, 5):
        summary.add(record("train", 2.0 * k, tokens=1000 * k))
    assert summary.tokens_per_second() == pytest.approx(500.0)
    summary.add(record("start", 100.0, tokens=3000))
    assert summary.tokens_per_second() is None
    summary.add(record("train", 110.0, tokens=4000))
    summary.add(record("train", 120.0, tokens=6000))
    assert summary.tokens_per_second() == pytest.approx(200.0)


def test_a_start_after_the_end_makes_it_unfinished():
    summary = TrainerSummary()
    summary.add(record("start", 0.0, tokens=0))
    summary.add(record("finish", 9.0, tokens=500))
    assert (summary.tokens, summary.finished_tokens) == (500, 500)
    summary.add(record("start", 10.0, tokens=500))
    assert (summary.tokens, summary.finished_tokens) == (500, None)


def test_newest_values_skip_nulls():
    summary = TrainerSummary()
    summary.add(record("train", tokens=1, loss={"real": 3.0, "synthetic": 2.0}, ledger={"sent": 1}))
    summary.add(record("train", tokens=2, loss={"real": 2.5, "synthetic": None}, ledger=None))
    assert (summary.newest_loss("real"), summary.newest_loss("synthetic")) == (2.5, 2.0)
    assert summary.newest("ledger") == {"sent": 1}
    assert summary.newest("unheard of") is None


def test_snapshots_are_counted_once_however_many_generators_swap():
    summary = SnapshotSummary()
    for version, digest in enumerate("ab", start=1):
        summary.add(record("snapshot", verdict="published", digest=digest, version=version))
        for _ in range(3):
            summary.add(record("swap", digest=digest))
    summary.add(record("snapshot", verdict="quarantined", digest="c"))
    assert summary.verdicts == {"published": 2, "quarantined": 1}
    assert summary.swapped_in == {"a", "b"}
    assert summary.newest["version"] == 2


def test_only_starts_after_a_death_are_restarts():
    summary = RestartSummary()
    for event, name, fields in [
        ("role_started", "tuner", {}),
        ("role_died", "tuner", {"restart_in_s": 1.0}),
        ("role_started", "tuner", {}),
        ("role_started", "tuner", {}),  # of the next `sbp run`
        ("role_died", "trainer", {"restart_in_s": None}),
        ("role_started", "trainer", {}),
    ]:
        summary.add(record(event, name=name, **fields))
    assert summary.restarts == {"tuner": 1}

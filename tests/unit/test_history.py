"""The log of steps, the repetition of steps after a crash, and the trace of a step."""

import json

import numpy as np
import pytest

from streaming_sbp.config import ConfigError
from streaming_sbp.training.batches import Decisions
from streaming_sbp.training.history import PastStep, StepLog, read_steps
from tests.unit.run_records import make_run


def write(log: StepLog, count: int, first: int = 1) -> None:
    for step in range(first, first + count):
        started, jumps = (7, ((3, 12),)) if step == 2 else (None, ())
        log.append(
            f"digest-{step}", {"real": 1.0 / step, "synthetic": None}, Decisions(started, ((step, True),), jumps)
        )


def test_what_is_appended_is_read_back_exactly(tmp_path):
    path = tmp_path / "steps.jsonl"
    write(StepLog(path, 0), 5)
    found = list(read_steps(path))
    assert [past.step for past in found] == [1, 2, 3, 4, 5]
    assert found[1] == PastStep(2, "digest-2", {"real": 0.5, "synthetic": None}, Decisions(7, ((2, True),), ((3, 12),)))
    assert found[2].loss["real"] == 1.0 / 3
    assert [past.step for past in read_steps(path, after=3)] == [4, 5]


def test_after_a_crash_there_are_steps_to_repeat_then_new_ones(tmp_path):
    path = tmp_path / "steps.jsonl"
    write(StepLog(path, 0), 5)
    before = path.read_bytes()
    log = StepLog(path, 3)
    assert log.to_repeat.step == 4
    log.repeated()
    assert log.to_repeat.step == 5
    log.repeated()
    assert log.to_repeat is None
    assert path.read_bytes() == before
    write(log, 2, first=6)
    assert [past.step for past in read_steps(path)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path):
    path = tmp_path / "steps.jsonl"
    write(StepLog(path, 0), 5)
    path.write_bytes(path.read_bytes()[:-10])
    log = StepLog(path, 3)
    assert log.to_repeat.step == 4
    log.repeated()
    assert log.to_repeat is None
    write(log, 1, first=5)
    assert [past.step for past in read_steps(path)] == [1, 2, 3, 4, 5]


def test_a_past_that_cannot_be_repeated_is_replaced(tmp_path):
    path = tmp_path / "steps.jsonl"
    write(StepLog(path, 0), 5)
    log = StepLog(path, 2)
    log.repeated()
    log.forget()
    assert log.to_repeat is None
    log.append("another", {}, Decisions())
    assert [past.digest for past in read_steps(path)] == ["digest-1", "digest-2", "digest-3", "another"]


def test_a_log_that_begins_after_the_checkpoint_is_no_history(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(PastStep(9, "digest", {}, Decisions()).line())
    assert StepLog(path, 3).to_repeat is None
    assert list(read_steps(tmp_path / "missing.jsonl")) == []


def test_damage_ends_the_history_where_it_is(tmp_path):
    path = tmp_path / "steps.jsonl"
    write(StepLog(path, 0), 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[3:]]))
    assert [past.step for past in read_steps(path)] == [1, 2]
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert [past.step for past in read_steps(path)] == [1, 2]


def test_a_trace_names_the_document_of_every_token(tiny_config, tmp_path):
    from streaming_sbp.data.dataset import Dataset
    from streaming_sbp.rundir import RunDir
    from streaming_sbp.stream.journal import Journal
    from streaming_sbp.training import trace as tracing
    from streaming_sbp.training.build import build_batches
    from tests.unit.test_stream_journal import document

    run = RunDir.open_or_create(tiny_config)
    dataset, journal = Dataset.open(tiny_config.data.dataset), Journal(run.journal, writable=True)
    journal.append([document(seq, 40) for seq in range(200)])
    batches = build_batches(tiny_config, dataset, journal, tmp_path)
    log, made = StepLog(run.steps, 0), []
    for step in range(30):
        if step == 5:
            batches.start_schedule()
        batch = batches.next()
        made.append(batch)
        log.append(batch.digest(), {"real": 1.0}, batch.decisions)
    past, pieces = tracing.trace(run, 30)
    batch, train = made[29], dataset.split("train")
    assert past.digest == batch.digest()
    assert {piece.source for piece in pieces} == {"real", "synthetic"}
    covered = np.zeros(batch.input_ids.shape, bool)
    for piece in pieces:
        span = slice(piece.at, piece.at + piece.length)
        covered[piece.sequence, span] = True
        tokens = batch.input_ids[piece.sequence, span].numpy()
        if piece.source == "real":
            whole = train.tokens(train.ids.index(piece.document["id"]))
            assert (train.path / piece.document["shard"]).exists()
        else:
            whole = document(piece.document["seq"], 40).tokens
            assert piece.document["generator"] == "generator-0"
            assert piece.document["snapshot"] == "d" * 32
        inner = slice(max(piece.start - 1, 0), piece.start + piece.length - 1)
        from_document = tokens[1:] if piece.start == 0 else tokens
        assert from_document[: len(whole[inner])].tolist() == whole[inner][: len(from_document)].tolist()
    assert (covered == (batch.source_ids >= 0).numpy()).all()
    assert json.dumps(tracing.as_json(past, pieces))
    with pytest.raises(ConfigError, match="ends at 30"):
        tracing.trace(run, 31)
    for shard in run.journal.glob("*.tar"):
        shard.unlink()
    with pytest.raises(ConfigError, match="pruned or damaged"):
        tracing.trace(run, 30)


def test_a_replay_that_was_cut_short_is_not_equal():
    from sbp_services.replayer import Comparison

    comparison = Comparison(logged=2, steps=1)
    assert not comparison.equal
    assert not comparison.different
    comparison.steps = 2
    assert comparison.equal
    comparison.first_other_loss = 2
    assert not comparison.equal


@pytest.mark.parametrize("override", ["mix.synthetic_share=0.5", "training.total_tokens=1", "run.seed=1"])
def test_a_replay_refuses_settings_with_which_other_documents_would_be_trained(tmp_path, override):
    from sbp_services.replayer import replay

    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"--replay with {override.partition('=')[0]}: expected settings that leave"):
        replay(run, None, ["training.dropout=0.1", override])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_documents_of_a_rejected_snapshot_are_passed_over_and_counted_by_their_generator(tmp_path):
    from msgspec.structs import replace

    from streaming_sbp import config
    from streaming_sbp.stream.journal import Journal
    from streaming_sbp.training.sources import SyntheticSource
    from tests.unit.test_stream_journal import document

    writer = Journal(tmp_path, writable=True)
    for seq, snapshot in enumerate("abbabb"):
        made = document(seq, 20, f"generator-{seq % 2}")
        writer.append([replace(made, header=replace(made.header, snapshot=snapshot * 32))])
    source = SyntheticSource(Journal(tmp_path), 1, 2, 400, config.Mix())
    source.rejected = frozenset({"b" * 32})
    taken = []
    while source.pass_over_rejected() or source.has_document():
        if source.has_document():
            taken.append(source.cursor)
            source.cursor += 1
    assert taken == [0, 3]
    assert source.dropped == {"damaged": {}, "rolled_back": {"generator-0": 2, "generator-1": 2}}
    again = SyntheticSource(Journal(tmp_path), 1, 2, 400, config.Mix())
    again.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert (again.cursor, again.dropped) == (6, source.dropped)


def test_damaged_documents_are_passed_over_and_counted(tmp_path):
    from streaming_sbp import config
    from streaming_sbp.stream.journal import Journal
    from streaming_sbp.training.sources import SyntheticSource
    from tests.unit.test_stream_journal import document

    writer = Journal(tmp_path, writable=True)
    for seq in range(4):
        writer.append([document(seq, 20)])
    path = tmp_path / "0000000001-000001.tar"
    path.write_bytes(path.read_bytes()[:100])
    path = tmp_path / "0000000002-000001.tar"
    data = bytearray(path.read_bytes())
    data[data.index(document(2, 20).tokens.tobytes())] ^= 1
    path.write_bytes(data)
    source = SyntheticSource(Journal(tmp_path), 1, 2, 400, config.Mix())
    taken = []
    while source.has_document():
        taken.append(source.cursor)
        source.cursor += 1
    assert taken == [0, 3]
    assert source.dropped["damaged"] == {"unknown": 1, "generator-0": 1}
    empty = {"damaged": {}, "rolled_back": {}}
    assert SyntheticSource(Journal(tmp_path), 1, 2, 400, config.Mix()).state_dict() == {"cursor": 0, "dropped": empty}
    repeated = SyntheticSource(Journal(tmp_path), 1, 2, 400, config.Mix())
    assert repeated.pass_over_to(4)
    assert repeated.dropped["damaged"] == {"unknown": 1, "generator-0": 1}
    assert repeated.dropped["rolled_back"] == {"generator-0": 2}
    assert not repeated.pass_over_to(5)

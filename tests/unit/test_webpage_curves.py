import random

import pytest

from streaming_sbp.experiment import history
from streaming_sbp.webpage.curves import Curves, Table
from tests.unit.run_records import FakeRun, RecordWriter, make_run

RULES = {"tokens": "last", "loss": "mean", "count": "last"}
ROWS_OF_1000 = [{"tokens": 10 * k, "loss": float(k % 7), "count": k} for k in range(1, 1001)]


def filled(rows, limit):
    table = Table(RULES, limit)
    for row in rows:
        table.add(row)
    return table


class Reader:
    """Keeps what it was told, as the page does."""

    def __init__(self, table):
        self.table, self.cursor, self.columns = table, "", {name: [] for name in RULES}

    def read(self):
        part = self.table.since(self.cursor)
        self.cursor = part.cursor
        self.columns = {name: self.columns[name][: part.start] + new for name, new in part.columns.items()}
        return part


def test_a_table_within_its_bound_holds_every_row():
    table = filled(ROWS_OF_1000, limit=1000)
    assert table.since("").columns == {name: [row[name] for row in ROWS_OF_1000] for name in RULES}


@pytest.mark.parametrize("num_rows", [1, 19, 20, 21, 999, 1000])
def test_a_long_table_stays_small_and_true(num_rows):
    rows = ROWS_OF_1000[:num_rows]
    columns = filled(rows, limit=10).since("").columns
    assert len(columns["tokens"]) <= 20
    assert columns["tokens"] == sorted(set(columns["tokens"]))
    assert (columns["tokens"][-1], columns["count"][-1]) == (
        rows[-1]["tokens"],
        rows[-1]["count"],
    )  # the newest is there
    ends = [0, *columns["count"]]
    for i, loss in enumerate(columns["loss"]):  # each row is the mean of the records since the one before
        records = [row["loss"] for row in rows[ends[i] : ends[i + 1]]]
        assert loss == pytest.approx(sum(records) / len(records), abs=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_asks_for_what_is_new_ends_with_what_there_is(seed):
    """Under random growth, resumes and pauses."""
    rng = random.Random(seed)
    table, tokens = Table(RULES, limit=8), 0
    readers = [Reader(table) for _ in range(3)]
    for _ in range(400):
        if rng.random() < 0.02:
            tokens = rng.randint(0, tokens)
            table.forget_beyond(tokens)
        tokens += rng.randint(1, 9)
        table.add({"tokens": tokens, "loss": rng.random() if rng.random() < 0.8 else None, "count": 1})
        for reader in readers:
            if rng.random() < 0.2:
                reader.read()
                assert reader.columns == table.since("").columns


def test_only_what_is_new_is_sent():
    table = filled(ROWS_OF_1000[:500], limit=1000)
    reader = Reader(table)
    reader.read()
    for row in ROWS_OF_1000[500:503]:
        table.add(row)
    part = reader.read()
    assert (part.start, part.columns["tokens"]) == (500, [5010, 5020, 5030])
    assert reader.read().columns["tokens"] == []


@pytest.mark.parametrize("cursor", ["x", "0", "-", "0-x", "0--3", "0-99999999999999", "7-3", "0-²", "☃"])
def test_a_cursor_that_was_never_given_out_gets_everything_or_nothing_new(cursor):
    table = filled(ROWS_OF_1000[:5], limit=10)
    assert table.since(cursor).start in (0, 5)


def test_what_is_not_known_does_not_count_in_a_mean():
    rows = [{"tokens": k, "loss": 3.0 if k % 2 else None, "count": k} for k in range(1, 21)]
    assert set(filled(rows, limit=10).since("").columns["loss"]) == {3.0}


def test_the_curves_are_the_history_of_the_run(tmp_path):
    """Followed while it grows, and resumed in between: as read at once by what the report is made of."""
    run = make_run(tmp_path / "run")
    FakeRun(run, seconds=250, resume_at_s=150).write()
    told = history.load(run)
    content = (run.records / "trainer.jsonl").read_bytes()
    curves = Curves(run)
    for end in range(0, len(content), 4096):
        (run.records / "trainer.jsonl").write_bytes(content[:end])
        curves.read_new()
    (run.records / "trainer.jsonl").write_bytes(content)
    curves.read_new()
    train, evaluations = curves.train.since("").columns, curves.evaluations.since("").columns
    assert train["tokens"] == [record["tokens"] for record in told.trains]
    assert train["loss_real"] == pytest.approx([record["loss"]["real"] for record in told.trains], rel=1e-5)
    assert train["sent"] == [record["ledger"].get("sent") for record in told.trains]
    assert evaluations["tokens"] == [record["tokens"] for record in told.evaluations]
    assert evaluations["heldout_loss"] == pytest.approx([r["heldout_loss"] for r in told.evaluations], rel=1e-5)
    assert curves.num_starts == 1 + len(told.resumes)


def test_a_rollback_is_an_earlier_version_that_serves_again(tmp_path):
    run = make_run(tmp_path / "run")
    record = RecordWriter(run, "trainer")
    record(1.0, "start", tokens=0)
    for at, version in enumerate((1, 2, 2, 1, 3)):
        record(2.0 + at, "train", tokens=100 * at, loss={})
        record(2.5 + at, "announced", version=version, digest="d", by="tuner", reason="")
    curves = Curves(run)
    curves.read_new()
    assert curves.rollbacks == [{"time": 5.5, "tokens": 300, "version": 1}]


def test_what_is_no_finite_number_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    record = RecordWriter(run, "trainer")
    record(1.0, "train", tokens=1, loss={"real": float("nan"), "synthetic": float("inf")}, tokens_per_second="many")
    record(2.0, "train", tokens=2, loss=None, ledger=None)
    curves = Curves(run)
    curves.read_new()
    columns = curves.train.since("").columns
    assert columns["tokens"] == [1, 2]
    assert [columns[name] for name in ("loss_real", "loss_synthetic", "tokens_per_second")] == [[None, None]] * 3

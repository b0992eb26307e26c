import json
import random

from streaming_sbp.telemetry.records import RecordFollower, read_records, without_superseded
from tests.unit.run_records import make_run


def line(**fields):
    return json.dumps({"time": 1.0, "event": "x", **fields}).encode() + b"\n"


def test_no_file(tmp_path):
    assert read_records(tmp_path / "none.jsonl") == []


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    bad = [
        b"{\n",
        b"\n",
        b"[1]\n",
        b'{"event": "x"}\n',
        b'{"time": "now", "event": "x"}\n',
        b'{"time": 1}\n',
        b'{"time": NaN, "event": "x"}\n',
        b'{"time": 1' + 400 * b"0" + b', "event": "x"}\n',
        b'{"time": 1, "event": "x", "tokens": "abc"}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\n",
    ]
    path.write_bytes(line(n=1) + b"".join(bad) + line(n=2) + b'{"time": 1.0, "event": "cut')
    assert [record["n"] for record in read_records(path)] == [1, 2]


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    assert read_records(tmp_path / "a.jsonl") == []


def test_a_follower_reads_every_record_once_wherever_the_file_is_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    content = b"".join(line(n=n, text="é" * (n % 7)) for n in range(200))
    cuts = sorted(random.Random(0).sample(range(len(content)), 60))
    follower, found = RecordFollower(path), []
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with open(path, "ab") as file:
            file.write(content[begin:end])
        found += follower.read()
    assert [record["n"] for record in found] == list(range(200))
    assert follower.read() == []


def test_a_recorder_after_a_crash_goes_on_behind_the_last_whole_line(tmp_path):
    run = make_run(tmp_path / "run")
    run.record("trainer")("a", n=1)
    path = run.records / "trainer.jsonl"
    follower = RecordFollower(path)
    with open(path, "ab") as file:
        file.write(b'{"time": 1.0, "event": "cu')
    assert [record["event"] for record in follower.read()] == ["a"]
    run.record("trainer")("b")
    assert [record["event"] for record in follower.read()] == ["b"]


def test_what_a_resume_trains_again_is_left_out():
    events = [
        ("start", 0),
        *[("train", n) for n in (10, 20, 30)],
        ("first_trained", 25),
        ("checkpoint", 30),
        ("start", 20),
        ("eval", 25),
        ("start", 22),  # died again, before the next checkpoint
        *[("train", n) for n in (30, 40)],
        ("eval", None),
    ]
    records = [{"time": float(k), "event": event, "tokens": tokens} for k, (event, tokens) in enumerate(events)]
    assert [(r["event"], r["tokens"]) for r in without_superseded(records)] == [
        ("start", 0),
        ("train", 10),
        ("train", 20),
        ("checkpoint", 30),
        ("start", 20),
        ("start", 22),
        ("train", 30),
        ("train", 40),
        ("eval", None),
    ]

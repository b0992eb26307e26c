"""The journal on real files: order, durability, joining, damage, and readers beside the writer."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from streaming_sbp.stream import journal as journal_module
from streaming_sbp.stream.journal import Drop, Journal
from streaming_sbp.stream.messages import DocumentHeader, SamplingSettings
from streaming_sbp.stream.shards import AcceptedDocument, ShardName


def document(seq: int, num_tokens: int | None = None, generator: str = "generator-0") -> AcceptedDocument:
    rng = np.random.default_rng(seq)
    size = num_tokens or int(rng.integers(1, 200))
    header = DocumentHeader(f"{seq:032x}", "d" * 32, 1000, SamplingSettings(1.0, 0.9, 0), -2.5, size, 12)
    tokens = rng.integers(0, 5000, size).astype("<u2")
    return AcceptedDocument(generator, "session", seq, header, tokens, rng.integers(0, 256, size).astype("u1"))


def filled(folder: Path, count: int, group: int = 5) -> Journal:
    journal = Journal(folder, writable=True)
    for first in range(0, count, group):
        journal.append([document(seq) for seq in range(first, min(first + group, count))])
    return journal


def check(journal: Journal, count: int) -> None:
    assert len(journal) == count
    for seq in range(count):
        expected = document(seq)
        assert np.array_equal(journal.tokens(seq), expected.tokens)
        assert np.array_equal(journal.confidence(seq), expected.confidence)
        assert journal.entry(seq).header == expected.header
        assert (journal.entry(seq).generator, journal.entry(seq).seq) == ("generator-0", seq)


def test_what_was_appended_is_read_back_in_order_by_the_writer_and_by_others(tmp_path):
    journal = filled(tmp_path, 42)
    check(journal, 42)
    check(Journal(tmp_path), 42)
    assert [entry.seq for entry in journal.entries(40)] == [40, 41]


def test_plain_webdataset_and_tarfile_read_the_shards(tmp_path):
    filled(tmp_path, 30)
    paths = sorted(map(str, tmp_path.glob("*.tar")))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert [sample["json"]["seq"] for sample in samples] == list(range(30))
    assert all(np.array_equal(s["tokens.npy"], document(i).tokens) for i, s in enumerate(samples))
    assert all(np.array_equal(s["confidence.npy"], document(i).confidence) for i, s in enumerate(samples))
    with tarfile.open(paths[0]) as tar:
        assert len(tar.getmembers()) == 15


def test_small_shards_are_joined_and_the_number_of_files_stays_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "JOIN_AT", 4)
    monkeypatch.setattr(journal_module, "SHARD_DOCUMENTS", 20)
    journal = filled(tmp_path, 200, group=3)
    check(journal, 200)
    check(Journal(tmp_path), 200)
    sizes = [ShardName.parse(path.name).size for path in sorted(tmp_path.glob("*.tar"))]
    assert sum(sizes) == 200
    assert len(sizes) <= 200 / 20 + 4
    assert len(list(webdataset.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False))) == 200


def test_a_crash_between_joining_and_removing_leaves_every_document_once(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "JOIN_AT", 4)
    kept = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: kept.append(path))
    filled(tmp_path, 20)
    monkeypatch.undo()
    assert kept
    assert all(path.exists() for path in kept if path.suffix == ".tar")
    check(Journal(tmp_path), 20)  # a reader only passes them over
    assert all(path.exists() for path in kept if path.suffix == ".tar")
    check(Journal(tmp_path, writable=True), 20)
    assert not any(path.exists() for path in kept)


def test_half_written_shards_are_removed_by_the_writer(tmp_path):
    filled(tmp_path, 10)
    (tmp_path / ".0000000010-000005.tar.tmp").write_bytes(b"half")
    journal = Journal(tmp_path, writable=True)
    assert not list(tmp_path.glob(".*.tmp"))
    check(journal, 10)


def test_a_reader_follows_a_writer_that_joins_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "JOIN_AT", 3)
    writer = Journal(tmp_path, writable=True)
    writer.append([document(0), document(1)])
    reader = Journal(tmp_path)
    for seq in range(2, 10):
        writer.append([document(seq)])
    assert not (tmp_path / "0000000000-000002.tar").exists()
    assert np.array_equal(reader.tokens(1), document(1).tokens)


@pytest.mark.parametrize("damage", ["truncate", "flip_token", "flip_header", "empty", "remove"])
def test_damage_is_noticed_and_does_not_reach_other_documents(tmp_path, damage):
    filled(tmp_path, 15)
    path = tmp_path / "0000000005-000005.tar"
    data = bytearray(path.read_bytes())
    where = data.index(document(7).tokens.tobytes())
    if damage == "truncate":
        path.write_bytes(data[:where])
    elif damage == "flip_token":
        data[where] ^= 1
        path.write_bytes(data)
    elif damage == "flip_header":
        data[data.index(b"0000000007.json")] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    journal = Journal(tmp_path, writable=True)
    assert len(journal) == 15
    assert not journal.is_intact(7)
    with pytest.raises(ValueError, match="damaged"):
        journal.tokens(7)
    intact = [position for position in range(15) if journal.is_intact(position)]
    assert {*range(5), *range(10, 15)} <= set(intact)
    assert all(np.array_equal(journal.tokens(position), document(position).tokens) for position in intact)
    journal.append([document(15)])
    assert np.array_equal(journal.tokens(15), document(15).tokens)


def test_nothing_is_appended_when_the_disk_refuses(tmp_path, monkeypatch):
    journal = filled(tmp_path, 5)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        journal.append([document(5)])
    monkeypatch.undo()
    check(journal, 5)
    assert not list(tmp_path.glob(".*.tmp"))
    journal.append([document(5)])
    check(Journal(tmp_path), 6)


def test_drops_survive_and_a_cut_line_is_passed_over(tmp_path):
    journal = Journal(tmp_path, writable=True)
    drops = [Drop("generator-0", "session", seq, "oversized") for seq in (3, 5)]
    journal.append_drops(drops)
    with open(tmp_path / "dropped.jsonl", "ab") as file:
        file.write(b'{"generator": "gen')
    assert Journal(tmp_path).drops() == drops


def test_large_token_ids(tmp_path):
    journal = Journal(tmp_path, writable=True)
    small = document(0, 3)
    large = AcceptedDocument("g", "s", 0, small.header, np.array([70_000, 1, 2**31], "<u4"), np.array([0, 1, 2], "u1"))
    journal.append([large])
    assert journal.tokens(0).tolist() == [70_000, 1, 2**31]


def test_a_position_that_is_not_there_is_an_index_error(tmp_path):
    with pytest.raises(IndexError, match="expected 0"):
        filled(tmp_path, 5).tokens(5)


def test_pruning_removes_whole_shards_and_positions_stay(tmp_path):
    journal, reader = filled(tmp_path, 20), Journal(tmp_path)
    assert reader.entry(2).seq == 2
    size = journal.num_bytes
    journal.prune(12)  # shards of five: two go, the third has 12 to 14
    assert (journal.first, len(journal)) == (10, 20)
    assert journal.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar")) < size
    for anyone in (journal, reader, Journal(tmp_path)):
        assert not anyone.is_intact(7)
        with pytest.raises(ValueError, match=r"damaged|removed"):
            anyone.tokens(7)
        assert np.array_equal(anyone.tokens(10), document(10).tokens)
    assert [entry.seq for entry in Journal(tmp_path).entries()] == list(range(10, 20))
    journal.prune(10**6)
    assert (journal.first, len(journal)) == (15, 20)  # the last one says how many there were
    journal.append([document(20)])
    again = Journal(tmp_path, writable=True)
    assert np.array_equal(again.tokens(20), document(20).tokens)

"""The pair table on disk: round trip, what others read, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming_sbp.config import ConfigError
from streaming_sbp.pairing.pairs import MadeFrom, PairTable, delete_table

IDS = ["aa", "bb", "cc"]


def make_table(rows=((0, 1, 0.75, False), (2, 0, 0.5, True))):
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    types = (np.int64, np.int64, np.float32, bool)
    arrays = [np.array(values, dtype=type) for values, type in zip(columns, types, strict=True)]
    return PairTable(*arrays, MadeFrom("digest-1", {"threshold": 0.5, "seed": 3}))


def columns_of(folder):
    return pq.read_table(folder / "pairs.parquet").to_pydict()


def test_what_is_saved_is_what_is_loaded(tmp_path):
    table = make_table()
    table.save(tmp_path, IDS, {"num_pairs": 2})
    loaded = PairTable.load(tmp_path, "digest-1")
    for name, type in (("seed", np.int64), ("target", np.int64), ("similarity", np.float32), ("heldout", np.bool_)):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(table, name))
        assert getattr(loaded, name).dtype == type
    assert loaded.made_from == table.made_from
    assert json.loads((tmp_path / "statistics.json").read_text()) == {"num_pairs": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.parquet", "statistics.json"]


def test_others_read_the_ids_of_the_documents(tmp_path):
    make_table().save(tmp_path, IDS, {})
    columns = columns_of(tmp_path)
    assert columns["seed_id"] == ["aa", "cc"]
    assert columns["target_id"] == ["bb", "aa"]


def test_a_table_without_rows(tmp_path):
    make_table(()).save(tmp_path, IDS, {})
    loaded = PairTable.load(tmp_path)
    assert len(loaded) == 0
    assert loaded.heldout.dtype == np.bool_
    assert loaded.paired_documents().tolist() == []


def test_paired_documents_are_seeds_and_targets():
    assert make_table([(4, 2, 0.5, False), (2, 9, 0.5, False)]).paired_documents().tolist() == [2, 4, 9]


def test_no_table_yet(tmp_path):
    assert PairTable.load(tmp_path) is None
    assert PairTable.load(tmp_path / "nowhere") is None
    make_table().save(tmp_path, IDS, {})
    delete_table(tmp_path)
    delete_table(tmp_path)
    assert PairTable.load(tmp_path) is None


def test_a_table_of_another_data_set_is_refused(tmp_path):
    make_table().save(tmp_path, IDS, {})
    with pytest.raises(ConfigError, match="pairs of data set digest-1, expected digest-2; remove it, and `sbp pair`"):
        PairTable.load(tmp_path, "digest-2")


def test_a_table_that_does_not_say_what_it_was_made_from(tmp_path):
    make_table().save(tmp_path, IDS, {})
    pq.write_table(pq.read_table(tmp_path / "pairs.parquet").replace_schema_metadata({}), tmp_path / "pairs.parquet")
    assert PairTable.load(tmp_path).made_from == MadeFrom()
    with pytest.raises(ConfigError, match="data set unknown"):
        PairTable.load(tmp_path, "digest-1")


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_file_that_was_cut_short_is_damaged(tmp_path, keep):
    make_table([(i, i + 1, 0.5, False) for i in range(1000)]).save(tmp_path, ["x"] * 1001, {})
    path = tmp_path / "pairs.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ConfigError, match=r"damaged pair table.*`sbp pair` makes it again"):
        PairTable.load(tmp_path)


GOOD = {
    "seed": pa.array([0], pa.int64()),
    "target": pa.array([1], pa.int64()),
    "similarity": pa.array([0.5], pa.float32()),
    "heldout": pa.array([True]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "column target is missing, expected int64"),
        ({"seed": pa.array([0], pa.int32())}, "column seed is int32, expected int64"),
        ({"heldout": pa.array(["yes"])}, "column heldout is string, expected bool"),
        ({"similarity": pa.array([None], pa.float32())}, "empty cells"),
        ({"seed": pa.array([-1], pa.int64())}, "negative document numbers"),
    ],
)
def test_a_file_with_other_columns_is_damaged(tmp_path, change, message):
    columns = {name: values for name, values in (GOOD | change).items() if values is not None}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    with pytest.raises(ConfigError, match=message):
        PairTable.load(tmp_path)
    pq.write_table(pa.table(GOOD), tmp_path / "pairs.parquet")
    assert len(PairTable.load(tmp_path)) == 1


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"strange": 1}'])
def test_metadata_that_cannot_be_read_is_damage(tmp_path, metadata):
    pq.write_table(pa.table(GOOD).replace_schema_metadata({b"streaming_sbp": metadata}), tmp_path / "pairs.parquet")
    with pytest.raises(ConfigError, match="metadata"):
        PairTable.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_table(tmp_path, monkeypatch):
    make_table().save(tmp_path, IDS, {})

    def full(table, file, **options):
        file.write(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        make_table([(1, 2, 0.9, False)]).save(tmp_path, IDS, {})
    assert len(PairTable.load(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.parquet", "statistics.json"]

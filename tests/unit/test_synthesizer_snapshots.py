import json
import os
import threading
import uuid

import pytest

from streaming_sbp.synthesizer import snapshots
from streaming_sbp.synthesizer.snapshots import SnapshotError, SnapshotStore, digest_of_folder


def candidate(folder, content):
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content * 1000)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return folder


def publish(store, folder, content, tokens=1000):
    return store.publish(
        candidate(folder / content.decode(), content),
        parent_checkpoint=f"step-{tokens}",
        parent_tokens=tokens,
        num_pairs=7,
        measures={"pair_loss": 3.5},
    )


@pytest.fixture(params=["folder", "object store"])
def store(request, tmp_path):
    return SnapshotStore(tmp_path / "store" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/store")


def test_an_empty_store_has_no_snapshot(store, tmp_path):
    assert store.current() is None
    assert store.list() == []
    with pytest.raises(SnapshotError, match="not published"):
        store.fetch("0" * 32, tmp_path / "copy")


def test_publish_and_fetch(store, tmp_path):
    first = publish(store, tmp_path, b"a", 1000)
    second = publish(store, tmp_path, b"b", 2000)
    assert (first.version, second.version) == (1, 2)
    assert store.current() == second
    assert store.list() == [first, second]
    assert second.parent_checkpoint == "step-2000"
    assert second.measures == {"pair_loss": 3.5}
    assert second.path.endswith(second.digest)
    assert second.digest == digest_of_folder(tmp_path / "b")
    copy = tmp_path / "copy"
    assert store.fetch(first.digest, copy) == first
    assert (copy / "model.safetensors").read_bytes() == b"a" * 1000
    assert (copy / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert digest_of_folder(copy) == first.digest


def test_the_same_content_again_is_the_same_snapshot_and_serves(store, tmp_path):
    first = publish(store, tmp_path / "1", b"a")
    publish(store, tmp_path / "1", b"b")
    assert publish(store, tmp_path / "2", b"a") == first == store.current()
    assert len(store.list()) == 2


@pytest.mark.parametrize("damage", ["bit flip", "truncated", "missing", "manifest", "other manifest"])
def test_damage_is_found_when_a_snapshot_is_fetched(damage, tmp_path):
    store = SnapshotStore(tmp_path / "store")
    info, other = publish(store, tmp_path, b"a"), publish(store, tmp_path, b"b")
    folder = tmp_path / "store" / info.digest
    weights = folder / "model.safetensors"
    if damage == "bit flip":
        weights.write_bytes(b"b" + weights.read_bytes()[1:])
    elif damage == "truncated":
        os.truncate(weights, 500)
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text('{"digest"')
    else:
        (folder / "manifest.json").write_bytes((tmp_path / "store" / other.digest / "manifest.json").read_bytes())
    with pytest.raises(SnapshotError, match=info.digest):
        store.fetch(info.digest, tmp_path / "copy")
    assert store.fetch(other.digest, tmp_path / "copy") == other


def test_a_damaged_pointer_counts_as_none(tmp_path, caplog):
    store = SnapshotStore(tmp_path / "store")
    publish(store, tmp_path, b"a")
    for content in ('{"digest": "aa', '{"no": 1}', "[]"):
        (tmp_path / "store" / "current.json").write_text(content)
        assert store.current() is None
    assert "current.json" in caplog.text
    assert len(store.list()) == 1


def test_a_publication_that_a_crash_cut_short_is_not_there_and_can_be_repeated(tmp_path, monkeypatch):
    store = SnapshotStore(tmp_path / "store")
    first = publish(store, tmp_path, b"a")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SnapshotStore, "_write", crash)
    with pytest.raises(KeyboardInterrupt):
        publish(store, tmp_path / "1", b"b")
    monkeypatch.undo()
    assert store.list() == [first]
    assert store.current() == first
    second = publish(store, tmp_path / "2", b"b")
    assert store.fetch(second.digest, tmp_path / "copy").version == 2


def test_pruning_keeps_the_last_the_current_and_the_young(store, tmp_path, monkeypatch):
    infos = [publish(store, tmp_path, bytes([ord("a") + i])) for i in range(6)]
    assert store.prune(keep_last=2, grace_s=3600) == []
    store.publish(
        tmp_path / "b", parent_checkpoint="step-1000", parent_tokens=1000, num_pairs=7, measures={"pair_loss": 3.5}
    )
    assert store.current() == infos[1]
    now = infos[-1].created + 1000
    monkeypatch.setattr(snapshots.time, "time", lambda: now)
    removed = store.prune(keep_last=2, grace_s=500)
    assert removed == [infos[i].digest for i in (0, 2, 3)]
    assert store.list() == [infos[i] for i in (1, 4, 5)]
    with pytest.raises(SnapshotError):
        store.fetch(infos[0].digest, tmp_path / "copy")
    assert store.fetch(infos[1].digest, tmp_path / "copy") == infos[1]


def test_readers_never_see_half_a_snapshot(tmp_path):
    """One publisher with pruning, three readers that load what is current, all the time."""
    store = SnapshotStore(tmp_path / "store")
    publish(store, tmp_path, b"0")
    done = threading.Event()
    problems, loaded = [], []

    def read(number):
        reader = SnapshotStore(tmp_path / "store")
        while not done.is_set():
            try:
                info = reader.current()
                loaded.append(reader.fetch(info.digest, tmp_path / f"copy{number}").version)
            except Exception as error:
                problems.append(error)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in readers:
        thread.start()
    for i in range(1, 25):
        publish(store, tmp_path, str(i).encode())
        store.prune(keep_last=2, grace_s=0.5)
    done.set()
    for thread in readers:
        thread.join()
    assert problems == []
    assert max(loaded) > 5
    assert json.loads((tmp_path / "store" / "current.json").read_text())["version"] == 25

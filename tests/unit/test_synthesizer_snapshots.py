import json
import os
import threading
import time
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from streaming_sbp.config import ConfigError
from streaming_sbp.synthesizer import snapshots
from streaming_sbp.synthesizer.pointer import pinned, quarantined, rolled_back, unpinned
from streaming_sbp.synthesizer.poller import SnapshotPoller
from streaming_sbp.synthesizer.snapshots import SnapshotError, SnapshotStore, SnapshotStoreUnavailable, digest_of_folder


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


@pytest.fixture(scope="module")
def s3():
    """A bucket of a local S3 server, for this process' environment."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("snapshots")
        yield "s3://snapshots"
    server.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request, tmp_path):
    name = uuid.uuid4().hex
    if request.param == "s3":
        return SnapshotStore(f"{request.getfixturevalue('s3')}/{name}")
    return SnapshotStore(tmp_path / "store" if request.param == "folder" else f"memory://{name}/store")


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


def test_of_a_damaged_pointer_the_one_before_counts_and_the_next_can_be_written(tmp_path, caplog):
    store = SnapshotStore(tmp_path / "store")
    first, second = publish(store, tmp_path, b"a"), publish(store, tmp_path, b"b")
    for content in ('{"digest": "aa', '{"no": 1}', "[]"):
        (tmp_path / "store" / "pointers" / "0000000002.json").write_text(content)
        assert store.current() == first
    assert "0000000002.json" in caplog.text
    assert len(store.list()) == 2
    assert store.change("person", "", lambda p, _: pinned(p, second.digest)).revision == 3
    assert store.current() == second


def test_writers_that_race_for_the_pointer_all_get_their_turn(store, tmp_path):
    """Each quarantines its own digest: none of the changes is lost, and the revisions have no gap."""
    publish(store, tmp_path, b"a")
    digests = [f"{number:032x}" for number in range(8)]

    def change(digest):
        store.change("person", "race", lambda p, infos: quarantined(p, infos, digest))

    threads = [threading.Thread(target=change, args=(digest,)) for digest in digests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.pointer()
    assert sorted(found.bad) == digests
    assert found.revision == 1 + len(digests)


def test_a_pinned_snapshot_serves_while_others_are_published(store, tmp_path):
    first = publish(store, tmp_path, b"a")
    store.change("person", "hold", lambda p, _: pinned(p, first.digest))
    second = publish(store, tmp_path, b"b")
    assert store.current() == first
    store.change("person", "go on", unpinned)
    assert store.current() == second
    store.change("trainer", "drift", rolled_back)
    assert store.current() == first
    assert (store.pointer().by, store.pointer().bad) == ("trainer", (second.digest,))


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


def test_pruning_keeps_the_last_the_serving_the_good_and_the_leased(store, tmp_path, monkeypatch):
    infos = [publish(store, tmp_path, bytes([ord("a") + i])) for i in range(7)]
    for _ in range(2):
        store.change("person", "", rolled_back)
    assert store.current() == infos[4]
    store.lease("generator-0", infos[1].digest)
    store.lease("generator-1", infos[0].digest)
    store.release("generator-1")
    assert store.leased() == {infos[1].digest: ["generator-0"]}
    assert store.prune(keep_last=2) == []  # not at once
    assert store.prune(keep_last=2) == [infos[0].digest, infos[2].digest]
    assert store.list() == [infos[i] for i in (1, 3, 4, 5, 6)]
    with pytest.raises(SnapshotError):
        store.fetch(infos[0].digest, tmp_path / "copy")
    later = time.time() + snapshots.LEASE_S
    monkeypatch.setattr(snapshots.time, "time", lambda: later)
    assert store.prune(keep_last=2) == []
    assert store.prune(keep_last=2) == [infos[1].digest]
    assert store.leased() == {}


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
                reader.lease(f"reader-{number}", info.digest)
                loaded.append(reader.fetch(info.digest, tmp_path / f"copy{number}").version)
            except Exception as error:
                problems.append(error)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in readers:
        thread.start()
    for i in range(1, 25):
        publish(store, tmp_path, str(i).encode())
        store.prune(keep_last=2)
        time.sleep(0.05)
    done.set()
    for thread in readers:
        thread.join()
    assert problems == []
    assert max(loaded) > 5
    assert max(info.version for info in store.list()) == 25
    assert json.loads((tmp_path / "store" / "current.json").read_text())["digest"] == store.current().digest


# --- damage and absence ---


@pytest.mark.parametrize("damage", ["key missing", "wrong type", "other format", "files gone", "folder", "not a dict"])
def test_a_snapshot_whose_manifest_is_damaged_is_logged_and_not_there(damage, tmp_path, caplog):
    store = SnapshotStore(tmp_path / "store")
    first, second = publish(store, tmp_path, b"a"), publish(store, tmp_path, b"b")
    path = tmp_path / "store" / second.digest / "manifest.json"
    manifest = json.loads(path.read_text())
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "not a dict":
        path.write_text("[]")
    else:
        if damage in ("key missing", "files gone"):
            manifest.pop("num_pairs" if damage == "key missing" else "files")
        manifest |= {"wrong type": {"measures": 3}, "other format": {"format_version": 2}}.get(damage, {})
        path.write_text(json.dumps(manifest))
    for _ in range(3):
        assert store.list() == [first]
        assert store.current() is store.info(second.digest) is None
    with pytest.raises(SnapshotError, match=second.digest):
        store.fetch(second.digest, tmp_path / "copy")
    assert caplog.text.count("is damaged") == 1
    assert store.change("person", "", unpinned).digest == first.digest
    assert publish(store, tmp_path / "again", b"b").digest == second.digest == store.current().digest


def test_keys_that_a_later_version_added_are_ignored(tmp_path):
    store = SnapshotStore(tmp_path / "store")
    info = publish(store, tmp_path, b"a")
    for path in ((tmp_path / "store" / info.digest / "manifest.json"), *(tmp_path / "store" / "pointers").iterdir()):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"new": 1}))
    assert store.current() == info


def test_leases_that_are_damaged_keep_nothing(tmp_path):
    store = SnapshotStore(tmp_path / "store")
    store.lease("generator-0", "0" * 32)
    for content in ("{}", "[]", '{"digest": 5, "time": "now"}'):
        (tmp_path / "store" / "leases" / "generator-1.json").write_text(content)
        assert store.leased() == {"0" * 32: ["generator-0"]}


def test_missing_files_and_why_a_snapshot_is_bad(store, tmp_path):
    infos = [publish(store, tmp_path, content) for content in (b"a", b"b", b"c")]
    assert store.missing_files(infos[0].digest) == []
    store._fs.rm_file(f"{store._root}/{infos[0].digest}/model.safetensors")
    assert store.missing_files(infos[0].digest) == ["model.safetensors"]
    store.change("trainer", "it drifts", rolled_back)
    store.change("person", "mine", lambda p, known: quarantined(p, known, infos[0].digest))
    assert store.reasons_for_bad() == {infos[2].digest: "trainer: it drifts", infos[0].digest: "person: mine"}


def test_what_pruning_could_not_remove_it_removes_the_next_time(tmp_path, monkeypatch):
    store = SnapshotStore(tmp_path / "store")
    infos = [publish(store, tmp_path, content) for content in (b"a", b"b", b"c")]
    store.prune(keep_last=1)
    with monkeypatch.context() as patch:
        patch.setattr(store._fs, "rm", fails(OSError("away")))
        with pytest.raises(SnapshotStoreUnavailable):
            store.prune(keep_last=1)
    assert store.list() == infos[1:]
    store.prune(keep_last=1)
    assert not any((tmp_path / "store" / info.digest).exists() for info in infos[:2])


class EndpointConnectionError(Exception):
    """As botocore's: not an OSError."""


class NoCredentialsError(Exception):
    pass


def fails(error):
    def call(*_, **__):
        raise error

    return call


class Failing:
    """A file system that raises whatever it is asked."""

    def __init__(self, error):
        self._error = error

    def __getattr__(self, name):
        return fails(self._error)


QUESTIONS = {
    "publish": lambda store, folder: publish(store, folder, b"a"),
    "pointer": lambda store, _: store.pointer(),
    "change": lambda store, _: store.change("person", "", unpinned),
    "info": lambda store, _: store.info("0" * 32),
    "list": lambda store, _: store.list(),
    "fetch": lambda store, folder: store.fetch("0" * 32, folder / "copy"),
    "missing_files": lambda store, _: store.missing_files("0" * 32),
    "reasons_for_bad": lambda store, _: store.reasons_for_bad(),
    "lease": lambda store, _: store.lease("generator-0", "0" * 32),
    "release": lambda store, _: store.release("generator-0"),
    "leased": lambda store, _: store.leased(),
    "prune": lambda store, _: store.prune(1),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_whatever_a_file_system_raises_is_one_exception(question, tmp_path):
    store = SnapshotStore("memory://x")
    for error, lasting in ((EndpointConnectionError("no route"), False), (NoCredentialsError("none"), True)):
        store._fs = Failing(error)
        with pytest.raises(SnapshotStoreUnavailable, match=f"memory://x: {error}") as caught:
            QUESTIONS[question](store, tmp_path / str(lasting))
        assert caught.value.lasting == lasting


def test_a_store_that_can_never_work_is_refused_at_once(tmp_path, monkeypatch, caplog):
    for url, problem in (("foo://x", "Protocol not known"), ("gs://bucket/run", "gcsfs")):
        with pytest.raises(ConfigError, match=rf"snapshots.url = '{url}'.*{problem}.*expected a folder"):
            snapshots.require_usable(url)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="remove the file"):
        snapshots.require_usable(str(tmp_path / "file"))
    monkeypatch.setattr(MemoryFileSystem, "makedirs", fails(NoCredentialsError("Unable to locate credentials")))
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        snapshots.require_usable("memory://x")
    monkeypatch.setattr(MemoryFileSystem, "makedirs", fails(EndpointConnectionError("no route")))
    snapshots.require_usable("memory://x")
    assert "no route" in caplog.text
    snapshots.require_usable(str(tmp_path / "new"))
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["leases"]


def test_an_s3_store_that_is_away_or_has_no_credentials(s3, monkeypatch, tmp_path):
    snapshots.require_usable(f"{s3}/run")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # discard: nobody listens
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(SnapshotStoreUnavailable, match=r"127\.0\.0\.1:9") as caught:
        SnapshotStore(f"{s3}/run").pointer()
    assert not caught.value.lasting
    assert time.monotonic() - started < 15
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        snapshots.require_usable(f"{s3}/run")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_the_poller_waits_for_no_store_and_keeps_the_last_answer(tmp_path):
    store = SnapshotStore(tmp_path / "store")
    info, file_system, hold = publish(store, tmp_path, b"a"), store._fs, threading.Event()
    poller = SnapshotPoller(store, every_s=0.01)

    def newest(holds):
        end = time.monotonic() + 20
        while not (answer := poller.newest()) or not holds(answer):
            assert time.monotonic() < end
            time.sleep(0.01)
        return answer

    poller.start(wait_s=20)
    assert poller.newest().serving == info
    store._fs = Failing(EndpointConnectionError("no route"))
    away = newest(lambda answer: answer.problem)
    assert "no route" in away.problem
    assert (away.serving, away.pointer.digest) == (info, info.digest)
    store._fs = file_system
    newest(lambda answer: not answer.problem)
    late = SnapshotPoller(store, every_s=0.01)
    late._ask = lambda before: hold.wait(20) and before
    started = time.monotonic()
    late.start(wait_s=0.05)
    assert late.newest() is None
    assert time.monotonic() - started < 5
    hold.set()
    store.pointer = fails(KeyError("a bug"))
    with pytest.raises(KeyError):
        newest(lambda answer: False)
    late.stop()

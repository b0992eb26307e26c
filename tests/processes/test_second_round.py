"""A second round of seed documents, by a real generator process and a real receiver."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming_sbp.data.dataset import Dataset
from streaming_sbp.files import write_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import Announcement
from streaming_sbp.stream.receiver import Receiver
from streaming_sbp.stream.shards import JournalEntry
from streaming_sbp.synthesizer.seeds import SeedOrder
from streaming_sbp.synthesizer.snapshots import SnapshotInfo, SnapshotStore
from streaming_sbp.telemetry.metrics import Metrics
from tests.checks import runs, swaps

pytestmark = pytest.mark.processes

SHARE = 0.4
SETTINGS = ("generator.max_new_tokens=64", "generator.batch_size=16", "journal.group_latency_s=0.02")


class Stream:
    """The trainer's end, without training: everything that comes is taken."""

    def __init__(self, folder: Path, *settings: str):
        runs.prepare(folder)
        self.run: RunDir = runs.make_run(folder, "run", *SETTINGS, *settings)
        config = self.run.config()
        self.dataset = Dataset.open(config.data.dataset)
        tokenizer, store = self.dataset.tokenizer(), SnapshotStore(self.run.snapshots)
        self.infos: list[SnapshotInfo] = [
            swaps.publish(store, folder / f"model-{k}", swaps.speaker(config, tokenizer, k), tokenizer)
            for k in range(2)
        ]
        self.journal = Journal(self.run.journal, writable=True)
        digest = self.dataset.manifest.tokenizer_digest
        self.receiver = Receiver(
            config, self.run.run_id, digest, tokenizer.vocab_size, self.journal, Metrics("trainer")
        )
        self.receiver.start()
        write_json(self.run.roles / "trainer.json", {"facts": {"stream_endpoint": self.receiver.endpoint}})
        self.generator: subprocess.Popen[bytes] = runs.spawn(
            self.run.logs / "generator.log", "-m", "sbp_services", "generate", "--run", str(self.run.path)
        )

    def receive(self, info: SnapshotInfo, num_documents: int) -> None:
        """Announce a snapshot, and wait for so many documents of it."""
        self.receiver.announce(Announcement(info.digest, info.version, info.parent_tokens, info.path))

        def came() -> bool:
            self.receiver.check()
            self.receiver.set_consumed(len(self.journal))
            return sum(entry.header.snapshot == info.digest for entry in self.journal.entries()) >= num_documents

        runs.wait_for(f"{num_documents} documents of {info.digest}", came, self.generator)

    def close(self) -> None:
        runs.end(self.generator, signal.SIGTERM)
        self.receiver.stop(10.0)


@pytest.fixture
def stream(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stream]:
    made = Stream(tmp_path, *request.param)
    yield made
    if made.generator.poll() is None:
        made.close()


def seed_of(entry: JournalEntry, by_number: dict[tuple[str, str, int], int]) -> int | None:
    """Position in the journal of a synthetic seed document."""
    number = entry.header.seed_seq
    return None if number is None else by_number[entry.generator, entry.session, number]


@pytest.mark.parametrize("stream", [(f"generator.second_round_share={SHARE}", "generator.max_depth=3")], indirect=True)
def test_every_line_leads_back_to_a_real_document_and_no_deeper_than_told(stream: Stream) -> None:
    for info in stream.infos:
        stream.receive(info, 700)
    stream.close()
    entries = list(stream.journal.entries())
    by_number = {(e.generator, e.session, e.seq): position for position, e in enumerate(entries)}
    order = SeedOrder(len(stream.dataset.split("train")), stream.run.config().run.seed)
    ids = stream.dataset.split("train").ids
    for position, entry in enumerate(entries):
        seed = seed_of(entry, by_number)
        if seed is None:
            assert entry.header.depth == 1
            assert entry.header.seed_position is not None
            assert entry.header.seed_id == ids[order.document(entry.header.seed_position)]
            continue
        before = entries[seed]
        assert seed < position
        assert entry.header.depth == before.header.depth + 1
        assert entry.header.snapshot == before.header.snapshot
        assert entry.header.seed_id == before.header.seed_id
        assert entry.header.seed_position is None
        prompt = min(before.header.num_tokens, stream.run.config().synthesizer.max_seed_tokens) + 2
        assert entry.header.num_prompt_tokens == prompt
    assert {entry.header.depth for entry in entries} == {1, 2, 3}
    check_share(stream)
    check_real_seeds(stream, [e.header.seed_position for e in entries if e.header.seed_position is not None])


def check_share(stream: Stream) -> None:
    """Of all that was sampled, while one snapshot served: after each swap the pool fills first."""
    records = [r for r in stream.run.read_records("generator-0") if r["event"] == "throughput"]
    last = records[-1]
    assert last["documents"] > 1400
    assert 0.8 * SHARE < last["second_round"] / last["documents"] <= SHARE + 0.01


def check_real_seeds(stream: Stream, positions: list[int]) -> None:
    """None twice, and none left out but those that were filtered or not finished when the generator was told to end."""
    assert max(Counter(positions).values()) == 1
    records = [r for r in stream.run.read_records("generator-0") if r["event"] == "throughput"]
    filtered = sum(records[-1]["filtered"].values())
    num_open = 2 * 4 * stream.run.config().generator.batch_size
    assert max(positions) + 1 - len(positions) <= filtered + num_open


@pytest.mark.parametrize("stream", [()], indirect=True)
def test_by_default_every_seed_document_is_a_real_one(stream: Stream) -> None:
    stream.receive(stream.infos[0], 600)
    stream.close()
    shard = sorted(stream.run.journal.glob("*.tar"))[0].read_bytes()
    for name in (b"depth", b"seed_seq"):
        assert name not in shard
    assert all(entry.header.depth == 1 for entry in stream.journal.entries())
    records = [r for r in stream.run.read_records("generator-0") if r["event"] == "throughput"]
    assert records[-1]["second_round"] == 0

"""Two hundred swaps under load: a real generator process, its stream, and a new snapshot as soon as it serves the last.

Every snapshot is a model that says words of its own only, so a document with a wrong digest is seen by its tokens.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.files import write_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import Announcement
from streaming_sbp.stream.receiver import Receiver
from streaming_sbp.synthesizer.engines import make_engine
from streaming_sbp.synthesizer.snapshots import SnapshotInfo, SnapshotStore
from streaming_sbp.telemetry.metrics import Metrics
from streaming_sbp.training.model import build_model
from tests.checks import runs

NUM_MODELS = 4
FIRST_WORD, NUM_WORDS = 50, 48  # token ids: the first model's first word; how many each has
NUM_BARE_LOADS = 20
WARM_UP_SWAPS = 20  # of the memory: buffers still grow
EXTRA = (  # a model of some size, so that a load is more than a file name
    "model.hidden_size=256",
    "model.intermediate_size=1024",
    "model.num_layers=4",
    "generator.max_new_tokens=16",
    "generator.batch_size=2",
    "stream.capacity_documents=64",
    "journal.group_latency_s=0.02",
)


def swap_check(folder: Path, num_swaps: int = 200) -> dict[str, Any]:
    """Seconds of the pauses, of bare loads, and what must be none; see the keys. Raises TimeoutError when it hangs."""
    runs.prepare(folder)
    run = runs.make_run(folder, "swaps", *EXTRA)
    config = run.config()
    dataset = Dataset.open(config.data.dataset)
    tokenizer = dataset.tokenizer()
    store = SnapshotStore(run.snapshots)
    infos = [publish(store, folder / f"model-{k}", speaker(config, tokenizer, k), tokenizer) for k in range(NUM_MODELS)]
    bare = _bare_loads(make_engine(config.generator, tokenizer), folder)
    journal = Journal(run.journal, writable=True)
    digest = dataset.manifest.tokenizer_digest
    receiver = Receiver(config, run.run_id, digest, tokenizer.vocab_size, journal, Metrics("trainer"))
    receiver.start()
    write_json(run.roles / "trainer.json", {"facts": {"stream_endpoint": receiver.endpoint}})
    generator = runs.spawn(run.logs / "generator.log", "-m", "sbp_services", "generate", "--run", str(run.path))
    try:
        memory = _swap(run, receiver, journal, infos, generator, num_swaps)
    finally:
        runs.end(generator, signal.SIGTERM)
        receiver.stop(10.0)
    swaps = [record for record in run.read_records("generator-0") if record["event"] == "swap"][1:]
    pauses = np.array([record["pause_s"] for record in swaps])
    words = {info.digest: set(_words(k)) for k, info in enumerate(infos)}
    return {
        "swaps": len(swaps),
        "documents": len(journal),
        "wrong_digest": _num_wrong(journal, words),
        "swap_failures": sum(r["event"] == "swap_failed" for r in run.read_records("generator-0")),
        "bare_load_p50_s": _percentile(bare, 50),
        "bare_load_p99_s": _percentile(bare, 99),
        "swap_pause_p50_s": _percentile(pauses, 50),
        "swap_pause_p99_s": _percentile(pauses, 99),
        "swap_pause_excess_p99_s": round(float(np.percentile(pauses, 99) - np.percentile(bare, 50)), 4),
        "rss_mib_before": round(memory[min(WARM_UP_SWAPS, num_swaps // 2)], 1),
        "rss_mib_after": round(memory[-1], 1),
    }


def _swap(
    run: RunDir, receiver: Receiver, journal: Journal, infos: list[SnapshotInfo], generator: Any, num_swaps: int
) -> list[float]:
    """Announce one after the other, each when documents of the last have come; the generator's MiB after each."""
    memory = []
    process = psutil.Process(generator.pid)
    for number in range(num_swaps):
        info, before = infos[number % len(infos)], len(journal)
        receiver.announce(Announcement(info.digest, info.version, info.parent_tokens, info.path))

        def came(digest: str = info.digest, before: int = before) -> bool:
            receiver.check()
            receiver.set_consumed(len(journal))  # a trainer that takes what comes
            new = range(before, len(journal))
            return any(journal.entry(position).header.snapshot == digest for position in new)

        runs.wait_for(f"documents of swap {number}", came, generator)
        memory.append(process.memory_info().rss / 2**20)
    return memory


def speaker(config: Any, tokenizer: Tokenizer, number: int) -> Any:
    """A model that says one of its words with probability 15/16 and ends with 1/16, whatever came before."""
    model = build_model(config.model, tokenizer, seed=number)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weights.zero_()  # every layer adds nothing: the output depends on the last token only
        embeddings = model.get_input_embeddings().weight
        embeddings.zero_()
        scale = float(model.config.hidden_size) ** 0.5
        embeddings[:, 0] = 1.0 / scale  # tied: after the norm, a token's logit is its first element times scale
        embeddings[list(_words(number)), 0] = 20.0 / scale
        embeddings[tokenizer.eos_id, 0] = (20.0 + np.log(NUM_WORDS / 15)) / scale
    return model


def _words(number: int) -> range:
    first = FIRST_WORD + number * NUM_WORDS
    return range(first, first + NUM_WORDS)


def publish(store: SnapshotStore, folder: Path, model: Any, tokenizer: Tokenizer) -> SnapshotInfo:
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return store.publish(folder, parent_checkpoint="step-00000001", parent_tokens=1, num_pairs=1, measures={})


def _bare_loads(engine: Any, folder: Path) -> np.ndarray:
    """Seconds to load one model over another, with nothing else going on here."""
    seconds = []
    for number in range(NUM_BARE_LOADS + 1):
        started = time.monotonic()
        engine.load(folder / f"model-{number % NUM_MODELS}")
        seconds.append(time.monotonic() - started)
    return np.array(seconds[1:])


def _num_wrong(journal: Journal, words: dict[str, set[int]]) -> int:
    positions = range(len(journal))
    return sum(not words[journal.entry(i).header.snapshot].issuperset(journal.tokens(i).tolist()) for i in positions)


def _percentile(seconds: np.ndarray, q: int) -> float:
    return round(float(np.percentile(seconds, q)), 4)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        result = swap_check(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    print(json.dumps(result))
    flat = result["rss_mib_after"] < 1.1 * result["rss_mib_before"]
    good = flat and not result["wrong_digest"] and not result["swap_failures"] and result["swap_pause_excess_p99_s"] < 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Our batches beside webdataset, torchdata, litdata and mosaicml-streaming, on the same documents: one JSON line.

    python benchmarks/loaders.py --peers-python /path/to/a/venv/bin/python

The peers live in an environment of their own (docs/loaders.md says how to make it); without it only ours runs. Two
corpora of random tokens, exponential lengths of mean 700 and 250, are mixed at 30 % by tokens. The peers draw documents
at random, with weights corrected for the mean lengths (the best that they offer); ours schedules tokens. Everybody
makes int64 ``[8, 2048]`` sequences: ours packs, for the peers documents are joined and cut, as none of them packs.
Every round starts a process for each loader in turn. In the first round states are saved in epoch 1 and in epoch 2, and
fresh processes go on from them: resuming is exact when the next 200 batches are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHARE = 0.3
MEANS = {"real": 700, "synthetic": 250}
NUM_DOCUMENTS = 1500
SEQUENCE_TOKENS, BATCH_SEQUENCES, BATCH_DOCUMENTS = 2048, 8, 16
VOCAB = 8192
MIX_TOKENS = 1_000_000  # the mix error and the speed are of these
SAVED_AT = {"epoch_1": 400_000, "epoch_2": 1_900_000}  # tokens
FOLLOWING = 200  # batches that must be equal after a resume
WARM_BATCHES = 5
SPEEDS = ("samples_per_s", "tokens_per_s", "tokens_per_cpu_s")
Document = tuple[int, np.ndarray]  # 0 real or 1 synthetic, tokens


def document_lengths(name: str) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return np.clip(rng.exponential(MEANS[name], NUM_DOCUMENTS).astype(int), 8, 4000)


def documents(name: str) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(len(name))
    for length in document_lengths(name):
        yield rng.integers(4, VOCAB, length).astype("<u2")


def weights() -> list[float]:
    """Of documents, so that the expected share of tokens is right."""
    each = [share / document_lengths(name).mean() for share, name in zip((1 - SHARE, SHARE), MEANS, strict=True)]
    return [weight / sum(each) for weight in each]


# --- writing the documents in each format, once ---


def write_shards(folder: Path) -> None:
    from streaming_sbp.data.shards import IndexWriter, ShardWriter

    for name in MEANS:
        (folder / "shards" / name).mkdir(parents=True)
        dtype = np.dtype("<u2")
        with (
            IndexWriter(folder / "shards" / name) as index,
            ShardWriter(folder / "shards" / name, "train", dtype, 2**19) as shards,
        ):
            for i, tokens in enumerate(documents(name)):
                index.add(shards.write(f"{name}{i:05d}", tokens.tolist(), "", 0))


def write_peers(folder: Path) -> None:
    """The formats of litdata and mosaicml-streaming; a package that is missing is left out."""
    for write in (write_litdata, write_mosaic):
        try:
            write(folder)
        except ImportError as error:
            print(f"not converted: {error}", file=sys.stderr)


def write_litdata(folder: Path) -> None:
    from litdata.streaming.cache import Cache

    for number, name in enumerate(MEANS):
        target = folder / "litdata" / name
        cache = Cache(str(target), chunk_bytes=2**19)
        for i, tokens in enumerate(documents(name)):
            cache[i] = {"source": number, "tokens": tokens}
        cache.done()
        cache.merge()


def write_mosaic(folder: Path) -> None:
    import_streaming()
    from streaming import MDSWriter

    columns = {"source": "int", "tokens": "ndarray:uint16"}
    for number, name in enumerate(MEANS):
        with MDSWriter(out=str(folder / "mosaic" / name), columns=columns, size_limit=2**19) as writer:
            for tokens in documents(name):
                writer.write({"source": number, "tokens": tokens})


def import_streaming() -> None:
    """mosaicml-streaming imports torchvision for its image data sets, and there is none here for torch's CPU build."""
    import importlib.machinery
    import types

    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        module.__dict__.update(__version__="0", VisionDataset=object, to_tensor=None)
        sys.modules[name] = module


# --- the loaders: batches for ever, and a state ---


class Ours:
    packs = True

    def __init__(self, folder: Path, seed: int):
        from streaming_sbp import config
        from streaming_sbp.data.dataset import Split
        from streaming_sbp.training.batches import BatchStream
        from streaming_sbp.training.mixer import Mixer
        from streaming_sbp.training.packing import Packer
        from streaming_sbp.training.sources import RealSource

        sources = {
            name: RealSource(Split(folder / "shards" / name, "train", np.dtype("<u2")), 1, 2, seed) for name in MEANS
        }
        mixer, packer = Mixer(config.Mix(synthetic_share=SHARE)), Packer(config.Packing(), SEQUENCE_TOKENS)
        self._stream = BatchStream(sources, mixer, packer, BATCH_SEQUENCES, SEQUENCE_TOKENS, 0)
        self._stream.start_schedule()
        self.state, self.load = self._stream.state_dict, self._stream.load_state_dict

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self._stream.next()


class Webdataset:
    """webdataset keeps no state; torchdata's StatefulDataLoader skips what had been read."""

    packs = False

    def __init__(self, folder: Path, seed: int):
        import webdataset
        from torchdata.stateful_dataloader import StatefulDataLoader

        def corpus(number: int, name: str) -> Any:
            shards = sorted(str(path) for path in (folder / "shards" / name).glob("*.tar"))
            return webdataset.DataPipeline(
                webdataset.SimpleShardList(shards, seed=seed),
                webdataset.tarfile_to_samples(),
                webdataset.detshuffle(1000, seed=seed),
                webdataset.decode(),
                webdataset.map(lambda sample: {"source": number, "tokens": sample["tokens.npy"]}),
            ).repeat()

        random.seed(seed)  # RandomMix draws from the global generator
        mixed = webdataset.RandomMix([corpus(i, name) for i, name in enumerate(MEANS)], weights())
        self._loader = StatefulDataLoader(mixed, batch_size=BATCH_DOCUMENTS, collate_fn=list)
        self.state, self.load = self._loader.state_dict, self._loader.load_state_dict

    def __iter__(self) -> Iterator[list[Document]]:
        return endless(self._loader)


class Torchdata:
    """torchdata.nodes over our memory-mapped shards, as torchdata has no format of its own."""

    packs = False

    def __init__(self, folder: Path, seed: int):
        from torch.utils.data import DistributedSampler
        from torchdata import nodes

        from streaming_sbp.data.dataset import Split

        class Corpus:
            def __init__(self, number: int, name: str):
                self._number, self._split = number, Split(folder / "shards" / name, "train", np.dtype("<u2"))

            def __len__(self) -> int:
                return len(self._split)

            def __getitem__(self, i: int) -> dict[str, Any]:
                return {"source": self._number, "tokens": self._split.tokens(i)}

        # torchdata's own RandomSampler goes on with another order when it is resumed in epoch 2; this one has epochs.
        each = {
            name: nodes.MapStyleWrapper(corpus, DistributedSampler(corpus, num_replicas=1, rank=0, seed=seed))
            for name, corpus in ((name, Corpus(i, name)) for i, name in enumerate(MEANS))
        }
        mixed = nodes.MultiNodeWeightedSampler(
            each, dict(zip(MEANS, map(float, weights()), strict=True)), stop_criteria="CYCLE_FOREVER", seed=seed
        )
        self._loader = nodes.Loader(nodes.Batcher(mixed, BATCH_DOCUMENTS))
        self.state, self.load = self._loader.state_dict, self._loader.load_state_dict

    def __iter__(self) -> Iterator[list[Document]]:
        return endless(self._loader)


class Litdata:
    packs = False

    def __init__(self, folder: Path, seed: int):
        import litdata

        each = [
            litdata.StreamingDataset(str(folder / "litdata" / name), shuffle=True, seed=seed, drop_last=False)
            for name in MEANS
        ]
        mixed = litdata.CombinedStreamingDataset(each, seed=seed, weights=weights(), iterate_over_all=False)
        self._loader = litdata.StreamingDataLoader(mixed, batch_size=BATCH_DOCUMENTS, num_workers=0, collate_fn=list)
        self.state, self.load = self._loader.state_dict, self._loader.load_state_dict

    def __iter__(self) -> Iterator[list[Document]]:
        return endless(self._loader)


class Mosaic:
    packs = False

    def __init__(self, folder: Path, seed: int):
        import_streaming()
        from streaming import Stream, StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        streams = [
            Stream(local=str(folder / "mosaic" / name), proportion=weight)
            for name, weight in zip(MEANS, weights(), strict=True)
        ]
        mixed = StreamingDataset(
            streams=streams,
            epoch_size=2 * NUM_DOCUMENTS,
            shuffle=True,
            shuffle_seed=seed,
            batch_size=BATCH_DOCUMENTS,
            num_canonical_nodes=1,
        )
        self._loader = StreamingDataLoader(mixed, batch_size=BATCH_DOCUMENTS, num_workers=0, collate_fn=self._columns)
        self.state, self.load = self._loader.state_dict, self._loader.load_state_dict

    def __iter__(self) -> Iterator[list[Document]]:
        for samples in endless_batches(self._loader):
            yield list(zip(samples["source"], samples["tokens"], strict=True))

    @staticmethod
    def _columns(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
        """The loader counts samples by the length of the first column."""
        return {key: [sample[key] for sample in samples] for key in ("source", "tokens")}


LOADERS = {"ours": Ours, "webdataset": Webdataset, "torchdata": Torchdata, "litdata": Litdata, "mosaic": Mosaic}
PACKAGES = {"webdataset": "webdataset", "torchdata": "torchdata", "litdata": "litdata", "mosaic": "mosaicml-streaming"}


def endless_batches(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def endless(loader: Any) -> Iterator[list[Document]]:
    for batch in endless_batches(loader):
        yield [(int(sample["source"]), np.asarray(sample["tokens"])) for sample in batch]


# --- what is measured, in a process of its own ---


class Joiner:
    """Documents joined and cut: the packing of the peers."""

    def __init__(self) -> None:
        self._tail = np.empty(0, np.int64)

    def add(self, batch: list[Document]) -> list[Any]:
        """Pairs of int64 ``[8, 2048]`` inputs and labels, as many as are full."""
        import torch

        parts = [self._tail]
        for _, tokens in batch:
            parts += [np.array([1]), tokens.astype(np.int64), np.array([2])]
        joined = np.concatenate(parts)
        size = SEQUENCE_TOKENS * BATCH_SEQUENCES
        full = len(joined) // size * size
        self._tail = joined[full:]
        shaped = torch.from_numpy(joined[:full].reshape(-1, BATCH_SEQUENCES, SEQUENCE_TOKENS))
        return [(inputs, inputs.clone()) for inputs in shaped]


class Tally:
    """Counts of the batches so far."""

    def __init__(self) -> None:
        self.num_documents, self.tokens, self.places, self.documents_cut, self.short = 0, [0, 0], 0, 0, 0

    def add(self, batch: Any) -> None:
        if isinstance(batch, list):
            lengths = [len(tokens) + 2 for _, tokens in batch]
            for (source, _), length in zip(batch, lengths, strict=True):
                begin = sum(self.tokens)
                self.tokens[source] += length
                if length <= SEQUENCE_TOKENS:
                    self.short += 1
                    self.documents_cut += begin // SEQUENCE_TOKENS != (begin + length - 1) // SEQUENCE_TOKENS
            self.num_documents += len(batch)
            self.places += max(lengths) * len(batch)
        else:
            for source, name in enumerate(MEANS):
                self.tokens[source] += batch.num_tokens(name)
                self.num_documents += len(batch.finished(name))
            self.places += batch.input_ids.numel()

    def results(self, packs: bool) -> dict[str, Any]:
        return {
            "mix_error_points": round(100 * (self.tokens[1] / sum(self.tokens) - SHARE), 3),
            "padding_percent": round(100 * (1 - sum(self.tokens) / self.places), 3),
            "documents_cut_percent": 0.0 if packs else round(100 * self.documents_cut / self.short, 1),
        }


def digest(batch: Any) -> str:
    if not isinstance(batch, list):
        return str(batch.digest())
    hasher = hashlib.sha256()
    for source, tokens in batch:
        hasher.update(bytes([source]) + tokens.astype("<u2").tobytes())
    return hasher.hexdigest()


def measure(loader: Any, folder: Path, saving: bool) -> dict[str, Any]:
    """Speed and mix over `MIX_TOKENS`; then, when ``saving``, states and what follows them."""
    tally, joiner, spent_s, cpu_s = Tally(), Joiner(), 0.0, 0.0
    timed_documents = timed_tokens = 0
    results: dict[str, Any] = {}
    state_ms: dict[str, float] = {}
    following: dict[str, list[str]] = {}
    batches = iter(loader)
    for number in range(10**9):
        began = time.perf_counter(), time.process_time()
        batch = next(batches)
        if not loader.packs:
            joiner.add(batch)
        took = time.perf_counter() - began[0], time.process_time() - began[1]
        before = tally.num_documents, sum(tally.tokens)
        for digests in following.values():
            if len(digests) < FOLLOWING:
                digests.append(digest(batch))
        tally.add(batch)
        if number >= WARM_BATCHES and not results:
            spent_s, cpu_s = spent_s + took[0], cpu_s + took[1]
            timed_documents += tally.num_documents - before[0]
            timed_tokens += sum(tally.tokens) - before[1]
        if not results and sum(tally.tokens) >= MIX_TOKENS:
            results = tally.results(loader.packs)
            results |= {"samples_per_s": timed_documents / spent_s, "tokens_per_s": timed_tokens / spent_s}
            results["tokens_per_cpu_s"] = timed_tokens / cpu_s
        for name, tokens in SAVED_AT.items() if saving else ():
            if name not in following and sum(tally.tokens) >= tokens:
                asked = time.perf_counter()
                state = loader.state()
                state_ms[name] = round(1000 * (time.perf_counter() - asked), 2)
                (folder / f"{name}.state").write_bytes(pickle.dumps(state))
                following[name] = []
        done = all(len(following.get(name, ())) == FOLLOWING for name in SAVED_AT) if saving else True
        if results and done:
            return results | {"following": following, "state_ms": state_ms}
    raise AssertionError("unreachable")


def resume(loader: Any, folder: Path, name: str) -> dict[str, Any]:
    began = time.perf_counter()
    loader.load(pickle.loads((folder / f"{name}.state").read_bytes()))  # our own file, of a moment ago
    batches = iter(loader)
    first = digest(next(batches))
    seconds = time.perf_counter() - began
    return {"following": [first, *(digest(next(batches)) for _ in range(FOLLOWING - 1))], "seconds": round(seconds, 3)}


def work(arguments: argparse.Namespace) -> None:
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder = Path(arguments.folder)
    if arguments.work == "convert":
        write_peers(folder)
        return
    loader = LOADERS[arguments.work](folder, arguments.seed)
    states = folder / "states" / arguments.work
    states.mkdir(parents=True, exist_ok=True)
    found = resume(loader, states, arguments.resume) if arguments.resume else measure(loader, states, arguments.saving)
    print(json.dumps(found), flush=True)


# --- the comparison ---


def start(python: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The last line of a process of this script, or what went wrong."""
    command = [python, __file__, "--folder", str(folder), *arguments]
    root = str(Path(__file__).parent.parent)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}
        )
    except subprocess.TimeoutExpired:
        return {"error": "more than 120 s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return dict(json.loads(lines[-1]))


def versions(python: str) -> dict[str, str]:
    code = "from importlib.metadata import distributions as d; [print(x.name, x.version) for x in d()]"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    wanted = {*PACKAGES.values(), "torch", "numpy"}
    return dict(line.split() for line in done.stdout.splitlines() if line.split()[0] in wanted)


def compare(pythons: dict[str, str], folder: Path, rounds: int) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for turn in range(rounds):
        for name, python in pythons.items():
            saving = ("--saving",) if turn == 0 else ()
            rows[name].append(start(python, folder, "--work", name, "--seed", str(turn), *saving))
            print(name, {k: v for k, v in rows[name][-1].items() if k != "following"}, file=sys.stderr, flush=True)
    table: dict[str, Any] = {}
    for name, python in pythons.items():
        good = [row for row in rows[name] if "error" not in row]
        if not good:
            table[name] = {"error": rows[name][0]["error"]}
            continue
        table[name] = {
            **{key: round(float(np.median([row[key] for row in good]))) for key in SPEEDS},
            "mix_error_points_largest": max(abs(row["mix_error_points"]) for row in good),
            "padding_percent": good[0]["padding_percent"],
            "documents_cut_percent": good[0]["documents_cut_percent"],
            "resume": {when: resumed(name, python, folder, rows[name][0], when) for when in SAVED_AT},
        }
        print(name, table[name], file=sys.stderr, flush=True)
    return table


def resumed(name: str, python: str, folder: Path, before: dict[str, Any], when: str) -> dict[str, Any]:
    if "error" in before:
        return {"exact": False, "error": before["error"]}
    found = start(python, folder, "--work", name, "--seed", "0", "--resume", when)
    if "error" in found:
        return {"exact": False, "error": found["error"]}
    expected = before["following"][when]
    equal = sum(a == b for a, b in zip(expected, found["following"], strict=True))
    exact = equal == FOLLOWING
    return {"exact": exact, "equal": equal, "seconds": found["seconds"], "state_ms": before["state_ms"][when]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="an interpreter that has the peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--saving", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    folder = Path(tempfile.mkdtemp(prefix="loaders."))
    try:
        write_shards(folder)
        pythons = {"ours": sys.executable}
        if arguments.peers_python:
            start(arguments.peers_python, folder, "--work", "convert")
            pythons |= dict.fromkeys(PACKAGES, arguments.peers_python)
        table = compare(pythons, folder, arguments.rounds)
        found = {"ours": versions(sys.executable)} | (
            {"peers": versions(arguments.peers_python)} if arguments.peers_python else {}
        )
        print(json.dumps({"benchmark": "loaders", "rounds": arguments.rounds, "loaders": table, "versions": found}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Indices of pairing/index.py at growing corpora: recall against exact search, time, memory; beside bare FAISS and
scikit-learn. The last line is JSON.

    python benchmarks/pairing.py                            # up to 100,000 vectors: a few minutes on one core
    python benchmarks/pairing.py --sizes 10000 --dimensions 64

The vectors are embeddings of the concept corpus (many views), so they have the clusters that real text has; each row is
a process of its own, so that its peak memory is its own. Exact neighbours are those of `QUERIES` documents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from streaming_sbp.data.concepts.world import World
from streaming_sbp.pairing.embed import TfidfEmbedder, stack
from streaming_sbp.pairing.index import make_index

QUERIES = 2000
NEIGHBOURS = 16
KINDS = ("exact", "ivf", "hnsw", "ivf on disk", "bare faiss", "scikit-learn")


def embeddings(num_documents: int, dimensions: int) -> np.ndarray:
    """Of views of the concepts of the setting "hard", as `sbp pair` makes them."""
    world = World("hard", 0)
    concepts = list(world.concepts.values())
    texts = (world.view(concepts[i % len(concepts)], i // len(concepts)) for i in range(num_documents))
    return stack(TfidfEmbedder(dimensions, 2**17, 0), _batches(texts), num_documents)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := [text for _, text in zip(range(1024), texts, strict=False)]:
        yield batch


def peak_mib() -> float:
    """Of this process since it began (`ru_maxrss` would begin with the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(kind: str, path: Path) -> dict[str, Any]:
    """One row, in this process: seconds to build, microseconds a query, recall at `NEIGHBOURS`, memory it added."""
    faiss.omp_set_num_threads(1)
    vectors = np.load(path, mmap_mode="r") if kind == "ivf on disk" else np.load(path)
    queries = np.random.default_rng(0).choice(len(vectors), min(QUERIES, len(vectors)), replace=False)
    wanted = np.ascontiguousarray(vectors[queries])
    before, started = peak_mib(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        search = SEARCHERS[kind](vectors, Path(folder))
        built = time.perf_counter()
        found = search(wanted)
        ended = time.perf_counter()
    truth = np.load(path.with_suffix(".truth.npy")) if path.with_suffix(".truth.npy").exists() else found
    if kind == "exact":
        np.save(path.with_suffix(".truth.npy"), found)
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    return {
        "kind": kind,
        "build_s": round(built - started, 2),
        "query_us": round(1e6 * (ended - built) / len(queries), 1),
        "all_s": round(built - started + (ended - built) / len(queries) * len(vectors), 1),
        "recall": round(float(np.mean(hits)) / found.shape[1], 4),
        "added_mib": round(peak_mib() - before, 1),
    }


Searcher = Callable[[np.ndarray], np.ndarray]


def ours(kind: str) -> Callable[[np.ndarray, Path], Searcher]:
    def build(vectors: np.ndarray, folder: Path) -> Searcher:
        index = make_index(vectors, kind)
        return lambda queries: index.search(queries, NEIGHBOURS)[1]

    return build


def on_disk(vectors: np.ndarray, folder: Path) -> Searcher:
    from streaming_sbp.pairing import index as module

    module.IN_MEMORY_BYTES = 0
    index = make_index(vectors, "ivf", folder)
    return lambda queries: index.search(queries, NEIGHBOURS)[1]


def bare_faiss(vectors: np.ndarray, folder: Path) -> Searcher:
    """What one writes first: the factory's IVF with its own defaults, and nprobe 16."""
    index = faiss.index_factory(vectors.shape[1], f"IVF{max(1, len(vectors) // 80)},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = 16
    return lambda queries: index.search(queries, NEIGHBOURS)[1]


def scikit_learn(vectors: np.ndarray, folder: Path) -> Searcher:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine", algorithm="brute", n_jobs=1).fit(vectors)
    return lambda queries: index.kneighbors(queries, return_distance=False)


SEARCHERS: dict[str, Callable[[np.ndarray, Path], Searcher]] = {
    "exact": ours("exact"),
    "ivf": ours("ivf"),
    "hnsw": ours("hnsw"),
    "ivf on disk": on_disk,
    "bare faiss": bare_faiss,
    "scikit-learn": scikit_learn,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,30000,100000")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--row", nargs=2, metavar=("KIND", "VECTORS"), help="one row, in this process")
    chosen = parser.parse_args()
    if chosen.row:
        print(json.dumps(measure(chosen.row[0], Path(chosen.row[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in map(int, chosen.sizes.split(",")):
            path = Path(folder) / f"{size}.npy"
            np.save(path, embeddings(size, chosen.dimensions))
            for kind in chosen.kinds.split(","):
                output = subprocess.run(
                    [sys.executable, __file__, "--row", kind, str(path)], check=True, capture_output=True, text=True
                )
                row = {"documents": size, **json.loads(output.stdout.splitlines()[-1])}
                rows.append(row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            path.unlink()
    print(json.dumps({"dimensions": chosen.dimensions, "neighbours": NEIGHBOURS, "rows": rows}))


if __name__ == "__main__":
    main()

"""Where time and memory of a run went: Markdown tables, then one JSON line.

    python benchmarks/run_profile.py runs/demo

Made from the files of the run directory. Wall time, CPU time and memory are of the last process of each role; the
trainer's phases, the generators' documents and the tunings are of all processes of the run together.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from typing import Any

from streaming_sbp.experiment import history
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.records import Record, read_records
from streaming_sbp.training.mixer import SYNTHETIC

MEBIBYTE = 2**20


def profile(run: RunDir) -> dict[str, Any]:
    """Everything that is printed, as one JSON-able object."""
    told = history.load(run)
    records = {path.stem: read_records(path) for path in sorted(run.records.glob("*.jsonl"))}
    generators = [name for name in records if name.startswith("generator")]
    return {
        "run": run.path.name,
        "processes": {name: process(role, began(records, role)) for name, role in run.read_roles().items()},
        "trainer": trainer(told),
        "generators": {name: generator(name, records[name], told) for name in generators},
        "swap_pause_s": spread(r["pause_s"] for name in generators for r in events(records[name], "swap")),
        "checkpoint_blocked_s": spread(r["blocked_s"] for r in events(records.get("trainer", []), "checkpoint")),
        "checkpoint_written_s": spread(r["seconds"] for r in events(records.get("trainer", []), "checkpoint")),
        "pairing_s": spread(r["seconds"] for r in events(records.get("pairer", []), "pairs")),
        "tuning_s": spread(s.tune_s for s in told.snapshots if s.tune_s is not None),
        "gate_s": spread(s.gate_s for s in told.snapshots if s.gate_s is not None),
    }


def began(records: dict[str, list[Record]], role: dict[str, Any]) -> float:
    """When the process began, Unix time: as the supervisor says, or else when its imports were done."""
    starts = events(records.get("supervisor", []), "role_started")
    return next((r["time"] for r in reversed(starts) if r["pid"] == role["pid"]), role["started"])


def process(role: dict[str, Any], began_at: float) -> dict[str, Any]:
    wall_s = role["updated"] - began_at
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(role["cpu_seconds"], 1),
        "cores": round(role["cpu_seconds"] / wall_s, 2) if wall_s > 0 else None,
        "peak_rss_mib": round(role["peak_rss_bytes"] / MEBIBYTE),
    }


def trainer(told: history.RunHistory) -> dict[str, Any]:
    last = told.trains[-1] if told.trains else {}
    total_s = sum(told.phases.values())
    return {
        "tokens": last.get("tokens"),
        "synthetic_tokens": (last.get("trained_tokens") or {}).get(SYNTHETIC),
        "tokens_per_second": round(last["tokens"] / total_s) if last and total_s else None,
        "evaluations": len(told.evaluations),
        "phases_s": {name: round(seconds, 2) for name, seconds in told.phases.items()},
        "data_wait_share": round(told.phases["data_wait"] / total_s, 5) if total_s else None,
    }


def generator(name: str, records: list[Record], told: history.RunHistory) -> dict[str, Any]:
    last = next(iter(events(records, "throughput")[-1:]), {})
    return {
        "tokens_per_second_while_sampling": last.get("tokens_per_second"),
        "documents_per_second_while_sampling": last.get("documents_per_second"),
        "sampled_documents": told.sampled.get(name, 0),
        "filtered_documents": told.filtered.get(name, {}),
        "without_credit_s": round(told.blocked_s.get(name, 0.0), 1),
    }


def events(records: Iterable[Record], event: str) -> list[Record]:
    return [record for record in records if record["event"] == event]


def spread(values: Iterable[float]) -> dict[str, float | int] | None:
    """Count, median and largest; None when there is nothing."""
    found = sorted(values)
    if not found:
        return None
    return {"count": len(found), "median": round(statistics.median(found), 4), "largest": round(found[-1], 4)}


# --- tables ---


def table(heads: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    lines = [heads, ("---", *("---:" for _ in heads[1:])), *rows]
    return "\n".join("| " + " | ".join("–" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def markdown(found: dict[str, Any]) -> str:
    processes = table(
        ("process", "wall s", "CPU s", "cores", "peak memory, MiB"),
        ([name, *row.values()] for name, row in found["processes"].items()),
    )
    total_s = sum(found["trainer"]["phases_s"].values())
    phases = table(
        ("trainer's time", "s", "share"),
        (
            [name.replace("_", " "), seconds, f"{seconds / total_s:.2%}"]
            for name, seconds in sorted(found["trainer"]["phases_s"].items(), key=lambda item: -item[1])
        ),
    )
    spreads = table(
        ("what", "times", "median s", "largest s"),
        (
            [name.removesuffix("_s").replace("_", " "), value["count"], value["median"], value["largest"]]
            for name, value in found.items()
            if name.endswith("_s") and value
        ),
    )
    rates = table(
        ("rate", "tokens/s"),
        [
            ("trainer, evaluations and checkpoints included", found["trainer"]["tokens_per_second"]),
            *(
                (f"{n}, while it samples", g["tokens_per_second_while_sampling"])
                for n, g in found["generators"].items()
            ),
        ],
    )
    return "\n\n".join((processes, phases, rates, spreads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory, as in runs/demo")
    found = profile(RunDir(parser.parse_args().run))
    print(markdown(found), end="\n\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""What a run has cost, over time: tokens trained by the trainer, tuned by the tuner, sampled by generators.

One unit for all: tokens trained. A forward and a backward pass cost 6 N operations a token for N parameters, a forward
pass alone 2 N (Kaplan et al., Scaling Laws for Neural Language Models, 2020, section 2.1), so a sampled token, and one
of its prompt, counts a third. Evaluations and the gate's trial batches, about 1 % of a run, are not counted, nor is
attention, which is small for short documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from streaming_sbp.experiment import history
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry.records import Record

SAMPLED_TOKEN = 1 / 3  # of a trained token


@dataclass(frozen=True)
class Spent:
    """Cumulative, at Unix ``times``, of one kind of work."""

    times: np.ndarray
    tokens: np.ndarray

    def at(self, unix_time: float) -> float:
        """Between two records linearly; nothing before the first."""
        return float(np.interp(unix_time, self.times, self.tokens, left=0.0)) if len(self.times) else 0.0


def tuned(run: RunDir) -> Spent:
    """Tokens that passed through the model in tuning; each tuning counts from 0."""
    records = (record for record in run.read_records("tuner") if record["event"] == "tuning")
    return _cumulative(history.by_process(records, "tuned_tokens"), lambda record: record["tuned_tokens"])


def sampled(run: RunDir) -> list[Spent]:
    """Sampled tokens and those of their prompts, by generator; each process counts from 0."""
    supervisor = run.read_records("supervisor")
    processes = (
        history.throughput_by_process(run.read_records(path.stem), supervisor, path.stem)
        for path in sorted(run.records.glob("generator*.jsonl"))
    )
    return [_cumulative(found, lambda record: record["tokens"] + record.get("prompt_tokens", 0)) for found in processes]


class Compute:
    """Of a whole run. In tokens trained, see the module's docstring."""

    def __init__(self, run: RunDir):
        self._tuned, self._sampled = tuned(run), sampled(run)

    def tuned_tokens(self, unix_time: float) -> float:
        return self._tuned.at(unix_time)

    def sampled_tokens(self, unix_time: float) -> float:
        return sum(spent.at(unix_time) for spent in self._sampled)

    def total(self, trained_tokens: float, unix_time: float) -> float:
        return trained_tokens + self.tuned_tokens(unix_time) + SAMPLED_TOKEN * self.sampled_tokens(unix_time)


def cost_of_newest_snapshot(run: RunDir) -> float:
    """Tokens trained and tuned for it, of a run that gives its snapshot to another; 0 when it has published none.

    With `synthesizer.start` "continue" a tuning begins with what the last published one had learnt, so those before it
    count, too, back to where the tuner's process began (it reads the pairs once): that is kept in memory only. What
    refused candidates had learnt goes into none.
    """
    continues = run.config().synthesizer.start == "continue"
    tuned_tokens, cost = 0, 0
    for record in run.read_records("tuner"):
        if record["event"] == "pairs_read":
            tuned_tokens = 0
        elif record["event"] == "snapshot" and record.get("verdict") == "published":
            tuned_tokens = (record.get("tuned_tokens") or 0) + (tuned_tokens if continues else 0)
            cost = (record.get("parent_tokens") or 0) + tuned_tokens
    return float(cost)


def _cumulative(processes: Iterable[list[Record]], count: Callable[[Record], float]) -> Spent:
    """``processes``: records of each, whose count began at 0."""
    times, totals, done = [], [], 0.0
    for records in processes:
        times += [record["time"] for record in records]
        totals += [done + count(record) for record in records]
        done = totals[-1]
    return Spent(np.array(times), np.array(totals))

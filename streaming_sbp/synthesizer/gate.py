"""The gate: does a candidate become a snapshot, or does it go into quarantine, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from streaming_sbp import config
from streaming_sbp.telemetry.catalogue import TRUTH_MEASURES

FAILED = "failed"
BOUNDS = {  # measure -> setting with its largest value
    "repetitive_share": "max_repetitive_share",
    "copied_share": "max_copied_share",
    "duplicate_share": "max_duplicate_share",
    "empty_share": "max_empty_share",
    "unfinished_share": "max_unfinished_share",
}
EXCESS = {  # measure -> setting with how far it may be above that of real text
    "corpus_13gram_share": "max_corpus_13gram_excess",
    "corpus_copied_share": "max_corpus_copied_excess",
}
RATIOS = (  # measure, setting with its smallest or largest ratio to that of real text
    ("relatedness_lift", "min_relatedness_ratio"),
    ("distinct_ngrams", "min_distinct_ratio"),
    ("mean_tokens", "min_length_ratio"),
    ("mean_tokens", "max_length_ratio"),
    ("true_fact_share", "min_true_fact_ratio"),
    ("expressed_fact_share", "min_expressed_fact_ratio"),
)


@dataclass(frozen=True)
class Failure:
    """A measure out of bounds. ``sentence`` says it for people, with value, bound and setting."""

    measure: str  # of telemetry.catalogue.GATE_REASONS
    sentence: str
    value: float = math.nan  # NaN where nothing was measured: it diverged, or cannot be sampled from
    bound: float = math.nan


@dataclass(frozen=True)
class Verdict:
    failures: tuple[Failure, ...]  # in the order of the measures; none when published

    @classmethod
    def unusable(cls, why: str) -> Verdict:
        """Of a candidate that cannot be measured."""
        return cls((Failure(FAILED, why),))

    @property
    def published(self) -> bool:
        return not self.failures

    @property
    def reasons(self) -> list[str]:
        """A sentence for each failure: what is recorded and shown."""
        return [failure.sentence for failure in self.failures]

    @property
    def measures(self) -> list[str]:
        """What failed, each measure once."""
        return list(dict.fromkeys(failure.measure for failure in self.failures))

    def __str__(self) -> str:
        return "published" if self.published else "quarantined"


def decide(measures: Mapping[str, float], serving: Mapping[str, float] | None, gate: config.Gate, mode: str) -> Verdict:
    """Compare with the bounds and with real text, and the pair loss with the serving snapshot's.

    ``serving``: the measures of that snapshot. ``mode`` is `synthesizer.mode`. Without a serving snapshot (``None``) a
    tuned candidate must be better than the checkpoint it was tuned from, and a joint one, which is its checkpoint, must
    use its seed documents. One that is given is compared with nothing, nor is an unconditional one.
    """
    failures = [_pair_loss_failure(measures, serving, gate, mode)]
    for measure, setting in BOUNDS.items():
        failures.append(_failure(measure, measures[measure], "at most", getattr(gate, setting), f"gate.{setting}"))
    for measure, setting in EXCESS.items():
        real, excess = measures[f"real_{measure}"], getattr(gate, setting)
        way = f"real text's {real:.3f} + {excess:g}, gate.{setting}"
        failures.append(_failure(measure, measures[measure], "at most", real + excess, way))
    for measure, setting in RATIOS:
        ratio = getattr(gate, setting)
        kind = "at least" if setting.startswith("min_") else "at most"
        if (kind == "at least" and not ratio) or (measure in TRUTH_MEASURES and f"real_{measure}" not in measures):
            continue
        real, value = measures[f"real_{measure}"], measures.get(measure, 0.0)
        way = f"{ratio:g} of real text's {real:.3f}, gate.{setting}"
        failures.append(_failure(measure, value, kind, real * ratio, way))
    return Verdict(tuple(failure for failure in failures if failure))


def _failure(measure: str, value: float, kind: str, bound: float, where: str) -> Failure | None:
    """None when the value keeps to the bound; one that is not a number does not."""
    if value >= bound if kind == "at least" else value <= bound:
        return None
    return Failure(measure, f"{measure} = {value:.3f}: expected {kind} {bound:.3g} ({where})", value, bound)


def seed_gain(measures: Mapping[str, float]) -> float:
    """Nats per token that a snapshot's own seed documents save it beside unrelated ones; 0 where that is not known."""
    return max(0.0, measures.get("unrelated_pair_loss", -math.inf) - measures["pair_loss"])


def _pair_loss_failure(
    measures: Mapping[str, float], serving: Mapping[str, float] | None, gate: config.Gate, mode: str
) -> Failure | None:
    value = measures["pair_loss"]
    if not math.isfinite(value):
        return Failure("pair_loss", f"pair_loss = {value}: expected a finite number", value)
    if mode == "unconditional":
        return None  # it has no seed documents to learn from
    if serving is not None:
        increase, setting = max(
            (gate.max_pair_loss_increase, "gate.max_pair_loss_increase"),
            (gate.max_seed_gain_loss * seed_gain(serving), "gate.max_seed_gain_loss"),
        )
        bound = serving["pair_loss"] + increase
        why = f"the serving snapshot's {serving['pair_loss']:.4f} + {increase:.3g} ({setting})"
    elif mode == "given":
        return None  # it comes from elsewhere: there is nothing to compare it with
    elif mode == "joint":
        bound = measures["unrelated_pair_loss"] - gate.min_seed_gain
        why = f"{gate.min_seed_gain:g} (gate.min_seed_gain) less than with unrelated seed documents (first snapshot)"
    else:
        bound = math.nextafter(measures["untuned_pair_loss"], -math.inf)
        why = "below the untuned checkpoint's (first snapshot)"
    if value <= bound:
        return None
    return Failure("pair_loss", f"pair_loss = {value:.4f}: expected at most {bound:.4f}, {why}", value, bound)

"""The gate: does a candidate become a snapshot, or does it go into quarantine, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from streaming_sbp import config

BOUNDS = {  # measure -> setting with its largest value
    "repetitive_share": "max_repetitive_share",
    "copied_share": "max_copied_share",
    "duplicate_share": "max_duplicate_share",
    "empty_share": "max_empty_share",
    "unfinished_share": "max_unfinished_share",
}


@dataclass(frozen=True)
class Verdict:
    """``reasons``: one sentence for each measure out of bounds, with its value and the bound; none when published."""

    reasons: tuple[str, ...]

    @property
    def published(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        return "published" if self.published else "quarantined"


def decide(measures: Mapping[str, float], serving_pair_loss: float | None, gate: config.Gate, mode: str) -> Verdict:
    """Compare with the bounds, and the pair loss with the serving snapshot's.

    ``mode`` is `synthesizer.mode`. Without a serving snapshot (``None``) a tuned candidate must be better than the
    checkpoint it was tuned from, and a joint one, which is its checkpoint, must use its seed documents.
    """
    reasons = [_pair_loss_reason(measures, serving_pair_loss, gate, mode)]
    for measure, setting in BOUNDS.items():
        value, bound = measures[measure], getattr(gate, setting)
        if not value <= bound:
            reasons.append(f"{measure} = {value:.3f}: expected at most {bound:g} (gate.{setting})")
    return Verdict(tuple(reason for reason in reasons if reason))


def _pair_loss_reason(measures: Mapping[str, float], serving: float | None, gate: config.Gate, mode: str) -> str:
    value = measures["pair_loss"]
    if not math.isfinite(value):
        return f"pair_loss = {value}: expected a finite number"
    if serving is not None:
        bound = serving + gate.max_pair_loss_increase
        why = f"the serving snapshot's {serving:.4f} + {gate.max_pair_loss_increase:g} (gate.max_pair_loss_increase)"
    elif mode == "joint":
        bound = measures["unrelated_pair_loss"] - gate.min_seed_gain
        why = f"{gate.min_seed_gain:g} (gate.min_seed_gain) less than with unrelated seed documents (first snapshot)"
    else:
        bound = math.nextafter(measures["untuned_pair_loss"], -math.inf)
        why = "below the untuned checkpoint's (first snapshot)"
    return "" if value <= bound else f"pair_loss = {value:.4f}: expected at most {bound:.4f}, {why}"

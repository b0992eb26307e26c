"""Does what the trainer receives still look like what the gate let through? Rules without I/O; `watch.py` feeds them.

A generator sends only what passes its filter, so the comparison is with those trial documents that pass it, too: the
gate's ``sent_...`` measures.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from streaming_sbp.synthesizer.quality import SentMeasures, ValuedDocument, measure_sent

WINDOW = 64  # documents of a snapshot, the last ones that were looked at
MIN_DOCUMENTS = 32  # of the window, before anything is said
MIN_TRIAL_DOCUMENTS = 8  # of the gate's
NUM_ERRORS = 4.0  # standard errors of the difference between two means that are put down to chance
BOUNDS: dict[str, tuple[str, bool]] = {  # measure -> (which direction is bad, whether the bound is relative)
    "repetition": ("up", False),
    "corpus_13gram_share": ("up", False),
    "distinct_ngrams": ("down", True),
    "mean_tokens": ("either", True),
    "mean_log_prob": ("either", True),
    "relatedness": ("down", True),
    "about_seed_share": ("down", True),
    "non_factual_share": ("up", False),
    "true_fact_share": ("down", True),
    "true_new_fact_share": ("down", True),
    "expressed_fact_share": ("down", True),
    "new_facts": ("either", True),
}
BEFORE, AFTER = 8, 2  # evaluations that are compared, at most and exactly
MIN_BEFORE = 4
MIN_NOISE_NATS = 0.005
NUM_NOISES = 4.0


class Windows:
    """The last `WINDOW` documents of each of the last few snapshots."""

    def __init__(self, num_snapshots: int = 4):
        self._num_snapshots = num_snapshots
        self._of: dict[str, deque[ValuedDocument]] = {}

    def add(self, snapshot: str, document: ValuedDocument) -> None:
        window = self._of.pop(snapshot, None) or deque(maxlen=WINDOW)
        window.append(document)
        self._of[snapshot] = window  # the one heard of last is last
        while len(self._of) > self._num_snapshots:
            self._of.pop(next(iter(self._of)))

    def measure(self, snapshot: str, num_trial: int) -> SentMeasures:
        """Distinct n-grams are counted in no more documents than the gate had, for their share falls with the text."""
        return measure_sent(list(self._of.get(snapshot, ())), num_trial)

    @property
    def newest(self) -> str | None:
        """The snapshot of the document that was added last."""
        return next(reversed(self._of), None)


def drifts(sent: SentMeasures, gate: Mapping[str, float], max_drift: float) -> dict[str, str]:
    """Measure -> a sentence, for each that differs from the gate's by more than ``max_drift`` and chance.

    None before there are enough documents, or for a snapshot whose gate did not measure what is sent.
    """
    num_trial = gate.get("sent_documents", 0.0)
    if sent.num_documents < MIN_DOCUMENTS or num_trial < MIN_TRIAL_DOCUMENTS:
        return {}
    found = {}
    for measure, (direction, relative) in BOUNDS.items():
        num_with = sent.counts.get(measure, sent.num_documents)
        if measure not in sent.means or f"sent_{measure}" not in gate or num_with < MIN_TRIAL_DOCUMENTS:
            continue
        value, expected = sent.means[measure], gate[f"sent_{measure}"]
        num_trial_with = num_trial * num_with / sent.num_documents  # the gate's count is not kept: as often as here
        error = sent.deviations.get(measure, 0.0) * math.sqrt(1 / num_with + 1 / num_trial_with)
        bound = max_drift * (abs(expected) if relative else 1.0) + NUM_ERRORS * error
        difference = value - expected
        worse = {"up": difference, "down": -difference, "either": abs(difference)}[direction]
        if not worse <= bound:
            found[measure] = f"{measure} = {value:.3f}: {expected:.3f} at the gate, bound {bound:.3f} (gate.max_drift)"
    return found


def worsened(before: Sequence[float], after: Sequence[float]) -> str:
    """A sentence when the last evaluations ``after`` a swap are all worse than ``before``, beyond the noise; or "".

    Losses in nats per token, oldest first. The noise of one evaluation is estimated from the differences between those
    before: their standard deviation over sqrt(2), which a falling loss makes larger rather than smaller.
    """
    before, after = before[-BEFORE:], after[-AFTER:]
    if len(before) < MIN_BEFORE or len(after) < AFTER:
        return ""
    noise = max(float(np.std(np.diff(before))) / math.sqrt(2), MIN_NOISE_NATS)
    expected = sum(before[-2:]) / 2
    if min(after) - expected <= NUM_NOISES * noise:
        return ""
    return f"held-out loss {after[-1]:.4f}: {expected:.4f} before the swap, and its noise is {noise:.4f}"

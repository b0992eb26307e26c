"""Which source gives the next document: the one furthest behind its share of tokens.

The contract (unit: tokens): while every source has data, ``|mixed - scheduled| <= one document`` for each source at
every prefix. Let ``deficit = scheduled - mixed``; deficits sum to 0, the largest is taken first, so with two sources
a document of n tokens moves a deficit of at least 0 down by at most n, and one of at most 0 up by at most n.

When the synthetic source is the one behind and has no document, ``starvation_policy`` decides: ``real_only`` takes a
real document and notes what synthetic text is owed (``debt_tokens``), paid back later at up to ``catch_up_share``
and written off above ``forgive_tokens``; ``wait`` takes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streaming_sbp import config

REAL, SYNTHETIC = "real", "synthetic"


def scheduled_share(mix: config.Mix, tokens_since_start: int) -> float:
    """The synthetic share that the schedule asks for, this many tokens after the first snapshot."""
    if mix.schedule == "ramp" and tokens_since_start < mix.ramp_tokens:
        return mix.synthetic_share * tokens_since_start / mix.ramp_tokens
    if mix.schedule == "steps":
        return next((step.share for step in reversed(mix.steps) if step.tokens <= tokens_since_start), 0.0)
    return mix.synthetic_share


@dataclass(frozen=True)
class Choice:
    """The source of the next document, and the shares that its tokens are booked against."""

    source: str
    shares: dict[str, float]
    owed_share: float = 0.0  # > 0: taken in place of a late synthetic document
    repaid_share: float = 0.0  # > 0: synthetic is above its schedule, paying back


class Mixer:
    """Call ``choose``, then ``add`` with the length of the document that was taken."""

    def __init__(self, mix: config.Mix):
        self._mix = mix
        self.mixed_tokens = {REAL: 0, SYNTHETIC: 0}
        self.deficit_tokens = {REAL: 0.0, SYNTHETIC: 0.0}
        self.scheduled_tokens = 0.0  # synthetic tokens that the schedule asked for
        self.debt_tokens = 0.0
        self.forgiven_tokens = 0.0
        self.starved_documents = 0
        self.started_at: dict[str, int] | None = None  # mixed tokens when the first snapshot appeared

    def start(self) -> None:
        """The first snapshot is there: the schedule begins."""
        if self.started_at is None:
            self.started_at = dict(self.mixed_tokens)

    @property
    def tokens_since_start(self) -> int:
        return 0 if self.started_at is None else sum(self.mixed_tokens.values()) - sum(self.started_at.values())

    @property
    def current_share(self) -> float:
        """What the schedule asks for now; 0 before the first snapshot."""
        return 0.0 if self.started_at is None else scheduled_share(self._mix, self.tokens_since_start)

    @property
    def scheduled_share(self) -> float:
        """Synthetic share that the schedule asked for, over the tokens mixed since it began: compare `realised_share`.

        Before the first document, what it asks for now.
        """
        tokens = self.tokens_since_start
        return self.scheduled_tokens / tokens if tokens else self.current_share

    @property
    def realised_share(self) -> float:
        """Synthetic share of the tokens mixed since the schedule began."""
        if self.started_at is None or not self.tokens_since_start:
            return 0.0
        return (self.mixed_tokens[SYNTHETIC] - self.started_at[SYNTHETIC]) / self.tokens_since_start

    def choose(self, has_document: Mapping[str, bool]) -> Choice | None:
        """The next source, or None when the policy is to wait. Raises ValueError when real text has run out."""
        share = self.current_share
        repaying = self.debt_tokens > 0 and has_document[SYNTHETIC] and share > 0
        synthetic = max(share, self._mix.catch_up_share) if repaying else share
        shares = {REAL: 1.0 - synthetic, SYNTHETIC: synthetic}
        wanted = max(shares, key=lambda name: (shares[name] > 0, self.deficit_tokens[name], shares[name]))
        if wanted == REAL and not has_document[REAL]:
            raise ValueError("the real source has no document; real documents repeat, so it must never run out")
        if has_document[wanted]:
            return Choice(wanted, shares, repaid_share=synthetic - share)
        if self._mix.starvation_policy == "wait":
            return None
        return Choice(REAL, {REAL: 1.0, SYNTHETIC: 0.0}, owed_share=share)

    def add(self, choice: Choice, num_tokens: int) -> None:
        """Book a document of ``num_tokens`` tokens that pass through the model."""
        for name, share in choice.shares.items():
            self.deficit_tokens[name] += share * num_tokens
        self.deficit_tokens[choice.source] -= num_tokens
        self.mixed_tokens[choice.source] += num_tokens
        self.scheduled_tokens += (choice.shares[SYNTHETIC] - choice.repaid_share + choice.owed_share) * num_tokens
        self.starved_documents += choice.owed_share > 0
        debt = self.debt_tokens + (choice.owed_share - choice.repaid_share) * num_tokens
        self.debt_tokens = min(max(debt, 0.0), float(self._mix.forgive_tokens))
        self.forgiven_tokens += max(debt - self._mix.forgive_tokens, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "mixed_tokens": dict(self.mixed_tokens),
            "deficit_tokens": dict(self.deficit_tokens),
            "scheduled_tokens": self.scheduled_tokens,
            "debt_tokens": self.debt_tokens,
            "forgiven_tokens": self.forgiven_tokens,
            "starved_documents": self.starved_documents,
            "started_at": self.started_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mixed_tokens = dict(state["mixed_tokens"])
        self.deficit_tokens = dict(state["deficit_tokens"])
        self.scheduled_tokens = state["scheduled_tokens"]
        self.debt_tokens = state["debt_tokens"]
        self.forgiven_tokens = state["forgiven_tokens"]
        self.starved_documents = state["starved_documents"]
        self.started_at = dict(state["started_at"]) if state["started_at"] else None

"""Which share of the tokens is to be synthetic, as a function of the tokens since the first snapshot.

constant   `mix.synthetic_share`
ramp       linear from `mix.initial_share` to `mix.synthetic_share` over `mix.ramp_tokens`
steps      `mix.steps`
epochs     linear in the real epochs, from `mix.initial_share` at none to `mix.synthetic_share` at `mix.ramp_epochs`:
           the more often real text has been repeated, the less of it. Real text is then read at the rate

               dr/dt = 1 - extra - initial - slope * r,   slope = (synthetic - initial) / (ramp_epochs * epoch_tokens)

           which has a closed solution, so this schedule, too, is known beforehand: a mix that keeps to it has read r(t)
           real tokens. Real text that stands in for late synthetic documents is owed, and does not change it.

With any of them the last `mix.final_real_tokens` of the run have no synthetic text: real text puts right a part of
what the synthesizer gets wrong, while the learning rate is low.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from streaming_sbp import config


@dataclass(frozen=True)
class Schedule:
    """``extra_share``: of further sources, constant. ``epoch_tokens``: real text once, for schedule "epochs"."""

    mix: config.Mix
    extra_share: float = 0.0
    epoch_tokens: float = math.inf
    real_tokens: float = 0.0  # mixed before the schedule began
    end_tokens: float = math.inf  # after the start: from here on the share is 0

    def starting_at(self, real_tokens: float, end_tokens: float) -> Schedule:
        return replace(self, real_tokens=real_tokens, end_tokens=end_tokens)

    def share(self, tokens: float) -> float:
        """Asked for ``tokens`` after the start."""
        mix = self.mix
        if tokens >= self.end_tokens:
            return 0.0
        if mix.schedule == "ramp" and tokens < mix.ramp_tokens:
            return mix.initial_share + (mix.synthetic_share - mix.initial_share) * tokens / mix.ramp_tokens
        if mix.schedule == "steps":
            return next((step.share for step in reversed(mix.steps) if step.tokens <= tokens), 0.0)
        if mix.schedule == "epochs" and tokens < self._full_from:
            return mix.initial_share + self._slope * self._real(tokens)
        return mix.synthetic_share

    def tokens(self, begin: float, end: float) -> float:
        """The integral of `share` from ``begin`` to ``end`` tokens after the start."""
        mix = self.mix
        begin, end = min(begin, self.end_tokens), min(end, self.end_tokens)
        if mix.schedule == "ramp" and begin < mix.ramp_tokens:
            top = min(end, mix.ramp_tokens)
            middle = self.share((begin + top) / 2)
            return middle * (top - begin) + mix.synthetic_share * (end - top)
        if mix.schedule == "steps":
            bounds = [*(step.tokens for step in mix.steps), max(end, mix.steps[-1].tokens)]
            return sum(
                step.share * max(0.0, min(end, bounds[i + 1]) - max(begin, bounds[i]))
                for i, step in enumerate(mix.steps)
            )
        if mix.schedule == "epochs" and begin < self._full_from:
            top = min(end, self._full_from)
            read = self._real(top) - self._real(begin)
            return (1.0 - self.extra_share) * (top - begin) - read + mix.synthetic_share * (end - top)
        return mix.synthetic_share * (end - begin)

    def is_steady(self, tokens: float) -> bool:
        """Whether the share stays as it is from here on."""
        mix = self.mix
        if not math.isinf(self.end_tokens):
            return tokens >= self.end_tokens
        if mix.schedule == "epochs":
            return tokens >= self._full_from
        return mix.schedule == "constant" or (mix.schedule == "ramp" and tokens >= mix.ramp_tokens)

    @cached_property
    def _slope(self) -> float:
        """Share per real token."""
        return (self.mix.synthetic_share - self.mix.initial_share) / (self.mix.ramp_epochs * self.epoch_tokens)

    @cached_property
    def _speed(self) -> float:
        """Real tokens per token, at the start."""
        return 1.0 - self.extra_share - self.mix.initial_share - self._slope * self.real_tokens

    def _real(self, tokens: float) -> float:
        """r(t) of the module's docstring, before the share is full; exact for a slope near 0, too."""
        x = self._slope * tokens
        return self.real_tokens + self._speed * tokens * (-math.expm1(-x) / x if x else 1.0)

    @cached_property
    def _full_from(self) -> float:
        """Tokens after the start at which real text has been read `mix.ramp_epochs` times; infinite if it never is."""
        left = self.mix.ramp_epochs * self.epoch_tokens - self.real_tokens
        if left <= 0:
            return 0.0
        if self._speed <= 0 or math.isinf(left):
            return math.inf
        x = left * self._slope / self._speed
        if x >= 1.0:
            return math.inf
        return left / self._speed * (-math.log1p(-x) / x if x else 1.0)

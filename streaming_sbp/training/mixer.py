"""Which source gives the next document: the one that would be the first to fall a whole document behind its share.

The contract (unit: tokens): ``|mixed - scheduled| <= one document``, the longest so far, for each source, at every
prefix, for any number of sources, lengths that nobody knows beforehand, and any schedule.

The rule. ``deficit = scheduled - mixed``, so deficits sum to 0, and M is the longest document so far. A source with a
negative deficit is not asked (a document of n tokens then leaves a deficit of at least -n). Of the others, the one
whose deficit would reach M first, if it were not served, is asked. To take the largest deficit instead is the same
with two sources; with three or more it is the cup game, and up to 1.46 documents off (`benchmarks/mixing.py`).
Earliest deadline among those that are due: Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980);
for documents of any length, Bennett and Zhang, WF2Q: worst-case fair weighted fair queueing, INFOCOM 1996.

Why it holds without knowing lengths. Let S_i(h) be what source i is scheduled in the next h tokens, and D(h) the
sources with deficit_i + S_i(h) >= M. Then, always, the sum over D(h) of deficit_i + S_i(h) is at most h + M, for every
h >= 0; at h = 0 it says that no deficit exceeds M. It is true at the start. Take a document of n tokens from j, with
M' = max(M, n), and compare h + n before with h after; D only shrinks when M grows. If deficit_j + S_j(h + n) >= M',
the sum falls by at least n. If it is below M' but at least M, then j leaves D with M or more of a sum that was at most
h + n + M, so h + n <= h + M' is left. If it is below M, then j was not due by h + n, so neither was any that could be
asked; the rest have negative deficits, and their sum is at most h + n.

When it is the turn of the synthetic source and it has no document, ``starvation_policy`` decides. ``wait``: nothing is
taken. ``real_only``: a real document stands in for a synthetic one. It is booked in the place of it, so the deficits go
on as if nothing had happened, and its tokens are owed (``debt_tokens``): paid back by scheduling synthetic text at up
to ``catch_up_share`` while there is some, and written off above ``forgive_tokens``. At every moment
``scheduled = mixed + debt + forgiven + deficit`` for the synthetic source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streaming_sbp import config
from streaming_sbp.training.schedule import Schedule

REAL, SYNTHETIC, PAIRS = "real", "synthetic", "pairs"


@dataclass(frozen=True)
class Choice:
    """The source of the next document, and whose turn it was."""

    source: str
    turn: str  # differs from ``source`` when a real document stands in for a late synthetic one
    repaying: bool = False  # synthetic text is scheduled above its share for this document


class Mixer:
    """Call ``choose``, then ``add`` with the length of the document that was taken.

    ``extra_shares``: further sources beside real and synthetic text, each with a constant share; real text gets what
    is left. ``epoch_tokens``: all real text once, for a schedule that follows the real epochs. ``total_tokens``: of the
    run, for `mix.final_real_tokens`. Only the synthetic source may be late. Raises ValueError when the shares exceed 1.
    """

    def __init__(
        self,
        mix: config.Mix,
        extra_shares: Mapping[str, float] | None = None,
        epoch_tokens: float = math.inf,
        total_tokens: float = math.inf,
    ):
        self._mix = mix
        self._last_synthetic = total_tokens - mix.final_real_tokens if mix.final_real_tokens else math.inf
        self._extra_shares = dict(extra_shares or {})
        _check_shares(mix, self._extra_shares)
        self._schedule = Schedule(mix, sum(self._extra_shares.values()), epoch_tokens)
        names = (REAL, SYNTHETIC, *self._extra_shares)
        self.mixed_tokens = dict.fromkeys(names, 0)
        self.deficit_tokens = dict.fromkeys(names, 0.0)
        self.longest_tokens = 0  # of all documents so far: the bound of every deficit
        self.scheduled_tokens = 0.0  # synthetic tokens that the schedule asked for
        self.owed_tokens = 0.0  # stood in for since the start: owed = repaid + forgiven + debt
        self.repaid_tokens = 0.0
        self.forgiven_tokens = 0.0
        self.debt_tokens = 0.0
        self.starved_documents = 0  # real documents that stood in for synthetic ones
        self.started_at: dict[str, int] | None = None  # mixed tokens when the first snapshot appeared
        self.tokens_since_start = 0

    def start(self) -> None:
        """The first snapshot is there: the schedule begins."""
        if self.started_at is None:
            self._begin(self.mixed_tokens)

    @property
    def current_share(self) -> float:
        """What the schedule asks for now; 0 before the first snapshot."""
        return 0.0 if self.started_at is None else self._schedule.share(self.tokens_since_start)

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

    @property
    def scheduled_shares(self) -> dict[str, float]:
        """Of each source, over the tokens mixed since the schedule began; compare `realised_shares`."""
        shares = {SYNTHETIC: self.scheduled_share, **self._extra_shares}
        return {REAL: 1.0 - sum(shares.values()), **shares}

    @property
    def realised_shares(self) -> dict[str, float]:
        """Of each source, over the tokens mixed since the schedule began; before that, over all tokens."""
        before = self.started_at or dict.fromkeys(self.mixed_tokens, 0)
        since = {name: tokens - before[name] for name, tokens in self.mixed_tokens.items()}
        total = sum(since.values())
        return {name: tokens / total if total else 0.0 for name, tokens in since.items()}

    def choose(self, has_document: Mapping[str, bool]) -> Choice | None:
        """The next source, or None when the policy is to wait. Raises ValueError when any but synthetic has run out."""
        repaying = self.debt_tokens > 0 and has_document[SYNTHETIC] and self.current_share > 0
        turn = self._next_in_turn(repaying)
        late = turn == SYNTHETIC and not has_document[SYNTHETIC]
        if late and self._mix.starvation_policy == "wait":
            return None
        source = REAL if late else turn
        if not has_document[source]:
            raise ValueError(f"the {source} source has no document; its documents repeat, so it must never run out")
        return Choice(source, turn, repaying)

    def add(self, choice: Choice, num_tokens: int) -> None:
        """Book a document of ``num_tokens`` tokens that pass through the model."""
        plain = self._synthetic_tokens(num_tokens, repaying=False)
        repaid = self._synthetic_tokens(num_tokens, choice.repaying) - plain
        owed = num_tokens if choice.source != choice.turn else 0
        for name in self.deficit_tokens:
            self.deficit_tokens[name] += self._tokens_ahead(name, num_tokens, choice.repaying)
        self.deficit_tokens[choice.turn] -= num_tokens
        self.mixed_tokens[choice.source] += num_tokens
        self.longest_tokens = max(self.longest_tokens, num_tokens)
        self.scheduled_tokens += plain
        self.tokens_since_start += num_tokens if self.started_at is not None else 0
        self._book_debt(owed, repaid)

    def state_dict(self) -> dict[str, Any]:
        return {
            "mixed_tokens": dict(self.mixed_tokens),
            "deficit_tokens": dict(self.deficit_tokens),
            "longest_tokens": self.longest_tokens,
            "scheduled_tokens": self.scheduled_tokens,
            "owed_tokens": self.owed_tokens,
            "repaid_tokens": self.repaid_tokens,
            "forgiven_tokens": self.forgiven_tokens,
            "debt_tokens": self.debt_tokens,
            "starved_documents": self.starved_documents,
            "started_at": self.started_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a state with other sources."""
        if set(state["mixed_tokens"]) != set(self.mixed_tokens):
            raise ValueError(
                f"mixer state: got sources {sorted(state['mixed_tokens'])}, expected {sorted(self.mixed_tokens)}"
            )
        self.mixed_tokens = dict(state["mixed_tokens"])
        self.deficit_tokens = dict(state["deficit_tokens"])
        self.longest_tokens = state["longest_tokens"]
        self.scheduled_tokens = state["scheduled_tokens"]
        self.owed_tokens = state["owed_tokens"]
        self.repaid_tokens = state["repaid_tokens"]
        self.forgiven_tokens = state["forgiven_tokens"]
        self.debt_tokens = state["debt_tokens"]
        self.starved_documents = state["starved_documents"]
        self.started_at, self.tokens_since_start = None, 0
        if state["started_at"] is not None:
            self._begin(state["started_at"])

    def _begin(self, started_at: Mapping[str, int]) -> None:
        """The schedule began when this had been mixed."""
        self.started_at = dict(started_at)
        before = sum(started_at.values())
        self.tokens_since_start = sum(self.mixed_tokens.values()) - before
        self._schedule = self._schedule.starting_at(started_at[REAL], self._last_synthetic - before)

    def _next_in_turn(self, repaying: bool) -> str:
        """The rule of the module's docstring; ties go to the larger deficit, then to the larger share."""
        due = [name for name, deficit in self.deficit_tokens.items() if deficit >= 0]
        if not due:  # rounding: deficits sum to 0, so one is never below it by more than that
            return max(self.deficit_tokens, key=lambda name: self.deficit_tokens[name])
        if len(due) == 1:
            return due[0]
        return min(
            due,
            key=lambda name: (
                self._tokens_until_behind(name, repaying),
                -self.deficit_tokens[name],
                -self._tokens_ahead(name, 1, repaying),
            ),
        )

    def _tokens_until_behind(self, name: str, repaying: bool) -> float:
        """How many tokens can be mixed from other sources before this one is a whole document behind."""
        missing = self.longest_tokens - self.deficit_tokens[name]
        if missing <= 0:
            return 0.0
        if self._is_steady() and not repaying:
            share = self._tokens_ahead(name, 1, repaying)
            return missing / share if share > 0 else math.inf
        low, high = 0.0, float(missing)
        while self._tokens_ahead(name, high, repaying) < missing:
            low, high = high, 2 * high
            if high > _FAR_AHEAD * missing:
                return math.inf
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._tokens_ahead(name, middle, repaying) >= missing else (middle, high)
        return high

    def _is_steady(self) -> bool:
        """Whether the shares stay as they are."""
        return self.started_at is None or self._schedule.is_steady(self.tokens_since_start)

    def _tokens_ahead(self, name: str, num_tokens: float, repaying: bool) -> float:
        """What this source is scheduled in the next ``num_tokens`` tokens."""
        if name in self._extra_shares:
            return self._extra_shares[name] * num_tokens
        synthetic = self._synthetic_tokens(num_tokens, repaying)
        if name == SYNTHETIC:
            return synthetic
        return num_tokens - synthetic - sum(self._extra_shares.values()) * num_tokens

    def _synthetic_tokens(self, num_tokens: float, repaying: bool) -> float:
        if self.started_at is None:
            return 0.0
        begin = self.tokens_since_start
        plain = self._schedule.tokens(begin, begin + num_tokens)
        if not repaying:
            return plain
        catch_up_share = min(self._mix.catch_up_share, 1.0 - sum(self._extra_shares.values()))
        return max(plain, min(plain + self.debt_tokens, catch_up_share * num_tokens))

    def _book_debt(self, owed: float, repaid: float) -> None:
        debt = max(self.debt_tokens + owed - repaid, 0.0)
        self.debt_tokens = min(debt, float(self._mix.forgive_tokens))
        self.owed_tokens += owed
        self.repaid_tokens += repaid
        self.forgiven_tokens += debt - self.debt_tokens
        self.starved_documents += owed > 0


_FAR_AHEAD = 2.0**40  # a share below 1 in 10^12 is none
_BISECTIONS = 60


def _check_shares(mix: config.Mix, extra_shares: Mapping[str, float]) -> None:
    if reserved := {REAL, SYNTHETIC} & set(extra_shares):
        raise ValueError(f"extra shares: got one for {sorted(reserved)}, whose shares are those of the schedule")
    total = mix.largest_synthetic_share + sum(extra_shares.values())
    if min(extra_shares.values(), default=0.0) < 0 or total > 1.0 + 1e-9:
        raise ValueError(
            f"shares of {sorted(extra_shares)} and synthetic text: got {dict(extra_shares)} and up to "
            f"{mix.largest_synthetic_share}, expected a sum of at most 1; lower mix.synthetic_share"
        )

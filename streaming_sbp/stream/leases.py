"""Which generator seeds which documents: leases of one shared order, for both ends. No I/O.

Seeds are positions 0, 1, 2, ... of an order that everybody computes alike (`synthesizer.seeds.SeedOrder`). The trainer
grants ranges of it; a generator reports what it still holds, that is, what it has neither sent nor filtered. What a
generator held when it left, died or fell silent is granted again, before anything new.

A position is never in two places at once (granted or held, given back, completed), with these exceptions:
1. A generator that dies after completing a seed and before saying so: that seed is granted again.
2. One that was only cut off: what it holds may be somebody else's by the time it is back, and then is used twice.
3. After a crash the trainer knows the leases of its checkpoint, what generators that come back hold, and the
   positions in the journal. Later leases of generators that died as well are lost, or granted again. It grants nothing
   for `stream.dead_after_s`, so that who lives can speak first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streaming_sbp.stream.messages import MAX_GRANTS, MAX_HELD_SEEDS, SeedGrant, SeedReport

MAX_AHEAD = 2**24  # positions beyond what was granted that a generator may claim to hold: after a crash of the trainer
Ranges = list[tuple[int, int]]  # (first, end), ascending, not adjacent


def ranges_of(positions: Iterable[int]) -> Ranges:
    found: Ranges = []
    for position in sorted(positions):
        if found and found[-1][1] == position:
            found[-1] = (found[-1][0], position + 1)
        else:
            found.append((position, position + 1))
    return found


def positions_of(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {position for first, end in ranges for position in range(first, end)}


class HeldSeeds:
    """The generator's end: what it may use, and what it is at work on."""

    def __init__(self, want: int = 0):
        self.want = min(want, MAX_HELD_SEEDS)
        self._free: deque[int] = deque()
        self._taken: set[int] = set()
        self._last_grant = self._num_reports = self._introduced = 0

    def __len__(self) -> int:
        """How many can be taken."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Up to ``count`` positions, each to be given to `done` or to `put_back`."""
        found = [self._free.popleft() for _ in range(min(count, len(self._free)))]
        self._taken.update(found)
        return found

    def done(self, position: int) -> None:
        """Its document was sent, or filtered."""
        self._taken.discard(position)

    def put_back(self, positions: Iterable[int]) -> None:
        """Their sampling was given up: they are the next to be taken."""
        for position in sorted(positions, reverse=True):
            self._taken.discard(position)
            self._free.appendleft(position)

    def report(self, introduction: bool = False) -> SeedReport:
        self._num_reports += 1
        if introduction:
            self._introduced = self._num_reports
        held = tuple(ranges_of({*self._free, *self._taken}))
        return SeedReport(self._num_reports, self._last_grant, self.want, held, self._introduced)

    def receive(self, introduced: int, grants: Iterable[SeedGrant]) -> None:
        """Only grants that answer the last introduction count: others may be of a trainer that is no more."""
        if introduced != self._introduced:
            return
        for grant in sorted(grants, key=lambda g: g.number):
            if grant.number > self._last_grant and grant.first < grant.end <= grant.first + MAX_HELD_SEEDS:
                self._last_grant = grant.number
                self._free.extend(range(grant.first, grant.end))


@dataclass
class Lease:
    """What the trainer knows of one generator process."""

    held: set[int] = field(default_factory=set)  # as it last reported
    grants: list[SeedGrant] = field(default_factory=list)  # since then
    want: int = 0
    last_report: int = 0
    introduced: int = 0  # number of the report in its last Hello
    last_grant: int = 0
    gave_back: tuple[Ranges, list[SeedGrant]] = field(default_factory=lambda: ([], []))  # when it was taken for dead

    def positions(self) -> set[int]:
        return self.held | positions_of((grant.first, grant.end) for grant in self.grants)

    def __len__(self) -> int:
        return len(self.held) + sum(grant.end - grant.first for grant in self.grants)


class SeedPool:
    """The trainer's end: every position below ``next`` is held by somebody, given back, or completed."""

    def __init__(self) -> None:
        self.next = 0
        self.returned: set[int] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next, "returned": ranges_of(self.returned)}

    def restore(self, state: Mapping[str, Any], in_journal: set[int]) -> None:
        """``in_journal``: positions whose documents were accepted, at least those since the state was taken."""
        self.next = max(state.get("next", 0), max(in_journal, default=-1) + 1)
        self.returned = positions_of(state.get("returned", ())) - in_journal

    def hear(self, lease: Lease, report: SeedReport, introduction: bool) -> None:
        """A report of this generator; an older one than the last is ignored."""
        if report.number <= lease.last_report:
            return
        size = sum(end - first for first, end in report.held)
        if any(not first < end <= self.next + MAX_AHEAD for first, end in report.held) or size > MAX_HELD_SEEDS:
            return
        held = positions_of(report.held)
        unheard = [grant for grant in lease.grants if grant.number > report.last_grant]
        lease.last_report, lease.want = report.number, report.want
        if introduction:
            self._take_up(lease, report.last_grant)
            self.returned |= positions_of((grant.first, grant.end) for grant in unheard)
            lease.introduced, unheard = report.number, []
            lease.last_grant = max(lease.last_grant, report.last_grant)
        lease.held, lease.grants = held, unheard
        self.returned -= held
        self.next = max(self.next, max(held, default=-1) + 1)

    def end(self, lease: Lease) -> None:
        """The generator is no more: what it held goes to others."""
        if len(lease):
            self.returned |= lease.positions()
            lease.gave_back = (ranges_of(lease.held), lease.grants)
            lease.held, lease.grants = set(), []

    def _take_up(self, lease: Lease, last_grant: int) -> None:
        """It was not dead: what it does not report as held it has completed."""
        held, grants = lease.gave_back
        received = [(grant.first, grant.end) for grant in grants if grant.number <= last_grant]
        self.returned -= positions_of([*held, *received])
        lease.gave_back = ([], [])

    def grant(self, lease: Lease) -> bool:
        """Bring a generator with less than half of what it wants up to that. Returns whether it got anything."""
        missing = lease.want - len(lease)
        if 2 * missing < lease.want or missing <= 0 or len(lease.grants) >= MAX_GRANTS:
            return False
        again = ranges_of(sorted(self.returned)[:missing])[: MAX_GRANTS - len(lease.grants) - 1]
        self.returned -= positions_of(again)
        missing -= sum(end - first for first, end in again)
        if missing and not self.returned:
            again.append((self.next, self.next + missing))
            self.next += missing
        for first, end in again:
            lease.last_grant += 1
            lease.grants.append(SeedGrant(lease.last_grant, first, end))
        return True

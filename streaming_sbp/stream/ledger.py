"""The conservation ledger: ``sent = trained + buffered + dropped + in_flight``, per generator and in total.

``sent``, ``dropped`` and ``in_flight`` come from the protocol; ``trained`` and ``buffered`` are counted apart, on the
training side, so ``imbalance``, the difference, is a real check. Unit: documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SessionLedger:
    """One generator process, as the receiver knows it."""

    generator: str
    session: str
    sent: int  # handed to the stream, as far as the trainer has heard
    accepted: int  # in the journal
    dropped: Mapping[str, int] = field(default_factory=dict)  # by reason
    alive: bool = False

    @property
    def in_flight(self) -> int:
        """Sent, and neither in the journal nor dropped. A session that ended has none: what it left is lost."""
        return self.sent - self.accepted - sum(self.dropped.values())


@dataclass(frozen=True)
class _Account:
    sent: int
    trained: int
    buffered: int
    in_flight: int
    dropped: Counter[str]

    def terms(self) -> dict[str, int]:
        dropped = self.dropped.total()
        return {
            "sent": self.sent,
            "trained": self.trained,
            "buffered": self.buffered,
            "in_flight": self.in_flight,
            "dropped": dropped,
            "imbalance": self.sent - self.trained - self.buffered - self.in_flight - dropped,
        }


_NO_DOCUMENTS = _Account(0, 0, 0, 0, Counter())


class Ledger:
    def __init__(self, accounts: dict[str, _Account]):
        self._accounts = accounts

    def terms(self) -> dict[str, int]:
        """See `telemetry.catalogue.LEDGER_TERMS`."""
        return {
            name: sum(account.terms()[name] for account in self._accounts.values()) for name in _NO_DOCUMENTS.terms()
        }

    def dropped_by_reason(self) -> dict[str, int]:
        return dict(sum((account.dropped for account in self._accounts.values()), Counter()))

    def by_generator(self) -> dict[str, dict[str, int]]:
        return {name: account.terms() for name, account in sorted(self._accounts.items())}


def balance(
    sessions: Iterable[SessionLedger],
    trained: Mapping[str, int],
    buffered: Mapping[str, int],
    dropped: Mapping[str, Mapping[str, int]],
) -> Ledger:
    """``trained``, ``buffered`` are documents by generator, ``dropped`` (on the training side) by reason and generator.

    A document whose place in the journal is so damaged that nobody knows its generator stands under "unknown": the
    total balances, that generator's own line does not.
    """
    by_generator: dict[str, list[SessionLedger]] = {}
    for session in sessions:
        by_generator.setdefault(session.generator, []).append(session)
    names = (
        by_generator.keys() | trained.keys() | buffered.keys() | {name for found in dropped.values() for name in found}
    )
    return Ledger(
        {
            name: _Account(
                sent=sum(s.sent for s in by_generator.get(name, ())),
                trained=trained.get(name, 0),
                buffered=buffered.get(name, 0),
                in_flight=sum(s.in_flight for s in by_generator.get(name, ())),
                dropped=sum(
                    (Counter(s.dropped) for s in by_generator.get(name, ())),
                    Counter({reason: found.get(name, 0) for reason, found in dropped.items()}),
                ),
            )
            for name in names
        }
    )

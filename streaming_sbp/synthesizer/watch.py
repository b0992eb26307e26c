"""Looks at a few of the documents that arrive, and at the held-out loss after a swap, and goes back when told to.

For the trainer. Each look reads at most `DOCUMENTS_A_LOOK` documents of the journal, about a millisecond each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from streaming_sbp import config
from streaming_sbp.stream.journal import Journal
from streaming_sbp.synthesizer import monitor, pointer
from streaming_sbp.synthesizer.pointer import Pointer, PointerError
from streaming_sbp.synthesizer.quality import SentDocument, value_of
from streaming_sbp.synthesizer.reference import Reference
from streaming_sbp.synthesizer.snapshots import SnapshotError, SnapshotInfo, SnapshotStore, SnapshotStoreUnavailable
from streaming_sbp.telemetry.records import Record

DOCUMENTS_A_LOOK = 16
ASK_AGAIN_AFTER_S = 30.0  # a store that was away
BY = "trainer"
HELDOUT = "heldout_loss"


@dataclass(frozen=True)
class Finding:
    """Something is wrong with a snapshot. ``action``: reported, rolled_back, or why that could not be done."""

    snapshot: str
    reasons: dict[str, str]  # by measure: SENT_MEASURES or heldout_loss
    action: str


@dataclass
class _Swap:
    snapshot: str
    before: list[float]
    after: list[float] = field(default_factory=list)


class SyntheticWatch:
    """``reference``: gives what documents are compared with, or None as long as the tuner has not made it.

    Attribute ``measures``: of the newest snapshot heard of, by measure; empty at first.
    """

    def __init__(
        self,
        gate: config.Gate,
        journal: Journal,
        store: SnapshotStore,
        reference: Callable[[], Reference | None],
    ):
        self._gate, self._journal, self._store = gate, journal, store
        self._make_reference = reference
        self._reference: Reference | None = None
        self._next = len(journal)  # position
        self._windows = monitor.Windows()
        self._ask_at = 0.0
        self._infos: dict[str, SnapshotInfo] = {}
        self._found: set[tuple[str, str]] = set()  # (snapshot, measure) that was reported
        self._losses: list[float] = []
        self._swap: _Swap | None = None
        self.measures: dict[str, float] = {}

    def look(self) -> Finding | None:
        """At some of what has arrived since the last look."""
        self._reference = self._reference or self._make_reference()
        if self._reference is None:
            return None
        self._read(self._reference)
        snapshot = self._windows.newest
        info = self._info(snapshot) if snapshot else None
        if info is None:
            return None
        sent = self._windows.measure(info.digest, int(info.measures.get("sent_documents", 0)))
        self.measures = sent.means
        return self._judge(info.digest, monitor.drifts(sent, info.measures, self._gate.max_drift))

    def recall(self, records: Iterable[Record], tokens: int) -> None:
        """What an earlier process of the trainer recorded of evaluations and swaps, up to ``tokens`` trained."""
        for record in records:
            if record.get("tokens", 0) > tokens:
                continue
            if record["event"] == "first_trained":
                self.first_trained(record["snapshot"])
            elif record["event"] == "eval":
                self._note(record["heldout_loss"])

    def first_trained(self, snapshot: str) -> None:
        """A document of this snapshot was trained for the first time."""
        self._swap = _Swap(snapshot, list(self._losses))

    def evaluated(self, heldout_loss: float) -> Finding | None:
        self._note(heldout_loss)
        if self._swap is None:
            return None
        reason = monitor.worsened(self._swap.before, self._swap.after)
        return self._judge(self._swap.snapshot, {HELDOUT: reason} if reason else {})

    def _note(self, heldout_loss: float) -> None:
        self._losses = [*self._losses[-monitor.BEFORE :], heldout_loss]
        if self._swap:
            self._swap.after.append(heldout_loss)

    def _read(self, reference: Reference) -> None:
        length = len(self._journal)
        count = min(DOCUMENTS_A_LOOK, length - self._next)
        for position in np.linspace(self._next, length - 1, max(count, 0), dtype=np.int64).tolist():
            try:
                header, tokens = self._journal.entry(position).header, self._journal.tokens(position)
            except ValueError:
                continue  # damaged: the trainer counts it
            seed = reference.seed(header.seed_id)
            if seed is not None and header.depth == 1:  # the gate's trial has real seed documents, and no others
                self._windows.add(
                    header.snapshot, value_of(SentDocument(tokens, seed, header.log_likelihood), reference)
                )
        self._next = length

    def _info(self, digest: str) -> SnapshotInfo | None:
        if digest not in self._infos and time.monotonic() >= self._ask_at:
            try:
                info = self._store.info(digest)
            except SnapshotStoreUnavailable:
                info, self._ask_at = None, time.monotonic() + ASK_AGAIN_AFTER_S
            if info:
                self._infos[digest] = info
        return self._infos.get(digest)

    def _judge(self, snapshot: str, reasons: dict[str, str]) -> Finding | None:
        """What is new among the reasons; each is said once for a snapshot."""
        new = {measure: reason for measure, reason in reasons.items() if (snapshot, measure) not in self._found}
        if not new:
            return None
        self._found |= {(snapshot, measure) for measure in new}
        action = self._roll_back(snapshot, "; ".join(new.values())) if self._gate.on_drift == "rollback" else "reported"
        return Finding(snapshot, new, action)

    def _roll_back(self, snapshot: str, reason: str) -> str:
        """Only from what serves now, and never from what a person pinned."""

        def rule(now: Pointer, infos: list[SnapshotInfo]) -> Pointer:
            if now.pinned or now.digest != snapshot:
                return now
            return pointer.rolled_back(now, infos)

        try:
            after = self._store.change(BY, reason, rule)
        except (PointerError, SnapshotError) as error:
            return str(error)
        if after.digest == snapshot:
            return "not rolled back: it is pinned"
        return "rolled_back" if snapshot in after.bad else "not rolled back: another one serves"

"""Which snapshot serves, asked again and again in a thread of its own: a store that answers late, or not at all, delays
nobody."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from streaming_sbp.synthesizer.pointer import Pointer
from streaming_sbp.synthesizer.snapshots import SnapshotInfo, SnapshotStore, SnapshotStoreUnavailable


@dataclass(frozen=True)
class Answer:
    """``serving`` is None when there is none, or it is damaged. With a ``problem``, the rest is of the last answer."""

    pointer: Pointer
    serving: SnapshotInfo | None = None
    problem: str = ""  # why the store cannot be read


class SnapshotPoller:
    def __init__(self, store: SnapshotStore, every_s: float):
        self._store, self._every_s = store, every_s
        self._newest: Answer | None = None
        self._error: Exception | None = None
        self._answered, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshot-poller", daemon=True)

    def start(self, wait_s: float) -> None:
        """Returns with the first answer, or after ``wait_s``."""
        self._thread.start()
        self._answered.wait(wait_s)

    def stop(self) -> None:
        """Without waiting for an answer that is under way."""
        self._stopping.set()

    def newest(self) -> Answer | None:
        """Another object after each answer; None before the first. Raises what ended the thread."""
        if self._error is not None:
            raise self._error
        return self._newest

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._newest = self._ask(self._newest or Answer(Pointer()))
                self._answered.set()
                self._stopping.wait(self._every_s)
        except Exception as error:
            self._error = error

    def _ask(self, before: Answer) -> Answer:
        try:
            pointer = self._store.pointer()
            return Answer(pointer, self._store.info(pointer.digest) if pointer.digest else None)
        except SnapshotStoreUnavailable as error:
            return replace(before, problem=str(error))

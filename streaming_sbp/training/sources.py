"""Where documents come from: a source numbers its documents 0, 1, 2, ... in the order in which they are trained.

A position names a document for good, so a cursor is one integer, and a document can be read again after a resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from streaming_sbp.data.dataset import Split
from streaming_sbp.stream.journal import Journal


class Source(Protocol):
    cursor: int  # position of the next document

    def has_document(self) -> bool: ...

    @property
    def epochs(self) -> float:
        """How often its documents have been read; below 1 for documents that are read once."""
        ...

    def look_again(self) -> bool:
        """`has_document`, after a look at what another process has added."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def num_tokens(self, position: int) -> int:
        """Length of the training sequence, <bos> and <eos> included."""
        ...

    def tokens(self, position: int) -> np.ndarray:
        """The training sequence ``<bos> document <eos>``, int64."""
        ...


class RealSource:
    """The real documents, reshuffled each epoch: position ``epoch * len + i`` is the i-th of that epoch's order.

    The order depends only on (seed, epoch).
    """

    def __init__(self, split: Split, bos_id: int, eos_id: int, seed: int):
        if len(split) == 0:
            raise ValueError("the training split holds no document; ingest more text or lower data.heldout_share")
        self._split, self._bos_id, self._eos_id, self._seed = split, bos_id, eos_id, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)
        self.cursor = 0

    @property
    def epochs(self) -> float:
        return self.cursor / len(self._split)

    def has_document(self) -> bool:
        return True

    def look_again(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]

    def next_epoch(self, position: int) -> int:
        """The first position of the epoch after that of ``position``; ``position`` itself at the start of one."""
        return -(-position // len(self._split)) * len(self._split)

    def document(self, position: int) -> int:
        """Index into the training split."""
        epoch, offset = divmod(position, len(self._split))
        return int(self._order(epoch)[offset])

    def num_tokens(self, position: int) -> int:
        return int(self._split.num_tokens[self.document(position)]) + 2

    def tokens(self, position: int) -> np.ndarray:
        return framed(self._split.tokens(self.document(position)), self._bos_id, self._eos_id)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._split))


class SyntheticSource:
    """The journal's documents, each once, in the order in which they were accepted."""

    def __init__(self, journal: Journal, bos_id: int, eos_id: int):
        self._journal, self._bos_id, self._eos_id = journal, bos_id, eos_id
        self.cursor = 0
        self.damaged: Counter[str] = Counter()  # documents passed over, by generator
        self._intact = -1  # a position known to be intact

    @property
    def epochs(self) -> float:
        return self.cursor / max(len(self._journal), 1)

    def has_document(self) -> bool:
        """Passes over damaged documents, and counts them."""
        while self.cursor < len(self._journal):
            if self.cursor == self._intact or self._journal.is_intact(self.cursor):
                self._intact = self.cursor
                return True
            self.damaged[self._journal.generator_of(self.cursor)] += 1
            self.cursor += 1
        return False

    def look_again(self) -> bool:
        """Whether there is a document now, after a look at what another process has appended."""
        self._journal.look_again()
        return self.has_document()

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "damaged": dict(self.damaged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor, self.damaged, self._intact = state["cursor"], Counter(state["damaged"]), -1

    def num_tokens(self, position: int) -> int:
        return self._journal.entry(position).header.num_tokens + 2

    def tokens(self, position: int) -> np.ndarray:
        return framed(self._journal.tokens(position), self._bos_id, self._eos_id)


def framed(tokens: Sequence[int] | np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
    """``<bos> tokens <eos>`` as int64."""
    sequence = np.empty(len(tokens) + 2, dtype=np.int64)
    sequence[0], sequence[1:-1], sequence[-1] = bos_id, tokens, eos_id
    return sequence

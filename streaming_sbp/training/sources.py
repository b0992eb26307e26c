"""Where documents come from: a source numbers its documents 0, 1, 2, ... in the order in which they are trained.

A position names a document for good, so a cursor is one integer, and a document can be read again after a resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from streaming_sbp import config
from streaming_sbp.data.dataset import Split
from streaming_sbp.stream.journal import Journal
from streaming_sbp.synthesizer.prompt import Pairs, PairSequence
from streaming_sbp.training.guesses import TargetWeights
from streaming_sbp.training.packing import NO_GROUP

DAMAGED, ROLLED_BACK = "damaged", "rolled_back"  # of telemetry.catalogue.DROP_REASONS


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

    def pass_over_rejected(self) -> bool:
        """Pass over documents that must not be trained, up to one that may be; whether there were any."""
        ...

    def pass_over_to(self, position: int) -> bool:
        """Pass over the documents before ``position``; False when they are not there."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def first_needed(self, position: int) -> int:
        """The first document that must still be there to train the one at ``position`` as it would be trained now."""
        ...

    def num_tokens(self, position: int) -> int:
        """Length of the training sequence, <bos> and <eos> included."""
        ...

    def target_weights(self, position: int) -> np.ndarray | None:
        """How much each of `tokens` counts as a target, float32, 0 for none; None: all of them fully."""
        ...

    def tokens(self, position: int) -> np.ndarray:
        """The training sequence ``<bos> document <eos>``, int64."""
        ...


class Reshuffled:
    """What repeats: position ``epoch * size + i`` is the i-th of that epoch's order, which depends on (seed, epoch)."""

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)
        self.cursor = 0

    @property
    def epochs(self) -> float:
        return self.cursor / self._size

    def has_document(self) -> bool:
        return True

    def look_again(self) -> bool:
        return True

    def pass_over_rejected(self) -> bool:
        return False

    def pass_over_to(self, position: int) -> bool:
        return False

    def first_needed(self, position: int) -> int:
        return position

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]

    def next_epoch(self, position: int) -> int:
        """The first position of the epoch after that of ``position``; ``position`` itself at the start of one."""
        return -(-position // self._size) * self._size

    def document(self, position: int) -> int:
        """Index of what is repeated: a document of the split, or a pair."""
        epoch, offset = divmod(position, self._size)
        return int(self._order(epoch)[offset])

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._size)


class RealSource(Reshuffled):
    """The real documents. Raises ValueError when there is none."""

    def __init__(self, split: Split, bos_id: int, eos_id: int, seed: int):
        if len(split) == 0:
            raise ValueError("the training split holds no document; ingest more text or lower data.heldout_share")
        super().__init__(len(split), seed)
        self._split, self._bos_id, self._eos_id = split, bos_id, eos_id
        self._places = lru_cache(maxsize=1)(lambda epoch: np.argsort(self._order(epoch)))
        self._num_taken = 0

    @property
    def epochs(self) -> float:
        return (self.cursor + self._num_taken) / self._size

    def take(self, document: int) -> int:
        """A document out of turn: its position in this epoch. It comes in its turn, too."""
        self._num_taken += 1
        begin = self.cursor - self.cursor % self._size
        return begin + int(self._places(begin // self._size)[document])

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "taken": self._num_taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor, self._num_taken = state["cursor"], state.get("taken", 0)

    def num_tokens(self, position: int) -> int:
        return int(self._split.num_tokens[self.document(position)]) + 2

    def tokens(self, position: int) -> np.ndarray:
        return framed(self._split.tokens(self.document(position)), self._bos_id, self._eos_id)

    def target_weights(self, position: int) -> None:
        return None


class PairSource(Reshuffled):
    """Related real documents, ``<bos> d1 <sep> d2 <eos>``; the loss counts d2, or ``both``.

    Raises ValueError when there is none.
    """

    def __init__(self, pairs: Pairs, seed: int, *, both: bool = False):
        if not len(pairs):
            raise ValueError("training pairs: got none; expected at least one, lower pairing.threshold")
        super().__init__(len(pairs), seed)
        self._pairs, self._both = pairs, both

    def pair(self, position: int) -> PairSequence:
        return self._pairs[self.document(position)]

    def num_tokens(self, position: int) -> int:
        return len(self.pair(position).tokens)

    def tokens(self, position: int) -> np.ndarray:
        return self.pair(position).tokens

    def target_weights(self, position: int) -> np.ndarray | None:
        pair = self.pair(position)
        if self._both:
            return None
        return (np.arange(len(pair.tokens)) >= pair.num_prompt_tokens).astype(np.float32)


class SyntheticSource:
    """The journal's documents, each once, in the order in which they were accepted.

    Attributes: ``dropped``, documents passed over, by reason and generator; ``rejected``, the snapshots whose documents
    `pass_over_rejected` passes over; not in the state, for what was passed over is noted (batches.py).
    ``mix.confidence`` says how much a token counts that the synthesizer only guessed (guesses.py). ``real``: the
    training documents, among which seed documents are looked for.
    """

    def __init__(
        self,
        journal: Journal,
        bos_id: int,
        eos_id: int,
        vocab_size: int,
        mix: config.Mix,
        real: Split | None = None,
    ):
        self._journal, self._bos_id, self._eos_id, self._real = journal, bos_id, eos_id, real
        self._target_weights = TargetWeights(journal, mix, vocab_size, self._seed_tokens)
        self.cursor = 0
        self.dropped: dict[str, Counter[str]] = {DAMAGED: Counter(), ROLLED_BACK: Counter()}
        self.rejected: frozenset[str] = frozenset()
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
            self._drop(DAMAGED)
        return False

    def pass_over_rejected(self) -> bool:
        """Whether the next document is another one now."""
        before = self.cursor
        while self.rejected and self.has_document() and self._snapshot() in self.rejected:
            self._drop(ROLLED_BACK)
        return self.cursor > before

    def pass_over_to(self, position: int) -> bool:
        """As it was before: drop all before ``position``; False when the journal does not reach so far."""
        if position > max(len(self._journal), self._journal.look_again()):
            return False
        while self.cursor < position:
            self._drop(ROLLED_BACK if self._journal.is_intact(self.cursor) else DAMAGED)
        return True

    def _snapshot(self) -> str:
        return self._journal.entry(self.cursor).header.snapshot

    def _drop(self, reason: str) -> None:
        self.dropped[reason][self._journal.generator_of(self.cursor)] += 1
        self.cursor += 1

    def look_again(self) -> bool:
        """Whether there is a document now, after a look at what another process has appended."""
        self._journal.look_again()
        return self.has_document()

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "dropped": {reason: dict(found) for reason, found in self.dropped.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor, self._intact = state["cursor"], -1
        self.dropped = {reason: Counter(found) for reason, found in state["dropped"].items()}

    def seed(self, position: int) -> int:
        """Index of the real document at the begin of its line, among ``real``; NO_GROUP: not there."""
        return self._number_of.get(self._journal.entry(position).header.seed_id, NO_GROUP)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        """Of each training document, by its id; made when a seed document is first asked for."""
        return {name: i for i, name in enumerate(self._real.ids)} if self._real else {}

    def _seed_tokens(self, position: int) -> np.ndarray | None:
        index = self.seed(position)
        return None if self._real is None or index == NO_GROUP else self._real.tokens(index)

    def first_needed(self, position: int) -> int:
        return self._target_weights.first_needed(position)

    def num_tokens(self, position: int) -> int:
        return self._journal.entry(position).header.num_tokens + 2

    def tokens(self, position: int) -> np.ndarray:
        return framed(self._journal.tokens(position), self._bos_id, self._eos_id)

    def target_weights(self, position: int) -> np.ndarray | None:
        counts = self._target_weights(position)
        if counts is None:
            return None
        weights = np.ones(len(counts) + 2, dtype=np.float32)  # <eos> is always a target
        weights[1:-1] = counts
        return weights


def framed(tokens: Sequence[int] | np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
    """``<bos> tokens <eos>`` as int64."""
    sequence = np.empty(len(tokens) + 2, dtype=np.int64)
    sequence[0], sequence[1:-1], sequence[-1] = bos_id, tokens, eos_id
    return sequence

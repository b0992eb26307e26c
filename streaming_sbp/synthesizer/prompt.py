"""The one sequence the synthesizer learns and continues: ``<bos> seed <sep> target <eos>``.

Only the control `synthesizer.mode` "unconditional" has no seed: ``<bos> target <eos>``.

Cutting policy for documents that are too long: a seed keeps its first `synthesizer.max_seed_tokens`; a target keeps
its first `synthesizer.max_target_tokens`, and then has no ``<eos>``, so that the synthesizer never learns to end a
document where we cut it. What was cut is on every `PairSequence`, and summed by `PairSequences.cuts`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from streaming_sbp import config
from streaming_sbp.data.dataset import Split
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.pairing.pairs import PairTable


@dataclass(frozen=True)
class PairSequence:
    """``tokens`` int64; the loss counts those from ``num_prompt_tokens`` on."""

    tokens: np.ndarray
    num_prompt_tokens: int  # <bos> seed <sep>
    seed_cut_tokens: int
    target_cut_tokens: int
    seed: int = -1  # its document in the split; -1: of none
    target: int = -1

    @property
    def num_target_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens


@dataclass(frozen=True)
class Cuts:
    """How many of ``num_pairs`` pairs had a document cut, and by how many tokens in all."""

    num_pairs: int
    seeds: int
    targets: int
    seed_tokens: int
    target_tokens: int


class Prompter:
    """Makes prompts and pair sequences from token ids without special tokens."""

    def __init__(self, tokenizer: Tokenizer, synthesizer: config.Synthesizer):
        self._bos, self._eos, self._sep = [tokenizer.bos_id], [tokenizer.eos_id], [tokenizer.sep_id]
        self.max_seed_tokens, self.max_target_tokens = synthesizer.max_seed_tokens, synthesizer.max_target_tokens
        self.longest_pair_tokens = synthesizer.longest_pair_tokens
        self._has_seeds = synthesizer.mode != "unconditional"

    def prompt(self, seed: np.ndarray) -> list[int]:
        """``<bos> seed <sep>``; ``<bos>`` alone where `synthesizer.mode` is "unconditional"."""
        if not self._has_seeds:
            return list(self._bos)
        return self._bos + seed[: self.max_seed_tokens].tolist() + self._sep

    def pair(self, seed: np.ndarray, target: np.ndarray) -> PairSequence:
        prompt = self.prompt(seed)
        target_cut = max(0, len(target) - self.max_target_tokens)
        end = [] if target_cut else self._eos
        tokens = np.array(prompt + target[: self.max_target_tokens].tolist() + end, dtype=np.int64)
        return PairSequence(tokens, len(prompt), max(0, len(seed) - self.max_seed_tokens), target_cut)


class Pairs(Protocol):
    """`PairSequences`, or a list of `PairSequence`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> PairSequence: ...


class PairSequences:
    """The sequences of some pairs, made when asked for. ``seeds`` and ``targets`` index into ``split``."""

    def __init__(self, split: Split, seeds: np.ndarray, targets: np.ndarray, prompter: Prompter):
        self._split, self._seeds, self._targets, self._prompter = split, seeds, targets, prompter

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, i: int) -> PairSequence:
        seed, target = int(self._seeds[i]), int(self._targets[i])
        made = self._prompter.pair(self._split.tokens(seed), self._split.tokens(target))
        return replace(made, seed=seed, target=target)

    def cuts(self) -> Cuts:
        lengths = self._split.num_tokens
        seed_excess = np.maximum(lengths[self._seeds] - self._prompter.max_seed_tokens, 0)
        target_excess = np.maximum(lengths[self._targets] - self._prompter.max_target_tokens, 0)
        return Cuts(
            len(self),
            int((seed_excess > 0).sum()),
            int((target_excess > 0).sum()),
            int(seed_excess.sum()),
            int(target_excess.sum()),
        )


class Mismatched:
    """Each target with the seed document of another pair: what a loss is worth that does not need the seed."""

    def __init__(self, pairs: Pairs):
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> PairSequence:
        own, other = self._pairs[i], self._pairs[(i + max(1, len(self) // 2)) % len(self)]
        prompt, target = other.tokens[: other.num_prompt_tokens], own.tokens[own.num_prompt_tokens :]
        return replace(own, tokens=np.concatenate([prompt, target]), num_prompt_tokens=len(prompt), seed=other.seed)


def training_pairs(table: PairTable, split: Split, prompter: Prompter) -> PairSequences:
    """The pairs that are not held out. ``split``: the training split, which the table's numbers refer to."""
    return PairSequences(split, table.seed[~table.heldout], table.target[~table.heldout], prompter)

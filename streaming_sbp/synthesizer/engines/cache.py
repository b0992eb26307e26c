"""Keys and values of a batch in blocks of columns, and the attention that reads them.

One tensor a layer, ``[blocks, rows, kv heads, BLOCK, head_dim]``: a row is a document, its token at position p is in
block p // BLOCK. Each block is contiguous over all rows. On the CPU, a product with a slice of a longer buffer costs
two to three times one with whole blocks, concatenating at every step copies everything every time, and
``scaled_dot_product_attention`` is made for many query tokens, not one.

The model calls `attend` through transformers' `AttentionInterface`; no mask function is registered under its name, so
transformers makes no mask, and `BlockCache.mask` says which columns each row sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

ATTENTION = "block_cache"
BLOCK = 64  # columns; 32 has more calls, 192 reads more empty columns
HIDDEN = float("-inf")


class Prompts:
    """Packed prompts: where each token is in its prompt, and where each prompt's tokens are.

    ``numbers``, ``positions`` ``[tokens]``: which prompt, and where in it. ``padded`` ``[prompts, longest]``: where the
    tokens of a prompt are; beyond its end any token stands for the padding.
    """

    def __init__(self, lengths: torch.Tensor):
        """``lengths`` ``[prompts]``, each at least 1."""
        starts = lengths.cumsum(0) - lengths
        self.numbers = torch.repeat_interleave(lengths)
        self.positions = torch.arange(len(self.numbers), device=lengths.device) - starts[self.numbers]
        columns = torch.arange(int(lengths.max()), device=lengths.device)
        self.padded = (starts[:, None] + columns).clamp_(max=len(self.numbers) - 1)


class BlockCache:
    """Used in two phases, as often as needed.

    `begin_prefill`: the model then sees packed prompts ``[1, tokens]``; each prompt goes to a row and sees only itself.
    `begin_step`: the model then sees one token of each row ``[rows, 1]``, and ``positions`` says where it goes.
    """

    def __init__(self, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device):
        self.num_rows, self.dtype, self._device = num_rows, dtype, device
        self._num_blocks = -(-num_columns // BLOCK)
        self._columns = torch.arange(self._num_blocks * BLOCK, device=device)
        self._keys: dict[int, torch.Tensor] = {}  # by layer
        self._values: dict[int, torch.Tensor] = {}
        self.num_used = 0  # blocks that hold anything
        self.prompts: Prompts | None = None  # those that are passing; None in a step
        self.mask = torch.empty(0)  # [rows, 1, columns], added to the scores
        self._place: tuple[torch.Tensor, ...] = ()  # block, row, column of each token that is passing

    def begin_prefill(self, spans: Sequence[tuple[int, int, int]]) -> None:
        """``spans``: (row, first, last) of each packed prompt, in their order and without gaps."""
        lengths = torch.tensor([last - first for _, first, last in spans], device=self._device)
        self.prompts = Prompts(lengths)
        self.num_used = max(self.num_used, -(-int(lengths.max()) // BLOCK))
        rows = torch.tensor([row for row, _, _ in spans], device=self._device)
        self._place = (self.prompts.positions // BLOCK, rows[self.prompts.numbers], self.prompts.positions % BLOCK)

    def begin_step(self, positions: torch.Tensor) -> None:
        """``positions`` ``[rows]``: of the token that each row is about to store; it sees itself and what is before."""
        self.prompts = None
        self.num_used = int(positions.max()) // BLOCK + 1
        visible = self._columns[: self.num_used * BLOCK] <= positions[:, None]
        self.mask = torch.where(visible, 0.0, HIDDEN)[:, None]
        rows = torch.arange(self.num_rows, device=self._device)
        self._place = (positions // BLOCK, rows, positions % BLOCK)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all other rows."""
        self.num_rows = len(rows)
        for layers in (self._keys, self._values):
            for layer, old in layers.items():
                layers[layer] = self._empty(old.shape[2], old.shape[4])
                torch.index_select(old[: self.num_used], 1, rows, out=layers[layer][: self.num_used])

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Of the tokens that are passing: ``[1, kv heads, tokens, head_dim]`` or ``[rows, kv heads, 1, head_dim]``."""
        blocks, rows, columns = self._place
        for stored, new in zip(self._layer(layer, keys), (keys, values), strict=True):
            stored[blocks, rows, :, columns] = new.transpose(1, 2).flatten(0, 1).to(self.dtype)

    def read(self, layer: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The used blocks of keys and of values, each ``[rows * kv heads, BLOCK, head_dim]``."""
        keys, values = self._keys[layer], self._values[layer]
        return (
            [keys[i].flatten(0, 1) for i in range(self.num_used)],
            [values[i].flatten(0, 1) for i in range(self.num_used)],
        )

    def _layer(self, layer: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self._keys:
            for layers in (self._keys, self._values):
                layers[layer] = self._empty(like.shape[1], like.shape[3])
        return self._keys[layer], self._values[layer]

    def _empty(self, kv_heads: int, head_dim: int) -> torch.Tensor:
        """Zeros, which cost nothing until they are written: hidden garbage times weight 0 could be NaN."""
        shape = (self._num_blocks, self.num_rows, kv_heads, BLOCK, head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self._device)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    block_cache: BlockCache,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function for transformers: query ``[b, heads, q, head_dim]`` -> output ``[b, q, heads, head_dim]``."""
    if sliding_window is not None or softcap is not None:
        raise ValueError(
            f"{type(module).__name__}: this engine attends to all columns, without soft cap; "
            f"got sliding_window = {sliding_window}, softcap = {softcap}; use a model with full attention"
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    block_cache.store(layer, key, value)
    if block_cache.prompts is not None:
        return _attend_in_prompts(query, key, value, scaling, block_cache.prompts), None
    return _attend_to_blocks(query, scaling, layer, block_cache), None


def _attend_in_prompts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    prompts: Prompts,
) -> torch.Tensor:
    """Each prompt by itself. They come by length, so padding them at their ends costs little; no token looks there."""
    query, key, value = (packed[0].transpose(0, 1)[prompts.padded].transpose(1, 2) for packed in (query, key, value))
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2)[prompts.numbers, prompts.positions][None]


def _attend_to_blocks(query: torch.Tensor, scaling: float, layer: int, cache: BlockCache) -> torch.Tensor:
    """One query token a row against its columns; query heads of one kv head share a product."""
    keys, values = cache.read(layer)
    num_rows, num_heads, _, head_dim = query.shape
    grouped = (query * scaling).to(cache.dtype).reshape(len(keys[0]), -1, head_dim)
    scores = torch.cat([torch.bmm(grouped, block.transpose(1, 2)) for block in keys], dim=-1)
    masked = scores.view(num_rows, num_heads, -1) + cache.mask
    weights = torch.softmax(masked, dim=-1, dtype=torch.float32).to(cache.dtype).view_as(scores)
    output = torch.bmm(weights[..., :BLOCK], values[0])
    for i, block in enumerate(values[1:], start=1):
        output = torch.baddbmm(output, weights[..., i * BLOCK : (i + 1) * BLOCK], block)
    return output.view(num_rows, 1, num_heads, head_dim).to(query.dtype)


AttentionInterface.register(ATTENTION, attend)

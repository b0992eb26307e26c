"""Exact nucleus sampling without sorting the vocabulary.

A token is in the nucleus when the probability of all tokens likelier than it is below ``top_p``. So draw from the
whole distribution, and ask that of the one token drawn; a rejected token also rejects everything less likely, and
the draw is repeated from what is left. Rejection keeps the distribution exact, and costs one pass over the
vocabulary plus a few over the rejected rows (about ``1 - top_p`` of them), where sorting costs ten times as much.
The same idea as FlashInfer's sorting-free kernels (https://flashinfer.ai/2025/03/10/sampling.html).
"""

from __future__ import annotations

import torch

from streaming_sbp.synthesizer.engines.base import Sampling


def sample(
    logits: torch.Tensor, sampling: Sampling, forbidden: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row of ``logits`` (fp32 ``[B, V]``): ids ``[B]`` and plain log-probabilities ``[B]``.

    Order as in transformers: temperature, top-k, top-p. ``forbidden`` are token ids that are never drawn; their
    probability still counts in the log-probabilities. Raises FloatingPointError for logits that are not finite.
    """
    probs = torch.softmax(logits, dim=-1)
    weights = _temper(probs, sampling.temperature) if sampling.temperature != 1.0 else probs
    weights = weights.index_fill(1, forbidden, 0.0)
    if 0 < sampling.top_k < weights.shape[1]:
        smallest = torch.topk(weights, sampling.top_k, sorted=False).values.amin(-1, keepdim=True)
        weights = weights * (weights >= smallest)
    tokens = _draw_from_nucleus(weights, sampling.top_p, generator)
    return tokens, probs.gather(1, tokens[:, None])[:, 0].log()


def _temper(probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """``softmax(logits / temperature)`` up to a factor for each row; the division keeps the powers from underflow."""
    return (probs / probs.amax(-1, keepdim=True)).pow_(1.0 / temperature)


def _draw_from_nucleus(weights: torch.Tensor, top_p: float, generator: torch.Generator) -> torch.Tensor:
    tokens, weight, total = _draw(weights, generator)
    if not bool((total > 0).all() & total.isfinite().all()):
        raise FloatingPointError("sampling: expected finite logits, got NaN or infinity; the weights are broken")
    rejected = _outside(weights, weight, top_p, total).nonzero()[:, 0]
    weights, weight, total = weights[rejected], weight[rejected], total[rejected]
    while len(rejected):
        weights = weights * (weights > weight[:, None])
        again, weight, _ = _draw(weights, generator)
        tokens[rejected] = again
        left = _outside(weights, weight, top_p, total).nonzero()[:, 0]
        rejected, weights, weight, total = rejected[left], weights[left], weight[left], total[left]
    return tokens


def _draw(weights: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By inversion: token ids ``[B]``, the weight of each ``[B]``, and the sum of each row ``[B]``."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    uniform = torch.rand(total.shape, generator=generator, device=total.device)
    tokens = torch.searchsorted(cumulative, uniform * total, right=True).clamp_(max=weights.shape[1] - 1)
    return tokens[:, 0], weights.gather(1, tokens)[:, 0], total[:, 0]


def _outside(weights: torch.Tensor, weight: torch.Tensor, top_p: float, total: torch.Tensor) -> torch.Tensor:
    """Which of the drawn tokens are not in the nucleus ``[B]``; a weight of 0 comes from rounding in ``_draw``."""
    if top_p >= 1.0:
        return weight <= 0
    likelier = (weights * (weights > weight[:, None])).sum(-1)
    return (likelier >= top_p * total) | (weight <= 0)

"""AdamW with decay on matrices only, and the warmup-stable-decay learning rate."""

from __future__ import annotations

import torch
from torch import nn

from streaming_sbp import config


def learning_rate(training: config.Training, tokens: int) -> float:
    """Warmup-stable-decay: linear up over ``warmup_tokens``, flat, linear down over the last ``decay_share``."""
    decay_from = training.total_tokens * (1.0 - training.decay_share)
    if tokens < training.warmup_tokens:
        ratio = (tokens + 1) / training.warmup_tokens
    elif tokens < decay_from or training.decay_share == 0:
        ratio = 1.0
    else:
        done = min((tokens - decay_from) / (training.total_tokens - decay_from), 1.0)
        ratio = 1.0 - done * (1.0 - training.min_learning_rate_ratio)
    return training.learning_rate * ratio


def build_optimizer(model: nn.Module, training: config.Training) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=training.learning_rate, betas=(training.beta1, training.beta2), eps=1e-8, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate

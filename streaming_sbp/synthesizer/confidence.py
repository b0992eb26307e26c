"""How sure the synthesizer was of each token, in one byte: sixteenths of a nat, 0 for certain, 255 for 15.9 or more."""

from __future__ import annotations

import numpy as np

STEPS_PER_NAT = 16.0


def quantised(log_probs: np.ndarray) -> np.ndarray:
    """uint8 of log-probabilities under the plain distribution, in nats."""
    return np.clip(np.rint(-log_probs * STEPS_PER_NAT), 0, 255).astype(np.uint8)


def probabilities(confidence: np.ndarray) -> np.ndarray:
    """float32, within 3 % of what `quantised` was given; what was below 1.2e-7 comes back as that."""
    return np.exp(confidence.astype(np.float32) / -STEPS_PER_NAT)

"""Resampling of weighted particles, and their effective sample size."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import logsumexp

__all__ = ["relative_ess", "systematic_resampling"]


def systematic_resampling(log_weights: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """Indices of ``count`` particles, each chosen as often as its weight says, up to one (Kitagawa 1996)."""
    weights = np.exp(log_weights - logsumexp(log_weights))
    offset = float(torch.rand(1, generator=generator, dtype=torch.float64))
    indices = np.searchsorted(np.cumsum(weights), (np.arange(count) + offset) / count)
    return indices.clip(max=len(weights) - 1)


def relative_ess(log_weights: np.ndarray) -> float:
    """Effective sample size (sum w)^2 / sum w^2, divided by the number of particles."""
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))) / len(log_weights)

"""F~ by plain Monte Carlo: the average of exp(-beta f) over draws of q."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.progress import Progress
from landscape.randomness import normal
from landscape.results import standard_error

__all__ = ["monte_carlo"]

# Heuristic: with fewer effective samples the spread of the weights underestimates the error.
_MIN_EFFECTIVE_SAMPLES = 10


def monte_carlo(
    objective: Objective,
    theta: Tensor,
    radii: np.ndarray,
    beta: float,
    samples: int,
    generator: torch.Generator,
    progress: Progress,
) -> dict[str, Any]:
    """The fields of a LocalEntropy that differ by method, at each radius."""
    losses = np.empty((len(radii), samples))
    for j in progress(range(samples), "local entropy"):
        z = normal(objective.size, generator, objective.dtype, objective.device)
        for i, radius in enumerate(radii):
            losses[i, j] = number(objective.value(theta + float(radius) * z))
    finite = np.isfinite(losses)
    # a draw whose loss is not finite has no density: exp(-beta f) = 0
    log_weights = np.where(finite, -beta * np.where(finite, losses, 0.0), -np.inf)
    value = logsumexp(log_weights, axis=1) - np.log(samples)  # -inf where no draw has a finite loss
    # linearised: log mean w ~ value + mean(w / mean w - 1)
    relative = np.exp(log_weights - np.where(np.isfinite(value), value, 0.0)[:, None])
    relative[~np.isfinite(value)] = np.nan
    contributions = value[:, None] + relative - 1
    effective = relative.sum(axis=1) ** 2 / (relative**2).sum(axis=1)
    reliable = effective >= _MIN_EFFECTIVE_SAMPLES
    notes = []
    if not reliable.all():
        notes.append(
            f"fewer than {_MIN_EFFECTIVE_SAMPLES} effective samples at radius >= "
            f"{radii[~reliable].min():.3g}: the error is not known there, and F~ most likely too low"
        )
    if not finite.all():
        notes.append(f"{(~finite).sum()} draws had a loss that is not finite: zero density")
    return {
        "value": value,
        "stderr": standard_error(contributions),
        "contributions": contributions,
        "reliable": reliable,
        "effective_samples": effective,
        "mean_loss": losses.mean(axis=1),
        "mean_loss_stderr": standard_error(losses),
        "note": "; ".join(notes),
        "cost": {"values": losses.size, "gradients": 0, "products": 0},
    }

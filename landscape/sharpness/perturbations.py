"""Perturbations of the weights, and what the measures evaluate at them.

theta' = theta + deviation * z with z ~ N(0, I). The deviation is a multiple of the scale c per weight, which is 1, or
|theta| for the measures that are called adaptive (Kwon et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.randomness import normal

__all__ = ["count_not_finite", "error_function", "perturbed_values", "scale_per_weight"]


def scale_per_weight(theta: Tensor, adaptive: bool) -> Tensor:
    """c, shape (n,): |theta| if adaptive, else 1."""
    return theta.abs() if adaptive else torch.ones_like(theta)


def perturbed_values(
    function: Callable[[Tensor], float], theta: Tensor, deviation: Tensor, samples: int, generator: torch.Generator
) -> np.ndarray:
    """``function(theta + deviation * z)`` for each draw of z, shape (samples,); values that are not finite are kept."""
    values = np.empty(samples)
    for j in range(samples):
        values[j] = number(function(theta + deviation * normal(len(theta), generator, theta.dtype, theta.device)))
    return values


def error_function(objective: Objective) -> Callable[[Tensor], float]:
    """theta -> the share of wrong answers, which raises ValueError if the objective has no accuracy."""
    metrics: Callable[[Tensor], dict[str, Any]] | None = getattr(objective, "metrics", None)

    def error(theta: Tensor) -> float:
        accuracy = metrics(theta).get("accuracy") if metrics else None
        if accuracy is None:
            raise ValueError(
                f"objective is a {type(objective).__name__} that knows no accuracy: give a ModelObjective whose "
                "outputs are (N, classes) and targets class indices, or measure the loss"
            )
        return 1 - accuracy

    return error


def count_not_finite(values: np.ndarray) -> int:
    """How many of the values are NaN or infinite."""
    return int((~np.isfinite(values)).sum())

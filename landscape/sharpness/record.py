"""Checks of arguments and fields of records that the measures share."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from landscape.objective import Objective
from landscape.parameters import check_vector
from landscape.results import standard_error

__all__ = ["check", "exact", "rescaled_alike", "sampled"]


def check(objective: Objective, theta: Tensor, **positive: float) -> Tensor:
    """theta, moved to the objective's device and dtype.

    Raises:
        ValueError: theta has the wrong size, or one of the named settings is not positive and finite.
    """
    check_vector("theta", theta, objective.size)
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: give a positive number")
    return theta.detach().to(objective.device, objective.dtype)


def exact(value: float) -> dict[str, Any]:
    """The fields of a value that is exact for its examples."""
    return {"value": value, "stderr": 0.0, "contributions": np.empty(0)}


def sampled(draws: np.ndarray) -> dict[str, Any]:
    """The fields of a mean over draws."""
    return {"value": float(draws.mean()), "stderr": float(standard_error(draws)), "contributions": draws}


def rescaled_alike(objective: Objective) -> bool:
    """Whether f is invariant under a rescaling of ReLU layers: not if it includes weight decay."""
    return getattr(objective, "weight_decay", 0.0) == 0.0

"""What every measure checks before it starts, and fills in of its record at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from landscape.objective import Objective
from landscape.parameters import check_vector
from landscape.results import standard_error

__all__ = ["check", "exact", "rescaled_alike", "sampled"]


def check(objective: Objective, theta: Tensor, **positive: float) -> Tensor:
    """theta on the objective's device and in its dtype, as a checkpoint's may not be.

    Raises:
        ValueError: theta does not fit, or one of the named settings is no positive number.
    """
    check_vector("theta", theta, objective.size)
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: give a positive number")
    return theta.detach().to(objective.device, objective.dtype)


def exact(value: float) -> dict[str, Any]:
    """The fields of a number that is exact for the examples it was computed on."""
    return {"value": value, "stderr": 0.0, "contributions": np.empty(0)}


def sampled(draws: np.ndarray) -> dict[str, Any]:
    """The fields of a mean over draws."""
    return {"value": float(draws.mean()), "stderr": float(standard_error(draws)), "contributions": draws}


def rescaled_alike(objective: Objective) -> bool:
    """Whether f itself is the same after a rescaling of ReLU layers: weight decay in it is not."""
    return getattr(objective, "weight_decay", 0.0) == 0.0

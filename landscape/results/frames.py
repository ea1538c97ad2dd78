"""A plane in parameter space, and where points lie on it and off it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

__all__ = ["Frame"]


@dataclass(frozen=True)
class Frame:
    """The plane origin + a d1 + b d2, with the foot of each point's perpendicular on it and the distance to there.

    A point is ``at(a, b)`` of its coordinates plus a vector orthogonal to the plane, of length ``out_of_plane``. All is
    in float64, whatever the weights are, so that rounding is far below theirs.
    """

    names: list[str]  # of the points
    origin: Annotated[torch.Tensor, "weight"]  # (n,)
    directions: Annotated[torch.Tensor, "direction", "weight"]  # (2, n), d1 and d2
    coordinates: Annotated[np.ndarray, "point", "direction"]  # (points, 2), a and b, in multiples of d1 and d2
    out_of_plane: Annotated[np.ndarray, "point"]  # (points,), in units of the weights
    # (2,), the share of sum_i ||w_i - origin||^2 that lies along d1, and what d2 adds: their sum is the share in the
    # plane; NaN where all points are the origin
    explained: Annotated[np.ndarray, "direction"]
    fingerprint: Annotated[np.ndarray, "vector", "projection"]  # (3, 4), of origin, d1 and d2: which plane this is

    def at(self, a: float, b: float) -> Tensor:
        """origin + a d1 + b d2, shape (n,)."""
        return self.origin + a * self.directions[0] + b * self.directions[1]

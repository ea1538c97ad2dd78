"""A quadratic Bezier curve between two points of parameter space, and the loss on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from landscape.results.records import Cost

__all__ = ["BezierPath", "bezier_length", "bezier_point"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class BezierPath:
    """phi_t = (1 - t)^2 a + 2 t (1 - t) c + t^2 b, with what its training saw and the loss along it.

    The curve lies in the plane through a, b and c, which ``plane_through`` gives.
    """

    theta_a: Annotated[torch.Tensor, "weight"]  # (n,), a, at t = 0
    control: Annotated[torch.Tensor, "weight"]  # (n,), c, which the curve leans to but does not meet
    theta_b: Annotated[torch.Tensor, "weight"]  # (n,), b, at t = 1
    t: Annotated[np.ndarray, "t"]  # (points,), from 0 to 1
    arc_length: Annotated[np.ndarray, "t"]  # (points,), walked from a to phi_t, in the norm of the weights
    loss: Annotated[np.ndarray, "t"]  # (points,), f(phi_t); NaN and inf are kept
    rise_stderr: Annotated[np.ndarray, "t"]  # of f(phi_t) - (f(a) + f(b))/2, over examples; NaN where not known
    training_t: Annotated[np.ndarray, "step"]  # (steps,), where each step took its gradient
    training_loss: Annotated[np.ndarray, "step"]  # (steps,), the loss there and then, on that step's batch
    learning_rate: float
    batch_norm: str  # what BatchNorm did at each point; "" for a function that is no network
    cost: Cost  # a gradient is one of a batch, where there were batches

    @property
    def height(self) -> float:
        """max_t f(phi_t) - (f(a) + f(b))/2 over the points: the barrier that is left on the curve."""
        return float((self.loss - (self.loss[0] + self.loss[-1]) / 2).max())

    @property
    def stderr(self) -> float:
        """The standard error of the rise at the highest point, over examples, as if that point were known."""
        return float(self.rise_stderr[self.loss.argmax()])

    def points(self, t: Any) -> Tensor:
        """phi_t for each of ``t`` (k,), shape (k, n)."""
        values = np.asarray(t, dtype=float).tolist()
        return torch.stack([bezier_point(self.theta_a, self.control, self.theta_b, value) for value in values])


def bezier_point(a: Tensor, c: Tensor, b: Tensor, t: float) -> Tensor:
    """phi_t, shape (n,)."""
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b


def bezier_length(a: Tensor, c: Tensor, b: Tensor, t: np.ndarray) -> np.ndarray:
    """The integral of ||phi'_s|| ds from 0 to each of ``t``; phi'_s = 2 (1 - s)(c - a) + 2 s (b - c)."""
    first, second = (c - a).double(), (b - c).double()
    p, q, r = float(first @ first), float(first @ second), float(second @ second)
    bend = p - 2 * q + r  # ||second - first||^2
    # a curve that folds back on itself stands still there: the speed has a kink, which quadrature must not cross
    slowest = (p - q) / bend if bend > 0 else 0.0

    def integral(low: float, high: float) -> float:
        s = (low + high) / 2 + (high - low) / 2 * _NODES
        squared_speed = 4 * ((1 - s) ** 2 * p + 2 * s * (1 - s) * q + s**2 * r)
        return float(_WEIGHTS @ np.sqrt(squared_speed.clip(min=0))) * (high - low) / 2

    turns = [min(max(slowest, 0.0), value) for value in t.tolist()]
    return np.array([integral(0.0, turn) + integral(turn, end) for turn, end in zip(turns, t.tolist(), strict=True)])

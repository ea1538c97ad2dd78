"""Ascent to the highest loss within a ball around theta.

    max over ||u||_p <= rho of f(theta + c u),    p = 2 or infinity,

in coordinates u with theta' = theta + c u, c a scale per weight. A step of rho times `step` goes in the steepest
direction of the norm, g/||g||_2 or sign(g) with g = c grad f, and is followed by the projection onto the ball. It is
accepted if f rises. The next `step` maximises the parabola through both ends with the slope at the first, or is four
times as long if the parabola has no maximum. As steps grow long, this becomes the power method
u <- rho g(u) / ||g(u)||, along which a convex f never falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.sums import dot, norm

__all__ = ["Ascent", "Ball", "ascend"]

_LONGEST = 1e4  # steps in units of rho: all that are much longer than the ball end at the same point


@dataclass(frozen=True)
class Ball:
    """All u with ||u||_p <= rho, and the scale c by which they move theta."""

    scale: Tensor  # (n,), not negative
    rho: float
    norm: float = 2

    def furthest(self, direction: Tensor) -> Tensor:
        """The point of the ball furthest along ``direction`` (n,), zero where the scale is zero; 0 for 0."""
        direction = direction * (self.scale > 0)
        if self.norm == 2:
            length = norm(direction)
            return direction * (self.rho / length) if length > 0 else direction
        return self.rho * direction.sign()

    def project(self, u: Tensor) -> Tensor:
        """The nearest point of the ball."""
        if self.norm == 2:
            return u * min(1.0, self.rho / max(norm(u), self.rho))
        return u.clamp(-self.rho, self.rho)


@dataclass(frozen=True)
class Ascent:
    """The result of an ascent."""

    start: float  # f at the starting point
    top: float  # the highest f found
    u: Tensor  # (n,), the point with that f
    not_finite: int  # how many trials had a loss that is not finite


def ascend(objective: Objective, theta: Tensor, ball: Ball, u: Tensor, steps: int) -> Ascent:
    """Projected gradient ascent from ``u`` (n,), by ``steps`` evaluations of f and its gradient, the first at ``u``."""
    value, gradient = objective.value_and_gradient(theta + ball.scale * u)
    f = number(value)
    start, step, not_finite = f, 1.0, 0
    for _ in range(steps - 1):
        candidate = ball.project(u + step * ball.furthest(ball.scale * gradient))
        value, slope = objective.value_and_gradient(theta + ball.scale * candidate)
        higher = number(value)
        not_finite += not np.isfinite(higher)
        step = min(_LONGEST, step * _vertex(dot(ball.scale * gradient, candidate - u), higher - f))
        if f < higher < float("inf"):
            u, f, gradient = candidate, higher, slope
    return Ascent(start, f, u, not_finite)


def _vertex(slope: float, rise: float) -> float:
    """Maximiser within [0.1, 4] of the parabola with this slope at 0 and rise at 1; 0.1 if the rise is not finite."""
    if not np.isfinite(rise):
        return 0.1
    return 4.0 if rise >= slope else float(np.clip(slope / (2 * (slope - rise)), 0.1, 4.0))

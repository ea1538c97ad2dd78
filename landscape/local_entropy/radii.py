"""Radii of interest: from where the mean loss over the ball begins to rise, to where it has risen much."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.parameters import check_vector
from landscape.randomness import generator_or_new, normal
from landscape.sums import norm

__all__ = ["counted_radii", "radii_of_interest"]

_BISECTIONS = 20  # of log r: to 1e-6 of the initial interval


def radii_of_interest(
    objective: Objective,
    theta: Tensor,
    *,
    count: int = 5,
    low: float = 1e-3,
    high: float = 1.0,
    samples: int = 8,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Radii at equal ratios, from where the mean loss over the ball rises by ``low`` to where it rises by ``high``.

    The rise E f(x + r z) - f(x), z ~ N(0, I), is an upper bound of the excess free energy (Jensen), and indicates its
    scale. It is averaged over the same draws at all radii, and the radii are found by bisection in log r. If the rise
    does not reach ``high``, as for a bounded loss, the largest radius is that at which the ball's ||x' - x|| is ten
    times ||x||, or 10 where ||x|| is below 1. A loss that is not finite counts as too high.

    Args:
        objective: f.
        theta: x, shape (n,); moved to the objective's device and dtype.
        count: radii, at least 2.
        low: smallest rise, in units of the loss.
        high: largest rise.
        samples: draws of z. Each costs 41 losses.
        generator: for z. Default: one of a fixed seed, so that the radii of a checkpoint are always the same.

    Returns:
        The radii (count,), ascending, in units of the weights.

    Raises:
        ValueError: count below 2; not 0 < low < high; theta of another shape, or without a finite loss; the loss does
            not rise by ``low`` within the largest radius, or jumps from below it past ``high``.

    Example:
        A square rises by r^2 times the mean of z^2, so that rises of 0.001 and 1 are a factor 1000^(1/2) apart:

        >>> from landscape import ModelObjective
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> f = ModelObjective(model, lambda outputs, batch: (outputs**2).mean(), [(torch.ones(1, 1),)])
        >>> small, large = radii_of_interest(f, torch.zeros(1), count=2)
        >>> round(float(large / small) ** 2)
        1000
    """
    return counted_radii(objective, theta, count, low, high, samples, generator)[0]


def counted_radii(
    objective: Objective,
    theta: Tensor,
    count: int = 5,
    low: float = 1e-3,
    high: float = 1.0,
    samples: int = 8,
    generator: torch.Generator | None = None,
) -> tuple[np.ndarray, int]:
    """The radii of interest, and the number of losses evaluated."""
    if count < 2:
        raise ValueError(f"count={count}: give at least 2")
    if not 0 < low < high:
        raise ValueError(f"low={low}, high={high}: give rises of the loss with 0 < low < high")
    check_vector("theta", theta, objective.size)
    theta = theta.detach().to(objective.device, objective.dtype)
    generator = generator_or_new(generator or torch.Generator().manual_seed(0))
    draws = [normal(objective.size, generator, objective.dtype, objective.device) for _ in range(samples)]
    loss, values = number(objective.value(theta)), 1
    if not np.isfinite(loss):
        raise ValueError(f"the loss at theta is {loss}: no rise can be measured from there, so give another theta")

    def rise(radius: float) -> float:
        nonlocal values
        values += samples
        return float(np.mean([number(objective.value(theta + radius * z)) for z in draws])) - loss

    largest = 10 * max(norm(theta), 1.0) / objective.size**0.5
    furthest = rise(largest)
    if furthest <= low:  # NaN, as everywhere below, is too high
        raise ValueError(
            f"the loss rises by no more than low={low} within a radius of {largest:.3g}: give the radii of interest"
        )

    def where_it_rises_by(asked: float) -> float:
        if furthest <= asked:
            return largest
        below, above = largest * 1e-8, largest
        for _ in range(_BISECTIONS):
            middle = float(np.sqrt(below * above))
            below, above = (middle, above) if rise(middle) <= asked else (below, middle)
        return below  # where the loss of each draw is finite

    first, last = where_it_rises_by(low), where_it_rises_by(high)
    if not first < last:
        raise ValueError(
            f"at a radius of {last:.3g} the loss jumps from a rise below low={low} to one above high={high}, or to "
            "what is not finite: give the radii of interest"
        )
    return np.geomspace(first, last, count), values

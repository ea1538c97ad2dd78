"""Directions given by the derivatives of f at theta."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.directions.ascent import Ball, ascend
from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.parameters import check_vector
from landscape.randomness import generator_or_new, unit
from landscape.results import Eigenpairs
from landscape.sums import norm

__all__ = ["eigenvector", "gradient_direction", "sharpest_ascent"]

_KICK = 1e-3  # of the radius: the distance from theta at which the ascent starts if the gradient is zero


def eigenvector(pairs: Eigenpairs, index: int, objective: Objective) -> Tensor:
    """The unit eigenvector of pair ``index``, as a direction on the objective's device.

    A coordinate along it is a distance, and f(theta + a v) = f + a g'v + lambda a^2/2 + O(a^3).

    Raises:
        ValueError: eigenvectors of another size, or no such pair.
    """
    n, k = pairs.vectors.shape
    if n != objective.size:
        raise ValueError(
            f"pairs has eigenvectors of size {n}, the objective {objective.size}: give pairs of its Hessian"
        )
    if not -k <= index < k:
        raise ValueError(f"index={index}: there are {k} pairs, so give 0 to {k - 1}")
    return pairs.vectors[:, index].to(objective.device, objective.dtype)


def gradient_direction(objective: Objective, theta: Tensor) -> Tensor:
    """The unit vector grad f / ||grad f|| at theta, which points uphill; shape (n,).

    Raises:
        ValueError: the gradient is zero or not finite.
    """
    check_vector("theta", theta, objective.size)
    gradient = objective.gradient(theta.detach().to(objective.device, objective.dtype))
    length = norm(gradient)
    if not 0 < length < float("inf"):
        raise ValueError(f"the gradient at theta has norm {length}: give a theta where it is finite and not zero")
    return gradient / length


def sharpest_ascent(
    objective: Objective,
    theta: Tensor,
    radius: float,
    *,
    steps: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The displacement within a ball that raises f most, by projected gradient ascent.

        argmax f(theta + d)   over   ||d|| <= radius

    To first order it is radius * grad f / ||grad f||, the perturbation of SAM (Foret et al. 2021); where the gradient
    is negligible and f is its parabola, radius times the top eigenvector. How far f rises there is the sharpness of
    Keskar et al. 2017 (theirs is over a box, and relative to 1 + f).

    The ascent is that of ``landscape.directions.ascent``, and starts at theta with the step of SAM.

    Args:
        objective: f.
        theta: the centre, shape (n,).
        radius: of the ball, in the norm of the weights.
        steps: gradients.
        generator: of the first step where the gradient is exactly zero, as at a minimum known in closed form. Default:
            seeded by the operating system.

    Returns:
        d, shape (n,), to the highest point found, which is at coordinate 1: with enough steps a local maximum, though
        not always the highest in the ball. Its length is ``radius``, or less where f has a maximum inside.

    Raises:
        ValueError: radius or steps out of range; no point tried is higher than f(theta).

    Reference:
        Foret, Kleiner, Mobahi & Neyshabur 2021, arXiv:2010.01412; Keskar, Mudigere, Nocedal, Smelyanskiy & Tang 2017,
        arXiv:1609.04836.
    """
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius={radius}: give a positive, finite distance from theta")
    if steps < 3:
        raise ValueError(f"steps={steps}: give 3 or more, the first two of which look at where it begins")
    check_vector("theta", theta, objective.size)
    theta = theta.detach().to(objective.device, objective.dtype)
    ball, u = Ball(torch.ones_like(theta), radius), torch.zeros_like(theta)
    start, gradient = objective.value_and_gradient(theta)
    if not bool(gradient.any()):
        u = _KICK * radius * unit(objective.size, generator_or_new(generator), theta.dtype, theta.device)
    found = ascend(objective, theta, ball, u, steps - 1)
    if not found.top > number(start):
        raise ValueError(
            f"no point that was tried within radius={radius} of theta is higher than f = {number(start)} there: theta "
            "is a maximum, f is not finite, or steps are too few"
        )
    return found.u

"""Directions in parameter space, as flat vectors (n,), along which the loss is worth a look."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.objective import ModelObjective, Objective
from landscape.parameters import check_vector
from landscape.randomness import generator_or_new, normal
from landscape.results import Eigenpairs

__all__ = ["between", "eigenvector", "random_direction"]


def random_direction(
    objective: Objective,
    theta: Tensor,
    *,
    normalization: str = "filter",
    generator: torch.Generator | None = None,
) -> Tensor:
    """A Gaussian direction, filter-normalised as in Li et al. 2018 unless asked otherwise.

    Args:
        objective: says how theta divides into filters; ``"none"`` serves any objective.
        theta: the weights to normalise by, shape (n,).
        normalization: ``"filter"`` gives each filter (slice of dimension 0) of the direction the norm
            of the same filter of theta, and leaves biases and other tensors of fewer than two
            dimensions at zero; ``"none"`` is N(0, I).
        generator: of the Gaussian vector. Default: seeded by the operating system.

    Returns:
        The direction, shape (n,). With ``"filter"``, a step of 1 changes each filter by its own norm.

    Raises:
        ValueError: an unknown normalization, or ``"filter"`` for an objective that has no filters.

    Reference:
        Li, Xu, Taylor, Studer & Goldstein 2018, arXiv:1712.09913.
    """
    if normalization not in ("filter", "none"):
        raise ValueError(f"normalization={normalization!r}: give 'filter' or 'none'")
    check_vector("theta", theta, objective.size)
    direction = normal(objective.size, generator_or_new(generator), objective.dtype, objective.device)
    if normalization == "none":
        return direction
    if not isinstance(objective, ModelObjective):
        raise ValueError(
            f"normalization='filter' for a {type(objective).__name__}: only a ModelObjective knows its "
            "filters, so give normalization='none'"
        )
    shapes = objective.space.shapes
    pairs = zip(objective.space.filters(direction), objective.space.filters(theta), strict=True)
    for shape, ((_, d), (_, w)) in zip(shapes, pairs, strict=True):
        if len(shape) < 2:
            d.zero_()
        else:
            d.mul_(w.norm(dim=1, keepdim=True) / d.norm(dim=1, keepdim=True))
    return direction


def between(theta_a: Tensor, theta_b: Tensor) -> Tensor:
    """From a to b: coordinate 0 is a, coordinate 1 is b."""
    check_vector("theta_b", theta_b, len(theta_a))
    return theta_b - theta_a


def eigenvector(pairs: Eigenpairs, index: int, objective: Objective) -> Tensor:
    """The unit eigenvector of pair ``index``, as a direction on the objective's device."""
    return pairs.vectors[:, index].to(objective.device, objective.dtype)

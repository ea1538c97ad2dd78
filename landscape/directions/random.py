"""Gaussian directions d, normalised to the scale of the weights theta.

A step along d ~ N(0, I) has no meaning by itself: the layers of a ReLU network can be rescaled without a change of the
function, so that the same step is long for one layer and short for another. So each part d_j of d is
given the norm of the same part of theta,

    d_j <- d_j ||theta_j|| / ||d_j||,

where the parts are the filters (Li, Xu, Taylor, Studer & Goldstein 2018, arXiv:1712.09913) or whole tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.linalg import vector_norm

from landscape.objective import ModelObjective, Objective
from landscape.parameters import ParameterSpace, check_vector
from landscape.randomness import generator_or_new, normal

__all__ = ["parts", "random_direction"]


def random_direction(
    objective: Objective,
    theta: Tensor,
    *,
    normalization: str = "filter",
    one_dimensional: str = "zero",
    generator: torch.Generator | None = None,
) -> Tensor:
    """A Gaussian direction, filter-normalised as in Li et al. 2018 unless asked otherwise.

    Args:
        objective: divides theta into filters; for ``"none"`` any objective will do.
        theta: the weights to normalise by, shape (n,).
        normalization: ``"filter"`` gives each filter of the direction the norm of the same filter of theta;
            ``ParameterSpace.filters`` defines the filters of each kind of layer. ``"layer"`` does so with each whole
            tensor. ``"none"`` is N(0, I).
        one_dimensional: the entries of a normalised direction for biases and normalisation layers. ``"zero"`` sets them
            to 0, ``"normalize"`` treats them as the others: a filter of a single entry keeps its size, so its sign
            alone is random.
        generator: of the Gaussian vector. Default: seeded by the operating system.

    Returns:
        The direction, shape (n,). With ``"filter"``, a step of 1 changes each filter by its own norm, and a filter of
        zeros stays where it is.

    Raises:
        ValueError: an unknown normalization or one_dimensional; an objective that has no filters; nothing to move.

    Reference:
        Li, Xu, Taylor, Studer & Goldstein 2018, arXiv:1712.09913.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> f = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(1, 2), torch.ones(1, 1)))
        >>> d = random_direction(f, torch.tensor([3.0, 4.0, 1.0]))
        >>> round(float(d[:2].norm()), 5), float(d[2])
        (5.0, 0.0)
    """
    if normalization not in ("filter", "layer", "none"):
        raise ValueError(f"normalization={normalization!r}: give 'filter', 'layer' or 'none'")
    if one_dimensional not in ("zero", "normalize"):
        raise ValueError(f"one_dimensional={one_dimensional!r}: give 'zero' or 'normalize'")
    check_vector("theta", theta, objective.size)
    # in float64 on the CPU until the end, where the norms are rounded once
    direction = normal(objective.size, generator_or_new(generator), torch.float64, torch.device("cpu"))
    if isinstance(objective, ModelObjective):
        direction[objective.fixed_entries.cpu()] = 0.0  # entries of theta that f keeps fixed
    if normalization != "none":
        if not isinstance(objective, ModelObjective):
            raise ValueError(
                f"normalization={normalization!r} for a {type(objective).__name__}: only a ModelObjective knows its "
                "layers, so give normalization='none'"
            )
        space = objective.space
        for (name, d), (_, w) in zip(
            parts(space, direction, normalization), parts(space, theta.cpu(), normalization), strict=True
        ):
            if one_dimensional == "zero" and name in objective.space.one_dimensional:
                d.zero_()
            else:
                _give_norms(d, w)
        if not bool(direction.any()):
            raise ValueError(
                f"the direction is zero with normalization={normalization!r} and one_dimensional={one_dimensional!r}: "
                "theta is zero, or holds only biases and normalisation layers, which one_dimensional='normalize' moves"
            )
    return direction.to(objective.device, objective.dtype)


def parts(space: ParameterSpace, vector: Tensor, normalization: str) -> Iterator[tuple[str, Tensor]]:
    """Views of ``vector`` (n,) whose dimension 0 counts what has a norm of its own: filters, or whole tensors."""
    if normalization == "filter":
        return space.filters(vector)
    return ((name, view.reshape(1, -1)) for name, view in space.views(vector).items())


def _give_norms(d: Tensor, w: Tensor) -> None:
    """Scale each slice of dimension 0 of ``d``, in place, to the norm of the same slice of ``w``; zeros stay zeros."""
    inner = tuple(range(1, d.dim()))
    drawn = vector_norm(d, dim=inner, keepdim=True)
    wanted = vector_norm(w, dim=inner, keepdim=True, dtype=torch.float64)
    d.mul_(torch.where(drawn > 0, wanted / drawn, 0.0))

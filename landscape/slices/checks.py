"""Checks of the arguments of slices, before anything is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from landscape.directions.random import parts
from landscape.objective import ModelObjective, Objective
from landscape.parameters import check_vector
from landscape.sums import norm

__all__ = ["checked_coordinates", "checked_direction", "named", "to_common_dtype"]


def named(objective: Objective | Mapping[str, Objective]) -> dict[str, Objective]:
    """The objectives by name; a single one is named ``"objective"``.

    Raises:
        ValueError: there is none, or they are not functions of the same theta.
    """
    objectives = dict(objective) if isinstance(objective, Mapping) else {"objective": objective}
    sizes = {name: f.size for name, f in objectives.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"objective has sizes {sizes}: give one or more objectives of the same size")
    return objectives


def to_common_dtype(objectives: Mapping[str, Objective], **tensors: Tensor) -> list[Tensor]:
    """Points and directions, by argument name, on the objectives' device and in the widest of their dtypes.

    Points are computed in that dtype and rounded to the network's when evaluated, so that a plane given in float64
    passes exactly through networks in float32.

    Raises:
        ValueError: the size of one differs from the objectives'.
    """
    first = next(iter(objectives.values()))
    for name, tensor in tensors.items():
        check_vector(name, tensor, first.size)
    widest = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    return [tensor.detach().to(first.device, widest) for tensor in tensors.values()]


def checked_coordinates(name: str, given: Any) -> np.ndarray:
    """The coordinates as an array (points,).

    Raises:
        ValueError: there are none, or one is not finite.
    """
    coordinates = np.asarray(given, dtype=float)
    if coordinates.ndim != 1 or len(coordinates) == 0:
        raise ValueError(f"{name} has shape {coordinates.shape}: give a list of at least one coordinate")
    if not np.isfinite(coordinates).all():
        raise ValueError(f"{name} holds {coordinates[~np.isfinite(coordinates)][0]}: give finite coordinates")
    return coordinates


def checked_direction(
    name: str, direction: Tensor, theta: Tensor, unit: str, objectives: Mapping[str, Objective]
) -> float:
    """The norm of the direction, after checking that coordinates along it can be in ``unit``.

    Raises:
        ValueError: a norm of zero, an unknown unit, or one that the direction does not have.
    """
    length = norm(direction)
    if not 0 < length < float("inf"):
        raise ValueError(f"{name} has norm {length}: give a finite direction that is not zero")
    if unit not in ("direction", "norm", "filter", "layer"):
        raise ValueError(f"unit={unit!r}: give 'direction', 'norm', 'filter' or 'layer'")
    if unit in ("filter", "layer"):
        for f in objectives.values():
            _check_relative(name, direction, theta, unit, f)
    return length


def _check_relative(name: str, direction: Tensor, theta: Tensor, unit: str, objective: Objective) -> None:
    if not isinstance(objective, ModelObjective):
        raise ValueError(f"unit={unit!r} for a {type(objective).__name__}, which has no {unit}s: give unit='direction'")
    # rounding moves a norm by no more than it moves each entry, eps/2 of it; else what no picture would show
    tolerance = max(1e-3, torch.finfo(objective.dtype).eps)
    of_theta = parts(objective.space, theta, unit)
    for (tensor, d), (_, w) in zip(parts(objective.space, direction, unit), of_theta, strict=True):
        norms, wanted = (vector_norm(part.flatten(1), dim=1, dtype=torch.float64) for part in (d, w))
        off = (norms > 0) & ((norms - wanted).abs() > tolerance * wanted)  # what is left where it is has no norm
        if bool(off.any()):
            i = int(off.nonzero()[0])
            where = f"a filter of {tensor!r}" if unit == "filter" else repr(tensor)
            raise ValueError(
                f"{name} has norm {float(norms[i]):.4g} in {where}, where theta has {float(wanted[i]):.4g}: "
                f"unit={unit!r} is for a direction of normalization={unit!r}, so give unit='direction'"
            )

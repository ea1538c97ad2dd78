"""The loss along a line and over a plane through theta.

    line:   a    -> f(theta + a d)
    plane:  a, b -> f(theta + a d1 + b d2)

A coordinate is the displacement walked, in multiples of its direction. NaN and inf stay in the result.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import Tensor

from landscape.objective import ModelObjective, Objective
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.results import Cost, Line, Plane

__all__ = ["line", "plane"]

# |cosine| above which two directions span no plane that a picture could show
_PARALLEL = 1 - 1e-6


def line(
    objective: Objective,
    theta: Tensor,
    direction: Tensor,
    coordinates: Any,
    *,
    progress: Progress = silent,
) -> Line:
    """The loss, and for classifiers the accuracy, at theta + a * direction.

    Args:
        objective: f.
        theta: the origin, shape (n,).
        direction: d, shape (n,), not zero.
        coordinates: the values of a, in multiples of d.
        progress: called as ``progress(coordinates, description)``; ``tqdm.tqdm`` fits.

    Returns:
        Line with ``loss`` of shape (points,).

    Raises:
        ValueError: sizes that do not fit, a zero direction, no coordinates.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> square = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> line(square, torch.zeros(1), torch.ones(1), [0.0, 1.0, 2.0]).loss
        array([0., 1., 4.])
    """
    start = time.perf_counter()
    points = _coordinates("coordinates", coordinates)
    norm = _checked_norm("direction", direction, objective)
    check_vector("theta", theta, objective.size)
    loss, accuracy = np.empty(len(points)), np.full(len(points), np.nan)
    for i in progress(range(len(points)), "line"):
        there = theta + float(points[i]) * direction
        if isinstance(objective, ModelObjective):
            metrics = objective.metrics(there)
            loss[i], accuracy[i] = metrics["loss"], metrics.get("accuracy", np.nan)
        else:
            loss[i] = objective.value(there)
    return Line(
        coordinates=points,
        loss=loss,
        accuracy=accuracy,
        direction_norm=norm,
        not_finite=int((~np.isfinite(loss)).sum()),
        cost=Cost(values=len(points), seconds=time.perf_counter() - start),
    )


def plane(
    objective: Objective,
    theta: Tensor,
    direction_a: Tensor,
    direction_b: Tensor,
    a: Any,
    b: Any,
    *,
    progress: Progress = silent,
) -> Plane:
    """The loss at theta + a * direction_a + b * direction_b on the grid of all a and b.

    Args:
        objective: f.
        theta: the origin, shape (n,).
        direction_a: d1, shape (n,).
        direction_b: d2, shape (n,), not parallel to d1.
        a: coordinates along d1, in multiples of it.
        b: coordinates along d2, likewise.
        progress: called as ``progress(rows, description)``; ``tqdm.tqdm`` fits.

    Returns:
        Plane with ``loss`` of shape (len(a), len(b)).

    Raises:
        ValueError: sizes that do not fit, zero or parallel directions, no coordinates.
    """
    start = time.perf_counter()
    a, b = _coordinates("a", a), _coordinates("b", b)
    norms = [
        _checked_norm("direction_a", direction_a, objective),
        _checked_norm("direction_b", direction_b, objective),
    ]
    check_vector("theta", theta, objective.size)
    cosine = float(direction_a.double() @ direction_b.double()) / (norms[0] * norms[1])
    if abs(cosine) > _PARALLEL:
        raise ValueError(f"direction_a and direction_b are parallel (cosine {cosine:.7f}): give two that span a plane")
    loss = np.empty((len(a), len(b)))
    for i in progress(range(len(a)), "plane"):
        row = theta + float(a[i]) * direction_a
        for j in range(len(b)):
            loss[i, j] = objective.value(row + float(b[j]) * direction_b)
    return Plane(
        a=a,
        b=b,
        loss=loss,
        direction_norms=np.array(norms),
        cosine=cosine,
        not_finite=int((~np.isfinite(loss)).sum()),
        cost=Cost(values=loss.size, seconds=time.perf_counter() - start),
    )


def _coordinates(name: str, given: Any) -> np.ndarray:
    coordinates = np.asarray(given, dtype=float)
    if coordinates.ndim != 1 or len(coordinates) == 0:
        raise ValueError(f"{name} has shape {coordinates.shape}: give a list of at least one coordinate")
    return coordinates


def _checked_norm(name: str, direction: Tensor, objective: Objective) -> float:
    check_vector(name, direction, objective.size)
    norm = float(direction.double().norm())
    if not 0 < norm < float("inf"):
        raise ValueError(f"{name} has norm {norm}: give a finite direction that is not zero")
    return norm

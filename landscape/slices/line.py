"""The loss along a line, a -> f(theta + a d), and along bands of random lines.

The derivatives at theta predict f(theta) + a g'd + a^2/2 d'Hd along the line. One random line says little about the
others: a band of K estimates their median and quantiles.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from landscape.directions import random_direction
from landscape.objective import Objective
from landscape.objective.data.metrics import PerExampleMetrics
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Line, LineBand
from landscape.slices.checks import checked_coordinates, checked_direction, named, to_common_dtype
from landscape.slices.policies import recalibrates
from landscape.slices.sweep import Index, Sweep, measure_all, single_or_dict
from landscape.sums import dot, norm

__all__ = ["line", "line_band"]


@overload
def line(objective: Objective, *args: Any, **options: Any) -> Line: ...
@overload
def line(objective: Mapping[str, Objective], *args: Any, **options: Any) -> dict[str, Line]: ...
def line(
    objective: Objective | Mapping[str, Objective],
    theta: Tensor,
    direction: Tensor,
    coordinates: Any,
    *,
    unit: str = "direction",
    derivatives: bool = False,
    store: str | Path | None = None,
    progress: Progress = silent,
) -> Line | dict[str, Line]:
    """The loss, and for classifiers the accuracy, at theta + a * direction.

    Args:
        objective: f; or several by name, such as ``{"train": f, "test": g}``, measured at the same points.
        theta: the origin, shape (n,).
        direction: d, shape (n,), not zero.
        coordinates: the values of a, in ``unit``.
        unit: ``"direction"`` for multiples of d; ``"norm"`` for the displacement ||a d|| itself, with the sign of a;
            ``"filter"`` or ``"layer"`` for multiples of a d of that normalization, whose axis is then named by it.
        derivatives: whether to compute g'd and d'Hd at theta too, by one gradient and one Hessian-vector product. They
            keep BatchNorm's statistics fixed, and so are not those of a line along which these are recalibrated.
        store: a folder (conventionally ``*.zarr``) that keeps each point once it is measured: a sweep that was
            interrupted is resumed from it, and several processes may share it. Default: memory only.
        progress: called as ``progress(points, "line")``; ``tqdm.tqdm`` fits.

    Returns:
        Line with ``loss`` of shape (points,), or one for each objective by its name.

    Raises:
        ValueError: sizes that do not fit, a zero direction, no coordinates, a unit that the direction does not have,
            derivatives where BatchNorm is recalibrated, a store of another slice.

    Example:
        >>> from landscape import ModelObjective
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> square = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> found = line(square, torch.zeros(1), torch.ones(1), [0.0, 1.0, 2.0], derivatives=True)
        >>> found.loss, found.curvature
        (array([0., 1., 4.]), 2.0)
    """
    start = time.perf_counter()
    objectives, a = named(objective), checked_coordinates("coordinates", coordinates)
    theta, d = to_common_dtype(objectives, theta=theta, direction=direction)
    length = checked_direction("direction", d, theta, unit, objectives)
    if derivatives and (moving := [name for name, f in objectives.items() if recalibrates(f)]):
        raise ValueError(
            f"derivatives=True with batch_norm='recalibrated' (objectives {moving}), whose derivatives hold the "
            "statistics fixed: give derivatives=False, or objectives with batch_norm='frozen' or 'batch'"
        )
    scale = 1 / length if unit == "norm" else 1.0
    point = torch.empty_like(theta)

    def measure_at(index: Index) -> list[PerExampleMetrics]:
        torch.add(theta, d, alpha=scale * float(a[index]), out=point)
        return measure_all(objectives, point)

    sweep = Sweep(
        objectives,
        {"coordinates": a},
        origin=measure_all(objectives, theta),
        at_origin=a == 0,
        measure_at=measure_at,
        store=store,
        signature={"slice": "line", "theta": theta, "direction": d, "unit": unit},
    )
    unknown = (float("nan"), float("nan"))
    slopes = [_derivatives(f, theta, scale * d) if derivatives else unknown for f in objectives.values()]
    sweep.visit(np.ndindex(len(a)), progress, "line")
    cost = sweep.cost(start, gradients=int(derivatives), products=int(derivatives))
    lines = {
        name: Line(
            coordinates=a,
            **sweep.fields(name),
            slope=slope,
            curvature=curvature,
            eps=torch.finfo(objectives[name].dtype).eps,
            direction_norm=length,
            unit=unit,
            cost=cost,
        )
        for name, (slope, curvature) in zip(objectives, slopes, strict=True)
    }
    return single_or_dict(objective, lines)


@overload
def line_band(objective: Objective, *args: Any, **options: Any) -> LineBand: ...
@overload
def line_band(objective: Mapping[str, Objective], *args: Any, **options: Any) -> dict[str, LineBand]: ...
def line_band(
    objective: Objective | Mapping[str, Objective],
    theta: Tensor,
    coordinates: Any,
    *,
    directions: int = 16,
    normalization: str = "filter",
    generator: torch.Generator | None = None,
    store: str | Path | None = None,
    progress: Progress = silent,
) -> LineBand | dict[str, LineBand]:
    """The loss along several random directions from theta.

    Args:
        objective: f, or several by name, as for ``line``; all are measured along the same directions.
        theta: the origin, shape (n,).
        coordinates: the values of a, in multiples of each direction.
        directions: K. The quantiles are of K losses: 16 are enough for the median and quartiles, not for the 5 % tails.
        normalization: as for ``random_direction``: ``"filter"``, ``"layer"`` or ``"none"``.
        generator: of the directions; to resume a store, one of the same seed. Default: seeded by the operating
            system.
        store: as for ``line``.
        progress: called as ``progress(points, "band of lines")`` with K points for each coordinate.

    Returns:
        LineBand with ``loss`` of shape (K, points), or one for each objective by its name.

    Raises:
        ValueError: no directions or coordinates, an objective that has no filters, a store of another slice.
    """
    start = time.perf_counter()
    objectives, a = named(objective), checked_coordinates("coordinates", coordinates)
    (theta,) = to_common_dtype(objectives, theta=theta)
    if directions < 1:
        raise ValueError(f"directions={directions}: give at least 1")
    first = next(iter(objectives.values()))
    # one seed each, so that only one direction is in memory, and each is the same in any order of the sweep
    seeds = torch.randint(2**62, (directions,), generator=generator_or_new(generator))

    def direction(k: int) -> Tensor:
        own = torch.Generator().manual_seed(int(seeds[k]))
        return random_direction(first, theta, normalization=normalization, generator=own).to(theta)

    norms = np.array([norm(direction(k)) for k in range(directions)])
    point, current, d = torch.empty_like(theta), -1, theta

    def measure_at(index: Index) -> list[PerExampleMetrics]:
        nonlocal current, d
        k, i = index
        if k != current:
            current, d = k, direction(k)
        torch.add(theta, d, alpha=float(a[i]), out=point)
        return measure_all(objectives, point)

    sweep = Sweep(
        objectives,
        {"direction": np.arange(directions), "coordinates": a},
        origin=measure_all(objectives, theta),
        at_origin=np.broadcast_to(a == 0, (directions, len(a))),
        measure_at=measure_at,
        store=store,
        signature={"slice": "band", "theta": theta, "seeds": seeds, "normalization": normalization},
    )
    sweep.visit(np.ndindex(directions, len(a)), progress, "band of lines")
    bands = {}
    for name in objectives:
        fields = sweep.fields(name)
        bands[name] = LineBand(
            coordinates=a,
            **{field.name: fields[field.name] for field in dataclasses.fields(LineBand) if field.name in fields},
            direction_norms=norms,
            unit="direction" if normalization == "none" else normalization,
            cost=sweep.cost(start),
        )
    return single_or_dict(objective, bands)


def _derivatives(objective: Objective, theta: Tensor, d: Tensor) -> tuple[float, float]:
    """g'd and d'Hd."""
    theta, rounded = theta.to(objective.dtype), d.to(objective.dtype)
    return dot(objective.gradient(theta), d), dot(objective.hvp(theta, rounded), d)

"""The loss over a plane, a, b -> f(theta + a d1 + b d2)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from landscape.directions.fingerprints import fingerprints
from landscape.objective import Objective
from landscape.objective.data.metrics import PerExampleMetrics
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Plane
from landscape.slices.adaptive import refine
from landscape.slices.checks import checked_coordinates, checked_direction, named, to_common_dtype
from landscape.slices.sweep import Index, Sweep, measure_all, single_or_dict
from landscape.sums import dot

__all__ = ["plane"]

# |cosine| above which two directions span no plane that a picture could show
_PARALLEL = 1 - 1e-6


@overload
def plane(objective: Objective, *args: Any, **options: Any) -> Plane: ...
@overload
def plane(objective: Mapping[str, Objective], *args: Any, **options: Any) -> dict[str, Plane]: ...
def plane(
    objective: Objective | Mapping[str, Objective],
    theta: Tensor,
    direction_a: Tensor,
    direction_b: Tensor,
    a: Any,
    b: Any,
    *,
    unit: str = "direction",
    tol: float | None = None,
    held_out: int = 8,
    generator: torch.Generator | None = None,
    store: str | Path | None = None,
    progress: Progress = silent,
) -> Plane | dict[str, Plane]:
    """The loss at theta + a * direction_a + b * direction_b on the grid of all a and b.

    Args:
        objective: f, or several by name, as for ``line``.
        theta: the origin, shape (n,).
        direction_a: d1, shape (n,).
        direction_b: d2, shape (n,), not parallel to d1.
        a: coordinates along d1, in ``unit``.
        b: coordinates along d2, likewise.
        unit: as for ``line``.
        tol: evaluate only where interpolation from coarser points misses by more than this share of the losses' range
            (of any objective), see ``landscape.slices.adaptive``; 0.01 serves a picture. Default: everywhere.
        held_out: with ``tol``, how many interpolated points are evaluated at the end, to measure the error.
        generator: of the choice of those. Default: seeded by the operating system.
        store: as for ``line``; with ``tol`` it holds what was evaluated.
        progress: called as ``progress(points, "plane")``, with ``tol`` for each round of points; ``tqdm.tqdm`` fits.

    Returns:
        Plane with ``loss`` of shape (len(a), len(b)), or one for each objective by its name.

    Raises:
        ValueError: sizes that do not fit, zero or parallel directions, no coordinates, a unit that the directions do
            not have, tol or held_out out of range, with ``tol`` coordinates that do not increase, a store of another
            slice.

    Example:
        >>> from landscape import ModelObjective
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> f = ModelObjective(model, torch.nn.MSELoss(), (torch.eye(2), torch.zeros(2, 1)))
        >>> t = np.linspace(-1, 1, 21)
        >>> found = plane(f, torch.zeros(2), *torch.eye(2), t, t, tol=0.01)
        >>> found.saved, found.held_out_error < 1e-6  # a quadratic function is interpolated exactly
        (372, True)
    """
    start = time.perf_counter()
    objectives = named(objective)
    a, b = checked_coordinates("a", a), checked_coordinates("b", b)
    theta, d1, d2 = to_common_dtype(objectives, theta=theta, direction_a=direction_a, direction_b=direction_b)
    norms = [
        checked_direction("direction_a", d1, theta, unit, objectives),
        checked_direction("direction_b", d2, theta, unit, objectives),
    ]
    cosine = dot(d1, d2) / (norms[0] * norms[1])
    if abs(cosine) > _PARALLEL:
        raise ValueError(f"direction_a and direction_b are parallel (cosine {cosine:.7f}): give two that span a plane")
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"tol={tol}: give a share of the losses' range between 0 and 1, such as 0.01, or None")
    if held_out < 0:
        raise ValueError(f"held_out={held_out}: give a number of points, 0 or more")
    for name, axis in (("a", a), ("b", b)) if tol is not None else ():
        if len(back := np.flatnonzero(np.diff(axis) <= 0)):
            first, second = axis[back[0] : back[0] + 2]
            raise ValueError(
                f"{name} does not increase ({first:g} is followed by {second:g}): with tol, give increasing coordinates"
            )
    scale_1, scale_2 = (1 / norm if unit == "norm" else 1.0 for norm in norms)
    row_start, point, current_row = torch.empty_like(theta), torch.empty_like(theta), -1

    def measure_at(index: Index) -> list[PerExampleMetrics]:
        nonlocal current_row
        i, j = index
        if i != current_row:
            torch.add(theta, d1, alpha=scale_1 * float(a[i]), out=row_start)
            current_row = i
        torch.add(row_start, d2, alpha=scale_2 * float(b[j]), out=point)
        return measure_all(objectives, point)

    sweep = Sweep(
        objectives,
        {"a": a, "b": b},
        origin=measure_all(objectives, theta),
        at_origin=(a == 0)[:, None] & (b == 0),
        measure_at=measure_at,
        store=store,
        signature={"slice": "plane", "theta": theta, "direction_a": d1, "direction_b": d2, "unit": unit},
    )
    evaluated, checks, misses = np.ones(sweep.table.shape, dtype=bool), 0, np.full(len(objectives), np.nan)
    if tol is None:
        sweep.visit(np.ndindex(*sweep.table.shape), progress, "plane")
    else:
        evaluated, checks, misses = refine(sweep, a, b, tol, held_out, generator_or_new(generator), progress)
    fingerprint = fingerprints(theta, d1, d2)
    planes = {
        name: Plane(
            a=a,
            b=b,
            **sweep.fields(name),
            evaluated=evaluated,
            tol=tol or 0.0,
            held_out=checks,
            held_out_error=float(miss),
            direction_norms=np.array(norms),
            cosine=cosine,
            fingerprint=fingerprint,
            unit=unit,
            cost=sweep.cost(start),
        )
        for name, miss in zip(objectives, misses, strict=True)
    }
    return single_or_dict(objective, planes)

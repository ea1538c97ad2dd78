"""The loss on the straight line between two ends a and b: t -> f((1 - t) a + t b).

In this form t = 0 and t = 1 give the ends bit for bit, and t = 1/2 their mean.

Networks between the ends depend on their buffers too. Where the ends are checkpoints, all tensors are interpolated, the
running statistics of BatchNorm included, so that the ends are the networks that were saved. Interpolated statistics
are not those that a network between the ends would gather, and show a barrier that recalibration removes (Garipov et
al. 2018 recalibrate at every point): make the objective with ``batch_norm="recalibrated"`` to recalibrate here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from landscape.checkpoints import Checkpoint
from landscape.objective import ModelObjective, Objective
from landscape.objective.data.metrics import PerExampleMetrics
from landscape.objective.tensors import checkpoint_of, fixed_tensors, move_to
from landscape.progress import Progress, silent
from landscape.results import Line
from landscape.slices.checks import checked_coordinates, named, to_common_dtype
from landscape.slices.policies import keeps_statistics
from landscape.slices.sweep import Sweep, measure, measure_all, single_or_dict
from landscape.sums import norm

__all__ = ["path"]


@overload
def path(objective: Objective, *args: Any, **options: Any) -> Line: ...
@overload
def path(objective: Mapping[str, Objective], *args: Any, **options: Any) -> dict[str, Line]: ...
def path(
    objective: Objective | Mapping[str, Objective],
    a: Tensor | Checkpoint,
    b: Tensor | Checkpoint,
    coordinates: Any,
    *,
    store: str | Path | None = None,
    progress: Progress = silent,
) -> Line | dict[str, Line]:
    """The loss, and for classifiers the accuracy, at (1 - t) a + t b.

    Args:
        objective: f, or several by name, as for ``line``. What BatchNorm does at every point is theirs to say:
            ``"recalibrated"`` gathers new statistics, ``"frozen"`` keeps the objective's own between points given as
            weights, and interpolates those of Checkpoints.
        a: one end, as weights of shape (n,), whose buffers are then the objective's at every point; or as a Checkpoint,
            whose buffers are interpolated as the weights are (integers: those of the nearer end).
        b: the other, given alike.
        coordinates: the values of t; below 0 and above 1 is beyond the ends, where a running variance that would fall
            below 0 is 0.
        store: as for ``line``.
        progress: called as ``progress(points, "path")``; ``tqdm.tqdm`` fits.

    Returns:
        Line in unit ``"path"`` from a, with ``direction_norm`` = ||b - a||, or one for each objective by its name. Its
        ``batch_norm`` is ``"interpolated"`` where statistics were.

    Raises:
        ValueError: ends of other sizes than the objective's, or of two kinds; no coordinates; checkpoints for an
            objective that is no network; a store of another slice.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> square = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> path(square, torch.zeros(1), torch.full((1,), 4.0), [0.0, 0.5, 1.0]).loss
        array([ 0.,  4., 16.])
    """
    start = time.perf_counter()
    objectives, t = named(objective), checked_coordinates("coordinates", coordinates)
    if isinstance(a, Checkpoint) and isinstance(b, Checkpoint):
        objectives, ends, measure_between, mixes = _between_checkpoints(objectives, a, b)
        identity: dict[str, Any] = {"a": a.digest(), "b": b.digest()}
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        (ends, measure_between), mixes = _between_points(objectives, a, b), False
        identity = {"a": ends[0], "b": ends[1]}
    else:
        raise ValueError(
            f"a is a {type(a).__name__} and b a {type(b).__name__}: give two tensors of weights, or two Checkpoints"
        )
    sweep = Sweep(
        objectives,
        {"coordinates": t},
        origin=measure_between(0.0),
        at_origin=t == 0,
        measure_at=lambda index: measure_between(float(t[index])),
        store=store,
        signature={"slice": "path", **identity},
    )
    sweep.visit(np.ndindex(len(t)), progress, "path")
    lines = {
        name: Line(
            coordinates=t,
            **sweep.fields(name) | ({"batch_norm": "interpolated"} if mixes and keeps_statistics(f) else {}),
            slope=float("nan"),
            curvature=float("nan"),
            eps=torch.finfo(objectives[name].dtype).eps,
            direction_norm=norm(ends[1] - ends[0]),
            unit="path",
            cost=sweep.cost(start),
        )
        for name, f in objectives.items()
    }
    return single_or_dict(objective, lines)


Ends = tuple[Tensor, Tensor]
MeasureBetween = Callable[[float], list[PerExampleMetrics]]


def _between_points(objectives: Mapping[str, Objective], a: Tensor, b: Tensor) -> tuple[Ends, MeasureBetween]:
    first, last = to_common_dtype(objectives, a=a, b=b)
    point = torch.empty_like(first)

    def measure_between(t: float) -> list[PerExampleMetrics]:
        torch.mul(first, 1 - t, out=point).add_(last, alpha=t)
        return measure_all(objectives, point)

    return (first, last), measure_between


def _between_checkpoints(
    objectives: Mapping[str, Objective], a: Checkpoint, b: Checkpoint
) -> tuple[dict[str, Objective], Ends, MeasureBetween, bool]:
    """The objectives at a, the two ends, the measurement at t, and whether buffers are interpolated."""
    networks = {name: f for name, f in objectives.items() if isinstance(f, ModelObjective)}
    if others := [name for name in objectives if name not in networks]:
        raise ValueError(f"a is a Checkpoint, but {others} of the objectives are no networks: give a and b as tensors")
    at_a = {name: network.at(a) for name, network in networks.items()}
    f = next(iter(at_a.values()))
    at_b = f.at(b)
    ends = f.theta, at_b.theta
    fixed, fixed_at_b = (fixed_tensors(each, with_statistics=True) for each in (f, at_b))
    if all(torch.equal(tensor, fixed_at_b[name]) for name, tensor in fixed.items()):
        return dict(at_a), *_between_points(at_a, *ends), False

    # by the network's own names, which those in the files may differ from
    state_a, state_b = checkpoint_of(f, a.name), checkpoint_of(at_b, b.name)

    def measure_between(t: float) -> list[PerExampleMetrics]:
        mixed = {name: _interpolated(state_a, state_b, name, t) for name in state_a.tensors}
        between = Checkpoint(f"{1 - t:g} {a.name} + {t:g} {b.name}", mixed)
        for network in at_a.values():
            # interpolated vectors of spectral normalisation are singular vectors of no matrix
            move_to(network, between, spectral=t not in (0, 1))
        return [measure(network, network.theta) for network in at_a.values()]

    return dict(at_a), ends, measure_between, True


def _interpolated(a: Checkpoint, b: Checkpoint, name: str, t: float) -> Any:
    if isinstance(a.tensors[name], Tensor) and a.tensors[name].is_floating_point():
        mixed = (1 - t) * a.tensors[name] + t * b.tensors[name]
        return mixed.clamp(min=0) if name.endswith("running_var") else mixed
    return (a if t < 0.5 else b).tensors[name]  # a count of batches has no mean

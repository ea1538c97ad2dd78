"""The walk over a grid of points, at each of which the objectives are measured.

Moving to a point is one addition into a vector that is kept, and one copy of it into the network's weights.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from landscape.objective import ModelObjective, Objective
from landscape.objective.examples import Examples
from landscape.progress import Progress
from landscape.results import Cost
from landscape.slices.checks import named
from landscape.slices.table import Table

__all__ = ["Index", "Walk", "as_given", "estimate_seconds", "measure"]

Index = tuple[int, ...]
R = TypeVar("R")

_QUANTITIES = ("loss", "loss_stderr", "rise_stderr", "accuracy", "accuracy_stderr")  # then the classes' accuracies


class Walk:
    """Measurements of objectives over a grid, each made once.

    Args:
        objectives: by name.
        axes: the grid's coordinates by name.
        origin: what was found of each objective at theta.
        at_origin: of the grid's shape: which points are theta itself, and need no evaluation.
        measure_at: measures all objectives at a point of the grid.
        store: where to keep them, as ``landscape.slices.table`` tells. Default: nowhere.
        signature: what decides where the points are; tensors go in by their hash.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        axes: Mapping[str, np.ndarray],
        *,
        origin: list[Examples],
        at_origin: np.ndarray,
        measure_at: Callable[[Index], list[Examples]],
        store: str | Path | None,
        signature: Mapping[str, Any],
    ) -> None:
        self.names, self.origin = list(objectives), origin
        self._at_origin, self._measure_at = at_origin, measure_at
        self._classes = max(len(found.class_accuracy) for found in origin)
        self._shared = store is not None
        self.evaluations = 1  # of each objective: that at theta
        self.table = Table(
            self.names,
            axes,
            [*_QUANTITIES, *(f"class {i}" for i in range(self._classes))],
            path=store,
            signature=_signature(objectives, axes, signature) if store is not None else {},
            origin=[found.metrics["loss"] for found in origin],
        )

    def visit(self, points: Iterable[Index], progress: Progress, description: str) -> None:
        """Measure at all points where it was not done yet."""
        order = _shuffled(points) if self._shared else list(points)
        for index in progress(order, description):
            if not self.table.has(index):
                found = self.origin if self._at_origin[index] else self._measure_at(index)
                self.evaluations += not self._at_origin[index]
                self.table.put(index, np.stack(list(map(self._quantities, found, self.origin))))

    def fields(self, name: str) -> dict[str, Any]:
        """Of the record of one objective: what was measured, each of the grid's shape, and f(theta)."""
        k = self.names.index(name)
        values = self.table.values[k]
        return {
            **{quantity: values[..., i].copy() for i, quantity in enumerate(_QUANTITIES)},
            "class_accuracy": values[..., len(_QUANTITIES) :].copy(),
            "origin": self.origin[k].metrics["loss"],
            "not_finite": int((~np.isfinite(values[..., 0])).sum()),
        }

    def cost(self, start: float, **others: int) -> Cost:
        """Of one objective: what this walk evaluated itself, since ``start``."""
        return Cost(values=self.evaluations, seconds=time.perf_counter() - start, **others)

    def _quantities(self, found: Examples, origin: Examples) -> np.ndarray:
        loss, accuracy = found.metrics["loss"], found.metrics.get("accuracy", np.nan)
        classes = np.full(self._classes, np.nan)
        classes[: len(found.class_accuracy)] = found.class_accuracy
        return np.array([loss, found.stderr(), found.stderr(origin), accuracy, found.accuracy_stderr(), *classes])


def as_given(objective: Objective | Mapping[str, Objective], results: dict[str, R]) -> Any:
    """One result for one objective, results by name for several."""
    return results if isinstance(objective, Mapping) else next(iter(results.values()))


def measure(objective: Objective, theta: Tensor) -> Examples:
    """f and all that is known of its examples at theta."""
    if isinstance(objective, ModelObjective):
        return objective.per_example(theta)
    # others may keep theta, but the walk goes on in the same vector
    value = objective.value(theta.to(objective.dtype, copy=True))
    nothing = np.empty(0)
    return Examples({"loss": value}, loss=np.array([value]), counts=np.ones(1), right=nothing, class_accuracy=nothing)


def estimate_seconds(objective: Objective | Mapping[str, Objective], theta: Tensor, points: int) -> float:
    """How long a slice of so many points will take, by evaluating two.

    Args:
        objective: as for the slice.
        theta: its origin, shape (n,).
        points: 441 for a plane of 21 x 21.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> f = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> estimate_seconds(f, f.theta, points=441) > 0
        True
    """
    objectives = named(objective).values()
    for f in objectives:  # the first evaluation allocates
        measure(f, theta)
    start = time.perf_counter()
    for f in objectives:
        measure(f, theta + 1e-3)  # elsewhere, so that the weights move and BatchNorm is calibrated
    return points * (time.perf_counter() - start)


def _shuffled(points: Iterable[Index]) -> list[Index]:
    """Row by row, both in random order, so that processes that share a store seldom meet.

    The order decides nothing but who measures what; hence the operating system's randomness, and no generator.
    """
    chance = random.SystemRandom()
    rows = [list(row) for _, row in groupby(sorted(points), key=lambda index: index[:-1])]
    chance.shuffle(rows)
    for row in rows:
        chance.shuffle(row)
    return [index for row in rows for index in row]


def _signature(
    objectives: Mapping[str, Objective], axes: Mapping[str, np.ndarray], others: Mapping[str, Any]
) -> dict[str, Any]:
    kinds = {}
    for name, f in objectives.items():
        kinds[name] = [type(f).__name__, f.size, str(f.dtype)]
        if isinstance(f, ModelObjective):
            kinds[name] += [f.batch_norm, f.weight_decay, f.data_digest()]
    coordinates = {name: _hash(torch.from_numpy(points)) for name, points in axes.items()}
    hashed = {name: _hash(value) if isinstance(value, Tensor) else value for name, value in others.items()}
    return {"objective": kinds, **coordinates, **hashed}


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()

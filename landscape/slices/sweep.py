"""The sweep over a grid of points, at each of which the objectives are measured.

Moving to a point takes one addition into a reused vector, and one copy of it into the network's weights.
"""

from __future__ import annotations

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
from landscape.objective.contract import number
from landscape.objective.data.metrics import PerExampleMetrics
from landscape.progress import Progress
from landscape.results import Cost
from landscape.slices.checks import named, to_common_dtype
from landscape.slices.policies import batch_norm_of
from landscape.slices.signature import signature as signature_of
from landscape.slices.table import Table

__all__ = ["Index", "Sweep", "estimate_seconds", "measure", "measure_all", "single_or_dict"]

Index = tuple[int, ...]
R = TypeVar("R")

# what is measured of an objective, with the least and the most that it can be; then the classes' accuracies
_QUANTITIES = {
    "loss": (-np.inf, np.inf),
    "loss_stderr": (0, np.inf),
    "rise_stderr": (0, np.inf),
    "accuracy": (0, 1),
    "accuracy_stderr": (0, np.inf),
}


class Sweep:
    """Measurements of objectives over a grid, each made once.

    Args:
        objectives: by name.
        axes: the grid's coordinates by name.
        origin: what was found of each objective at theta.
        at_origin: of the grid's shape: which points are theta itself, and need no evaluation.
        measure_at: measures all objectives at a point of the grid.
        store: a folder for them, in the format of ``landscape.slices.table``. Default: memory only.
        signature: what determines the points; tensors are hashed.

    Raises:
        ValueError: the store is of another slice or function, or of something else.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        axes: Mapping[str, np.ndarray],
        *,
        origin: list[PerExampleMetrics],
        at_origin: np.ndarray,
        measure_at: Callable[[Index], list[PerExampleMetrics]],
        store: str | Path | None,
        signature: Mapping[str, Any],
    ) -> None:
        self._objectives, self.origin = dict(objectives), origin
        self.names = list(objectives)
        self._at_origin, self._measure_at = at_origin, measure_at
        self._classes = max(len(found.class_accuracy) for found in origin)
        self._shared = store is not None
        self.evaluations = 1  # of each objective: that at theta
        self.table = Table(
            self.names,
            axes,
            [*_QUANTITIES, *(f"class {i}" for i in range(self._classes))],
            path=store,
            signature=signature_of(objectives, axes, signature) if store is not None else {},
            origin=[found.metrics["loss"] for found in origin],
            eps=max(torch.finfo(f.dtype).eps for f in objectives.values()),
        )
        self._check_stored_point()

    def _check_stored_point(self) -> None:
        """Measure one stored point again: neither f(theta) nor the signature sees a change of the user's code.

        Raises:
            ValueError: the losses differ from the stored ones.
        """
        elsewhere = (index for index in self.table.stored() if not self._at_origin[index])
        if (index := next(elsewhere, None)) is not None and self.table.has(index):
            found = [each.metrics["loss"] for each in self._measure_at(index)]
            self.evaluations += 1
            self.table.check(index, found)

    @property
    def limits(self) -> np.ndarray:
        """The least and the most that each quantity can be, (2, quantities)."""
        return np.array([*_QUANTITIES.values(), *[(0, 1)] * self._classes]).T

    def visit(self, points: Iterable[Index], progress: Progress, description: str) -> None:
        """Measure at all points that are not yet in the table."""
        order = _shuffled(points) if self._shared else list(points)
        for index in progress(order, description):
            if not self.table.has(index):
                found = self.origin if self._at_origin[index] else self._measure_at(index)
                self.evaluations += not self._at_origin[index]
                self.table.put(index, np.stack(list(map(self._quantities, found, self.origin))))

    def fields(self, name: str) -> dict[str, Any]:
        """Fields of one objective's record: the measured quantities, each of the grid's shape, and f(theta)."""
        k = self.names.index(name)
        values = self.table.values[k]
        return {
            **{quantity: values[..., i].copy() for i, quantity in enumerate(_QUANTITIES)},
            "class_accuracy": values[..., len(_QUANTITIES) :].copy(),
            "origin": self.origin[k].metrics["loss"],
            "batch_norm": batch_norm_of(self._objectives[name]),
            "weight_decay": getattr(self._objectives[name], "weight_decay", 0.0),
            "not_finite": int((~np.isfinite(values[..., 0])).sum()),
        }

    def cost(self, start: float, **others: int) -> Cost:
        """The cost per objective: evaluations made by this sweep, and the seconds since ``start``."""
        return Cost(values=self.evaluations, seconds=time.perf_counter() - start, **others)

    def _quantities(self, found: PerExampleMetrics, origin: PerExampleMetrics) -> np.ndarray:
        loss, accuracy = found.metrics["loss"], found.metrics.get("accuracy", np.nan)
        classes = np.full(self._classes, np.nan)
        classes[: len(found.class_accuracy)] = found.class_accuracy
        return np.array([loss, found.stderr(), found.stderr(origin), accuracy, found.accuracy_stderr(), *classes])


def single_or_dict(objective: Objective | Mapping[str, Objective], results: dict[str, R]) -> Any:
    """One result for one objective, results by name for several."""
    return results if isinstance(objective, Mapping) else next(iter(results.values()))


def measure(objective: Objective, theta: Tensor) -> PerExampleMetrics:
    """The metrics of an objective at theta, and its per-example losses where it has examples."""
    if isinstance(objective, ModelObjective):
        return objective.per_example(theta)
    # a copy: an objective may store theta, and the sweep overwrites this vector
    value = number(objective.value(theta.to(objective.dtype, copy=True)))
    nothing = np.empty(0)
    return PerExampleMetrics(
        {"loss": value}, loss=np.array([value]), counts=np.ones(1), right=nothing, class_accuracy=nothing
    )


def measure_all(objectives: Mapping[str, Objective], theta: Tensor) -> list[PerExampleMetrics]:
    """``measure`` of each objective at theta, in their order."""
    return [measure(f, theta) for f in objectives.values()]


def estimate_seconds(objective: Objective | Mapping[str, Objective], theta: Tensor, points: int) -> float:
    """How long a slice of so many points will take, by evaluating two.

    Args:
        objective: as for the slice.
        theta: its origin, shape (n,).
        points: 441 for a plane of 21 x 21.

    Raises:
        ValueError: a size that does not fit, fewer than no points.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1)
        >>> f = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> estimate_seconds(f, f.theta, points=441) > 0
        True
    """
    if points < 0:
        raise ValueError(f"points={points}: give a number of points, 0 or more")
    objectives = named(objective)
    (theta,) = to_common_dtype(objectives, theta=theta)
    measure_all(objectives, theta)  # the first evaluation allocates
    start = time.perf_counter()
    measure_all(objectives, theta + 1e-3)  # another point, so that the weights move and BatchNorm is calibrated
    return points * (time.perf_counter() - start)


def _shuffled(points: Iterable[Index]) -> list[Index]:
    """Rows in random order, and the points within each, so that processes that share a store rarely collide.

    The order affects only which process measures which point, so it uses the operating system's randomness.
    """
    chance = random.SystemRandom()
    rows = [list(row) for _, row in groupby(sorted(points), key=lambda index: index[:-1])]
    chance.shuffle(rows)
    for row in rows:
        chance.shuffle(row)
    return [index for row in rows for index in row]

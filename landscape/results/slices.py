"""Slices of the landscape: lines, bands of random lines, planes.

Every coordinate is a displacement from theta, in the ``unit`` that the record names:

    "direction"   multiples of the direction d, of norm ||d||
    "norm"        of the parameters: at coordinate a, ||x - theta|| = |a|
    "filter"      relative to the norm of each filter of theta: d is filter-normalised, a = 1 changes each by its norm
    "layer"       likewise of each layer
    "path"        the way between two ends, 0 at the first and 1 at the second

Error bars are over the examples that the loss is a mean of. NaN and inf are kept and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from landscape.results.records import Cost

__all__ = ["Line", "LineBand", "Plane"]

_AXES = {
    "direction": "multiples of {name} (1 unit = {norm:.3g} in parameter norm)",
    "norm": "displacement along {name}, in parameter norm",
    "filter": "displacement along {name} relative to each filter's norm (1 unit = {norm:.3g} in parameter norm)",
    "layer": "displacement along {name} relative to each layer's norm (1 unit = {norm:.3g} in parameter norm)",
    "path": "position between the ends (1 unit = {norm:.3g} in parameter norm)",
}


def _axis(unit: str, name: str, norm: float) -> str:
    return _AXES[unit].format(name=name, norm=norm)


@dataclass(frozen=True)
class Line:
    """f(theta + a d) for each coordinate a, or f on the way between two ends."""

    coordinates: Annotated[np.ndarray, "coordinates"]  # (points,) a
    loss: Annotated[np.ndarray, "coordinates"]  # (points,)
    loss_stderr: Annotated[np.ndarray, "coordinates"]  # of the loss, the examples being a sample; NaN where unknown
    rise_stderr: Annotated[np.ndarray, "coordinates"]  # of loss - f(theta), paired by example
    accuracy: Annotated[np.ndarray, "coordinates"]  # (points,), NaN where the objective knows none
    accuracy_stderr: Annotated[np.ndarray, "coordinates"]
    class_accuracy: Annotated[np.ndarray, "coordinates", "class"]  # (points, classes); no classes where none are known
    origin: float  # f(theta), at coordinate 0
    slope: float  # df/da at 0: g'd; NaN where it was not asked for
    curvature: float  # d2f/da2 at 0: d'Hd; likewise
    eps: float  # relative rounding of the weights' dtype
    direction_norm: float  # ||d||
    unit: str  # of the coordinates
    batch_norm: str  # what BatchNorm did at each point; "" for a function that is no network
    weight_decay: float  # in the loss; 0 for a function that is no network
    not_finite: int  # points where the loss is NaN or inf
    cost: Cost

    @property
    def error_rate(self) -> np.ndarray:
        """1 - accuracy, (points,)."""
        return 1 - self.accuracy

    @property
    def rise(self) -> np.ndarray:
        """f(theta + a d) - f(theta), (points,); its error is ``rise_stderr``."""
        return self.loss - self.origin

    @property
    def parabola(self) -> np.ndarray:
        """f(theta) + a g'd + a^2/2 d'Hd, (points,): what the derivatives at theta say of the line."""
        a = self.coordinates
        return self.origin + a * self.slope + a**2 / 2 * self.curvature

    @property
    def axis(self) -> str:
        """What the coordinates are, for an axis."""
        return _axis(self.unit, "the direction", self.direction_norm)

    def leaves_parabola(self, share: float = 0.1) -> tuple[float, float]:
        """Where the slice leaves its parabola: how far below 0 and how far above, as |a|.

        That is the smallest |a| on a side where |loss - parabola| exceeds ``share`` of the largest rise or fall, of
        loss or parabola, from f(theta) up to there. A loss that is not finite has left. What ten roundings of f(theta)
        could make (heuristic: a mean's rounding is a few) is no departure.

        Returns:
            ``(below, above)``; inf for a side on which it was not seen to leave, or where nothing was walked.

        Raises:
            ValueError: the derivatives are not known; ``share`` is not positive.
        """
        if not share > 0:
            raise ValueError(f"share={share}: give a positive share of the rise, such as 0.1")
        if not np.isfinite(self.curvature):
            raise ValueError(
                f"curvature={self.curvature}: there is no parabola, so take the line with derivatives=True"
            )
        below, above = (self._leaves(side, share) for side in (-1, 1))
        return below, above

    def _leaves(self, side: int, share: float) -> float:
        order = np.argsort(np.abs(self.coordinates), kind="stable")
        order = order[self.coordinates[order] * side > 0]
        distance, loss, parabola = np.abs(self.coordinates)[order], self.loss[order], self.parabola[order]
        finite = np.isfinite(loss)
        # up to the first loss that is not finite, all scales are
        scale = np.maximum.accumulate(np.maximum(np.abs(loss - self.origin), np.abs(parabola - self.origin)))
        with np.errstate(invalid="ignore"):
            left = ~finite | (np.abs(loss - parabola) > share * scale + 10 * self.eps * abs(self.origin))
        return float(distance[left.argmax()]) if left.any() else float("inf")


@dataclass(frozen=True)
class LineBand:
    """f(theta + a d_k) along K random directions d_k: what is typical, instead of one lucky picture."""

    coordinates: Annotated[np.ndarray, "coordinates"]  # (points,) a
    loss: Annotated[np.ndarray, "direction", "coordinates"]  # (K, points)
    accuracy: Annotated[np.ndarray, "direction", "coordinates"]  # NaN where the objective knows none
    origin: float  # f(theta)
    direction_norms: Annotated[np.ndarray, "direction"]  # (K,) ||d_k||
    unit: str
    batch_norm: str  # as those of a Line
    weight_decay: float
    not_finite: int
    cost: Cost

    @property
    def median(self) -> np.ndarray:
        """Of the loss over the directions, (points,)."""
        return self.quantile(0.5)

    def quantile(self, q: float) -> np.ndarray:
        """Of the loss over the directions, (points,).

        It is interpolated between the two losses on either side of rank q (K - 1), where they are finite. Where one is
        not, it is the higher of the two: inf counts as the high loss it is, and NaN as higher.

        Raises:
            ValueError: ``q`` is not from 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q={q}: give a number from 0 to 1")
        ranked = np.sort(self.loss, axis=0)  # NaN goes last
        rank = q * (len(ranked) - 1)
        low, high = ranked[int(np.floor(rank))], ranked[int(np.ceil(rank))]
        with np.errstate(invalid="ignore"):  # inf - inf
            between = low + (rank - np.floor(rank)) * (high - low)
        return np.where(np.isfinite(low) & np.isfinite(high), between, high)

    @property
    def axis(self) -> str:
        """What the coordinates are, for an axis."""
        return _axis(self.unit, "random directions", float(self.direction_norms.mean()))


@dataclass(frozen=True)
class Plane:
    """f(theta + a d1 + b d2) on a grid.

    Points that an adaptive plane did not evaluate are interpolated, in all arrays that are known where it did. ``tol``
    and ``held_out_error`` are of the loss alone: nothing is promised of interpolated accuracies and errors.
    """

    a: Annotated[np.ndarray, "a"]  # (A,) along d1
    b: Annotated[np.ndarray, "b"]  # (B,) along d2
    loss: Annotated[np.ndarray, "a", "b"]  # (A, B)
    loss_stderr: Annotated[np.ndarray, "a", "b"]  # as those of a Line
    rise_stderr: Annotated[np.ndarray, "a", "b"]
    accuracy: Annotated[np.ndarray, "a", "b"]
    accuracy_stderr: Annotated[np.ndarray, "a", "b"]
    class_accuracy: Annotated[np.ndarray, "a", "b", "class"]
    evaluated: Annotated[np.ndarray, "a", "b"]  # bool; False: interpolated
    origin: float  # f(theta)
    tol: float  # the miss of interpolation that was allowed, as a share of the losses' range; 0 for a full plane
    held_out: int  # points that interpolation was checked at, after all else
    held_out_error: float  # the largest miss among them, in units of the loss; NaN where there are none
    direction_norms: Annotated[np.ndarray, "direction"]  # (2,), ||d1|| and ||d2||
    cosine: float  # of the angle between d1 and d2
    fingerprint: Annotated[np.ndarray, "vector", "projection"]  # (3, 4), of theta, d1 and d2: which plane this is
    unit: str  # of a and b
    batch_norm: str  # as those of a Line
    weight_decay: float
    not_finite: int
    cost: Cost

    @property
    def error_rate(self) -> np.ndarray:
        """1 - accuracy, (A, B)."""
        return 1 - self.accuracy

    @property
    def rise(self) -> np.ndarray:
        """f - f(theta), (A, B); its error is ``rise_stderr``."""
        return self.loss - self.origin

    @property
    def angle(self) -> float:
        """Between d1 and d2, in degrees."""
        return float(np.degrees(np.arccos(self.cosine)))

    @property
    def saved(self) -> int:
        """Evaluations that a full plane would have taken besides."""
        return int((~self.evaluated).sum())

    @property
    def axes(self) -> tuple[str, str]:
        """What a and b are, for the axes."""
        first, second = self.direction_norms
        return _axis(self.unit, "direction 1", first), _axis(self.unit, "direction 2", second)

"""Barriers on the straight line between two checkpoints, and between each two of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from landscape.results.records import Cost

__all__ = ["Barrier", "BarrierMatrix"]

_STABLE = 0.02  # of the error, the line that Frankle et al. 2020 draw


@dataclass(frozen=True)
class Barrier:
    """A metric m at (1 - alpha) a + alpha b, and how far it rises above the ends; NaN and inf are kept."""

    alpha: Annotated[np.ndarray, "alpha"]  # (points,), 0 at a and 1 at b
    values: Annotated[np.ndarray, "alpha"]  # (points,), m
    rise: Annotated[np.ndarray, "alpha"]  # (points,), m minus its baseline
    rise_stderr: Annotated[np.ndarray, "alpha"]  # over examples, paired; NaN where they are not known
    names: list[str]  # of a and b
    metric: str  # m: "loss" or "error"
    baseline: str  # "mean" of the two ends, or the "linear" interpolation between them
    distance: float  # ||b - a||
    batch_norm: str  # what BatchNorm did at each point; "" for a function without examples
    not_finite: int  # points where m is NaN or inf
    cost: Cost

    @property
    def at(self) -> float:
        """The alpha of the highest rise."""
        return float(self.alpha[self._top])

    @property
    def height(self) -> float:
        """The barrier: the highest rise. NaN where one of them is not known."""
        return float(self.rise[self._top])

    @property
    def stderr(self) -> float:
        """The standard error of the rise at ``at``, over examples."""
        return float(self.rise_stderr[self._top])

    @property
    def stable(self) -> bool:
        """Whether the error rises by less than 2 %: "stable", or linearly connected, in Frankle et al. 2020.

        Raises:
            ValueError: the metric is the loss, of which this is not said.
        """
        if self.metric != "error":
            raise ValueError(f"metric={self.metric!r}: stability is said of the error, so take the barrier of that")
        return self.height < _STABLE

    @property
    def _top(self) -> int:
        return int(self.rise.argmax())  # the first NaN, if there is one


@dataclass(frozen=True)
class BarrierMatrix:
    """The barriers between each two of N checkpoints, symmetric, with zeros on the diagonal."""

    height: Annotated[np.ndarray, "checkpoint", "other"]  # (N, N)
    stderr: Annotated[np.ndarray, "checkpoint", "other"]  # (N, N), over examples, paired
    distance: Annotated[np.ndarray, "checkpoint", "other"]  # (N, N), between the two ends of each line
    names: list[str]
    metric: str
    baseline: str
    points: int  # on each line
    matched: bool  # whether the units of each pair were matched first
    not_finite: int  # points of all lines where the metric is NaN or inf
    cost: Cost

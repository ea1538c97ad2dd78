"""An estimate with its standard error and confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import t as student

__all__ = ["Estimate", "check_level", "standard_error", "student_interval"]

Interval = Callable[[float], tuple[float, float]]


class Estimate(tuple[float, float]):
    """A value and its standard error, as which it unpacks.

    Args:
        value: the estimate.
        stderr: its standard error; 0: exact, NaN: not known.
        interval: a function of the level that gives the ends of a confidence interval.

    Example:
        >>> value, stderr = estimate = Estimate.of(np.array([8.0, 10.0, 12.0]))
        >>> value, round(stderr, 3)
        (10.0, 1.155)
        >>> low, high = estimate.interval(0.95)
        >>> round(low, 3), round(high, 3)
        (5.032, 14.968)
    """

    _interval: Interval

    def __new__(cls, value: float, stderr: float, interval: Interval) -> Estimate:
        """A tuple of two floats, with the interval as an attribute."""
        self = super().__new__(cls, (float(value), float(stderr)))
        self._interval = interval
        return self

    def __getnewargs__(self) -> tuple[float, float, Interval]:
        """For copies and pickles."""
        return self.value, self.stderr, self._interval

    @classmethod
    def of(cls, draws: np.ndarray) -> Estimate:
        """The mean of independent draws (draws,), with Student's intervals."""
        value, stderr = float(draws.mean()), float(standard_error(draws))
        return cls(value, stderr, partial(student_interval, value, stderr, len(draws) - 1))

    @property
    def value(self) -> float:
        """The estimate."""
        return self[0]

    @property
    def stderr(self) -> float:
        """Its standard error."""
        return self[1]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """A confidence interval; NaN if the error is not known.

        Args:
            level: the share of such intervals that hold the truth.

        Raises:
            ValueError: level is not between 0 and 1.
        """
        check_level(level)
        low, high = self._interval(level)
        return float(low), float(high)


def student_interval(value: Any, stderr: Any, dof: float, level: float) -> tuple[Any, Any]:
    """Student's confidence interval with ``dof`` degrees of freedom, elementwise; an exact value has no need of any."""
    quantile = student.ppf((1 + level) / 2, dof if dof > 0 else np.nan)
    half = np.where(np.equal(stderr, 0), 0.0, quantile * np.asarray(stderr, float))
    half = half.item() if half.ndim == 0 else half
    return value - half, value + half


def check_level(level: float) -> None:
    """Raise ValueError unless it is the level of an interval."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.95")


def standard_error(draws: np.ndarray) -> np.ndarray:
    """Of the mean over the last axis; NaN for a single draw, which has no spread to tell it from."""
    count = draws.shape[-1]
    if count < 2:
        return np.full(draws.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):  # draws that are not finite have no finite error
        return draws.std(axis=-1, ddof=1) / np.sqrt(count)

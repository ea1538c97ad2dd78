"""Confidence intervals of tr f(A)/n from v' f(A) v, with v uniform on the unit sphere.

With mu_r the mean of f^r over the n eigenvalues, v' f(A) v has mean mu_1 and variance 2/(n + 2) (mu_2 - mu_1^2). Both
moments are known from the quadrature, so that the interval of few probes does not rest on their spread. For f >= 0 the
mean of K probes is close to mu_1 chi^2_nu / nu, with nu matching its variance (Satterthwaite 1946); this is exact for a
single eigenvalue among many zeros, and normal for many. The interval of the mean m is

    [m nu / q_{1 - a/2}, m nu / q_{a/2}],   q the quantiles of chi^2_nu.

The parts of f above and below zero have such intervals each, and that of their difference is at the root of the sum of
the squares of the distances to the ends (MOVER: Zou and Donner 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.stats import chi2

from landscape.results.estimate import Estimate, standard_error

__all__ = ["estimate_of_mean", "interval_of_mean"]


def estimate_of_mean(
    values: np.ndarray, weights: np.ndarray, known: np.ndarray, size: int, scale: float, missed: tuple[float, float]
) -> Estimate:
    """``scale`` times the mean of f over all eigenvalues.

    Args:
        values, weights: as of ``interval_of_mean``.
        known: f of the eigenvalues that are known exactly.
        size: the number of eigenvalues, with those.
        scale: above zero.
        missed: how much less or more the mean may be by what the quadrature misses.
    """
    values = np.where(weights > 0, values, 0.0)  # nodes without weight are padding
    n, exact = size - len(known), float(known.sum())
    draws = scale * (exact + n * (weights * values).sum(axis=1)) / size
    of_rest = partial(interval_of_mean, values, weights, n)
    interval = partial(_of_all, of_rest, exact / size, n / size, scale, missed)
    return Estimate(float(draws.mean()), float(standard_error(draws)), interval)


def _of_all(
    of_rest: Callable[[float], tuple[float, float]],
    exact: float,
    share: float,
    scale: float,
    missed: tuple[float, float],
    level: float,
) -> tuple[float, float]:
    low, high = of_rest(level)
    return scale * (exact + share * low - missed[0]), scale * (exact + share * high + missed[1])


def interval_of_mean(values: np.ndarray, weights: np.ndarray, n: int, level: float) -> tuple[float, float]:
    """An interval of the mean of f over all n eigenvalues; NaN where a value is not finite.

    Args:
        values: of f at the nodes of each probe's quadrature, (probes, nodes).
        weights: of the nodes, each probe's sum to 1.
        n: the dimension of the sphere that the probes are uniform on.
        level: the share of such intervals that hold the mean.
    """
    if not np.isfinite(values).all():
        return math.nan, math.nan
    up, down = (_of_positive(np.maximum(part, 0), weights, n, level) for part in (values, -values))
    mean = up[1] - down[1]
    low = mean - math.hypot(up[1] - up[0], down[2] - down[1])
    high = mean + math.hypot(up[2] - up[1], down[1] - down[0])
    return low, high


def _of_positive(values: np.ndarray, weights: np.ndarray, n: int, level: float) -> tuple[float, float, float]:
    """The lower end, the mean and the upper end for a function that is not negative."""
    mean, square = (float((weights * values**power).sum(axis=1).mean()) for power in (1, 2))
    variance = 2 / (n + 2) * max(0.0, square - mean**2) / len(values)
    if variance == 0:
        return mean, mean, mean
    nu = 2 * mean**2 / variance
    low, high = (mean * nu / float(chi2.ppf(q, nu)) for q in ((1 + level) / 2, (1 - level) / 2))
    return low, mean, high

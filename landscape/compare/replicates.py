"""The difference between two groups of runs, with the run as the unit of replication.

With y_gs the measure of run s in group g, the difference of the group means has variance

    V = s_1^2/n_1 + s_2^2/n_2,

with s_g the standard deviation over the runs of a group, and Welch's degrees of freedom. In a paired design, where run
s of both groups began at the same weights, V = s_d^2/n with s_d that of the differences, and n - 1 degrees of freedom.

Each y_gs is itself an estimate. Errors that are independent between runs are part of s_g. Common random numbers make
them dependent: with C the covariance of the errors of all runs and w the weights of the contrast, their share of the
variance is w'Cw, and they contribute tr(MC)/(n_g - 1) to s_g^2, M the centring matrix of the group. V is the larger of
the one above and of the one with s_g^2 less that contribution, plus w'Cw.

References: Welch 1947; Schuirmann 1987 (two one-sided tests of equivalence); Holm 1979. The permutation tests are
SciPy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from landscape.results import check_level, student_interval

__all__ = ["Difference", "difference_of_means", "holm", "permutation_p", "runs_to_decide"]

_PERMUTATIONS = 10_000  # at most; all of them where there are fewer
_MAX_RUNS = 1000
_POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """The mean of the second group less that of the first."""

    value: float
    stderr: float
    dof: float
    p: float  # of no difference, two-sided, by Student's t
    spreads: tuple[float, float]  # standard deviation over runs in each group, without the estimator's own error
    spread: float  # of the difference between one run of each group: V = spread^2 / n for n runs a group
    dof_per_run: float  # degrees of freedom for n runs a group, over n - 1
    floor: float  # the part of ``stderr`` that more runs do not average away

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's confidence interval."""
        check_level(level)
        return student_interval(self.value, self.stderr, self.dof, level)

    def equivalence_p(self, margin: float) -> float:
        """Of a difference of ``margin`` or more in size: the larger p of two one-sided tests."""
        if self.stderr == 0:
            return float(abs(self.value) >= margin)
        return float(scipy.stats.t.sf((margin - abs(self.value)) / self.stderr, self.dof))


def difference_of_means(first: np.ndarray, second: np.ndarray, covariance: np.ndarray, *, paired: bool) -> Difference:
    """The difference with its standard error and tests.

    Args:
        first, second: a value for each run, at least two in each group.
        covariance: of the errors of (*first, *second), shape (n_1 + n_2, n_1 + n_2).
        paired: whether the runs of both groups belong together one by one.
    """
    n = len(first), len(second)
    blocks = covariance[: n[0], : n[0]], covariance[n[0] :, n[0] :]
    total = [float(group.var(ddof=1)) for group in (first, second)]
    within = [_scatter(block) for block in blocks]
    contrast = np.concatenate([np.full(n[0], -1 / n[0]), np.full(n[1], 1 / n[1])])
    estimators = float(contrast @ covariance @ contrast)
    if paired:
        differences = second - first
        single = np.concatenate([-np.eye(n[0]), np.eye(n[0])], axis=1)
        variance = float(differences.var(ddof=1))
        own = max(0.0, variance - _scatter(single @ covariance @ single.T))
        squared, without, dof, dof_per_run = variance / n[0], own / n[0], n[0] - 1.0, 1.0
        per_run = variance
    else:
        parts = [v / m for v, m in zip(total, n, strict=True)]
        squared = sum(parts)
        without = sum(max(0.0, v - w) / m for v, w, m in zip(total, within, n, strict=True))
        dof = _welch(parts, [m - 1 for m in n]) if squared else float(min(n) - 1)
        dof_per_run, per_run = _welch(total, [1, 1]) if squared else 1.0, sum(total)
    value, stderr = float(second.mean() - first.mean()), math.sqrt(max(squared, without + estimators))
    return Difference(
        value=value,
        stderr=stderr,
        dof=dof,
        p=float(2 * scipy.stats.t.sf(abs(value) / stderr, dof)) if stderr else float(value == 0),
        spreads=(math.sqrt(max(0.0, total[0] - within[0])), math.sqrt(max(0.0, total[1] - within[1]))),
        spread=math.sqrt(per_run),
        floor=math.sqrt(max(0.0, without + estimators - squared)),
        dof_per_run=dof_per_run,
    )


def permutation_p(first: np.ndarray, second: np.ndarray, *, paired: bool) -> float:
    """Of no difference of the means, two-sided, by exchange of runs between the groups, or of the two of each pair."""

    def statistic(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(b.mean(axis=axis) - a.mean(axis=axis))

    return float(
        scipy.stats.permutation_test(
            (first, second),
            statistic,
            permutation_type="samples" if paired else "independent",
            vectorized=True,
            n_resamples=_PERMUTATIONS,
            random_state=np.random.default_rng(0),
        ).pvalue
    )


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values adjusted for their number, so that the odds of any false rejection are kept (Holm 1979)."""
    values = np.asarray(p, float)
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return adjusted


def runs_to_decide(difference: Difference, margin: float, level: float) -> int | None:
    """How many runs a group would show a difference, or equality within ``margin``, with a power of 0.8.

    If the difference and the spread remain what they are. None: more than a thousand, or no number of runs, since the
    estimator's own error decides.

    Args:
        difference: of the runs there are.
        margin: of equality.
        level: of the test, adjusted for the number of tests.
    """
    low, high = 2, _MAX_RUNS
    if _power(difference, high, margin, level) < _POWER:
        return None
    while low < high:  # power grows with the number of runs
        middle = (low + high) // 2
        low, high = (low, middle) if _power(difference, middle, margin, level) >= _POWER else (middle + 1, high)
    return low


def _power(difference: Difference, runs: int, margin: float, level: float) -> float:
    """The larger power of the two tests."""
    stderr, dof = math.hypot(difference.spread / math.sqrt(runs), difference.floor), difference.dof_per_run * (runs - 1)
    if stderr == 0:
        return float(difference.value != 0 or margin > 0)
    size, t = abs(difference.value) / stderr, scipy.stats.t
    different = float(t.sf(t.isf(level / 2, dof) - size, dof))
    reach = margin / stderr - t.isf(level, dof)
    equal = float(t.cdf(reach - size, dof) - t.cdf(-reach - size, dof)) if reach > 0 else 0.0
    return max(different, equal)


def _scatter(covariance: np.ndarray) -> float:
    """What errors of that covariance contribute to the sample variance of a group."""
    n = len(covariance)
    return float(np.trace(covariance) - covariance.sum() / n) / (n - 1)


def _welch(parts: Sequence[float], dofs: Sequence[float]) -> float:
    return sum(parts) ** 2 / sum(part**2 / dof for part, dof in zip(parts, dofs, strict=True))

"""Thermodynamic integration: a log normalizing constant as an integral over the inverse temperature s.

For pi_s(y) ~ exp(-|y|^2 / 2 - s psi(y)), s from 0 to 1,

    log E_{y ~ N(0, I)} exp(-psi) = -integral_0^1 <psi>_s ds    (Gelman & Meng 1998).

Since d<psi>_s/ds = -var_s psi, <psi>_s does not increase with s, and its left and right Riemann sums over a schedule
0 = s_0 < ... < s_T = 1 bracket the integral. The means are estimated by K independent populations or chains, whose
spread gives the standard errors.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from landscape.results import standard_error

__all__ = ["bracket", "riemann_sums", "vector_standard_error"]

_STANDARD_ERRORS = 2.0  # by which the bracket is widened on both sides


def riemann_sums(s: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right Riemann sum of ``means`` (K, T + 1) over the schedule ``s`` (T + 1,), shape (K,) each."""
    ds = np.diff(s)
    return (ds * means[:, :-1]).sum(axis=1), (ds * means[:, 1:]).sum(axis=1)


def bracket(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """The means of both sums (K,), widened by their standard errors."""
    return (
        float(low.mean() - _STANDARD_ERRORS * standard_error(low)),
        float(high.mean() + _STANDARD_ERRORS * standard_error(high)),
    )


def vector_standard_error(vectors: Tensor) -> float:
    """Square root of the expected squared norm of the error of the mean of independent ``vectors`` (K, n)."""
    return float((vectors.var(dim=0).sum() / len(vectors)).sqrt())

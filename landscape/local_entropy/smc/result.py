"""The estimates of F~ from all populations at one radius.

Each population gives two: log Z_b plus the log of the product of its mean weights, which is an unbiased estimate of
exp F~, and thermodynamic integration,

    F~ = log Z_b + log P - integral_0^1 <psi>_s ds.

P is the probability under N(0, I) that psi is finite: for all s > 0, pi_s is restricted to where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from torch import Tensor

from landscape.local_entropy.smc.populations import Population
from landscape.local_entropy.thermodynamic_integration import bracket, riemann_sums

__all__ = ["SMCResult"]


@dataclass(frozen=True)
class SMCResult:
    """All populations at one radius, and what follows from them."""

    s: np.ndarray  # (T + 1,), inverse temperatures
    populations: list[Population]
    log_normalizer: float  # log Z_b
    shift: Tensor  # (n,), <x'> - x
    shift_stderr: float  # square root of the expected squared norm of its error
    losses_over_q: np.ndarray  # mean of f over the draws of q of each population, or f at each draw
    values: int  # evaluations of f
    gradients: int  # evaluations of its gradient
    not_finite: int  # proposals at which f was not finite
    required_budget: int = 0  # estimate of the gradients that the tolerance takes; 0 where it is met or not known

    def estimates(self) -> np.ndarray:
        """F~ of each population, (K,)."""
        return self.log_normalizer + np.array([population.log_evidence for population in self.populations])

    def value(self) -> float:
        """F~."""
        return float(logsumexp(self.estimates()) - np.log(len(self.populations)))

    def riemann_estimates(self) -> tuple[np.ndarray, np.ndarray]:
        """The Riemann sums that bracket F~, the lower one first, (K,) each."""
        left, right = riemann_sums(self.s, np.stack([population.psi for population in self.populations]))
        with np.errstate(divide="ignore"):  # none of a population's draws was finite
            known = self.log_normalizer + np.log([population.finite_fraction for population in self.populations])
        return known - left, known - right

    def bracket(self) -> tuple[float, float]:
        """The bounds of F~, which include the standard errors of both sums."""
        return bracket(*self.riemann_estimates())

    def thermodynamic(self) -> np.ndarray:
        """F~ by the trapezoidal rule with the correction by d<psi>/ds = -var psi (Friel, Hurn & Wyse 2014), (K,)."""
        low, high = self.riemann_estimates()
        variance = np.stack([population.psi_variance for population in self.populations])
        return (low + high) / 2 - (np.diff(self.s) ** 2 / 12 * np.diff(variance)).sum(axis=1)

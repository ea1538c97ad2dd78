"""The schedule of inverse temperatures, and the step size of the moves at each.

A pilot population finds both. Each inverse temperature is the largest at which the effective sample size of the weights
stays above a fraction of the particles (Jasra, Stephens, Doucet & Tsagaris 2011), and the step size h of the moves is
adapted to a target acceptance rate. Both are then fixed for the populations that estimate F~, since adapting them to
the same particles would bias the estimate.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from torch import Generator

from landscape.local_entropy.smc.moves import TARGET_ACCEPTANCE, move
from landscape.local_entropy.smc.potential import Particles, Potential
from landscape.local_entropy.smc.resampling import relative_ess, systematic_resampling

__all__ = ["BudgetError", "PilotRun", "find_schedule"]

_TARGET_ESS = 0.8  # of the particles, at each temperature step of the pilot run


class BudgetError(ValueError):
    """The budget is too small for the pilot run and the populations.

    Attributes:
        gradients: evaluated before the error.
    """

    def __init__(self, message: str, gradients: int) -> None:
        super().__init__(message)
        self.gradients = gradients


@dataclass(frozen=True)
class PilotRun:
    """A schedule, and rough estimates from the particles that found it."""

    s: np.ndarray  # (T + 1,), inverse temperatures
    step_sizes: np.ndarray  # (T,), h of the moves at s_1, ..., s_T
    bracket_width: float
    value: float  # F~

    def refined(self, factor: int) -> tuple[np.ndarray, np.ndarray]:
        """The schedule with each temperature step divided into ``factor`` equal ones, and its step sizes."""
        fractions = np.arange(1, factor + 1) / factor
        s = np.concatenate([[0.0], *(low + (high - low) * fractions for low, high in itertools.pairwise(self.s))])
        s[-1] = 1.0
        return s, np.repeat(self.step_sizes, factor)


def find_schedule(potential: Potential, chains: int, moves: int, budget: int, generator: Generator) -> PilotRun:
    """Temperature steps as large as the effective sample size allows, and a step size of the moves at each.

    Raises:
        BudgetError: a quarter of ``budget`` gradients is not enough.
        ValueError: no draw of the initial distribution has a finite loss.
    """
    particles = potential.sample_initial(chains * moves, generator)
    if not np.isfinite(particles.psi).any():
        raise ValueError(f"no draw at radius={potential.radius:.3g} has a finite loss: give a smaller radius")
    log_evidence, h = potential.log_normalizer, 1.0
    s, step_sizes, means = [0.0], [], [particles.psi[np.isfinite(particles.psi)].mean()]
    while s[-1] < 1:
        ds = _next_increment(particles.psi, 1 - s[-1])
        log_weights = -ds * particles.psi
        log_evidence += logsumexp(log_weights) - np.log(len(particles))
        s.append(s[-1] + ds)
        chain = [particles[systematic_resampling(log_weights, chains, generator)]]
        for _ in range(moves):
            moved, acceptance = move(potential, chain[-1], s[-1], h, generator)
            h = min(2.0, h * float(np.exp(acceptance - TARGET_ACCEPTANCE)))
            chain.append(moved)
        particles = Particles.concatenate(chain[1:])
        step_sizes.append(h)
        means.append(particles.psi.mean())
        if potential.gradients > budget // 4 and s[-1] < 1:
            raise BudgetError(
                f"budget={budget}: a quarter of it did not suffice for the pilot run, which reached the inverse "
                f"temperature s = {s[-1]:.2g}. Give a larger budget, or a smaller radius",
                potential.gradients,
            )
    s[-1] = 1.0
    psi = np.minimum.accumulate(means)  # <psi>_s decreases; its estimates are noisy
    bracket_width = float(-(np.diff(s) * np.diff(psi)).sum())
    return PilotRun(np.array(s), np.array(step_sizes), bracket_width, float(log_evidence))


def _next_increment(psi: np.ndarray, largest: float) -> float:
    """The increment ds at which the effective sample size falls to its target, or ``largest``."""
    target = _TARGET_ESS * np.isfinite(psi).mean()
    if relative_ess(-largest * psi) >= target:
        return largest
    low, high = 0.0, largest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if relative_ess(-middle * psi) >= target else (low, middle)
    return high

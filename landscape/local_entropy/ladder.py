"""The ladder of a tempered path: how far each rung may go, and how far its moves may step.

A pilot population climbs as far at each step as the effective sample size of its weights stays above a share of the
particles (Jasra, Stephens, Doucet & Tsagaris 2011), and adapts the step h of the moves on each rung to a share of them
that is accepted. What it finds is fixed for the populations that tell F~, since adapting would bias them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from torch import Generator

from landscape.local_entropy.moves import ACCEPTANCE, move, systematic
from landscape.local_entropy.potential import Particles, Potential

__all__ = ["BudgetError", "Pilot", "effective_share", "find_ladder"]

_EFFECTIVE = 0.8  # of the particles, at each step of the pilot's ladder


class BudgetError(ValueError):
    """The budget does not last for a ladder and the populations.

    Attributes:
        gradients: that were spent.
    """

    def __init__(self, message: str, gradients: int) -> None:
        super().__init__(message)
        self.gradients = gradients


@dataclass(frozen=True)
class Pilot:
    """A ladder, and roughly what is found on it."""

    s: np.ndarray  # (R + 1,)
    steps: np.ndarray  # (R,), h of the moves on each rung
    width: float  # of the bracket
    value: float  # F~

    def refined(self, finer: int) -> tuple[np.ndarray, np.ndarray]:
        """Each rung cut in ``finer`` equal ones, with its step."""
        parts = np.arange(1, finer + 1) / finer
        s = np.concatenate([[0.0], *(low + (high - low) * parts for low, high in itertools.pairwise(self.s))])
        s[-1] = 1.0
        return s, np.repeat(self.steps, finer)


def find_ladder(potential: Potential, chains: int, moves: int, budget: int, generator: Generator) -> Pilot:
    """Each rung as far as the effective sample size allows, and a step for the moves on each rung.

    Raises:
        BudgetError: a quarter of ``budget`` gradients does not last for it.
        ValueError: no draw has a finite loss.
    """
    at = potential.draw(chains * moves, generator)
    if not np.isfinite(at.psi).any():
        raise ValueError(f"no draw at radius={potential.radius:.3g} has a finite loss: give a smaller radius")
    log_mean, h = potential.log_normaliser, 1.0
    s, steps, means = [0.0], [], [at.psi[np.isfinite(at.psi)].mean()]
    while s[-1] < 1:
        ds = _next(at.psi, 1 - s[-1])
        log_weights = -ds * at.psi
        log_mean += logsumexp(log_weights) - np.log(len(at))
        s.append(s[-1] + ds)
        chain = [at[systematic(log_weights, chains, generator)]]
        for _ in range(moves):
            after, accepted = move(potential, chain[-1], s[-1], h, generator)
            h = min(2.0, h * float(np.exp(accepted - ACCEPTANCE)))
            chain.append(after)
        at = Particles.together(chain[1:])
        steps.append(h)
        means.append(at.psi.mean())
        if potential.gradients > budget // 4 and s[-1] < 1:
            raise BudgetError(
                f"budget={budget}: a quarter of it did not last to find a ladder, which reached s = {s[-1]:.2g}. Give "
                "a larger budget, or a smaller radius",
                potential.gradients,
            )
    s[-1] = 1.0
    psi = np.minimum.accumulate(means)  # it falls; the pilot's is noisy
    return Pilot(np.array(s), np.array(steps), float(-(np.diff(s) * np.diff(psi)).sum()), float(log_mean))


def _next(psi: np.ndarray, furthest: float) -> float:
    """The step ds at which the effective sample size falls to its share, or ``furthest``."""
    target = _EFFECTIVE * np.isfinite(psi).mean()
    if effective_share(-furthest * psi) >= target:
        return furthest
    low, high = 0.0, furthest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if effective_share(-middle * psi) >= target else (low, middle)
    return high


def effective_share(log_weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2, as a share of their number."""
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))) / len(log_weights)

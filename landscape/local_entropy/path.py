"""The tempered path: a sequential Monte Carlo run from a known Gaussian to the Gibbs measure, and back to F~.

With psi and log Z_b as in ``landscape.local_entropy.potential`` (begun at q, psi is beta f and log Z_b is 0)

    pi_s(y) ~ exp(-|y|^2 / 2 - s psi(y)),  s from 0 to 1,
    F~ = log Z_b + log E_{y ~ N(0, I)} exp(-psi) = log Z_b - integral_0^1 <psi>_s ds.

Particles are drawn at s = 0 and carried along a ladder 0 = s_0 < ... < s_R = 1: weighed by exp(-(s_{k+1} - s_k) psi),
resampled, and moved by a kernel that leaves pi_{s_{k+1}} invariant (Del Moral, Doucet & Jasra 2006). Only a few are
resampled, and each begins a chain whose every point becomes a particle of the next rung (waste-free; Dau & Chopin
2022): at the same price the chains are longer, and the measure is reached where short ones lag behind. The product
over rungs of the mean weights is an unbiased estimate of exp F~. <psi>_s falls with s, so its left and right Riemann
sums bracket F~.

A pilot population finds the ladder, each rung as far as the effective sample size stays above a share of the particles,
and a step h of the moves for each rung; both then are fixed, since adapting them would bias the estimate. Independent
populations run on that ladder, refined as far as the tolerance asks and the budget lets: their spread is the error. At
s = 1 their chains go on for a while, for what is told of the Gibbs measure itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Generator, Tensor

from landscape.local_entropy.moves import move, resampled
from landscape.local_entropy.potential import Particles, Potential
from landscape.progress import Progress

__all__ = ["BudgetError", "Climb", "Pilot", "Tempered", "climb", "error_of_mean", "find_ladder", "follow"]

_EFFECTIVE = 0.8  # of the particles, at each step of the pilot's ladder
_ACCEPTANCE = 0.6  # near the optimum of Langevin proposals, 0.574 (Roberts & Rosenthal 1998)
_MOST_RUNGS = 500
_LONGER = 2  # the chains at s = 1, in those of a rung


class BudgetError(ValueError):
    """The budget does not last for a ladder and the populations.

    Attributes:
        gradients: that were spent.
    """

    def __init__(self, message: str, gradients: int) -> None:
        super().__init__(message)
        self.gradients = gradients


@dataclass(frozen=True)
class Climb:
    """What one population found on its way from s = 0 to s = 1."""

    log_mean: float  # log of the estimate of E exp(-psi)
    psi: np.ndarray  # (R + 1,), mean at each rung
    variance: np.ndarray  # (R + 1,), of psi
    loss: np.ndarray  # (R + 1,), mean of f
    effective: np.ndarray  # (R,), effective share of the particles that were weighed
    acceptance: np.ndarray  # (R,)
    y: Tensor  # (n,), mean at s = 1
    virial: float  # mean of y . grad(|y|^2 / 2 + psi) at s = 1, over n: it should be 1
    chains: np.ndarray  # (chains, draws), psi along each chain at s = 1


@dataclass(frozen=True)
class Tempered:
    """All populations at one radius, and what follows from them."""

    s: np.ndarray  # (R + 1,), the ladder
    climbs: list[Climb]
    log_normaliser: float
    shift: Tensor  # (n,), <x'> - x
    shift_stderr: float  # root of the expected squared length of its error
    gradients: int
    not_finite: int

    def log_means(self) -> np.ndarray:
        """F~ of each population, (K,)."""
        return self.log_normaliser + np.array([climb.log_mean for climb in self.climbs])

    def riemann(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums that F~ lies between, of each population, (K,) both."""
        ds = np.diff(self.s)
        psi = np.stack([climb.psi for climb in self.climbs])
        low, high = -(ds * psi[:, :-1]).sum(axis=1), -(ds * psi[:, 1:]).sum(axis=1)
        return self.log_normaliser + low, self.log_normaliser + high

    def thermodynamic(self) -> np.ndarray:
        """F~ by the trapezoidal rule corrected by the slope d<psi>/ds = -var psi (Friel, Hurn & Wyse 2014), (K,)."""
        ds = np.diff(self.s)
        low, high = self.riemann()
        # pooled over populations: the variance of few particles is noisy
        variance = np.stack([climb.variance for climb in self.climbs]).mean(axis=0)
        return (low + high) / 2 - (ds**2 / 12 * np.diff(variance)).sum()


@dataclass(frozen=True)
class Pilot:
    """A ladder, and roughly what is found on it."""

    s: np.ndarray  # (R + 1,)
    steps: np.ndarray  # (R,)
    width: float  # of the bracket
    value: float  # F~


def follow(
    potential: Potential,
    *,
    populations: int,
    chains: int,
    moves: int,
    tol: float,
    budget: int,
    generator: Generator,
    progress: Progress,
) -> Tempered:
    """All populations at one radius.

    Args:
        potential: psi.
        populations: independent ones, at least 2; their spread is the error.
        chains: of each population.
        moves: of each chain on each rung of the pilot's ladder; where rungs are refined, they are shared out.
        tol: width of the bracket asked for, relative to |F~|.
        budget: gradients at most.
        generator: of everything random.
        progress: called as ``progress(range(populations), description)``.

    Raises:
        BudgetError: the budget does not last for a ladder and the populations.
        ValueError: no draw has a finite loss.
    """
    pilot = find_ladder(potential, chains, moves, budget // 4, generator)
    rungs, left = len(pilot.s) - 1, budget - potential.gradients

    def cost(finer: int, fewer: int) -> int:
        return populations * chains * (moves + rungs * finer * fewer + _LONGER * moves)

    finer, fewer = 1, moves
    while True:  # the finest ladder that the tolerance asks for and the budget lets
        more = finer + 1
        shared = max(1, round(moves / more))
        if pilot.width / finer <= 0.7 * tol * abs(pilot.value) or cost(more, shared) > left:
            break
        finer, fewer = more, shared
    if cost(finer, fewer) > left:
        raise BudgetError(
            f"budget={budget}: a ladder of {rungs} rungs with {populations} populations of {chains} chains and {moves} "
            f"moves takes {potential.gradients} gradients to find and {cost(1, moves)} to climb: give as many",
            potential.gradients,
        )
    s, steps = _refined(pilot, finer)
    climbs = [
        climb(potential, s, steps, chains, moves, fewer, generator)
        for _ in progress(range(populations), f"tempered, radius {potential.radius:.3g}")
    ]
    shifts = potential.displacement(torch.stack([c.y for c in climbs]))
    return Tempered(
        s=s,
        climbs=climbs,
        log_normaliser=potential.log_normaliser,
        shift=shifts.mean(dim=0),
        shift_stderr=error_of_mean(shifts),
        gradients=potential.gradients,
        not_finite=potential.not_finite,
    )


def error_of_mean(vectors: Tensor) -> float:
    """Root of the expected squared length of the error of the mean of ``vectors`` (K, n), which are independent."""
    return float((vectors.var(dim=0).sum() / len(vectors)).sqrt())


def find_ladder(potential: Potential, chains: int, moves: int, budget: int, generator: Generator) -> Pilot:
    """Each rung as far as the effective sample size allows, and a step for the moves on each rung."""
    at = potential.draw(chains * moves, generator)
    if not np.isfinite(at.psi).any():
        raise ValueError(f"no draw at radius={potential.radius:.3g} has a finite loss: give a smaller radius")
    s, steps, means, log_mean, h = [0.0], [], [at.psi.mean()], potential.log_normaliser, 1.0
    while s[-1] < 1:
        ds = _next(at.psi, 1 - s[-1])
        log_weights = -ds * at.psi
        log_mean += logsumexp(log_weights) - np.log(len(at))
        s.append(s[-1] + ds)
        chain = [resampled(at, log_weights, chains, generator)]
        for _ in range(moves):
            after, accepted = move(potential, chain[-1], s[-1], h, generator)
            h = min(2.0, h * float(np.exp(accepted - _ACCEPTANCE)))
            chain.append(after)
        at = Particles.together(chain[1:])
        steps.append(h)
        means.append(at.psi.mean())
        if potential.gradients > budget and s[-1] < 1:
            raise BudgetError(
                f"a quarter of the budget, {budget} gradients, did not last to find a ladder: it reached "
                f"s = {s[-1]:.2g}. Give a larger budget, or a smaller radius",
                potential.gradients,
            )
    s[-1] = 1.0
    psi = np.minimum.accumulate(means)  # it falls; the pilot's is noisy
    return Pilot(np.array(s), np.array(steps), float(-(np.diff(s) * np.diff(psi)).sum()), float(log_mean))


def _next(psi: np.ndarray, furthest: float) -> float:
    """The step ds at which the effective sample size falls to its share, or ``furthest``."""
    target = _EFFECTIVE * np.isfinite(psi).mean()
    if _effective(-furthest * psi) >= target:
        return furthest
    low, high = 0.0, furthest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _effective(-middle * psi) >= target else (low, middle)
    return max(low, furthest / _MOST_RUNGS)


def _effective(log_weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2, as a share of their number."""
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))) / len(log_weights)


def _refined(pilot: Pilot, finer: int) -> tuple[np.ndarray, np.ndarray]:
    """Each rung of the pilot's ladder cut in ``finer`` equal ones, with its step."""
    parts = np.arange(1, finer + 1) / finer
    s = np.concatenate([[0.0], *(low + (high - low) * parts for low, high in itertools.pairwise(pilot.s))])
    s[-1] = 1.0
    return s, np.repeat(pilot.steps, finer)


def climb(
    potential: Potential, s: np.ndarray, steps: np.ndarray, chains: int, moves: int, fewer: int, generator: Generator
) -> Climb:
    """Carry one population up the ladder, with ``fewer`` moves a rung, and let it go on at s = 1."""
    at = potential.draw(chains * moves, generator)
    log_mean, rungs = 0.0, [at]
    acceptance, effective = [], []
    chain: list[Particles] = []
    for low, high, h in zip(s, s[1:], steps, strict=False):
        log_weights = -(high - low) * at.psi
        log_mean += float(logsumexp(log_weights) - np.log(len(at)))
        effective.append(_effective(log_weights))
        chain, rate = _chain(potential, resampled(at, log_weights, chains, generator), high, h, fewer, generator)
        at = Particles.together(chain)
        rungs.append(Particles(at.y[:0], at.psi, at.slope[:0], at.loss))  # the points of old rungs take memory
        acceptance.append(rate)
    chain, _ = _chain(potential, chain[-1], 1.0, steps[-1], _LONGER * moves, generator)
    end = Particles.together(chain)
    rungs[-1] = Particles.together([Particles(end.y[:0], end.psi, end.slope[:0], end.loss), rungs[-1]])
    return Climb(
        log_mean=log_mean,
        psi=np.array([rung.psi.mean() for rung in rungs]),
        variance=np.array([_variance(rung.psi) for rung in rungs]),
        loss=np.array([rung.loss.mean() for rung in rungs]),
        effective=np.array(effective),
        acceptance=np.array(acceptance),
        y=end.y.mean(dim=0),
        virial=float((end.y * (end.y + end.slope)).sum(dim=1).mean()) / potential.size,
        chains=np.stack([step.psi for step in chain], axis=1),
    )


def _chain(
    potential: Potential, at: Particles, s: float, h: float, moves: int, generator: Generator
) -> tuple[list[Particles], float]:
    """The particles after each move, and the share accepted."""
    chain, rates = [], []
    for _ in range(moves):
        at, rate = move(potential, at, s, h, generator)
        chain.append(at)
        rates.append(rate)
    return chain, float(np.mean(rates))


def _variance(psi: np.ndarray) -> float:
    """NaN where psi is not finite somewhere."""
    with np.errstate(invalid="ignore"):
        return float(psi.var(ddof=1))

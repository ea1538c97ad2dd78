"""The tempered path: a sequential Monte Carlo run from q to the Gibbs measure, and back to F~.

In coordinates z with x' = x + r z, r = 1/sqrt(beta gamma), the reference q is N(0, I), and with
phi(z) = beta f(x + r z)

    pi_s(z) ~ exp(-|z|^2 / 2 - s phi(z)),   s from 0 to 1,   F~ = log E_q exp(-phi) = -integral_0^1 <phi>_s ds.

Particles are drawn from q and carried along a ladder 0 = s_0 < ... < s_R = 1: weighed by exp(-(s_{k+1} - s_k) phi),
resampled, moved by a kernel that leaves pi_{s_{k+1}} invariant (Del Moral, Doucet & Jasra 2006). The product over
rungs of the mean weights is an unbiased estimate of exp F~. <phi>_s falls with s, so its left and right Riemann sums
bracket F~.

The moves are Crank-Nicolson Langevin proposals, corrected by Metropolis: they leave q itself invariant, so that the
acceptance does not fall with n (pCNL; Cotter, Roberts, Stuart & White 2013). With h in (0, 2], c = (2 - h) / (2 + h):

    z' = c z + sqrt(1 - c^2) xi - 2 h / (2 + h) s grad phi(z).

A pilot population finds the ladder, each rung as far as the effective sample size stays above a share of the particles,
and a step h for each rung; both then are fixed, since adapting them would bias the estimate. Independent populations
run on that ladder, refined as far as the tolerance asks and the budget lets: their spread is the error.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from landscape.objective import Objective
from landscape.progress import Progress

__all__ = ["Climb", "Tempered", "follow"]

_EFFECTIVE = 0.8  # of the particles, at each step of the pilot's ladder
_ACCEPTANCE = 0.6  # near the optimum of Langevin proposals, 0.574 (Roberts & Rosenthal 1998)
_MOST_RUNGS = 500


def follow(
    objective: Objective,
    theta: Tensor,
    radius: float,
    beta: float,
    *,
    populations: int,
    particles: int,
    moves: int,
    tol: float,
    budget: int,
    generator: torch.Generator,
    progress: Progress,
) -> Tempered:
    """All populations at one radius.

    Args:
        objective: f.
        theta: x, shape (n,).
        radius: r.
        beta: inverse temperature.
        populations: independent ones, at least 2; their spread is the error.
        particles: in each.
        moves: on each rung of the pilot's ladder; where rungs are refined, they are shared out.
        tol: width of the bracket asked for, relative to |F~|.
        budget: gradients at most.
        generator: of everything random.
        progress: called as ``progress(range(populations), description)``.

    Raises:
        ValueError: the budget does not last for a ladder and the populations.
    """
    potential = _Potential(objective, theta, radius, beta)
    pilot = _pilot(potential, particles, moves, budget // 4, generator)
    left = budget - potential.gradients
    finer, fewer = 1, moves
    while True:  # the finest ladder that the tolerance asks for and the budget lets
        more = finer + 1
        shared = max(1, round(moves / more))
        cost = populations * particles * (1 + (len(pilot.s) - 1) * more * shared)
        if pilot.width / finer <= 0.7 * tol * abs(pilot.value) or cost > left:
            break
        finer, fewer = more, shared
    if populations * particles * (1 + (len(pilot.s) - 1) * finer * fewer) > left:
        raise ValueError(
            f"budget={budget}: a ladder of {len(pilot.s) - 1} rungs with {populations} populations of {particles} "
            f"particles and {moves} moves takes {potential.gradients} gradients to find and "
            f"{populations * particles * (1 + (len(pilot.s) - 1) * moves)} to climb: give as many"
        )
    s, steps = _refined(pilot, finer)
    runs = [
        _climb(potential, s, steps, particles, fewer, generator)
        for _ in progress(range(populations), f"tempered, radius {radius:.3g}")
    ]
    return Tempered(s, runs, potential.gradients, potential.not_finite)


@dataclass(frozen=True)
class Climb:
    """What one population found on its way from s = 0 to s = 1."""

    log_mean: float  # log of the estimate of exp F~
    phi: np.ndarray  # (R + 1,), mean of phi at each rung
    variance: np.ndarray  # (R + 1,), of phi
    acceptance: np.ndarray  # (R,)
    z: Tensor  # (n,), mean at s = 1
    virial: float  # mean of z . grad(|z|^2 / 2 + phi) at s = 1, over n: it should be 1


@dataclass(frozen=True)
class Tempered:
    """All populations at one radius, and what follows from them."""

    s: np.ndarray  # (R + 1,), the ladder
    climbs: list[Climb]
    gradients: int
    not_finite: int

    def log_means(self) -> np.ndarray:
        """Of each population, (K,)."""
        return np.array([climb.log_mean for climb in self.climbs])

    def riemann(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums that F~ lies between, of each population, (K,) both."""
        ds = np.diff(self.s)
        phi = np.stack([climb.phi for climb in self.climbs])
        return -(ds * phi[:, :-1]).sum(axis=1), -(ds * phi[:, 1:]).sum(axis=1)

    def thermodynamic(self) -> np.ndarray:
        """F~ by the trapezoidal rule corrected by the slope d<phi>/ds = -var phi (Friel, Hurn & Wyse 2014), (K,)."""
        ds = np.diff(self.s)
        low, high = self.riemann()
        # pooled over populations: the variance of few particles is noisy
        variance = np.stack([climb.variance for climb in self.climbs]).mean(axis=0)
        return (low + high) / 2 - (ds**2 / 12 * np.diff(variance)).sum()


@dataclass
class _Particles:
    """A population: where it is, and phi and its gradient there."""

    z: Tensor  # (P, n)
    phi: np.ndarray  # (P,), inf where f is not finite
    gradient: Tensor  # (P, n), zero there


class _Potential:
    """phi(z) = beta f(x + r z) and its gradient, with a count of what was spent."""

    def __init__(self, objective: Objective, theta: Tensor, radius: float, beta: float) -> None:
        self._objective, self._theta, self.radius, self._beta = objective, theta, radius, beta
        self.size, self.dtype, self.device = objective.size, objective.dtype, objective.device
        self.gradients = 0
        self.not_finite = 0

    def __call__(self, z: Tensor) -> tuple[np.ndarray, Tensor]:
        """At each row of z (P, n)."""
        phi, gradient = np.full(len(z), np.inf), torch.zeros_like(z)
        for i, row in enumerate(z):
            value, slope = self._objective.value_and_gradient(self._theta + self.radius * row)
            if np.isfinite(value) and bool(slope.isfinite().all()):
                phi[i], gradient[i] = self._beta * value, self._beta * self.radius * slope
            else:
                self.not_finite += 1
        self.gradients += len(z)
        return phi, gradient

    def draw(self, particles: int, generator: torch.Generator) -> _Particles:
        """From q."""
        z = self.normal(particles, generator)
        return _Particles(z, *self(z))

    def normal(self, particles: int, generator: torch.Generator) -> Tensor:
        """N(0, I), (P, n)."""
        return torch.randn(particles, self.size, generator=generator, dtype=self.dtype).to(self.device)


@dataclass(frozen=True)
class _Pilot:
    s: np.ndarray  # (R + 1,)
    steps: np.ndarray  # (R,)
    width: float  # of the bracket
    value: float  # F~


def _pilot(potential: _Potential, particles: int, moves: int, budget: int, generator: torch.Generator) -> _Pilot:
    """Find a ladder, each rung as far as the effective sample size allows, and a step for the moves on each rung."""
    at = potential.draw(particles, generator)
    if not np.isfinite(at.phi).any():
        raise ValueError(f"no draw at radius={potential.radius:.3g} has a finite loss: give a smaller radius")
    s, steps, means, log_mean, h = [0.0], [], [at.phi.mean()], 0.0, 1.0
    while s[-1] < 1:
        ds = _next(at.phi, 1 - s[-1])
        log_weights = -ds * at.phi
        log_mean += logsumexp(log_weights) - np.log(particles)
        s.append(s[-1] + ds)
        at = _resampled(at, log_weights, generator)
        seen = []
        for _ in range(moves):
            at, accepted = _move(potential, at, s[-1], h, generator)
            h = min(2.0, h * float(np.exp(accepted - _ACCEPTANCE)))
            seen.append(at.phi.mean())
        steps.append(h)
        means.append(np.mean(seen))
        if potential.gradients > budget and s[-1] < 1:
            raise ValueError(
                f"a quarter of the budget, {budget} gradients, did not last to find a ladder: it reached "
                f"s = {s[-1]:.2g}. Give a larger budget, or a smaller radius"
            )
    s[-1] = 1.0
    phi = np.minimum.accumulate(means)  # it falls; the pilot's is noisy
    return _Pilot(np.array(s), np.array(steps), float(-(np.diff(s) * np.diff(phi)).sum()), float(log_mean))


def _next(phi: np.ndarray, furthest: float) -> float:
    """The step ds at which the effective sample size falls to its share, or ``furthest``."""

    def effective(ds: float) -> float:
        log_weights = -ds * phi
        return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))) / len(phi)

    target = _EFFECTIVE * np.isfinite(phi).mean()
    if effective(furthest) >= target:
        return furthest
    low, high = 0.0, furthest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= target else (low, middle)
    return max(low, furthest / _MOST_RUNGS)


def _refined(pilot: _Pilot, finer: int) -> tuple[np.ndarray, np.ndarray]:
    """Each rung of the pilot's ladder cut in ``finer`` equal ones, with its step."""
    parts = np.arange(1, finer + 1) / finer
    s = np.concatenate([[0.0], *(low + (high - low) * parts for low, high in itertools.pairwise(pilot.s))])
    s[-1] = 1.0
    return s, np.repeat(pilot.steps, finer)


def _climb(
    potential: _Potential, s: np.ndarray, steps: np.ndarray, particles: int, moves: int, generator: torch.Generator
) -> Climb:
    """Carry one population up the ladder."""
    at = potential.draw(particles, generator)
    log_mean, phi, variance = 0.0, [at.phi.mean()], [_variance(at.phi)]
    acceptance = []
    for low, high, h in zip(s, s[1:], steps, strict=False):
        log_weights = -(high - low) * at.phi
        log_mean += float(logsumexp(log_weights) - np.log(particles))
        at = _resampled(at, log_weights, generator)
        seen, rates = [], []
        for _ in range(moves):
            at, rate = _move(potential, at, high, h, generator)
            seen.append(at.phi)
            rates.append(rate)
        phi.append(np.mean(seen))
        variance.append(float(np.mean([_variance(values) for values in seen])))
        acceptance.append(np.mean(rates))
    along = (at.z * (at.z + at.gradient)).sum(dim=1).mean()
    return Climb(
        log_mean=log_mean,
        phi=np.array(phi),
        variance=np.array(variance),
        acceptance=np.array(acceptance),
        z=at.z.mean(dim=0),
        virial=float(along) / potential.size,
    )


def _variance(phi: np.ndarray) -> float:
    """NaN where phi is not finite somewhere."""
    with np.errstate(invalid="ignore"):
        return float(phi.var(ddof=1))


def _resampled(at: _Particles, log_weights: np.ndarray, generator: torch.Generator) -> _Particles:
    """Systematic resampling: each particle as often as its weight says, up to one."""
    weights = np.exp(log_weights - logsumexp(log_weights))
    count = len(weights)
    offset = float(torch.rand(1, generator=generator, dtype=torch.float64))
    chosen = np.searchsorted(np.cumsum(weights), (np.arange(count) + offset) / count).clip(max=count - 1)
    index = torch.from_numpy(chosen).to(at.z.device)
    return _Particles(at.z[index], at.phi[chosen], at.gradient[index])


def _move(
    potential: _Potential, at: _Particles, s: float, h: float, generator: torch.Generator
) -> tuple[_Particles, float]:
    """One Crank-Nicolson Langevin proposal per particle, and the share accepted."""
    c = (2 - h) / (2 + h)
    xi = potential.normal(len(at.z), generator)
    z = c * at.z + (1 - c**2) ** 0.5 * xi - 2 * h / (2 + h) * s * at.gradient
    there = _Particles(z, *potential(z))
    with np.errstate(invalid="ignore"):  # inf - inf, where neither is finite
        log_ratio = _rho(at, there, s, h) - _rho(there, at, s, h)
    uniform = torch.rand(len(z), generator=generator, dtype=torch.float64).numpy()
    accepted = np.isfinite(there.phi) & (np.log(uniform) < np.where(np.isfinite(at.phi), log_ratio, np.inf))
    index = torch.from_numpy(accepted).to(z.device)[:, None]
    moved = _Particles(
        torch.where(index, there.z, at.z),
        np.where(accepted, there.phi, at.phi),
        torch.where(index, there.gradient, at.gradient),
    )
    return moved, float(accepted.mean())


def _rho(u: _Particles, v: _Particles, s: float, h: float) -> np.ndarray:
    """rho(u, v) of Cotter et al.: the acceptance is min(1, exp(rho(z, z') - rho(z', z)))."""
    g = s * u.gradient.double()
    difference, total = (v.z - u.z).double(), (v.z + u.z).double()
    linear = ((difference / 2 + h / 4 * total + h / 4 * g) * g).sum(dim=1)
    return s * u.phi + linear.cpu().numpy()

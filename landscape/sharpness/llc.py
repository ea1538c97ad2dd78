"""The local learning coefficient: how fast the volume of nearly as good weights shrinks around theta.

With N examples, f their mean loss and beta = 1 / log N, and the posterior held near theta by a Gaussian

    p(w) ~ exp(-N beta f(w) - gamma/2 ||w - theta||^2),
    lambda = N beta (E_p f(w) - f(theta))                                                    (Lau et al. 2023).

At a minimum of a quadratic with Hessian eigenvalues h_i,

    lambda = 1/2 sum_i N beta h_i / (N beta h_i + gamma),

n/2 as gamma -> 0 if all h_i are positive: directions that N beta h_i << gamma leave free do not count. The localisation
is thus part of the measure, and since it is the same for all weights, a rescaling of ReLU layers changes the measure.

Chains start at theta and move by Crank-Nicolson Langevin proposals, corrected by Metropolis (pCNL; Cotter, Roberts,
Stuart & White 2013): no bias from the step, unlike the SGLD of the source. With w = theta + z / sqrt(gamma), phi(z) =
N beta f(w), p ~ exp(-|z|^2 / 2 - phi(z)), h in (0, 2] and c = (2 - h) / (2 + h):

    z' = c z + sqrt(1 - c^2) xi - 2 h / (2 + h) grad phi(z),    xi ~ N(0, I).

Each chain tunes its h while it burns in, and keeps it from then on. The error is the spread over chains.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new, normal
from landscape.results import Cost, Sharpness, standard_error
from landscape.sharpness.record import check, sampled

__all__ = ["local_learning_coefficient"]

_ACCEPTANCE = 0.6  # near the optimum of Langevin proposals, 0.574 (Roberts & Rosenthal 1998)


def local_learning_coefficient(
    objective: Objective,
    theta: Tensor,
    *,
    gamma: float = 100.0,
    examples: int | None = None,
    chains: int = 4,
    burn_in: int = 50,
    draws: int = 100,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Sharpness:
    """N beta (E_p f(w) - f(theta)) at beta = 1 / log N, over the posterior localised at theta.

    Args:
        objective: f, a mean over examples.
        theta: shape (n,), a minimum; elsewhere the value may be negative.
        gamma: strength of the localisation, 1 / weight^2: without any loss, weights would deviate by 1 / sqrt(gamma).
        examples: N. Default: those of a ModelObjective.
        chains: independent ones, at least 2 for an error.
        burn_in: moves of each that are not counted.
        draws: moves of each that are.
        generator: of everything random. Default: seeded by the operating system.
        progress: called as ``progress(range(chains), description)``; ``tqdm.tqdm`` fits.

    Returns:
        Sharpness. Diagnostics: ``acceptance``, the smallest of a chain; ``drift``, the mean of the second half of the
        draws minus that of the first, with ``drift_stderr``: where it stands out, burn in for longer.

    Raises:
        ValueError: sizes that do not fit, settings out of range, no number of examples, a loss that is not finite at
            theta.

    Reference:
        Lau, Furman, Wang, Murfet & Wei 2023, arXiv:2308.12108.
    """
    began = time.perf_counter()
    check(objective, theta, gamma=gamma, chains=chains)
    if burn_in < 1 or draws < 2:
        raise ValueError(f"burn_in={burn_in}, draws={draws}: give at least 1 and 2")
    n_examples = getattr(objective, "examples", None) if examples is None else examples
    if n_examples is None or n_examples < 2:
        raise ValueError(f"examples={n_examples}: give the number of examples that f is a mean over, at least 2")
    posterior = _Posterior(objective, theta, n_examples / math.log(n_examples), gamma)
    generator = generator_or_new(generator)
    runs = [_chain(posterior, burn_in, draws, generator) for _ in progress(range(chains), "local learning coefficient")]
    rises = np.stack([run.phi for run in runs]) - posterior.phi_at_theta
    drifts = rises[:, draws // 2 :].mean(axis=1) - rises[:, : draws // 2].mean(axis=1)
    return Sharpness(
        **sampled(rises.mean(axis=1)),
        name=f"local learning coefficient, gamma {gamma:g}",
        unit="weights",
        flatter="lower",
        formula="N beta (E f(w) - f(theta)), w ~ exp(-N beta f(w) - gamma/2 ||w - theta||^2), beta = 1 / log N",
        source="Lau et al. 2023",
        reparametrisation_invariant=False,
        settings={"gamma": gamma, "examples": n_examples, "chains": chains, "burn_in": burn_in, "draws": draws},
        diagnostics={
            "acceptance": min(run.acceptance for run in runs),
            "drift": float(drifts.mean()),
            "drift_stderr": float(standard_error(drifts)),
            "not_finite": posterior.not_finite,
        },
        cost=Cost(gradients=posterior.gradients, seconds=time.perf_counter() - began),
    )


@dataclass(frozen=True)
class _Place:
    z: Tensor  # (n,)
    phi: float
    gradient: Tensor  # of phi, (n,)


@dataclass(frozen=True)
class _Run:
    phi: np.ndarray  # (draws,)
    acceptance: float


class _Posterior:
    """phi(z) = N beta f(theta + z / sqrt(gamma)), counted."""

    def __init__(self, objective: Objective, theta: Tensor, n_beta: float, gamma: float) -> None:
        self._objective, self._theta, self._n_beta, self._radius = objective, theta, n_beta, gamma**-0.5
        self.gradients = self.not_finite = 0
        self.start = self.at(torch.zeros_like(theta))
        self.phi_at_theta = self.start.phi
        if self.not_finite:
            raise ValueError("the loss or its gradient at theta is not finite: give weights of a network that works")

    def at(self, z: Tensor) -> _Place:
        """With phi = inf, that is no density, where f or its gradient is not finite."""
        value, slope = self._objective.value_and_gradient(self._theta + self._radius * z)
        self.gradients += 1
        if not (np.isfinite(value) and bool(slope.isfinite().all())):
            self.not_finite += 1
            return _Place(z, math.inf, torch.zeros_like(z))
        return _Place(z, self._n_beta * value, self._n_beta * self._radius * slope)


def _chain(posterior: _Posterior, burn_in: int, draws: int, generator: torch.Generator) -> _Run:
    """One chain from theta."""
    at, h = posterior.start, 1.0
    phi, accepted = np.empty(draws), np.empty(draws)
    for i in range(-burn_in, draws):
        c = (2 - h) / (2 + h)
        xi = normal(len(at.z), generator, at.z.dtype, at.z.device)
        there = posterior.at(c * at.z + (1 - c**2) ** 0.5 * xi - 2 * h / (2 + h) * at.gradient)
        odds = math.exp(min(0.0, _rho(at, there, h) - _rho(there, at, h)))
        if float(torch.rand(1, generator=generator, dtype=torch.float64)) < odds:
            at = there
        if i < 0:  # ever smaller changes, so that h settles
            h = min(2.0, h * math.exp(2 * (odds - _ACCEPTANCE) / math.sqrt(i + burn_in + 1)))
        else:
            phi[i], accepted[i] = at.phi, odds
    return _Run(phi, float(accepted.mean()))


def _rho(u: _Place, v: _Place, h: float) -> float:
    """rho(u, v) of Cotter et al.: a move is accepted with odds min(1, exp(rho(z, z') - rho(z', z)))."""
    g = u.gradient.double()
    difference, total = (v.z - u.z).double(), (v.z + u.z).double()
    return u.phi + float((difference / 2 + h / 4 * total + h / 4 * g) @ g)

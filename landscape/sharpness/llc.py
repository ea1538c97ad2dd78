"""The local learning coefficient: how fast the volume of nearly as good weights shrinks around theta.

With N examples, f their mean loss and beta = 1 / log N, and the posterior localised at theta by a Gaussian

    p(w) ~ exp(-N beta f(w) - gamma/2 ||w - theta||^2),
    lambda = N beta (E_p f(w) - f(theta))                                                    (Lau et al. 2023).

At a minimum of a quadratic with Hessian eigenvalues h_i,

    lambda = 1/2 sum_i N beta h_i / (N beta h_i + gamma),

n/2 as gamma -> 0 if all h_i are positive: directions that N beta h_i << gamma leave free do not count. The localisation
is thus part of the measure, and since it is the same for all weights, a rescaling of ReLU layers changes the measure.

Chains start at theta. With w = theta + y / sqrt(gamma), psi(y) = N beta f(w), p is exp(-|y|^2 / 2 - psi(y)) up to a
factor. They use the Crank-Nicolson Langevin proposals with Metropolis correction of
``landscape.local_entropy.smc.moves``, and so do not have the step size bias of the SGLD of the source. The step size is
adapted during burn-in and then kept. The error is the spread over chains.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from landscape.local_entropy.smc.moves import TARGET_ACCEPTANCE, move
from landscape.local_entropy.smc.potential import Potential
from landscape.objective import Objective
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Cost, Sharpness, standard_error
from landscape.sharpness.record import check, sampled

__all__ = ["local_learning_coefficient"]


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
        progress: called as ``progress(moves, description)``; ``tqdm.tqdm`` fits.

    Returns:
        Sharpness. Diagnostics: ``acceptance``; ``drift``, the mean of the second half of the draws minus that of the
        first, with ``drift_stderr``: if it differs from 0 by several errors, increase ``burn_in``.

    Raises:
        ValueError: sizes that do not fit, settings out of range, no number of examples, a loss that is not finite at
            theta.

    Reference:
        Lau, Furman, Wang, Murfet & Wei 2023, arXiv:2308.12108.
    """
    began = time.perf_counter()
    theta = check(objective, theta, gamma=gamma, chains=chains)
    if burn_in < 1 or draws < 2:
        raise ValueError(f"burn_in={burn_in}, draws={draws}: give at least 1 and 2")
    n_examples = getattr(objective, "examples", None) if examples is None else examples
    if n_examples is None or n_examples < 2:
        raise ValueError(f"examples={n_examples}: give the number of examples that f is a mean over, at least 2")
    potential = Potential(objective, theta, gamma**-0.5, n_examples / math.log(n_examples))
    generator = generator_or_new(generator)
    start = potential(torch.zeros(1, objective.size, dtype=objective.dtype, device=objective.device))
    if potential.not_finite:
        raise ValueError("the loss or its gradient at theta is not finite: give weights of a network that works")
    particles, h, rises, rates = start[np.zeros(chains, int)], 1.0, np.empty((chains, draws)), []
    for i in progress(range(-burn_in, draws), "local learning coefficient"):
        particles, rate = move(potential, particles, 1.0, h, generator)
        if i < 0:  # decreasing changes, so that h converges
            h = min(2.0, h * math.exp(2 * (rate - TARGET_ACCEPTANCE) / math.sqrt(i + burn_in + 1)))
        else:
            rises[:, i] = particles.psi - start.psi
            rates.append(rate)
    drifts = rises[:, draws // 2 :].mean(axis=1) - rises[:, : draws // 2].mean(axis=1)
    return Sharpness(
        **sampled(rises.mean(axis=1)),
        name=f"local learning coefficient, gamma {gamma:g}, N {n_examples}",
        unit="weights",
        flatter="lower",
        formula="N beta (E f(w) - f(theta)), w ~ exp(-N beta f(w) - gamma/2 ||w - theta||^2), beta = 1 / log N",
        source="Lau et al. 2023",
        reparametrisation_invariant=False,
        settings={"gamma": gamma, "examples": n_examples, "chains": chains, "burn_in": burn_in, "draws": draws},
        diagnostics={
            "acceptance": float(np.mean(rates)),
            "drift": float(drifts.mean()),
            "drift_stderr": float(standard_error(drifts)),
            "not_finite": potential.not_finite,
        },
        cost=Cost(gradients=potential.gradients, seconds=time.perf_counter() - began),
    )

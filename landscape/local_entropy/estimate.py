"""Local entropy: how much of a Gaussian ball around x has low loss.

With the reference measure q = N(x, I/(beta gamma)) and f the mean loss,

    F~(x; gamma, beta) = log E_{x'~q} exp(-beta f(x')).

F = F~ + (n/2) log(2 pi/(beta gamma)) is the local entropy of Entropy-SGD (Chaudhari et al. 2017), at beta = 1
in the paper. -F~/beta is in units of the loss, the "free energy"; its excess over f(x) is what the ball
costs. The radius 1/sqrt(beta gamma) is the ball's standard deviation per weight.

Three estimators:

*Laplace* replaces f by its second-order expansion at x, with gradient g and Hessian H:

    F~ ~ -beta f + beta/2 g'(H + gamma)^-1 g - 1/2 log det(I + H/gamma).

The determinant comes from a spectral density, the middle term from one Lanczos run started at g. It has
no meaning where H + gamma I is not positive definite, and is refused there. Its standard error is that of
the determinant over probes; the error of the expansion itself it cannot know.

*Monte Carlo* averages exp(-beta f) over draws of q. The average is ruled by the few draws of lowest loss:
once their effective number (sum w)^2 / sum w^2 is small, the estimate is too low and its error unknown.
Jensen's inequality gives -beta E f(x') <= F~ from the same draws at any radius.

*Tempered* carries particles from q to the Gibbs measure exp(-beta f) q along a ladder, as told in
``landscape.local_entropy.path``. It holds where the other two fail, with a bracket, at the price of some thousand
gradients.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from landscape.local_entropy.laplace import laplace
from landscape.local_entropy.monte_carlo import monte_carlo
from landscape.local_entropy.path import follow
from landscape.local_entropy.tempered import tempered
from landscape.objective import Objective
from landscape.operators import Hessian
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Cost, LocalEntropy, SpectralDensity
from landscape.spectrum import spectral_density

__all__ = ["local_entropy"]


def local_entropy(
    objective: Objective,
    theta: Tensor,
    *,
    radius: float | np.ndarray | list[float] | None = None,
    gamma: float | np.ndarray | list[float] | None = None,
    beta: float | None = None,
    method: str = "laplace",
    samples: int = 64,
    steps: int = 80,
    probes: int = 4,
    density: SpectralDensity | None = None,
    populations: int = 8,
    particles: int = 16,
    moves: int = 4,
    tol: float = 0.05,
    budget: int = 60_000,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> LocalEntropy:
    """F~(theta; gamma, beta), at one radius or over a sweep of them.

    The same generator seed gives the same draws or probes at every theta, so that differences between
    checkpoints are paired.

    Args:
        objective: f.
        theta: where, shape (n,).
        radius: 1/sqrt(beta gamma), in units of the weights; a number or several. Give this or ``gamma``.
        gamma: the stiffness, in units of f / weight^2.
        beta: inverse temperature. Default: the number of examples where the objective has one (f is
            then a mean log-likelihood, beta f the log-likelihood), else 1.
        method: ``"laplace"``, ``"monte_carlo"`` or ``"tempered"``.
        samples: draws of q, for Monte Carlo; the same normal vectors serve all radii.
        steps: Lanczos steps, for Laplace.
        probes: probes of the log-determinant, for Laplace.
        density: a spectral density of the Hessian at theta, to spare Laplace its own.
        populations: independent runs of the tempered path, at least 2; their spread is the error.
        particles: in each population.
        moves: of each particle on each rung that the pilot finds.
        tol: width of the tempered bracket asked for, relative to |F~|.
        budget: gradients at most for each radius of the tempered path.
        generator: of the draws or probes. Default: seeded by the operating system.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        LocalEntropy, whose arrays have the shape of ``radius`` (or ``gamma``). ``note`` says where and
        why ``reliable`` is False.

    Raises:
        ValueError: neither or both of radius and gamma; one of radius, gamma, beta, samples not
            positive; an unknown method; a loss that is not finite at theta; a budget too small for a ladder.

    Example:
        For f(x) = x^2/2 at x = 0, F~ = -1/2 log(1 + 1/gamma):

        >>> from landscape import ModelObjective
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> half_square = ModelObjective(
        ...     model, lambda outputs, batch: (outputs**2).mean() / 2, [(torch.ones(1, 1),)]
        ... )
        >>> f = local_entropy(half_square, torch.zeros(1), gamma=1.0, beta=1.0)
        >>> round(float(f.value), 4), -0.3466  # -1/2 log 2
        (-0.3466, -0.3466)
    """
    start = time.perf_counter()
    if (radius is None) == (gamma is None):
        raise ValueError(f"radius={radius} and gamma={gamma}: give exactly one of them")
    if beta is None:
        beta = float(getattr(objective, "examples", 1.0))
    counts = {"samples": samples, "moves": moves, "tol": tol, "budget": budget}
    for name, given in {"radius": radius, "gamma": gamma, "beta": beta, **counts}.items():
        if given is not None and not np.all(np.asarray(given) > 0):
            raise ValueError(f"{name}={given}: give positive numbers")
    for name, count in (("populations", populations), ("particles", particles)):
        if count < 2:
            raise ValueError(f"{name}={count}: give at least 2, since their spread is the error")
    if method not in ("laplace", "monte_carlo", "tempered"):
        raise ValueError(f"method={method!r}: give 'laplace', 'monte_carlo' or 'tempered'")
    check_vector("theta", theta, objective.size)
    loss = objective.value(theta)
    if not np.isfinite(loss):
        raise ValueError(f"the loss at theta is {loss}: local entropy needs a finite one there")

    radii = np.asarray(radius if gamma is None else 1 / np.sqrt(beta * np.asarray(gamma)), float)
    gammas = 1 / (beta * radii**2)
    generator = generator_or_new(generator)
    products = 0
    if method == "laplace":
        if density is None:
            density = spectral_density(
                Hessian(objective, theta),
                steps=steps,
                probes=probes,
                generator=generator,
                progress=progress,
            )
            products = density.cost.products
        flat = laplace(objective, theta, loss, radii.ravel(), beta, density, steps)
    elif method == "monte_carlo":
        flat = monte_carlo(objective, theta, radii.ravel(), beta, samples, generator, progress)
    else:
        runs = [
            follow(
                objective,
                theta,
                float(radius),
                beta,
                populations=populations,
                particles=particles,
                moves=moves,
                tol=tol,
                budget=budget,
                generator=generator,
                progress=progress,
            )
            for radius in radii.ravel()
        ]
        flat = tempered(runs, radii.ravel(), beta)
    note, cost = flat.pop("note"), flat.pop("cost")
    cost["values"] += 1
    cost["products"] += products
    flat = {**_without_path(radii.size), **flat}
    shift = flat.pop("shift").reshape(*radii.shape, -1 if method == "tempered" else 0)
    # (radii, draws) and (radii,) take the shape that was asked for
    arrays = {name: a.reshape(radii.shape + a.shape[1:])[()] for name, a in flat.items()}
    return LocalEntropy(
        **arrays,
        shift=shift,
        radius=radii[()],
        gamma=gammas[()],
        loss=loss,
        beta=beta,
        size=objective.size,
        method=method,
        note=note,
        cost=Cost(**cost, seconds=time.perf_counter() - start),
    )


def _without_path(radii: int) -> dict[str, object]:
    """What Laplace and Monte Carlo do not know."""
    unknown = np.full(radii, np.nan)
    names = ("lower", "upper", "thermodynamic", "thermodynamic_stderr", "virial")
    rungs = {name: np.zeros((radii, 0)) for name in ("ladder", "rung_loss", "rung_acceptance")}
    return {**dict.fromkeys(names, unknown), **rungs, "shift": torch.zeros(radii, 0)}

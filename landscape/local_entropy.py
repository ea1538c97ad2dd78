"""Local entropy: how much of a Gaussian ball around x has low loss.

With the reference measure q = N(x, I/(beta gamma)) and f the mean loss,

    F~(x; gamma, beta) = log E_{x'~q} exp(-beta f(x')).

F = F~ + (n/2) log(2 pi/(beta gamma)) is the local entropy of Entropy-SGD (Chaudhari et al. 2017), at beta = 1
in the paper. -F~/beta is in units of the loss, the "free energy"; its excess over f(x) is what the ball
costs. The radius 1/sqrt(beta gamma) is the ball's standard deviation per weight.

Two estimators:

*Laplace* replaces f by its second-order expansion at x, with gradient g and Hessian H:

    F~ ~ -beta f + beta/2 g'(H + gamma)^-1 g - 1/2 log det(I + H/gamma).

The determinant comes from a spectral density, the middle term from one Lanczos run started at g. It has
no meaning where H + gamma I is not positive definite, and is refused there. Its standard error is that of
the determinant over probes; the error of the expansion itself it cannot know.

*Monte Carlo* averages exp(-beta f) over draws of q. The average is ruled by the few draws of lowest loss:
once their effective number (sum w)^2 / sum w^2 is small, the estimate is too low and its error unknown.
Jensen's inequality gives -beta E f(x') <= F~ from the same draws at any radius.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from landscape.objective import Objective
from landscape.operators import Hessian
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new, normal
from landscape.results import Cost, LocalEntropy, SpectralDensity, standard_error
from landscape.spectrum import quadrature, spectral_density

__all__ = ["local_entropy"]

# Heuristic: below ten effective draws the spread of the weights no longer tells the error.
_FEWEST_EFFECTIVE_SAMPLES = 10


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
        method: ``"laplace"`` or ``"monte_carlo"``.
        samples: draws of q, for Monte Carlo; the same normal vectors serve all radii.
        steps: Lanczos steps, for Laplace.
        probes: probes of the log-determinant, for Laplace.
        density: a spectral density of the Hessian at theta, to spare Laplace its own.
        generator: of the draws or probes. Default: seeded by the operating system.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        LocalEntropy, whose arrays have the shape of ``radius`` (or ``gamma``). ``note`` says where and
        why ``reliable`` is False.

    Raises:
        ValueError: neither or both of radius and gamma; one of radius, gamma, beta, samples not
            positive; an unknown method; a loss that is not finite at theta.

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
    for name, given in (("radius", radius), ("gamma", gamma), ("beta", beta), ("samples", samples)):
        if given is not None and not np.all(np.asarray(given) > 0):
            raise ValueError(f"{name}={given}: give positive numbers")
    if method not in ("laplace", "monte_carlo"):
        raise ValueError(f"method={method!r}: give 'laplace' or 'monte_carlo'")
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
        flat = _laplace(objective, theta, loss, radii.ravel(), beta, density, steps)
    else:
        flat = _monte_carlo(objective, theta, radii.ravel(), beta, samples, generator, progress)
    note, cost = flat.pop("note"), flat.pop("cost")
    cost["values"] += 1
    cost["products"] += products
    # (radii, draws) and (radii,) take the shape that was asked for
    arrays = {name: a.reshape(radii.shape + a.shape[1:])[()] for name, a in flat.items()}
    return LocalEntropy(
        **arrays,
        radius=radii[()],
        gamma=gammas[()],
        loss=loss,
        beta=beta,
        size=objective.size,
        method=method,
        note=note,
        cost=Cost(**cost, seconds=time.perf_counter() - start),
    )


def _laplace(
    objective: Objective,
    theta: Tensor,
    loss: float,
    radii: np.ndarray,
    beta: float,
    density: SpectralDensity,
    steps: int,
) -> dict[str, Any]:
    products = 0
    gradient = objective.gradient(theta)
    if not bool(gradient.isfinite().all()):
        raise ValueError("the gradient at theta is not finite: Laplace needs one that is")
    square = float(gradient.double().square().sum())
    lowest = density.atoms()[0][0]
    nodes, weights = np.ones(1), np.zeros(1)
    if square > 0:
        nodes, weights, done = quadrature(Hessian(objective, theta), gradient, steps)
        products = done
        lowest = min(lowest, nodes.min())

    gammas = 1 / (beta * radii**2)
    meaningful = gammas > -lowest
    contributions = np.full((len(radii), len(density.nodes)), np.nan)
    for i in np.flatnonzero(meaningful):
        gamma = gammas[i]
        half_log_det = density.size / 2 * density.per_probe(partial(_log_ratio, gamma=gamma))
        pull = beta / 2 * square * float((weights / (nodes + gamma)).sum())
        contributions[i] = -beta * loss + pull - half_log_det
    note = ""
    if not meaningful.all():
        note = (
            f"Laplace is refused at gamma <= {-lowest:.3g} (radius >= {(-beta * lowest) ** -0.5:.3g}): the "
            f"Hessian has an eigenvalue near {lowest:.3g}, so H + gamma I is not positive there"
        )
    unknown = np.full(len(radii), np.nan)
    return {
        "value": contributions.mean(axis=1),
        "stderr": standard_error(contributions),
        "contributions": contributions,
        "reliable": meaningful,
        "effective_samples": unknown,
        "mean_loss": unknown,
        "mean_loss_stderr": unknown,
        "note": note,
        "cost": {"values": 0, "gradients": 1, "products": products},
    }


def _log_ratio(t: np.ndarray, gamma: float) -> np.ndarray:
    return np.log1p(t / gamma)


def _monte_carlo(
    objective: Objective,
    theta: Tensor,
    radii: np.ndarray,
    beta: float,
    samples: int,
    generator: torch.Generator,
    progress: Progress,
) -> dict[str, Any]:
    losses = np.empty((len(radii), samples))
    for j in progress(range(samples), "local entropy"):
        z = normal(objective.size, generator, objective.dtype, objective.device)
        for i, radius in enumerate(radii):
            losses[i, j] = objective.value(theta + float(radius) * z)
    finite = np.isfinite(losses)
    # a draw whose loss is not finite has no density: exp(-beta f) = 0
    log_weights = np.where(finite, -beta * np.where(finite, losses, 0.0), -np.inf)
    value = logsumexp(log_weights, axis=1) - np.log(samples)  # -inf where no draw has a finite loss
    # linearised: log mean w ~ value + mean(w / mean w - 1)
    relative = np.exp(log_weights - np.where(np.isfinite(value), value, 0.0)[:, None])
    relative[~np.isfinite(value)] = np.nan
    contributions = value[:, None] + relative - 1
    effective = relative.sum(axis=1) ** 2 / (relative**2).sum(axis=1)
    reliable = effective >= _FEWEST_EFFECTIVE_SAMPLES
    notes = []
    if not reliable.all():
        notes.append(
            f"fewer than {_FEWEST_EFFECTIVE_SAMPLES} effective samples at radius >= "
            f"{radii[~reliable].min():.3g}: the error is not known there, and F~ most likely too low"
        )
    if not finite.all():
        notes.append(f"{(~finite).sum()} draws had a loss that is not finite: zero density")
    return {
        "value": value,
        "stderr": standard_error(contributions),
        "contributions": contributions,
        "reliable": reliable,
        "effective_samples": effective,
        "mean_loss": losses.mean(axis=1),
        "mean_loss_stderr": standard_error(losses),
        "note": "; ".join(notes),
        "cost": {"values": losses.size, "gradients": 0, "products": 0},
    }

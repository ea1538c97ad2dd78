"""F~ by Laplace's method: of the second-order expansion of f at x."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Generator, Tensor

from landscape.objective import Objective
from landscape.operators import Hessian
from landscape.progress import Progress
from landscape.results import Eigenpairs, SpectralDensity, standard_error
from landscape.spectrum.density import quadrature, spectral_density
from landscape.sums import dot

__all__ = ["laplace"]


def laplace(
    objective: Objective,
    theta: Tensor,
    radii: np.ndarray,
    beta: float,
    loss: float,
    density: SpectralDensity | None,
    *,
    deflate: Eigenpairs | None,
    steps: int,
    probes: int,
    generator: Generator,
    progress: Progress,
) -> dict[str, Any]:
    """The fields of a LocalEntropy that differ by method, at each radius.

    Args:
        objective: f.
        theta: x, shape (n,).
        radii: r.
        beta: inverse temperature.
        loss: f(x).
        density: spectral density of H at theta. None: it is estimated by ``spectral_density`` with the arguments below.
        deflate: eigenpairs to count exactly; if they are all n, one is left out.
        steps: Lanczos steps, for the density and for the term of the gradient.
        probes: of the density.
        generator: of the probes.
        progress: called as ``progress(probes, description)``.
    """
    gradient = objective.gradient(theta)
    if not bool(gradient.isfinite().all()):
        raise ValueError(
            "the gradient at theta is not finite, so f has no second-order expansion there: give another theta"
        )
    products = 0
    if density is None:
        if deflate is not None and deflate.converged.sum() == objective.size:
            deflate = replace(deflate, converged=deflate.converged & (np.arange(len(deflate.values)) > 0))
        density = spectral_density(
            Hessian(objective, theta),
            steps=steps,
            probes=probes,
            deflate=deflate,
            generator=generator,
            progress=progress,
        )
        products = density.cost.products
    square = dot(gradient, gradient)
    lowest = density.atoms()[0][0]
    nodes, weights = np.ones(1), np.zeros(1)
    if square > 0:
        nodes, weights, done = quadrature(Hessian(objective, theta), gradient, steps)
        products += done
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

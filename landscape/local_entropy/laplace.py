"""F~ of the parabola at x."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from landscape.objective import Objective
from landscape.operators import Hessian
from landscape.results import SpectralDensity, standard_error
from landscape.spectrum import quadrature

__all__ = ["laplace"]


def laplace(
    objective: Objective,
    theta: Tensor,
    loss: float,
    radii: np.ndarray,
    beta: float,
    density: SpectralDensity,
    steps: int,
) -> dict[str, Any]:
    """The fields of a LocalEntropy that differ by method, at each radius; ``density`` is that of H at theta."""
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

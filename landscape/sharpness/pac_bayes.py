"""The largest noise that a network tolerates: sigma of the PAC-Bayes bounds.

    sigma = max { s : E m(theta + s c z) - m(theta) <= target },    z ~ N(0, I),

with m the share of wrong answers (or the loss) and c = 1, or c_i = sqrt(theta_i^2 + (epsilon / s)^2) for noise in
proportion to the weights, that is of variance s^2 theta_i^2 + epsilon^2 (Jiang et al. 2020; Dziugaite et al. 2020).

The draws of z are the same for every s, so that the mean D(s) of the rises d_j(s) changes with s alone, and bisection
finds where it crosses the target. To first order sigma moves by -(D - target) / D' when D moves, so that each draw
contributes sigma - (d_j - D) / D'.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.randomness import generator_or_new
from landscape.results import Cost, Sharpness, standard_error
from landscape.sharpness.perturbations import count_not_finite, error_function, perturbed_values
from landscape.sharpness.record import check, rescaled_alike

__all__ = ["pac_bayes_sigma"]

_START = 0.1  # the first s; it is doubled or halved until sigma is bracketed
_DOUBLINGS = 20  # after which sigma is taken to be infinite, or after as many halvings 0
_HALVINGS = 10  # of an interval [s, 2 s]: sigma is then known to 2^-11 of itself, far less than its error
_STEP = 0.1  # relative, of the central difference that gives D'


def pac_bayes_sigma(
    objective: Objective,
    theta: Tensor,
    *,
    target: float = 0.1,
    magnitude: bool = False,
    epsilon: float = 1e-3,
    metric: str = "error",
    samples: int = 20,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """The largest standard deviation of Gaussian noise on the weights at which the mean error rises by ``target``.

    Args:
        objective: a ModelObjective of a classifier; with ``metric="loss"``, any.
        theta: shape (n,).
        target: the rise, of the share of wrong answers or of the loss.
        magnitude: whether the noise of a weight is in proportion to it; sigma is then relative.
        epsilon: standard deviation of the noise that weights of zero still get, for ``magnitude``. The source has 1e-3;
            only 0 makes sigma the same after a rescaling of ReLU layers.
        metric: ``"error"``, as in the source, or ``"loss"``.
        samples: draws of z.
        generator: of z. Default: seeded by the operating system.

    Returns:
        Sharpness; higher is flatter. Infinite if no noise reaches the target, as for a network at chance level; 0 if
        the smallest noise tried does, or ``epsilon`` alone. Its diagnostic ``rise`` is D(sigma).

    Raises:
        ValueError: sizes that do not fit, settings out of range, an objective that knows no accuracy.

    Reference:
        Jiang, Neyshabur, Mobahi, Krishnan & Bengio 2020, arXiv:1912.02178.
    """
    began = time.perf_counter()
    theta = check(objective, theta, target=target, samples=samples)
    if epsilon < 0:
        raise ValueError(f"epsilon={epsilon}: give a standard deviation of 0 or more")
    if metric not in ("error", "loss"):
        raise ValueError(f"metric={metric!r}: give 'error' or 'loss'")
    m = objective.value if metric == "loss" else error_function(objective)
    unperturbed = m(theta)
    generator = generator_or_new(generator)
    state = generator.get_state()
    evaluated = 0  # values of s

    def rises(s: float) -> np.ndarray:
        nonlocal evaluated
        evaluated += 1
        generator.set_state(state)
        deviation = torch.hypot(s * theta, torch.full_like(theta, epsilon)) if magnitude else torch.full_like(theta, s)
        return perturbed_values(m, theta, deviation, samples, generator) - unperturbed

    sigma = _crossing(lambda s: float(rises(s).mean()), target)
    at_sigma, contributions = np.empty(0), np.empty(0)
    if 0 < sigma < np.inf:
        at_sigma = rises(sigma)
        slope = (rises(sigma * (1 + _STEP)).mean() - rises(sigma * (1 - _STEP)).mean()) / (2 * _STEP * sigma)
        with np.errstate(divide="ignore", invalid="ignore"):  # where D is flat, the error of sigma is not defined
            contributions = sigma - (at_sigma - at_sigma.mean()) / slope
    scale = "1"
    if magnitude:
        scale = f"sqrt(theta^2 + ({epsilon:g} / s)^2)" if epsilon else "|theta|"
    return Sharpness(
        value=sigma,
        stderr=float(standard_error(contributions)) if len(contributions) else float("nan"),
        contributions=contributions,
        name="PAC-Bayes sigma"
        + (" by magnitude" if magnitude else "")
        + (" of the loss" if metric == "loss" else "")
        + f", target {target:g}"
        + (f", epsilon {epsilon:g}" if magnitude else ""),
        unit="relative to the weight" if magnitude else "weight",
        flatter="higher",
        formula=f"max s: E m(theta + s c z) - m(theta) <= {target:g}, c = {scale}, m = {metric}",
        source="Jiang et al. 2020",
        reparametrisation_invariant=magnitude and epsilon == 0 and (metric == "error" or rescaled_alike(objective)),
        settings={
            "target": target,
            "magnitude": magnitude,
            "epsilon": epsilon if magnitude else 0.0,
            "metric": metric,
            "samples": samples,
        },
        diagnostics={
            "rise": float(at_sigma.mean()) if len(at_sigma) else float("nan"),
            "not_finite": count_not_finite(at_sigma),
        },
        cost=Cost(values=evaluated * samples + 1, seconds=time.perf_counter() - began),
    )


def _crossing(rise: Callable[[float], float], target: float) -> float:
    """The s at which ``rise`` crosses ``target``; 0 if it exceeds it for all s tried, inf if for none."""

    def tolerated(s: float) -> bool:
        return rise(s) <= target  # False for NaN

    low = high = _START
    if tolerated(_START):
        for _ in range(_DOUBLINGS):
            low, high = high, 2 * high
            if not tolerated(high):
                break
        else:
            return float("inf")
    else:
        for _ in range(_DOUBLINGS):
            low, high = low / 2, low
            if tolerated(low):
                break
        else:
            return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if tolerated(middle) else (low, middle)
    return (low + high) / 2

"""How much f rises on average under Gaussian perturbations of the weights.

With z ~ N(0, I) and c a scale per weight (1, or |theta_i| for what is called adaptive):

    low-pass loss      E f(theta + sigma z)                               (LPF; Bisla et al. 2022)
    average case       E f(theta + rho c z) - f(theta)                    (Andriushchenko et al. 2023)
    local energy       E err(theta + sigma |theta| z) - err(theta)        (Pittorino et al. 2021)

err is the share of wrong answers. Each is a plain mean over draws of z, and its error the spread of the draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.randomness import generator_or_new, normal
from landscape.results import Cost, Sharpness
from landscape.sharpness.record import check, rescaled_alike, sampled

__all__ = ["average_case", "error_of", "local_energy", "low_pass", "perturbed"]


def low_pass(
    objective: Objective,
    theta: Tensor,
    *,
    sigma: float = 0.01,
    samples: int = 50,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """E f(theta + sigma z): the loss seen through a Gaussian low-pass filter, in units of the loss.

    Args:
        objective: f.
        theta: shape (n,).
        sigma: standard deviation per weight.
        samples: draws of z.
        generator: of z. Default: seeded by the operating system.

    Raises:
        ValueError: sizes that do not fit, a sigma or samples out of range.

    Reference:
        Bisla, Wang & Choromanska 2022, arXiv:2201.08025.
    """
    began = time.perf_counter()
    theta = check(objective, theta, sigma=sigma, samples=samples)
    losses = perturbed(objective.value, theta, torch.full_like(theta, sigma), samples, generator_or_new(generator))
    return Sharpness(
        **sampled(losses),
        name=f"low-pass loss, sigma {sigma:g}",
        unit="loss",
        flatter="lower",
        formula="E f(theta + sigma z)",
        source="LPF, Bisla et al. 2022",
        reparametrisation_invariant=False,
        settings={"sigma": sigma, "samples": samples},
        diagnostics=_not_finite(losses),
        cost=Cost(values=samples, seconds=time.perf_counter() - began),
    )


def average_case(
    objective: Objective,
    theta: Tensor,
    *,
    rho: float = 0.1,
    adaptive: bool = True,
    samples: int = 50,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """E f(theta + rho c z) - f(theta), which is rho^2/2 tr(diag(c) H diag(c)) for a quadratic f.

    Args:
        objective: f.
        theta: shape (n,).
        rho: standard deviation per weight, relative to c.
        adaptive: whether c = |theta|, entry by entry, or 1.
        samples: draws of z.
        generator: of z. Default: seeded by the operating system.

    Raises:
        ValueError: sizes that do not fit, a rho or samples out of range.

    Reference:
        Andriushchenko, Croce, Mueller, Hein & Flammarion 2023, arXiv:2302.07011.
    """
    began = time.perf_counter()
    theta = check(objective, theta, rho=rho, samples=samples)
    deviation = rho * (theta.abs() if adaptive else torch.ones_like(theta))
    rises = perturbed(objective.value, theta, deviation, samples, generator_or_new(generator))
    rises = rises - number(objective.value(theta))
    return Sharpness(
        **sampled(rises),
        name=f"{'adaptive ' if adaptive else ''}average-case sharpness, rho {rho:g}",
        unit="loss",
        flatter="lower",
        formula="E f(theta + rho |theta| z) - f(theta)" if adaptive else "E f(theta + rho z) - f(theta)",
        source="Andriushchenko et al. 2023",
        reparametrisation_invariant=adaptive and rescaled_alike(objective),
        settings={"rho": rho, "adaptive": adaptive, "samples": samples},
        diagnostics=_not_finite(rises),
        cost=Cost(values=samples + 1, seconds=time.perf_counter() - began),
    )


def local_energy(
    objective: Objective,
    theta: Tensor,
    *,
    sigma: float = 0.5,
    samples: int = 50,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """E err(theta + sigma |theta| z) - err(theta): how many more answers are wrong once the weights are noisy.

    Args:
        objective: a ModelObjective of a classifier. The rise of the loss is ``average_case``.
        theta: shape (n,).
        sigma: standard deviation of each weight, relative to the weight. The source sweeps it.
        samples: draws of z.
        generator: of z. Default: seeded by the operating system.

    Raises:
        ValueError: sizes that do not fit, a sigma or samples out of range, an objective that knows no accuracy.

    Reference:
        Pittorino et al. 2021, arXiv:2006.07897.
    """
    began = time.perf_counter()
    theta = check(objective, theta, sigma=sigma, samples=samples)
    of = error_of(objective)
    rises = perturbed(of, theta, sigma * theta.abs(), samples, generator_or_new(generator)) - of(theta)
    return Sharpness(
        **sampled(rises),
        name=f"local energy, sigma {sigma:g}",
        unit="share of the examples",
        flatter="lower",
        formula="E err(theta + sigma |theta| z) - err(theta)",
        source="Pittorino et al. 2021",
        reparametrisation_invariant=True,
        settings={"sigma": sigma, "samples": samples},
        diagnostics=_not_finite(rises),
        cost=Cost(values=samples + 1, seconds=time.perf_counter() - began),
    )


def perturbed(
    of: Callable[[Tensor], float], theta: Tensor, deviation: Tensor, samples: int, generator: torch.Generator
) -> np.ndarray:
    """``of(theta + deviation * z)`` for each draw of z ~ N(0, I), shape (samples,); not finite ones are kept."""
    draws = np.empty(samples)
    for j in range(samples):
        draws[j] = number(of(theta + deviation * normal(len(theta), generator, theta.dtype, theta.device)))
    return draws


def error_of(objective: Objective) -> Callable[[Tensor], float]:
    """theta -> the share of wrong answers, which raises ValueError where the objective knows no accuracy."""
    known: Callable[[Tensor], dict[str, Any]] | None = getattr(objective, "metrics", None)

    def error(theta: Tensor) -> float:
        accuracy = known(theta).get("accuracy") if known else None
        if accuracy is None:
            raise ValueError(
                f"objective is a {type(objective).__name__} that knows no accuracy: give a ModelObjective whose "
                "outputs are (N, classes) and targets class indices, or measure the loss"
            )
        return 1 - accuracy

    return error


def _not_finite(draws: np.ndarray) -> dict[str, float]:
    return {"not_finite": int((~np.isfinite(draws)).sum())}

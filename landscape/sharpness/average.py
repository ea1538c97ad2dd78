"""How much f rises on average under Gaussian perturbations of the weights.

With z ~ N(0, I) and c a scale per weight (1, or |theta_i| if adaptive):

    low-pass loss      E f(theta + sigma z)                               (LPF; Bisla et al. 2022)
    average case       E f(theta + rho c z) - f(theta)                    (Andriushchenko et al. 2023)
    local energy       E err(theta + sigma |theta| z) - err(theta)        (Pittorino et al. 2021)

err is the share of wrong answers. Each is a mean over draws of z, with the standard error of that mean.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.randomness import generator_or_new
from landscape.results import Cost, Sharpness
from landscape.sharpness.perturbations import count_not_finite, error_function, perturbed_values, scale_per_weight
from landscape.sharpness.record import check, rescaled_alike, sampled

__all__ = ["average_case", "local_energy", "low_pass"]


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
    deviation = torch.full_like(theta, sigma)
    losses = perturbed_values(objective.value, theta, deviation, samples, generator_or_new(generator))
    return Sharpness(
        **sampled(losses),
        name=f"low-pass loss, sigma {sigma:g}",
        unit="loss",
        flatter="lower",
        formula="E f(theta + sigma z)",
        source="LPF, Bisla et al. 2022",
        reparametrisation_invariant=False,
        settings={"sigma": sigma, "samples": samples},
        diagnostics={"not_finite": count_not_finite(losses)},
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
    deviation = rho * scale_per_weight(theta, adaptive)
    rises = perturbed_values(objective.value, theta, deviation, samples, generator_or_new(generator))
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
        diagnostics={"not_finite": count_not_finite(rises)},
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
    """E err(theta + sigma |theta| z) - err(theta): the mean rise of the error under noise on the weights.

    Args:
        objective: a ModelObjective of a classifier. The rise of the loss is ``average_case``.
        theta: shape (n,).
        sigma: standard deviation of each weight, relative to the weight. The source takes a range of values.
        samples: draws of z.
        generator: of z. Default: seeded by the operating system.

    Raises:
        ValueError: sizes that do not fit, a sigma or samples out of range, an objective that knows no accuracy.

    Reference:
        Pittorino et al. 2021, arXiv:2006.07897.
    """
    began = time.perf_counter()
    theta = check(objective, theta, sigma=sigma, samples=samples)
    error = error_function(objective)
    rises = perturbed_values(error, theta, sigma * theta.abs(), samples, generator_or_new(generator)) - error(theta)
    return Sharpness(
        **sampled(rises),
        name=f"local energy, sigma {sigma:g}",
        unit="share of the examples",
        flatter="lower",
        formula="E err(theta + sigma |theta| z) - err(theta)",
        source="Pittorino et al. 2021",
        reparametrisation_invariant=True,
        settings={"sigma": sigma, "samples": samples},
        diagnostics={"not_finite": count_not_finite(rises)},
        cost=Cost(values=samples + 1, seconds=time.perf_counter() - began),
    )

"""How much f rises at worst when the weights move a little.

In coordinates u with theta' = theta + c u, c a scale per weight, and a ball ||u|| <= rho,

    SAM sharpness          f at u = rho c grad f / ||c grad f||_2, minus f(theta)                 (Foret et al. 2021)
    worst case             max over ||u||_p <= rho of f(theta + c u) - f(theta), p = 2 or inf     (Andriushchenko 2023)
    epsilon-sharpness      100 (max over |u_i| <= epsilon of f(theta + c u) - f) / (1 + f)        (Keskar et al. 2017)

with c = 1, or c = |theta| if adaptive (ASAM; Kwon et al. 2021), and c = |theta| + 1 for Keskar's. SAM's
is the first-order guess of the maximiser. The maximum is sought by the ascent of ``landscape.directions.ascent``, from
the ball's centre and from random points of its boundary, so that what is found is a lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.directions.ascent import Ball, ascend
from landscape.objective import ModelObjective, Objective
from landscape.objective.contract import number
from landscape.randomness import generator_or_new, normal
from landscape.results import Cost, Sharpness
from landscape.sharpness.perturbations import scale_per_weight
from landscape.sharpness.record import check, exact, rescaled_alike, sampled
from landscape.sums import dot

__all__ = ["epsilon_sharpness", "sam", "worst_case"]


def sam(objective: Objective, theta: Tensor, *, rho: float | None = None, adaptive: bool = False) -> Sharpness:
    """f(theta + rho c^2 g / ||c g||) - f(theta), g = grad f(theta): the highest rise to first order.

    At a point where g is zero there is no steepest direction, and the value is 0.

    Args:
        objective: f.
        theta: shape (n,).
        rho: radius. Default: 0.05, or 0.5 if adaptive.
        adaptive: whether c = |theta|, entry by entry (ASAM), or 1.

    Raises:
        ValueError: sizes that do not fit, a rho that is not positive.

    Example:
        >>> from landscape import ModelObjective
        >>> square = ModelObjective(
        ...     torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1))
        ... )
        >>> sam(square, torch.ones(1), rho=1.0).value  # from 1 to 2 on w^2
        3.0

    Reference:
        Foret, Kleiner, Mobahi & Neyshabur 2021, arXiv:2010.01412; Kwon, Kim, Park & Choi 2021, arXiv:2102.11600.
    """
    began = time.perf_counter()
    rho = _default_rho(adaptive) if rho is None else rho
    theta = check(objective, theta, rho=rho)
    ball = Ball(scale_per_weight(theta, adaptive), rho, 2)
    value, gradient = objective.value_and_gradient(theta)
    value, worst = number(value), number(objective.value(theta + ball.scale * ball.furthest(ball.scale * gradient)))
    return Sharpness(
        **exact(worst - value),
        name=f"{'adaptive ' if adaptive else ''}SAM sharpness, rho {rho:g}",
        unit="loss",
        flatter="lower",
        formula=f"f(theta + rho {'theta^2 g / ||theta g||' if adaptive else 'g / ||g||'}) - f(theta), g = grad f",
        source="ASAM, Kwon et al. 2021" if adaptive else "SAM, Foret et al. 2021",
        reparametrisation_invariant=adaptive and rescaled_alike(objective),
        settings={"rho": rho, "adaptive": adaptive},
        diagnostics={"gradient_norm": dot(gradient, gradient) ** 0.5},
        cost=Cost(values=1, gradients=1, seconds=time.perf_counter() - began),
    )


def worst_case(
    objective: Objective,
    theta: Tensor,
    *,
    rho: float | None = None,
    adaptive: bool = True,
    norm: float = 2,
    parts: int = 1,
    steps: int = 20,
    restarts: int = 2,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """max over ||u||_p <= rho of f(theta + c u) - f(theta), found from below by projected ascent.

    At a minimum of a quadratic with c = 1 and p = 2 it is rho^2/2 lambda_max.

    Args:
        objective: f; a ModelObjective for ``parts`` above 1.
        theta: shape (n,).
        rho: radius. Default: 0.05, or 0.5 if adaptive.
        adaptive: whether c = |theta|, entry by entry, or 1.
        norm: p, 2 or ``float("inf")``.
        parts: into how many disjoint parts of m examples each the data are split. The value is the mean over parts of
            each part's own maximum, known as m-sharpness, with the spread over parts as its error.
        steps: evaluations of f and its gradient in each ascent.
        restarts: ascents, the first from the centre, the others from random points of the boundary.
        generator: of these points. Default: seeded by the operating system.

    Returns:
        Sharpness. How far below the maximum the ascent ended is not known, so that with one part ``stderr`` is NaN. Its
        diagnostic ``restart_spread`` is by how much the ascents over the same data differ at most. The one from the
        centre does not move where the gradient is zero.

    Raises:
        ValueError: sizes that do not fit, settings out of range.

    Reference:
        Andriushchenko, Croce, Mueller, Hein & Flammarion 2023, arXiv:2302.07011.
    """
    began = time.perf_counter()
    rho = _default_rho(adaptive) if rho is None else rho
    theta = check(objective, theta, rho=rho, steps=steps, restarts=restarts, parts=parts)
    if norm not in (2, float("inf")):
        raise ValueError(f"norm={norm}: give 2 or float('inf')")
    objectives = _split(objective, parts)
    ball = Ball(scale_per_weight(theta, adaptive), rho, norm)
    generator = generator_or_new(generator)
    searches = [_search(part, theta, ball, steps, restarts, generator) for part in objectives]
    rises = np.array([search.highest - search.value for search in searches])
    settings: dict[str, Any] = {"rho": rho, "adaptive": adaptive, "norm": str(norm), "steps": steps}
    return Sharpness(
        **sampled(rises),
        name=f"{'adaptive ' if adaptive else ''}worst-case sharpness, rho {rho:g}"
        + ("" if norm == 2 else " (largest entry)")
        + ("" if parts == 1 else f", over {parts} parts"),
        unit="loss",
        flatter="lower",
        formula=f"max of f(theta + {'|theta| u' if adaptive else 'u'}) - f(theta) over ||u||_{norm:g} <= rho",
        source="Andriushchenko et al. 2023",
        reparametrisation_invariant=adaptive and rescaled_alike(objective),
        settings=settings | {"restarts": restarts, "parts": parts, "examples": getattr(objective, "examples", None)},
        diagnostics=_spread(searches),
        cost=_cost(searches, began),
    )


def epsilon_sharpness(
    objective: Objective,
    theta: Tensor,
    *,
    epsilon: float = 1e-3,
    steps: int = 20,
    restarts: int = 2,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """100 (max f - f(theta)) / (1 + f(theta)) over the box |theta'_i - theta_i| <= epsilon (|theta_i| + 1).

    The source's A is the identity here: all directions are open. It seeks the maximum by ten iterations of L-BFGS-B,
    this by the ascent of ``worst_case``.

    Args:
        objective: f, which must be above -1.
        theta: shape (n,).
        epsilon: half the box's width, relative to |theta_i| + 1.
        steps: evaluations of f and its gradient in each ascent.
        restarts: ascents, the first from the centre, the others from random corners.
        generator: of these corners. Default: seeded by the operating system.

    Returns:
        Sharpness, in per cent, from below; how far, is not known.

    Raises:
        ValueError: sizes that do not fit, settings out of range.

    Reference:
        Keskar, Mudigere, Nocedal, Smelyanskiy & Tang 2017, arXiv:1609.04836.
    """
    began = time.perf_counter()
    theta = check(objective, theta, epsilon=epsilon, steps=steps, restarts=restarts)
    ball = Ball(theta.abs() + 1, epsilon, float("inf"))
    search = _search(objective, theta, ball, steps, restarts, generator_or_new(generator))
    rise = 100 * (search.highest - search.value) / (1 + search.value)
    return Sharpness(
        **sampled(np.array([rise])),
        name=f"epsilon-sharpness, epsilon {epsilon:g}",
        unit="per cent of 1 + f",
        flatter="lower",
        formula="100 (max f - f(theta)) / (1 + f(theta)) over |theta'_i - theta_i| <= epsilon (|theta_i| + 1)",
        source="Keskar et al. 2017",
        reparametrisation_invariant=False,
        settings={"epsilon": epsilon, "steps": steps, "restarts": restarts},
        diagnostics=_spread([search]),
        cost=_cost([search], began),
    )


@dataclass(frozen=True)
class _Search:
    value: float  # f(theta)
    maxima: list[float]  # the highest f of each ascent, the one from the centre first
    gradients: int
    not_finite: int

    @property
    def highest(self) -> float:
        return max(self.maxima)


def _split(objective: Objective, parts: int) -> Sequence[Objective]:
    if parts == 1:
        return [objective]
    if not isinstance(objective, ModelObjective):
        raise ValueError(f"parts={parts} for a {type(objective).__name__}: only a ModelObjective has data to split")
    return objective.parts(parts)


def _search(
    objective: Objective, theta: Tensor, ball: Ball, steps: int, restarts: int, generator: torch.Generator
) -> _Search:
    """Ascents from the centre and from random points of the boundary."""
    corners = [normal(len(theta), generator, theta.dtype, theta.device) for _ in range(restarts - 1)]
    starts = [torch.zeros_like(theta), *map(ball.furthest, corners)]
    ascents = [ascend(objective, theta, ball, u, steps) for u in starts]
    return _Search(
        value=ascents[0].start,
        maxima=[ascent.top for ascent in ascents],
        gradients=restarts * steps,
        not_finite=sum(ascent.not_finite for ascent in ascents),
    )


def _default_rho(adaptive: bool) -> float:
    """The radius of the sources: 0.05 for SAM, 0.5 for ASAM."""
    return 0.5 if adaptive else 0.05


def _spread(searches: list[_Search]) -> dict[str, float]:
    """Diagnostics: the spread of the maxima found (small if all ascents reach the same one), and losses not finite."""
    return {
        "restart_spread": max(max(s.maxima) - min(s.maxima) for s in searches),
        "not_finite": sum(s.not_finite for s in searches),
    }


def _cost(searches: list[_Search], began: float) -> Cost:
    """The cost in passes over all the data; each search is over one part of them."""
    return Cost(
        gradients=sum(s.gradients for s in searches) // len(searches),
        seconds=time.perf_counter() - began,
    )

"""Flatness from derivatives at theta itself.

    gradient norm        ||grad f||, which is zero at a stationary point
    largest eigenvalue   lambda_max(H)
    trace                tr H = E v'Hv over probes v uniform on the sphere of radius sqrt(n); also per weight, tr H / n
    Fisher-Rao norm      theta' G theta, G the Gauss-Newton matrix                               (Liang et al. 2019)
    relative flatness    sum over neurons s, t of <w_s, w_t> tr H_st                             (Petzka et al. 2021)

For the cross-entropy of a softmax, G is the Fisher information of the network's own predictive distribution at the
given inputs, not the "empirical" one made of gradients of the loss at the given targets.

Relative flatness is that of one layer with weight matrix W (d, m), rows w_s, and H_st the block (m, m) of second
derivatives by w_s and w_t. With V = W R and E R_kj R_k'j' = 1 for equal pairs, 0 for others, it is E vec(V)' H vec(V):
one product per draw of R, or m^2 for the exact sum over R = e_k e_j'.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.objective import ModelObjective, Objective
from landscape.operators import Hessian
from landscape.randomness import generator_or_new, normal
from landscape.results import Cost, Sharpness
from landscape.sharpness.record import check, exact, rescaled_alike, sampled
from landscape.spectrum import eigenpairs, spectral_density
from landscape.sums import dot, norm

__all__ = ["fisher_rao", "gradient_norm", "hessian_trace", "largest_eigenvalue", "per_weight_of", "relative_flatness"]


def gradient_norm(objective: Objective, theta: Tensor) -> Sharpness:
    """||grad f(theta)||, which is zero at a minimum.

    Args:
        objective: f.
        theta: shape (n,).
    """
    began = time.perf_counter()
    theta = check(objective, theta)
    return Sharpness(
        **exact(norm(objective.gradient(theta))),
        name="gradient norm",
        unit="loss / weight",
        flatter="",
        formula="||grad f(theta)||",
        source="",
        reparametrisation_invariant=False,
        settings={},
        diagnostics={},
        cost=Cost(gradients=1, seconds=time.perf_counter() - began),
    )


def largest_eigenvalue(
    objective: Objective, theta: Tensor, *, tol: float = 1e-3, generator: torch.Generator | None = None
) -> Sharpness:
    """lambda_max of the Hessian of f at theta, to within ``stderr``, its residual.

    Args:
        objective: f.
        theta: shape (n,).
        tol: residual asked for, relative to the largest |lambda|.
        generator: of the starting vector. Default: seeded by the operating system.

    Returns:
        Sharpness; ``stderr`` is a bound on the error rather than a deviation, NaN where the search did not converge.
    """
    began = time.perf_counter()
    theta = check(objective, theta)
    pairs = eigenpairs(Hessian(objective, theta), 1, which="largest", tol=tol, copies=False, generator=generator)
    residual = float(pairs.residuals[0])
    return Sharpness(
        value=float(pairs.values[0]),
        stderr=residual if pairs.converged[0] else float("nan"),
        contributions=np.empty(0),
        name="largest eigenvalue",
        unit="loss / weight^2",
        flatter="lower",
        formula="lambda_max(H)",
        source="Hochreiter & Schmidhuber 1997",
        reparametrisation_invariant=False,
        settings={"tol": tol},
        diagnostics={"residual": residual},
        cost=Cost(products=pairs.products, seconds=time.perf_counter() - began),
    )


def hessian_trace(
    objective: Objective,
    theta: Tensor,
    *,
    per_weight: bool = False,
    probes: int = 50,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """tr H of the Hessian of f at theta, or tr H / n.

    Args:
        objective: f.
        theta: shape (n,).
        per_weight: whether to divide by n, which is the mean eigenvalue.
        probes: random vectors, of one product each.
        generator: of the probes. Default: seeded by the operating system.

    Raises:
        ValueError: sizes that do not fit, probes out of range.
    """
    began = time.perf_counter()
    theta = check(objective, theta, probes=probes)
    # one step of Lanczos: its node is v'Hv / v'v
    density = spectral_density(Hessian(objective, theta), steps=1, probes=probes, generator=generator)
    trace = Sharpness(
        **sampled(density.per_probe(lambda eigenvalue: eigenvalue) * objective.size),
        name="Hessian trace",
        unit="loss / weight^2",
        flatter="lower",
        formula="tr H",
        source="Hutchinson 1990",
        reparametrisation_invariant=False,
        settings={"probes": probes, "per_weight": False},
        diagnostics={},
        cost=Cost(products=density.cost.products, seconds=time.perf_counter() - began),
    )
    return per_weight_of(trace, objective.size) if per_weight else trace


def per_weight_of(trace: Sharpness, n: int) -> Sharpness:
    """tr H / n, with the cost of tr H."""
    return replace(
        trace,
        **sampled(trace.contributions / n),
        name=f"{trace.name} per weight",
        formula="tr H / n",
        settings={**trace.settings, "per_weight": True},
    )


def fisher_rao(objective: Objective, theta: Tensor) -> Sharpness:
    """theta' G theta, the square of the Fisher-Rao norm, by one Gauss-Newton-vector product.

    Args:
        objective: a ModelObjective, or any other with a ``gnvp(theta, v)``. Where its loss is the cross-entropy of a
            softmax, G is the Fisher information of its predictions; else it is the Gauss-Newton matrix only.
        theta: shape (n,).

    Raises:
        ValueError: sizes that do not fit, an objective without Gauss-Newton products.

    Reference:
        Liang, Poggio, Rakhlin & Stokes 2019, arXiv:1711.01530.
    """
    began = time.perf_counter()
    theta = check(objective, theta)
    gnvp: Any = getattr(objective, "gnvp", None)
    if gnvp is None:
        raise ValueError(
            f"objective is a {type(objective).__name__} without gnvp(theta, v), so its Fisher information is not "
            "known: give a ModelObjective"
        )
    return Sharpness(
        **exact(dot(theta, gnvp(theta, theta))),
        name="Fisher-Rao norm squared",
        unit="loss",
        flatter="lower",
        formula="theta' G theta",
        source="Liang et al. 2019",
        reparametrisation_invariant=rescaled_alike(objective),
        settings={},
        diagnostics={},
        cost=Cost(products=1, seconds=time.perf_counter() - began),
    )


def relative_flatness(
    objective: Objective,
    theta: Tensor,
    *,
    layer: str | None = None,
    products: int = 50,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """sum over neurons s, t of <w_s, w_t> tr H_st for one layer's weight matrix W (d, m).

    Args:
        objective: a ModelObjective.
        theta: shape (n,).
        layer: the name of W as in ``objective.space.names``. Default: the last that is a matrix.
        products: Hessian-vector products, one per draw; m^2, where there are no more, give the exact sum.
        generator: of the draws. Default: seeded by the operating system.

    Raises:
        ValueError: sizes that do not fit, an objective without layers, a layer that is no matrix.

    Reference:
        Petzka, Kamp, Adilova, Sminchisescu & Boley 2021, arXiv:2001.00939.
    """
    began = time.perf_counter()
    theta = check(objective, theta, products=products)
    if not isinstance(objective, ModelObjective):
        raise ValueError(f"objective is a {type(objective).__name__}, which has no layers: give a ModelObjective")
    weights = objective.space.views(theta)
    matrices = [name for name, w in weights.items() if w.dim() == 2]
    if (layer is None and not matrices) or (layer is not None and layer not in matrices):
        raise ValueError(f"layer={layer!r} is no weight matrix: give one of {matrices}")
    layer = matrices[-1] if layer is None else layer
    w = weights[layer]
    m = w.shape[1]
    generator = generator_or_new(generator)

    def quadratic_form(r: Tensor) -> float:
        v = torch.zeros_like(theta)
        objective.space.views(v)[layer].copy_(w @ r)
        return dot(v, objective.hvp(theta, v))

    exact_sum = m * m <= products
    if exact_sum:
        units = torch.eye(m * m, dtype=w.dtype, device=w.device).view(m * m, m, m)
        fields = exact(sum(quadratic_form(r) for r in units))
    else:
        draws = (normal(m * m, generator, w.dtype, w.device).view(m, m) for _ in range(products))
        fields = sampled(np.array([quadratic_form(r) for r in draws]))
    return Sharpness(
        **fields,
        name=f"relative flatness of {layer}",
        unit="loss",
        flatter="lower",
        formula="sum_st <w_s, w_t> tr H_st",
        source="Petzka et al. 2021",
        reparametrisation_invariant=rescaled_alike(objective),
        settings={"layer": layer, "products": products},
        diagnostics={},
        cost=Cost(products=m * m if exact_sum else products, seconds=time.perf_counter() - began),
    )

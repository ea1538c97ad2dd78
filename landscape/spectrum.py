"""The spectrum of a symmetric operator: its extreme eigenpairs, and the density of all eigenvalues.

*Eigenpairs.* Ritz pairs of one Lanczos run, extended until the residual bound beta_m |s_mi| (exact but
for rounding, Parlett 1998) of every wanted pair is small; then the true residual ||H v - lambda v|| of
each is computed and returned.

*Density.* Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019): with v
uniform on the sphere, E v' h(H) v = tr h(H) / n, and m Lanczos steps from v give the m-point Gauss rule
of v' h(H) v, with the eigenvalues of T as nodes and the squared first components of its eigenvectors as
weights. Nodes and weights are the result; histograms and smoothed curves are views of them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.lanczos import Lanczos
from landscape.operators import LinearOperator, as_operator
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new, unit
from landscape.results import Cost, Eigenpairs, SpectralDensity

__all__ = ["eigenpairs", "quadrature", "spectral_density"]

_CHECK_EVERY = 5  # steps between looks at the residual bounds: a look costs an eigh of T


def eigenpairs(
    operator: Any,
    k: int,
    *,
    which: str = "magnitude",
    tol: float = 1e-3,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Eigenpairs:
    """k extreme eigenpairs of a symmetric operator, each with its true residual.

    A converged eigenvalue is within ``tol * |lambda_max|`` of an eigenvalue of the operator, and by far
    nearer where it is well separated (the error is then quadratic in the residual). A multiple
    eigenvalue is found more than once only after the Krylov space has become invariant.

    Args:
        operator: anything that ``as_operator`` takes; n is its size.
        k: how many pairs, 1 to n.
        which: ``"magnitude"`` (largest |lambda| first), ``"largest"`` (algebraic, descending),
            ``"smallest"`` (ascending), or ``"both"`` (the k - k//2 largest, descending, then the k//2
            smallest, ascending).
        tol: residual asked for, relative to |lambda_max|.
        max_products: products at most, the k for the residuals apart. Pairs that are not
            done by then come with ``converged`` False. Default: 300, or 3 k where that is more.
        generator: of the starting vector. Default: seeded by the operating system.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits. It most often ends early.

    Returns:
        Eigenpairs; each vector's entry of largest magnitude is positive.

    Raises:
        ValueError: k, which, tol or max_products out of range.
        FloatingPointError: a product is not finite.

    Example:
        >>> pairs = eigenpairs(torch.diag(torch.arange(9.0)), 2, which="largest")
        >>> pairs.values.round(3)
        array([8., 7.])
    """
    start = time.perf_counter()
    operator = as_operator(operator)
    if not 1 <= k <= operator.size:
        raise ValueError(f"k={k}: give a number of pairs from 1 to the operator's {operator.size}")
    if tol <= 0:
        raise ValueError(f"tol={tol}: give a positive relative residual, such as 1e-3")
    if max_products is None:
        max_products = max(300, 3 * k)
    if max_products < k:
        raise ValueError(f"max_products={max_products}: give at least k={k}")
    if which not in _ORDERS:
        raise ValueError(f"which={which!r}: give one of {tuple(_ORDERS)}")
    generator = generator_or_new(generator)
    order = _ORDERS[which]

    run = Lanczos(operator, unit(operator.size, generator, operator.dtype, operator.device))
    at_last_breakdown = None
    for _ in progress(itertools.count(), "eigenpairs"):
        run.extend(min(_CHECK_EVERY, max_products - run.steps))
        ritz, s = run.ritz()
        wanted = order(ritz, k)
        threshold = tol * float(ritz.abs().max())
        exhausted = run.steps >= min(max_products, operator.size)
        if run.invariant and not exhausted:
            # every Ritz pair is exact now, but further copies of an eigenvalue may be
            # hidden: go on in the orthogonal complement until that changes nothing
            found = ritz[wanted]
            settled = (
                at_last_breakdown is not None
                and len(at_last_breakdown) == k
                and bool((found - at_last_breakdown).abs().max() <= threshold)
            )
            if settled:
                break
            at_last_breakdown = found
            run.restart(generator)
        elif exhausted:
            break
        else:
            bounds = run.betas[-1] * s[-1, wanted].abs()
            # after a breakdown, the new block must end as well before anything is settled
            if at_last_breakdown is None and len(wanted) == k and bool((bounds <= threshold).all()):
                break

    wanted = order(ritz, k)
    vectors = run.basis.T @ s[:, wanted].to(run.basis)
    vectors = vectors / vectors.norm(dim=0)
    peaks = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    vectors = vectors * peaks.sign()
    values = ritz[wanted]
    residuals = torch.stack(
        [(operator.matvec(v) - value.to(v) * v).norm() for value, v in zip(values, vectors.T.contiguous(), strict=True)]
    ).cpu()
    return Eigenpairs(
        values=values.numpy(),
        vectors=vectors.cpu(),
        residuals=residuals.double().numpy(),
        converged=(residuals <= threshold).numpy(),
        which=which,
        tol=tol,
        cost=Cost(products=run.steps + len(wanted), seconds=time.perf_counter() - start),
    )


def spectral_density(
    operator: Any,
    *,
    steps: int = 80,
    probes: int = 4,
    deflate: Eigenpairs | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> SpectralDensity:
    """The distribution of all n eigenvalues by stochastic Lanczos quadrature.

    Args:
        operator: anything that ``as_operator`` takes.
        steps: Lanczos steps, that is products and quadrature nodes, per probe (cut to n).
        probes: independent random starting vectors; their spread gives the standard errors.
        deflate: eigenpairs to count exactly where they are converged; probes then are orthogonal to
            them. A few outliers carry most of the spread over probes, so this makes errors far smaller.
        generator: of the probes. Default: seeded by the operating system.
        progress: called as ``progress(range(probes), description)``; ``tqdm.tqdm`` fits.

    Returns:
        SpectralDensity with ``nodes`` and ``weights`` of shape (probes, steps).

    Raises:
        ValueError: steps or probes below 1.
        FloatingPointError: a product is not finite.

    Example:
        >>> rule = spectral_density(2 * torch.eye(5), steps=3, probes=2)
        >>> round(rule.trace()[0], 5)
        10.0
    """
    start = time.perf_counter()
    operator = as_operator(operator)
    for name, number in (("steps", steps), ("probes", probes)):
        if number < 1:
            raise ValueError(f"{name}={number}: give at least 1")
    generator = generator_or_new(generator)
    if deflate is None:
        known, vectors = np.zeros(0), torch.zeros(operator.size, 0)
    else:
        known = deflate.values[deflate.converged]
        vectors = deflate.vectors[:, torch.from_numpy(deflate.converged)]
    if len(known) == operator.size:
        raise ValueError("deflate holds every eigenpair: nothing is left to estimate")
    rest = _Deflated(operator, vectors.to(operator.device, operator.dtype))
    steps = min(steps, operator.size - len(known))
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    products = 0
    for i in progress(range(probes), "spectral density"):
        probe = unit(operator.size, generator, operator.dtype, operator.device)
        rule_nodes, rule_weights, done = quadrature(rest, rest.project(probe), steps)
        nodes[i], nodes[i, :done] = rule_nodes[-1], rule_nodes
        weights[i, :done] = rule_weights
        products += done
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        known=known,
        size=operator.size,
        cost=Cost(products=products, seconds=time.perf_counter() - start),
    )


class _Deflated:
    """P H P with P the projector onto what is orthogonal to the columns of ``vectors`` (n, k)."""

    def __init__(self, operator: LinearOperator, vectors: Tensor) -> None:
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self._operator = operator
        self._vectors = vectors

    def project(self, v: Tensor) -> Tensor:
        return v - self._vectors @ (self._vectors.T @ v)

    def matvec(self, v: Tensor) -> Tensor:
        return self.project(self._operator.matvec(v))


def quadrature(operator: Any, vector: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Gauss rule of v' h(H) v / v'v with v = ``vector``: nodes, weights, products spent."""
    run = Lanczos(operator, vector)
    run.extend(steps)
    ritz, s = run.ritz()
    return ritz.numpy(), s[0].square().numpy(), run.steps


def _both(ritz: Tensor, k: int) -> Tensor:
    few = min(k, len(ritz))
    low = few // 2
    return torch.cat([ritz.argsort(descending=True)[: few - low], ritz.argsort()[:low]])


_ORDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "magnitude": lambda ritz, k: ritz.abs().argsort(descending=True)[:k],
    "largest": lambda ritz, k: ritz.argsort(descending=True)[:k],
    "smallest": lambda ritz, k: ritz.argsort()[:k],
    "both": _both,
}

"""The trace of a symmetric operator A (n, n) from p products, with a standard error.

*Hutchinson* (1990): E v' A v = tr A for entries of v that are +1 or -1 with equal odds. Its variance, 2 sum_{i != j}
a_ij^2, is the least of all v with independent entries; Gaussian ones add 2 sum_i a_ii^2. Error: p^(-1/2).

*Hutch++* (Meyer, Musco, Musco & Woodruff 2021): with Q an orthonormal basis of A S, S random (n, k), and P = I - Q Q',

    tr A = tr Q' A Q + tr P A P,

the first exactly, the second by Hutchinson; k = p/3 products each for A S and A Q, the others for the rest. Error: 1/p.

*XTrace* (Epperly, Tropp & Webber 2024): the same with each of m = p/2 test vectors w_i the sample of the rest, and
the other m - 1 the sketch. The estimate is the mean over i of

    tr_i = tr Q_i' A Q_i + (n - m + 1) r_i' A r_i / r_i' r_i,    r_i = (I - Q_i Q_i') w_i,

with Q_i a basis of A W without column i. Scaling r_i to its mean length (section 2.3 there) takes from the error what
the length of r_i adds. All Q_i come from one factorisation A W = Q R: Q_i Q_i' = Q (I - s_i s_i') Q', where s_i is
column i of R^-T at unit length, since that is orthogonal to all other columns of R. The error falls as fast as the
spectrum does.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.adapters import as_symmetric
from landscape.operators import LinearOperator, finite_norm
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new, normal, unit
from landscape.results import Cost, standard_error

__all__ = ["TraceEstimate", "trace"]

_FIRST = 16  # products before the first look at the error, which means little over a few draws


@dataclass(frozen=True)
class TraceEstimate:
    """tr A, and how well it is known."""

    value: float
    stderr: float  # standard error of `value`; 0 where n products gave it exactly
    method: str
    converged: bool  # stderr <= tol * |value|; True where no tol was asked for
    cost: Cost


def trace(
    operator: Any,
    *,
    method: str = "xtrace",
    products: int = 60,
    tol: float | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> TraceEstimate:
    """The trace of a symmetric operator, by random vectors.

    No random vectors are needed where there are n products to spend: the n diagonal entries are then summed, and the
    trace is exact. With ``tol`` this is done before fewer than n products are left.

    Args:
        operator: anything that ``as_operator`` takes; n is its size.
        method: ``"hutchinson"``, ``"hutch++"`` or ``"xtrace"``. The last two hold 2/3 products, or 2 products, vectors
            of shape (n,) and more than make up for it where a few eigenvalues carry much of the spectrum.
        products: products at most. All are spent if there is no ``tol``, but for XTrace's, which come in pairs.
        tol: standard error asked for, relative to |tr A|. The number of products doubles, and all that were made are
            used again, until it is reached or ``products`` are spent. A trace of zero has no relative error.
        generator: of the random vectors. Default: seeded by the operating system.
        progress: called as ``progress(range(k), "trace")`` for each batch of k products; ``tqdm.tqdm`` fits.

    Returns:
        TraceEstimate. The draws of XTrace share their test vectors and lean the same way, so that its ``stderr``, the
        paper's, is too small: 0.7 to 0.9 of the true error where we measured it. The others' is right on average.

    Raises:
        ValueError: method, products or tol out of range.
        FloatingPointError: a product is not finite.

    Example:
        >>> estimate = trace(2 * torch.eye(100).double(), products=10)
        >>> round(estimate.value, 6), estimate.cost.products
        (200.0, 10)
    """
    start = time.perf_counter()
    counted = _Counted(as_symmetric(operator), progress)
    n = counted.size
    if method not in _METHODS:
        raise ValueError(f"method={method!r}: give one of {tuple(_METHODS)}")
    least = min(_METHODS[method].least, n)
    if products < least:
        raise ValueError(f"products={products}: give at least {least} for method={method!r} and size {n}")
    if tol is not None and not tol > 0:
        raise ValueError(f"tol={tol}: give a positive relative standard error, such as 0.01, or None")
    estimator = _METHODS[method](counted, generator_or_new(generator))

    for total in [products] if tol is None else _doubling(products):
        if products >= n and total > min(n - 1, products - n):
            value, stderr = counted.diagonal_sum(), 0.0
        else:
            draws = estimator.draws(total).double().cpu().numpy()
            value, stderr = float(draws.mean()), float(standard_error(draws))
        converged = tol is None or stderr <= tol * abs(value)
        if converged:
            break
    return TraceEstimate(
        value=value,
        stderr=stderr,
        method=method,
        converged=converged,
        cost=Cost(products=counted.spent, seconds=time.perf_counter() - start),
    )


def _doubling(products: int) -> Iterator[int]:
    total = _FIRST
    while total < products:
        yield total
        total *= 2
    yield products


class _Counted:
    """An operator that counts its products and lets none pass that is not finite."""

    def __init__(self, operator: LinearOperator, progress: Progress) -> None:
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self.progress = progress
        self.spent = 0
        self._operator = operator

    def matvec(self, v: Tensor) -> Tensor:
        product = self._operator.matvec(v)
        self.spent += 1
        finite_norm(product, f"product {self.spent}")
        return product

    def times(self, vectors: Tensor) -> Tensor:
        """The product with each column of ``vectors`` (n, k)."""
        products = torch.empty_like(vectors)
        for i in self.progress(range(vectors.shape[1]), "trace"):
            products[:, i] = self.matvec(vectors[:, i].contiguous())
        return products

    def diagonal_sum(self) -> float:
        """The trace itself, by n products."""
        total = 0.0
        for i in self.progress(range(self.size), "trace"):
            e = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            e[i] = 1
            total += float(self.matvec(e)[i])
        return total


class _Estimator(ABC):
    """Draws whose mean is the trace; each call goes on from the products of those before."""

    least = 4  # products for a standard error

    def __init__(self, operator: _Counted, generator: torch.Generator) -> None:
        self.operator, self.generator = operator, generator
        nothing = torch.empty(operator.size, 0, dtype=operator.dtype, device=operator.device)
        self.vectors, self.images = nothing, nothing  # test vectors (n, m) and A times them
        self.basis, self.basis_images = nothing, nothing  # Q (n, k) and A Q

    @abstractmethod
    def draws(self, total: int) -> Tensor:
        """Estimates of the trace, one per sample, from ``total`` products in all."""

    def drawn(self, draw: Any, count: int) -> Tensor:
        """``count`` columns from ``draw``, one of the functions of ``landscape.randomness`` or its like."""
        place = self.operator.size, self.generator, self.operator.dtype, self.operator.device
        columns = [draw(*place) for _ in range(count)]
        return torch.stack(columns, dim=1) if columns else self.vectors[:, :0]

    def add_vectors(self, vectors: Tensor) -> None:
        self.vectors = torch.cat([self.vectors, vectors], dim=1)
        self.images = torch.cat([self.images, self.operator.times(vectors)], dim=1)

    def add_to_basis(self, sketch: Tensor) -> None:
        """Extend Q by the columns of ``sketch`` (n, k); the Q that was stays, and so do its products."""
        # Where the sketch depends on Q or on itself, Householder's QR still gives orthonormal columns: arbitrary ones,
        # orthogonal to the others. tr A = tr Q' A Q + tr P A P holds for any Q, so they do no harm.
        q = torch.linalg.qr(torch.cat([self.basis, sketch], dim=1)).Q[:, self.basis.shape[1] :]
        self.basis = torch.cat([self.basis, q], dim=1)
        self.basis_images = torch.cat([self.basis_images, self.operator.times(q)], dim=1)

    def against_basis(self, vectors: Tensor) -> Tensor:
        """Q' times ``vectors`` (n, m): small, so float64 on the CPU."""
        return (self.basis.T @ vectors).double().cpu()

    def rest(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """r' A r and r' r for r = w - Q c, for each test vector w and column c of ``coefficients`` (k, m)."""
        c = coefficients.to(self.basis)
        r = self.vectors - self.basis @ c
        image = self.images - self.basis_images @ c  # A r, without a product
        return (r * image).sum(dim=0).double().cpu(), r.square().sum(dim=0).double().cpu()


class _Hutchinson(_Estimator):
    least = 2

    def __init__(self, operator: _Counted, generator: torch.Generator) -> None:
        super().__init__(operator, generator)
        self._draws: list[float] = []

    def draws(self, total: int) -> Tensor:
        for _ in self.operator.progress(range(total - len(self._draws)), "trace"):
            v = self.drawn(_signs, 1)[:, 0]
            self._draws.append(float(v @ self.operator.matvec(v)))
        return torch.tensor(self._draws, dtype=torch.float64)


class _HutchPlusPlus(_Estimator):
    def draws(self, total: int) -> Tensor:
        samples = self.vectors.shape[1]
        k = min(total // 3, (total - samples) // 2)
        # Gaussian: signs are orthogonal to an eigenvector such as (1, 1, 0, ..., 0) with odds above zero
        sketch = self.drawn(normal, k - self.basis.shape[1])
        self.add_to_basis(self.operator.times(sketch))
        # the samples are independent of Q, so those there were serve for the larger Q as well
        self.add_vectors(self.drawn(_signs, total - 2 * k - samples))
        rest, _ = self.rest(self.against_basis(self.vectors))
        return self.against_basis(self.basis_images).trace() + rest


class _XTrace(_Estimator):
    def draws(self, total: int) -> Tensor:
        n, m, before = self.operator.size, total // 2, self.vectors.shape[1]
        self.add_vectors(self.drawn(unit, m - before) * n**0.5)
        self.add_to_basis(self.images[:, before:])
        w, h = self.against_basis(self.vectors), self.against_basis(self.basis_images)
        s = self._left_out()
        rest, squared_length = self.rest(w - s * (s * w).sum(dim=0))
        return h.trace() - (s * (h @ s)).sum(dim=0) + (n - m + 1) * rest / squared_length

    def _left_out(self) -> Tensor:
        """s_i for each test vector, as columns (m, m): the unit vectors that Q loses without it."""
        u, sigma, vh = torch.linalg.svd(self.against_basis(self.images))
        # A sketch of rank below m makes R singular. Singular values below rounding are raised to it: s_i then is one
        # of the arbitrary directions of Q, on which A is zero to rounding, unless y_i is no sum of the other y_j;
        # then s_i is what it should be. For A = 0 any s_i will do.
        rounding = torch.finfo(self.operator.dtype).eps * len(sigma) * float(sigma[0]) or 1.0
        s = u @ (vh / sigma.clamp(min=rounding)[:, None])
        return s / s.norm(dim=0)


def _signs(size: int, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """+1 or -1 with equal odds, shape (size,)."""
    return torch.randint(0, 2, (size,), generator=generator).to(device, dtype) * 2 - 1


_METHODS: dict[str, type[_Estimator]] = {"hutchinson": _Hutchinson, "hutch++": _HutchPlusPlus, "xtrace": _XTrace}

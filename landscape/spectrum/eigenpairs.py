"""Extreme eigenpairs by one Lanczos run, with thick restarts when the basis is full.

For a Ritz pair (theta, y = Q's) the residual ||H y - theta y|| is known from the recurrence, up to rounding (Parlett
1998), so it costs no product. An eigenvalue of H lies within the residual r of theta. Where no other one is nearer than
a gap g, it is nearer still, within r^2 / g (Kato 1949; Temple 1928).

A run from one vector finds one copy of a multiple eigenvalue. When all wanted pairs have converged, the run restarts
from a random vector orthogonal to them, until no more extreme eigenvalue is found.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.operators import LinearOperator, as_symmetric, check_same
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new, unit
from landscape.results import Cost, Eigenpairs
from landscape.spectrum.lanczos import Lanczos
from landscape.sums import norm

__all__ = ["eigenpairs"]

_SAVE_EVERY = 5  # products between states on disk
_BASIS_BYTES = 2**30  # of the basis, unless max_basis says otherwise


def eigenpairs(
    operator: Any,
    k: int,
    *,
    which: str = "magnitude",
    tol: float = 1e-3,
    relative_to: str = "largest",
    copies: bool = True,
    max_products: int | None = None,
    max_basis: int | None = None,
    start: Tensor | None = None,
    resume: str | Path | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Eigenpairs:
    """k extreme eigenpairs of a symmetric operator, each with its residual.

    Residuals come from the recurrence, without further products, and are never reported below rounding. A
    converged eigenvalue is within ``tol * |lambda_max|`` of an eigenvalue of the operator (within ``tol`` of its own
    magnitude, if ``relative_to="own"``), and far nearer where it is well separated (the error is then quadratic in
    the residual). A pair whose residual is at rounding level is not improved further, and has not converged if rounding
    exceeds what ``tol`` asks for.

    Args:
        operator: anything that ``as_operator`` takes; n is its size.
        k: how many pairs, 1 to n.
        which: ``"magnitude"`` (largest |lambda| first), ``"largest"`` (algebraic, descending),
            ``"smallest"`` (ascending), or ``"both"`` (the k - k//2 largest, descending, then the k//2
            smallest, ascending).
        tol: residual asked for, relative to what ``relative_to`` names.
        relative_to: ``"largest"``: to |lambda_max|; ``"own"``: to each pair's own |lambda|, for eigenvalues that are
            wanted to so many digits though they are small, such as the negative ones of a trained network.
        copies: whether to look for further copies of multiple eigenvalues once all pairs have converged, which takes
            about log n + 5 further products. Without it a multiple eigenvalue may be found once only.
        max_products: products at most. Pairs that are not done by then come with ``converged`` False.
            Default: 300, or 3 k where that is more.
        max_basis: vectors of shape (n,) in the basis at most, at least k + 2. Default: what fits in 1 GiB, and at least
            2 k + 20. With fewer, the run restarts, and takes more products. Some five more are needed besides, one for
            each restart for copies, and the k of the result.
        start: vectors (n,) or (n, j) near the ones wanted, such as the ``vectors`` found at an earlier checkpoint.
            Default: random.
        resume: a file for the run's state, written every few products. If it exists, the run continues from it, to
            the same result bit for bit; it is removed at the end. That the operator is the same takes one
            product, which the result does not count.
        generator: of the starting vector. Default: seeded by the operating system.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits. It most often ends early.

    Returns:
        Eigenpairs; each vector's entry of largest magnitude is positive.

    Raises:
        ValueError: k, which, tol, relative_to, max_products, max_basis or start out of range; a file of another run
            or of another operator.
        FloatingPointError: a product is not finite.

    Example:
        >>> pairs = eigenpairs(torch.diag(torch.arange(9.0)), 2, which="largest")
        >>> pairs.values.round(3)
        array([8., 7.])
    """
    began = time.perf_counter()
    operator = as_symmetric(operator)
    if not 1 <= k <= operator.size:
        raise ValueError(f"k={k}: give a number of pairs from 1 to the operator's {operator.size}")
    if not tol > 0:
        raise ValueError(f"tol={tol}: give a positive relative residual, such as 1e-3")
    max_products = max(300, 3 * k) if max_products is None else max_products
    if max_products < k:
        raise ValueError(f"max_products={max_products}: give at least k={k}")
    if which not in _ORDERS:
        raise ValueError(f"which={which!r}: give one of {tuple(_ORDERS)}")
    if relative_to not in ("largest", "own"):
        raise ValueError(f"relative_to={relative_to!r}: give 'largest' or 'own'")
    generator = generator_or_new(generator)
    search = _Search(operator, k, _ORDERS[which], tol, relative_to == "own", copies)
    search.room = _room(operator, k, max_basis)
    settings = {"n": operator.size, "k": k, "which": which, "tol": tol, "relative_to": relative_to, "copies": copies}
    if resume is not None and Path(resume).exists():
        search.load(resume, settings, generator, max_products)
    else:
        search.run = Lanczos(operator, _start(start, operator, generator), room=min(search.room, max_products))
    saved = search.run.products
    for _ in progress(itertools.count(), "eigenpairs"):
        search.extend(max_products)
        if search.finished(max_products, generator):
            break
        if resume is not None and search.run.products >= saved + _SAVE_EVERY:
            search.save(resume, settings, generator)
            saved = search.run.products
    if resume is not None:
        Path(resume).unlink(missing_ok=True)
    values, s, residuals, converged, _ = search.wanted()
    vectors = search.run.combine(s)
    for y in vectors.T:  # one by one and in place, without a second copy of all
        y /= norm(y)
        y *= y[y.abs().argmax()].sign()
    return Eigenpairs(
        values=values.numpy(),
        vectors=vectors.cpu(),
        residuals=residuals.numpy(),
        converged=converged.numpy(),
        which=which,
        tol=tol,
        cost=Cost(products=search.run.products, seconds=time.perf_counter() - began),
    )


class _Search:
    """A Lanczos run and the state of the search for the wanted pairs."""

    run: Lanczos
    room: int  # vectors at most in the basis

    def __init__(
        self,
        operator: LinearOperator,
        k: int,
        order: Callable[[Tensor, int], Tensor],
        tol: float,
        own_scale: bool,
        copies: bool,
    ) -> None:
        self._operator, self._k, self._order = operator, k, order
        self._tol, self._own_scale, self._copies = tol, own_scale, copies
        self._values_at_restart: Tensor | None = None  # the wanted values at the last restart for copies
        self._since_restart = 0  # products since then

    def extend(self, max_products: int) -> None:
        """Do some steps, after a restart where the basis is full."""
        if self.run.steps >= self.room and not self.run.invariant:
            values, s = self.run.ritz()
            # the next pairs besides the wanted ones speed up convergence
            keep = min(self._k + (self.room - self._k) // 2, self.room - 1)
            best = self._order(values, keep)
            self.run.compress(values[best], s[:, best])
        before = self.run.products
        # residuals cost an eigh of T, usually far less than a product: few steps are wasted either way
        steps = 1 + self.run.steps // 20
        self.run.extend(min(steps, self.room - self.run.steps, max_products - self.run.products))
        self._since_restart += self.run.products - before

    def finished(self, max_products: int, generator: torch.Generator) -> bool:
        """Whether the search is over; if only copies may be missing, the run is restarted."""
        values, s, residuals, _, final = self.wanted()
        if self.run.products >= max_products or self.run.steps == self._operator.size:
            return True
        done = len(values) == self._k and bool(final.all())
        if done and not self._copies:
            return True
        if not done and not self.run.invariant:
            return False
        if not self._changed(values, residuals):
            # a heuristic: so many steps from a random vector show an eigenvalue that stands out, since the error of
            # the most extreme Ritz value falls exponentially (Kuczynski & Wozniakowski 1992)
            enough = math.ceil(math.log(self._operator.size)) + 5
            if done and (self.run.invariant or self._since_restart >= enough):
                return True
            if not self.run.invariant:
                return False
        self._values_at_restart, self._since_restart = values, 0
        if not self.run.invariant:
            self.run.lock(values, s, generator)
        else:
            if self.run.steps >= self.room:
                self.run.compress(values, s)
            self.run.restart(generator)
        return False

    def wanted(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Ritz values (k,), their coordinates (m, k), residuals, and masks of those converged and those final.

        Fewer if m < k. Final are those converged, and those with residuals at rounding level.
        """
        ritz, s = self.run.ritz()
        best = self._order(ritz, self._k)
        # a residual cannot be known to be below rounding
        floor = float(torch.finfo(self._operator.dtype).eps * self.run.steps**0.5 * ritz.abs().max())
        residuals = self.run.residuals(s[:, best]).clamp(min=floor)
        scale = ritz[best].abs() if self._own_scale else ritz.abs().max()
        converged = residuals <= self._tol * scale
        return ritz[best], s[:, best], residuals, converged, converged | (residuals <= floor)

    def _changed(self, values: Tensor, residuals: Tensor) -> bool:
        """Whether the wanted values differ from those at the last restart, by more than their residuals and ``tol``."""
        known = self._values_at_restart
        if known is None or len(known) != len(values):
            return True
        return bool((values - known).abs().max() > max(self._tol * values.abs().max(), residuals.max()))

    def save(self, path: str | Path, settings: dict[str, Any], generator: torch.Generator) -> None:
        """Write the state, whole or not at all."""
        state = {
            "settings": settings,
            "run": self.run.state(),
            "search": (self._values_at_restart, self._since_restart),
            "generator": generator.get_state(),
        }
        torch.save(state, f"{path}.part")
        os.replace(f"{path}.part", path)

    def load(self, path: str | Path, settings: dict[str, Any], generator: torch.Generator, max_products: int) -> None:
        """Go on from what :meth:`save` wrote."""
        state = torch.load(path, weights_only=True)
        if state["settings"] != settings:
            raise ValueError(f"resume={str(path)!r} is of a run with {state['settings']}, not {settings}: remove it")
        self.run = Lanczos.resume(self._operator, state["run"], room=min(self.room, max_products))
        values, s = self.run.ritz()
        top = int(values.abs().argmax())
        vector = self.run.combine(s[:, top : top + 1])[:, 0]
        check_same(self._operator, vector, float(values[top]), f"resume={str(path)!r}")
        self._values_at_restart, self._since_restart = state["search"]
        generator.set_state(state["generator"])


def _room(operator: LinearOperator, k: int, max_basis: int | None) -> int:
    if max_basis is None:
        bytes_each = operator.size * torch.finfo(operator.dtype).bits // 8
        max_basis = max(2 * k + 20, _BASIS_BYTES // bytes_each)
    elif max_basis < k + 2:
        raise ValueError(f"max_basis={max_basis}: give at least k + 2 = {k + 2} vectors")
    return min(max_basis, operator.size)


def _start(start: Tensor | None, operator: LinearOperator, generator: torch.Generator) -> Tensor:
    random = unit(operator.size, generator, operator.dtype, operator.device)
    if start is None:
        return random
    if start.shape[0] != operator.size or start.dim() > 2:
        raise ValueError(f"start has shape {tuple(start.shape)}: give vectors of shape (n, j) with n={operator.size}")
    known = start.to(random).reshape(operator.size, -1).sum(1)
    # a share of a random vector, so that pairs outside the span of the known ones are found too
    return known / norm(known) + 0.1 * random


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

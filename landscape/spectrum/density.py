"""The density of all eigenvalues of a symmetric operator, by stochastic Lanczos quadrature.

With v uniform on the sphere, E v' h(H) v = tr h(H) / n, and m Lanczos steps from v give the m-point Gauss rule of
v' h(H) v, with the eigenvalues of T as nodes and the squared first components of its eigenvectors as weights (Ubaru,
Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019). Nodes and weights are the result; histograms and smoothed curves are
views of them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.operators import LinearOperator, as_symmetric, check_same
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new, unit
from landscape.results import Cost, Eigenpairs, SpectralDensity
from landscape.spectrum.lanczos import Lanczos, Recurrence
from landscape.sums import against

__all__ = ["quadrature", "spectral_density"]

_SAVE_EVERY = 20  # steps between states on disk


def spectral_density(
    operator: Any,
    *,
    steps: int = 80,
    probes: int = 4,
    deflate: Eigenpairs | None = None,
    low_memory: bool = False,
    runs: str | Path | None = None,
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
        low_memory: keep three vectors of shape (n,) instead of ``steps``, the product included. Nodes then repeat
            (ghosts), and the rule is as accurate. Either way the deflated eigenvectors are kept besides, and two or
            three vectors while a probe is drawn or a product computed.
        runs: a folder that keeps each probe's run, with its basis. A call with the same operator, deflation and
            generator continues from it: after a kill, or with more steps or more probes. To check that the operator is
            the same takes one product for each of these probes, which the result does not count.
        generator: of the probes. Default: seeded by the operating system.
        progress: called as ``progress(range(probes), description)``; ``tqdm.tqdm`` fits.

    Returns:
        SpectralDensity with ``nodes`` and ``weights`` of shape (probes, steps). Its cost is what this call took.

    Raises:
        ValueError: steps or probes below 1; every eigenpair deflated; ``runs`` of other probes or of another operator.
        FloatingPointError: a product is not finite.

    Example:
        >>> rule = spectral_density(2 * torch.eye(5), steps=3, probes=2)
        >>> round(rule.trace()[0], 5)
        10.0
    """
    began = time.perf_counter()
    operator = as_symmetric(operator)
    for name, number in (("steps", steps), ("probes", probes)):
        if number < 1:
            raise ValueError(f"{name}={number}: give at least 1")
    generator = generator_or_new(generator)
    if deflate is None:
        known, vectors = np.zeros(0), torch.zeros(0, operator.size)
    else:
        known = deflate.values[deflate.converged]
        vectors = deflate.vectors.T[torch.from_numpy(deflate.converged)]
    if len(known) == operator.size:
        raise ValueError("deflate holds every eigenpair: nothing is left to estimate")
    rest = _Deflated(operator, vectors.to(operator.device, operator.dtype))
    steps = min(steps, operator.size - len(known))
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    low, high, products = np.inf, -np.inf, 0
    for i in progress(range(probes), "spectral density"):
        file = None if runs is None else Path(runs) / f"probe_{i:04d}.pt"
        # no reference to the probe or its run is kept here, so that both are freed before the next is drawn
        ritz, first, beta, spent = _rule(
            rest,
            rest.project(unit(operator.size, generator, operator.dtype, operator.device)),
            steps,
            low_memory,
            file,
        )
        products += spent
        done = len(ritz)
        nodes[i], nodes[i, :done] = ritz[-1], ritz
        weights[i, :done] = first**2
        # no eigenvalue lies further out, in all but contrived cases (Zhou & Li 2011)
        low, high = min(low, float(ritz[0]) - beta), max(high, float(ritz[-1]) + beta)
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        known=known,
        support=np.array([low, high]),
        size=operator.size,
        cost=Cost(products=products, seconds=time.perf_counter() - began),
    )


def _rule(
    operator: LinearOperator, probe: Tensor, steps: int, low_memory: bool, file: Path | None
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Ritz values, first components of their eigenvectors, the last beta, and the number of products.

    A run stored in ``file`` is continued.
    """
    mark = probe[:8].cpu().clone()  # identifies the probe
    if file is not None and file.exists():
        state = torch.load(file, weights_only=True)
        if state["low_memory"] != low_memory or not torch.equal(state["mark"], mark):
            raise ValueError(
                f"runs={str(file.parent)!r} is of another generator, deflation or low_memory: give the same, or "
                "another folder"
            )
        alpha = state["run"]["_alphas"][0] if low_memory else float(state["run"]["projection"][0, 0])
        check_same(operator, probe, alpha, f"runs={str(file.parent)!r}")
        saved = state.pop("run")
        run: Recurrence | Lanczos
        run = Recurrence.resume(operator, saved) if low_memory else Lanczos.resume(operator, saved, room=steps)
        del saved
        if run.steps > steps:
            raise ValueError(f"steps={steps}: runs={str(file.parent)!r} has {run.steps} already, so ask for as many")
    else:
        run = Recurrence(operator, probe) if low_memory else Lanczos(operator, probe, room=steps)
    del probe
    before = run.steps
    while run.steps < steps and not run.invariant:
        run.extend(min(_SAVE_EVERY, steps - run.steps) if file is not None else steps - run.steps)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"run": run.state(), "mark": mark, "low_memory": low_memory}, f"{file}.part")
            os.replace(f"{file}.part", file)
    ritz, s = run.ritz()
    return ritz.numpy(), s[0].numpy(), run.beta, run.steps - before


class _Deflated:
    """P H P with P the projector onto what is orthogonal to the rows of ``vectors`` (k, n)."""

    def __init__(self, operator: LinearOperator, vectors: Tensor) -> None:
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self._operator = operator
        self._vectors = vectors

    def project(self, v: Tensor) -> Tensor:
        if len(self._vectors) == 0:
            return v
        return v - self._vectors.T @ against(self._vectors, v).to(v)

    def matvec(self, v: Tensor) -> Tensor:
        return self.project(self._operator.matvec(v))


def quadrature(operator: Any, vector: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Gauss rule of v' h(H) v / v'v with v = ``vector``: nodes, weights, products spent."""
    run = Lanczos(operator, vector)
    run.extend(steps)
    ritz, s = run.ritz()
    return ritz.numpy(), s[0].square().numpy(), run.steps

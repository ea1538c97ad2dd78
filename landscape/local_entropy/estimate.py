"""Local entropy: how much of a Gaussian ball around x has low loss.

With the reference measure q = N(x, I/(beta gamma)) and f the mean loss,

    F~(x; gamma, beta) = log E_{x'~q} exp(-beta f(x')).

F = F~ + (n/2) log(2 pi/(beta gamma)) is the local entropy of Entropy-SGD (Chaudhari et al. 2017), at beta = 1
in the paper. -F~/beta is in units of the loss, the "free energy"; its excess over f(x) is what the ball
costs. The radius 1/sqrt(beta gamma) is the ball's standard deviation per weight.

Four estimators:

*Laplace* replaces f by its second-order expansion at x, with gradient g and Hessian H:

    F~ ~ -beta f + beta/2 g'(H + gamma)^-1 g - 1/2 log det(I + H/gamma).

The determinant comes from a spectral density, the middle term from one Lanczos run started at g. It has
no meaning where H + gamma I is not positive definite, and is refused there. Its standard error is that of
the determinant over probes; the error of the expansion itself it cannot know.

*Monte Carlo* averages exp(-beta f) over draws of q. The average is ruled by the few draws of lowest loss:
once their effective number (sum w)^2 / sum w^2 is small, the estimate is too low and its error unknown.
Jensen's inequality gives -beta E f(x') <= F~ from the same draws at any radius.

*Tempered* carries particles from a Gaussian (q, or one nearer to the end) to the Gibbs measure exp(-beta f) q along a
ladder, as told in ``landscape.local_entropy.path``. It holds where the other two fail, with a bracket, at the price of
some thousand gradients.

*SGLD* climbs the ladder by gradients of parts of the data, without correction: biased, as told in
``landscape.local_entropy.stochastic``.
"""

from __future__ import annotations

import time
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from landscape.eigenvalues import eigenpairs
from landscape.local_entropy.laplace import laplace
from landscape.local_entropy.monte_carlo import monte_carlo
from landscape.local_entropy.path import BudgetError, Tempered, follow
from landscape.local_entropy.potential import Potential
from landscape.local_entropy.stochastic import stochastic
from landscape.local_entropy.tempered import tempered
from landscape.objective import ModelObjective, Objective
from landscape.operators import Hessian
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Cost, Eigenpairs, LocalEntropy, SpectralDensity
from landscape.spectrum import spectral_density

__all__ = ["local_entropy"]

Method = Literal["laplace", "monte_carlo", "tempered", "sgld"]
_ALL: tuple[Method, ...] = ("laplace", "monte_carlo", "tempered")  # what is not biased by design


@overload
def local_entropy(objective: Objective, theta: Tensor, *, method: Method = ..., **options: Any) -> LocalEntropy: ...


@overload
def local_entropy(
    objective: Objective, theta: Tensor, *, method: Literal["all"], **options: Any
) -> dict[str, LocalEntropy]: ...


def local_entropy(  # type: ignore[misc]  # the overloads do not list the options again
    objective: Objective,
    theta: Tensor,
    *,
    radius: float | np.ndarray | list[float] | None = None,
    gamma: float | np.ndarray | list[float] | None = None,
    beta: float | None = None,
    method: Method | Literal["all"] = "laplace",
    pairs: Eigenpairs | int = 20,
    samples: int = 64,
    steps: int = 80,
    probes: int = 4,
    density: SpectralDensity | None = None,
    populations: int = 8,
    chains: int = 4,
    moves: int = 32,
    tol: float = 0.05,
    budget: int = 60_000,
    parts: int = 8,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> LocalEntropy | dict[str, LocalEntropy]:
    """F~(theta; gamma, beta), at one radius or over a sweep of them.

    The same generator seed gives the same draws or probes at every theta, so that differences between
    checkpoints are paired; not so on the path, whose ladder depends on theta.

    Args:
        objective: f.
        theta: where, shape (n,).
        radius: 1/sqrt(beta gamma), in units of the weights; a number or several. Give this or ``gamma``. Of interest
            are those at which the excess free energy is between about 0.001 and 1.
        gamma: the stiffness, in units of f / weight^2.
        beta: inverse temperature. Default: the number of examples where the objective has one (f is
            then a mean log-likelihood, beta f the log-likelihood), else 1.
        method: ``"laplace"``, ``"monte_carlo"``, ``"tempered"``, or ``"sgld"`` (biased); ``"all"``: the first three.
        pairs: the largest eigenpairs of the Hessian at theta, or how many the tempered path is to find. It begins at
            the Gaussian that the loss' parabola makes of q along them, which is nearer to its end and mixes faster; 0:
            at q. Laplace counts them exactly if given.
        samples: draws of q, for Monte Carlo; the same normal vectors serve all radii.
        steps: Lanczos steps, for Laplace.
        probes: probes of the log-determinant, for Laplace.
        density: a spectral density of the Hessian at theta, to spare Laplace its own.
        populations: independent runs of the tempered path, at least 2; their spread is the error.
        chains: of each population; SGLD has one in each.
        moves: of each chain on each rung that the pilot finds; for SGLD on each of its 17.
        tol: width of the tempered bracket asked for, relative to |F~|.
        budget: gradients at most for each radius of the tempered path. Of a sweep, radii for which it does not last are
            NaN; for a single one that is an error.
        parts: of the data, for SGLD: a move takes the gradient of one.
        generator: of the draws or probes. Default: seeded by the operating system.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        LocalEntropy, whose arrays have the shape of ``radius`` (or ``gamma``). ``note`` says where and
        why ``reliable`` is False. For ``"all"`` one by each method's name.

    Raises:
        ValueError: neither or both of radius and gamma; one of radius, gamma, beta, samples not positive; an unknown
            method; a loss that is not finite at theta, or not the same twice; a budget too small for a ladder; SGLD for
            an objective whose data cannot be parted.

    Example:
        For f(x) = x^2/2 at x = 0, F~ = -1/2 log(1 + 1/gamma):

        >>> from landscape import ModelObjective
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> half_square = ModelObjective(
        ...     model, lambda outputs, batch: (outputs**2).mean() / 2, [(torch.ones(1, 1),)]
        ... )
        >>> f = local_entropy(half_square, torch.zeros(1), gamma=1.0, beta=1.0)
        >>> round(float(f.value), 4), -0.3466  # -1/2 log 2
        (-0.3466, -0.3466)
    """
    generator = generator_or_new(generator)
    if method == "all":
        options = {name: value for name, value in locals().items() if name not in ("objective", "theta", "method")}
        state = generator.get_state()
        results: dict[str, LocalEntropy] = {}
        for each in _ALL:  # from the same seed, as if it were asked for alone
            generator.set_state(state)
            results[each] = local_entropy(objective, theta, method=each, **options)
        return results
    start = time.perf_counter()
    if (radius is None) == (gamma is None):
        raise ValueError(f"radius={radius} and gamma={gamma}: give exactly one of them")
    if beta is None:
        beta = float(getattr(objective, "examples", 1.0))
    counts = {"samples": samples, "moves": moves, "tol": tol, "budget": budget, "parts": parts}
    for name, given in {"radius": radius, "gamma": gamma, "beta": beta, **counts}.items():
        if given is not None and not np.all(np.asarray(given) > 0):
            raise ValueError(f"{name}={given}: give positive numbers")
    if isinstance(pairs, int) and pairs < 0:
        raise ValueError(f"pairs={pairs}: give eigenpairs, or how many to find, 0 or more")
    for name, count in (("populations", populations), ("chains", chains)):
        if count < 2:
            raise ValueError(f"{name}={count}: give at least 2, since their spread is the error")
    if method not in (*_ALL, "sgld"):
        raise ValueError(f"method={method!r}: give 'laplace', 'monte_carlo', 'tempered', 'sgld' or 'all'")
    if method == "sgld" and not isinstance(objective, ModelObjective):
        raise ValueError(f"method='sgld' for a {type(objective).__name__}: only a ModelObjective's data can be parted")
    check_vector("theta", theta, objective.size)
    loss = _loss(objective, theta)

    radii = np.asarray(radius if gamma is None else 1 / np.sqrt(beta * np.asarray(gamma)), float)
    gammas = 1 / (beta * radii**2)
    products = 0
    top = pairs if isinstance(pairs, Eigenpairs) else None
    if method == "tempered" and isinstance(pairs, int) and pairs:
        top = eigenpairs(Hessian(objective, theta), min(pairs, objective.size), which="largest", generator=generator)
        products = top.products
    if method == "laplace":
        if density is None:
            density = spectral_density(
                Hessian(objective, theta),
                steps=steps,
                probes=probes,
                deflate=top,
                generator=generator,
                progress=progress,
            )
            products += density.cost.products
        flat = laplace(objective, theta, loss, radii.ravel(), beta, density, steps)
    elif method == "monte_carlo":
        flat = monte_carlo(objective, theta, radii.ravel(), beta, samples, generator, progress)
    elif isinstance(objective, ModelObjective) and method == "sgld":
        flat = stochastic(
            objective,
            theta,
            radii.ravel(),
            beta,
            parts=parts,
            chains=populations,
            moves=moves,
            generator=generator,
            progress=progress,
        )
    else:
        runs: list[Tempered | BudgetError] = []
        for one in radii.ravel():
            try:
                run = follow(
                    Potential(objective, theta, float(one), beta, top),
                    populations=populations,
                    chains=chains,
                    moves=moves,
                    tol=tol,
                    budget=budget,
                    generator=generator,
                    progress=progress,
                )
            except BudgetError as spent:
                if radii.ndim == 0:
                    raise
                runs.append(spent)
            else:
                runs.append(run)
        flat = tempered(runs, radii.ravel(), populations, from_q=top is None)
    note, cost = flat.pop("note"), flat.pop("cost")
    cost["values"] += 2
    cost["products"] += products
    flat = {**_without_path(radii.size), **flat}
    shift = flat.pop("shift")
    # (radii, draws) and (radii,) take the shape that was asked for
    arrays = {name: a.reshape(radii.shape + a.shape[1:])[()] for name, a in flat.items()}
    return LocalEntropy(
        **arrays,
        shift=shift.reshape(*radii.shape, shift.shape[1]),
        radius=radii[()],
        gamma=gammas[()],
        loss=loss,
        beta=beta,
        size=objective.size,
        method=method,
        note=note,
        cost=Cost(**cost, seconds=time.perf_counter() - start),
    )


def _loss(objective: Objective, theta: Tensor) -> float:
    """f(theta), which must be finite and the same twice."""
    loss, again = objective.value(theta), objective.value(theta)
    if not np.isfinite(loss):
        raise ValueError(f"the loss at theta is {loss}: local entropy needs a finite one there")
    if loss != again:
        raise ValueError(
            f"the loss at theta is {loss} and, asked again, {again}: the objective is random (dropout, augmentation or "
            "sampled batches), so fix its data and switch its noise off"
        )
    return loss


def _without_path(radii: int) -> dict[str, Any]:
    """What some methods do not know."""
    names = (
        "lower",
        "upper",
        "thermodynamic",
        "thermodynamic_stderr",
        "virial",
        "shift_stderr",
        "r_hat",
        "autocorrelation",
        "drift",
        "drift_stderr",
        "step_bias",
    )
    rungs = ("ladder", "rung_loss", "rung_psi", "rung_acceptance", "rung_effective")
    return {
        **dict.fromkeys(names, np.full(radii, np.nan)),
        **dict.fromkeys(rungs, np.zeros((radii, 0))),
        "shift": torch.zeros(radii, 0),
    }

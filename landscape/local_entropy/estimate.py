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

import operator
import time
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from landscape.local_entropy.laplace import laplace
from landscape.local_entropy.monte_carlo import monte_carlo
from landscape.local_entropy.radii import counted_radii
from landscape.local_entropy.stochastic import stochastic
from landscape.local_entropy.tempered import tempered
from landscape.objective import ModelObjective, Objective
from landscape.objective.contract import number
from landscape.operators import Hessian, check_same
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Cost, Eigenpairs, LocalEntropy, SpectralDensity
from landscape.spectrum import eigenpairs

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
        theta: where, shape (n,); moved to the objective's device and dtype.
        radius: 1/sqrt(beta gamma), in units of the weights; a number or several. Default, where there is no ``gamma``
            either: ``radii_of_interest``, over which the mean loss rises by 0.001 to 1.
        gamma: the stiffness, in units of f / weight^2.
        beta: inverse temperature. Default: the number of examples where the objective has one (f is
            then a mean log-likelihood, beta f the log-likelihood), else 1.
        method: ``"laplace"``, ``"monte_carlo"``, ``"tempered"``, or ``"sgld"`` (biased); ``"all"``: the first three.
        pairs: the largest eigenpairs of the Hessian at theta, or how many the tempered path is to find. It begins at
            the Gaussian that the loss' parabola makes of q along them, which is nearer to its end and mixes faster; 0:
            at q. Laplace counts them exactly, unless it is given a density; a product, not counted, checks that they
            are of this theta. The path is exact whatever it begins at, so that those of a theta nearby serve.
        samples: draws of q, for Monte Carlo; the same normal vectors serve all radii.
        steps: Lanczos steps, for Laplace.
        probes: probes of the log-determinant, for Laplace.
        density: a spectral density of the Hessian at theta, to spare Laplace its own. That it is of this theta cannot
            be checked.
        populations: independent runs of the tempered path, at least 2; their spread is the error.
        chains: of each population; SGLD has one in each.
        moves: of each chain on each rung that the pilot finds; for SGLD on each of its 17.
        tol: width of the tempered bracket asked for, relative to |F~|.
        budget: gradients at most for each radius of the tempered path, beside the products that find the pairs. Of a
            sweep, radii for which it does not last are NaN; for a single one that is an error.
        parts: of the data, for SGLD: a move takes the gradient of one.
        generator: of the draws or probes. Default: seeded by the operating system.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        LocalEntropy, whose arrays have the shape of ``radius`` (or ``gamma``). ``note`` says where and why ``reliable``
        is False, and what it would take to reach ``tol``. For ``"all"`` one by each method's name.

    Raises:
        ValueError: both radius and gamma; one of radius, gamma, beta, samples not positive; an unknown method; a loss
            that is not finite at theta, or not the same twice; a budget too small for a ladder; SGLD for an objective
            whose data cannot be parted; no radius given and none of interest; pairs or a density of another size, or
            for Laplace pairs of another theta.
        TypeError: ``pairs`` is neither eigenpairs nor a whole number.
        FloatingPointError: a product with the Hessian is not finite.

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
    methods: tuple[Any, ...] = _ALL if method == "all" else (method,)
    if not set(methods) <= {*_ALL, "sgld"}:
        raise ValueError(f"method={method!r}: give 'laplace', 'monte_carlo', 'tempered', 'sgld' or 'all'")
    if radius is not None and gamma is not None:
        raise ValueError(f"radius={radius} and gamma={gamma}: give one of them, or none")
    if beta is None:
        beta = float(getattr(objective, "examples", 1.0))
    counts = {"samples": samples, "moves": moves, "tol": tol, "budget": budget, "parts": parts}
    for name, given in {"radius": radius, "gamma": gamma, "beta": beta, **counts}.items():
        if given is not None and not np.all((np.asarray(given) > 0) & np.isfinite(given)):
            raise ValueError(f"{name}={given}: give positive numbers")
    if isinstance(pairs, Eigenpairs):
        _check_size("pairs has vectors", len(pairs.vectors), objective)
    else:
        try:
            pairs = operator.index(pairs)
        except TypeError:
            raise TypeError(f"pairs={pairs!r}: give eigenpairs, or how many to find as a whole number") from None
        if pairs < 0:
            raise ValueError(f"pairs={pairs}: give eigenpairs, or how many to find, 0 or more")
    if density is not None:
        _check_size("density is", density.size, objective)
    for name, count in (("populations", populations), ("chains", chains)):
        if count < 2:
            raise ValueError(f"{name}={count}: give at least 2, since their spread is the error")
    if method == "sgld" and not isinstance(objective, ModelObjective):
        raise ValueError(f"method='sgld' for a {type(objective).__name__}: only a ModelObjective's data can be parted")
    check_vector("theta", theta, objective.size)
    theta = theta.detach().to(objective.device, objective.dtype)
    began, values = time.perf_counter(), 2
    loss = _loss(objective, theta)
    if gamma is not None:
        radii = 1 / np.sqrt(beta * np.asarray(gamma, float))
    elif radius is not None:
        radii = np.asarray(radius, float)
    else:
        radii, more = counted_radii(objective, theta)
        values += more
    looking = Cost(values=values, seconds=time.perf_counter() - began)
    generator = generator_or_new(generator)
    before, top, finding = generator.get_state(), pairs if isinstance(pairs, Eigenpairs) else None, Cost()
    deflating = "laplace" in methods and density is None
    if isinstance(pairs, Eigenpairs) and deflating:
        largest = int(abs(pairs.values).argmax())
        vector = pairs.vectors[:, largest].to(objective.device, objective.dtype)
        check_same(Hessian(objective, theta), vector, float(pairs.values[largest]), "pairs")
    elif isinstance(pairs, int) and pairs and ("tempered" in methods or deflating):
        start, count = time.perf_counter(), min(pairs, objective.size)
        top = eigenpairs(Hessian(objective, theta), count, which="largest", generator=generator)
        finding = Cost(products=top.products, seconds=time.perf_counter() - start)
    after = generator.get_state()

    def estimate(method: Method) -> dict[str, Any]:
        where = (theta, radii.ravel(), beta)
        random: dict[str, Any] = {"generator": generator, "progress": progress}
        if method == "laplace":
            return laplace(objective, *where, loss, density, deflate=top, steps=steps, probes=probes, **random)
        if method == "monte_carlo":
            return monte_carlo(objective, *where, samples, **random)
        if method == "sgld" and isinstance(objective, ModelObjective):
            return stochastic(objective, *where, parts=parts, chains=populations, moves=moves, **random)
        random |= {"populations": populations, "chains": chains, "moves": moves, "tol": tol, "budget": budget}
        return tempered(objective, *where, top, sweep=radii.ndim > 0, **random)

    results: dict[str, LocalEntropy] = {}
    for each in methods:
        # as if each were asked for alone
        generator.set_state(before if each == "monte_carlo" else after)
        start = time.perf_counter()
        fields = {**_without_path(radii.size), **estimate(each)}
        seconds = time.perf_counter() - start + looking.seconds
        note, cost = fields.pop("note"), fields.pop("cost")
        cost["values"] += looking.values
        if each == "tempered" or (each == "laplace" and density is None):
            cost["products"] += finding.products
            seconds += finding.seconds
        # (radii, draws) and (radii,) take the shape that was asked for
        shaped: dict[str, Any] = {name: a.reshape(radii.shape + a.shape[1:]) for name, a in fields.items()}
        arrays: dict[str, Any] = {name: a if isinstance(a, Tensor) else a[()] for name, a in shaped.items()}
        results[each] = LocalEntropy(
            **arrays,
            radius=radii[()],
            gamma=(1 / (beta * radii**2))[()],
            loss=loss,
            beta=beta,
            size=objective.size,
            method=each,
            note=note,
            cost=Cost(**cost, seconds=seconds),
        )
    return results if method == "all" else results[method]


def _check_size(what: str, size: int, objective: Objective) -> None:
    if size != objective.size:
        raise ValueError(f"{what} of size {size}: give what is of this objective, which is of size {objective.size}")


def _loss(objective: Objective, theta: Tensor) -> float:
    """f(theta), which must be finite and the same twice."""
    loss, again = (number(objective.value(theta)) for _ in range(2))
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
        "virial_stderr",
        "shift_stderr",
        "r_hat",
        "autocorrelation",
        "drift",
        "drift_stderr",
        "step_bias",
        "step_bias_stderr",
    )
    rungs = ("ladder", "rung_loss", "rung_psi", "rung_acceptance", "rung_effective")
    return {
        **dict.fromkeys(names, np.full(radii, np.nan)),
        **dict.fromkeys(rungs, np.zeros((radii, 0))),
        "within_tol": np.zeros(radii, bool),
        "shift": torch.zeros(radii, 0),
    }

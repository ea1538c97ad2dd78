"""Local entropy: how much of a Gaussian ball around x has low loss.

With the reference measure q = N(x, I/(beta gamma)) and f the mean loss,

    F~(x; gamma, beta) = log E_{x'~q} exp(-beta f(x')).

F = F~ + (n/2) log(2 pi/(beta gamma)) is the local entropy of Entropy-SGD (Chaudhari et al. 2017), at beta = 1
in the paper. -F~/beta is in units of the loss, the "free energy"; its excess over f(x) is what the ball
costs. The radius 1/sqrt(beta gamma) is the ball's standard deviation per weight.

Four estimators:

*Laplace* replaces f by its second-order expansion at x, with gradient g and Hessian H:

    F~ ~ -beta f + beta/2 g'(H + gamma)^-1 g - 1/2 log det(I + H/gamma).

The determinant is computed from a spectral density, the middle term by one Lanczos run started at g. Where H + gamma I
is not positive definite the expression has no meaning, and the estimate is refused. Its standard error is that of the
determinant over probes; the error of the expansion itself is not known.

*Monte Carlo* averages exp(-beta f) over draws of q. The average is dominated by the few draws of lowest loss: where the
effective sample size (sum w)^2 / sum w^2 is small, the estimate is too low and its error unknown. Jensen's inequality
gives -beta E f(x') <= F~ from the same draws at any radius.

*Annealed sequential Monte Carlo* (SMC) carries particles from a Gaussian (q, or one closer to the target) to the Gibbs
measure exp(-beta f) q along a schedule of inverse temperatures (``landscape.local_entropy.smc``). It works where the
other two fail, and brackets F~, at the cost of some thousand gradients.

*SGLD* follows such a schedule with stochastic gradients and without correction: biased
(``landscape.local_entropy.sgld``).
"""

from __future__ import annotations

import time
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from landscape.local_entropy.laplace import laplace
from landscape.local_entropy.monte_carlo import monte_carlo
from landscape.local_entropy.radii import counted_radii
from landscape.local_entropy.sgld import sgld
from landscape.local_entropy.smc import smc
from landscape.local_entropy.validation import (
    check_at_least_two,
    check_positive,
    check_size,
    loss_at,
    pairs_or_count,
)
from landscape.objective import ModelObjective, Objective
from landscape.operators import Hessian, check_same
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Cost, Eigenpairs, LocalEntropy, SpectralDensity
from landscape.spectrum import eigenpairs

__all__ = ["Method", "local_entropy"]

Method = Literal["laplace", "monte_carlo", "smc", "sgld"]
_ALL: tuple[Method, ...] = ("laplace", "monte_carlo", "smc")  # those without a known bias


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
    checkpoints are paired; not so for SMC, whose schedule depends on theta.

    Args:
        objective: f.
        theta: where, shape (n,); moved to the objective's device and dtype.
        radius: 1/sqrt(beta gamma), in units of the weights; a number or several. Default, where there is no ``gamma``
            either: ``radii_of_interest``, over which the mean loss rises by 0.001 to 1.
        gamma: the stiffness, in units of f / weight^2.
        beta: inverse temperature. Default: the number of examples where the objective has one (f is
            then a mean negative log-likelihood, beta f that of all examples), else 1.
        method: ``"laplace"``, ``"monte_carlo"``, ``"smc"``, or ``"sgld"`` (biased); ``"all"``: the first three.
        pairs: the largest eigenpairs of the Hessian at theta, or how many to find. SMC then starts from the Gaussian
            that the quadratic approximation of the loss along them makes of q, which is closer to the target and mixes
            faster; 0: from q. Laplace counts them exactly, unless it is given a density; a product, not counted,
            checks that they are of this theta. SMC is exact whatever it starts from, and takes those of a nearby theta.
        samples: draws of q, for Monte Carlo; the same normal vectors serve all radii.
        steps: Lanczos steps, for Laplace.
        probes: probes of the log-determinant, for Laplace.
        density: a spectral density of the Hessian at theta, which saves Laplace from computing it. It cannot be checked
            that it is of this theta.
        populations: independent runs of SMC, at least 2; their spread is the error.
        chains: of each population; SGLD has one in each.
        moves: of each chain at each temperature that the pilot run of SMC finds; of SGLD at each of its 17.
        tol: width of the bracket of SMC to reach, relative to |F~|.
        budget: gradients at most for each radius, for SMC, in addition to the products that find the pairs. In a sweep,
            radii for which it is too small are NaN; for a single radius that is an error.
        parts: of the data, for SGLD: a move takes the gradient of one.
        generator: for the draws or probes. Default: seeded by the operating system.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        LocalEntropy, whose arrays have the shape of ``radius`` (or ``gamma``). ``note`` says where and why ``reliable``
        is False, and what it would take to reach ``tol``. For ``"all"`` a dictionary by method.

    Raises:
        ValueError: both radius and gamma; one of radius, gamma, beta, samples not positive; an unknown method; a loss
            that is not finite at theta, or not the same twice; a budget too small for SMC; SGLD for an objective
            whose data cannot be divided; no radius given and none of interest; pairs or a density of another size, or
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
        renamed = ", as 'tempered' is now called" if method == "tempered" else ""
        raise ValueError(f"method={method!r}: give 'laplace', 'monte_carlo', 'sgld', 'all' or 'smc'{renamed}")
    if radius is not None and gamma is not None:
        raise ValueError(f"radius={radius} and gamma={gamma}: give one of them, or none")
    if beta is None:
        beta = float(getattr(objective, "examples", 1.0))
    check_positive(radius=radius, gamma=gamma, beta=beta)
    check_positive(samples=samples, moves=moves, tol=tol, budget=budget, parts=parts)
    pairs = pairs_or_count(pairs, objective)
    if density is not None:
        check_size("density is", density.size, objective)
    check_at_least_two(populations=populations, chains=chains)
    if method == "sgld" and not isinstance(objective, ModelObjective):
        raise ValueError(f"method='sgld' for a {type(objective).__name__}: only a ModelObjective's data can be divided")
    check_vector("theta", theta, objective.size)
    theta = theta.detach().to(objective.device, objective.dtype)
    started, values = time.perf_counter(), 2
    loss = loss_at(objective, theta)
    if gamma is not None:
        radii = 1 / np.sqrt(beta * np.asarray(gamma, float))
    elif radius is not None:
        radii = np.asarray(radius, float)
    else:
        radii, more = counted_radii(objective, theta)
        values += more
    common_cost = Cost(values=values, seconds=time.perf_counter() - started)
    generator = generator_or_new(generator)
    before, top, pairs_cost = generator.get_state(), pairs if isinstance(pairs, Eigenpairs) else None, Cost()
    deflating = "laplace" in methods and density is None
    if isinstance(pairs, Eigenpairs) and deflating:
        largest = int(abs(pairs.values).argmax())
        vector = pairs.vectors[:, largest].to(objective.device, objective.dtype)
        check_same(Hessian(objective, theta), vector, float(pairs.values[largest]), "pairs")
    elif isinstance(pairs, int) and pairs and ("smc" in methods or deflating):
        start, count = time.perf_counter(), min(pairs, objective.size)
        top = eigenpairs(Hessian(objective, theta), count, which="largest", generator=generator)
        pairs_cost = Cost(products=top.products, seconds=time.perf_counter() - start)
    after = generator.get_state()

    def estimate(method: Method) -> dict[str, Any]:
        where = (theta, radii.ravel(), beta)
        common: dict[str, Any] = {"generator": generator, "progress": progress}
        if method == "laplace":
            return laplace(objective, *where, loss, density, deflate=top, steps=steps, probes=probes, **common)
        if method == "monte_carlo":
            return monte_carlo(objective, *where, samples, **common)
        if method == "sgld" and isinstance(objective, ModelObjective):
            return sgld(objective, *where, parts=parts, chains=populations, moves=moves, **common)
        common |= {"populations": populations, "chains": chains, "moves": moves, "tol": tol, "budget": budget}
        return smc(objective, *where, top, sweep=radii.ndim > 0, **common)

    results: dict[str, LocalEntropy] = {}
    for each in methods:
        # with the generator's state as if it were the only method
        generator.set_state(before if each == "monte_carlo" else after)
        start = time.perf_counter()
        fields = {**_unknown_fields(radii.size), **estimate(each)}
        seconds = time.perf_counter() - start + common_cost.seconds
        note, cost = fields.pop("note"), fields.pop("cost")
        cost["values"] += common_cost.values
        if each == "smc" or (each == "laplace" and density is None):
            cost["products"] += pairs_cost.products
            seconds += pairs_cost.seconds
        # (radii, draws) and (radii,) take the shape of the radius that was given
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


def _unknown_fields(radii: int) -> dict[str, Any]:
    """The fields of a LocalEntropy that not all methods estimate, where they are not known."""
    names = (
        "lower",
        "upper",
        "thermodynamic",
        "thermodynamic_stderr",
        "virial",
        "virial_stderr",
        "shift_stderr",
        "r_hat",
        "autocorrelation_time",
        "drift",
        "drift_stderr",
        "step_size_bias",
        "step_size_bias_stderr",
    )
    steps = ("schedule", "step_loss", "step_potential", "step_acceptance", "step_relative_ess")
    return {
        **dict.fromkeys(names, np.full(radii, np.nan)),
        **dict.fromkeys(steps, np.zeros((radii, 0))),
        "within_tol": np.zeros(radii, bool),
        "shift": torch.zeros(radii, 0),
    }

"""The tempered path: a sequential Monte Carlo run from a known Gaussian to the Gibbs measure, and back to F~.

With psi and log Z_b as in ``landscape.local_entropy.potential`` (begun at q, psi is beta f and log Z_b is 0)

    pi_s(y) ~ exp(-|y|^2 / 2 - s psi(y)),  s from 0 to 1,
    F~ = log Z_b + log E_{y ~ N(0, I)} exp(-psi) = log Z_b - integral_0^1 <psi>_s ds.

Particles are drawn at s = 0 and carried along a ladder 0 = s_0 < ... < s_R = 1: weighed by exp(-(s_{k+1} - s_k) psi),
resampled, and moved by a kernel that leaves pi_{s_{k+1}} invariant (Del Moral, Doucet & Jasra 2006). Only a few are
resampled, and each begins a chain whose every point becomes a particle of the next rung (waste-free; Dau & Chopin
2022): at the same price the chains are longer, and the measure is reached where short ones lag behind. The product
over rungs of the mean weights is an unbiased estimate of exp F~. <psi>_s falls with s, so its left and right Riemann
sums bracket F~. Where psi is infinite on some of the ball, pi_s is that of the rest for all s > 0, and the logarithm of
the share P that the rest has of N(0, I) is added to the sums: F~ = log Z_b + log P - integral of <psi>_s.

A pilot finds the ladder (``landscape.local_entropy.ladder``). Independent populations run on it, refined as far as the
tolerance asks and the budget lets: their spread is the error. Where their bracket is too wide after all, they run
again, on finer rungs or with more moves, whichever of both is lacking. At s = 1 their chains go on for a while, for
what is told of the Gibbs measure itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Generator, Tensor

from landscape.local_entropy.climb import LONGER, Climb, climb
from landscape.local_entropy.ladder import BudgetError, find_ladder
from landscape.local_entropy.potential import Potential
from landscape.progress import Progress
from landscape.results import standard_error

__all__ = ["ERRORS", "Tempered", "error_of_mean", "follow"]

ERRORS = 2.0  # standard errors that widen the bracket
# of the tolerance, what the sums may be apart at first, since the pilot's guess is rough and errors come on top
_GUESSED = 0.7
_APART, _NOISE = 0.5, 0.4  # and the second time, when both are known


@dataclass(frozen=True)
class Tempered:
    """All populations at one radius, and what follows from them."""

    s: np.ndarray  # (R + 1,), the ladder
    climbs: list[Climb]
    log_normaliser: float
    shift: Tensor  # (n,), <x'> - x
    shift_stderr: float  # root of the expected squared length of its error
    ball: np.ndarray  # means of f over q, one of each population, or its values at draws of q
    values: int  # losses and gradients that were spent
    gradients: int
    not_finite: int
    wanted: int = 0  # gradients that the tolerance asks for, beyond the budget; 0 where it is met

    def log_means(self) -> np.ndarray:
        """F~ of each population, (K,)."""
        return self.log_normaliser + np.array([climb.log_mean for climb in self.climbs])

    def value(self) -> float:
        """F~."""
        return float(logsumexp(self.log_means()) - np.log(len(self.climbs)))

    def riemann(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums that F~ lies between, of each population, (K,) both."""
        ds = np.diff(self.s)
        psi = np.stack([climb.psi for climb in self.climbs])
        with np.errstate(divide="ignore"):  # none of a population's draws was finite
            known = self.log_normaliser + np.log([climb.finite for climb in self.climbs])
        return known - (ds * psi[:, :-1]).sum(axis=1), known - (ds * psi[:, 1:]).sum(axis=1)

    def bracket(self) -> tuple[float, float]:
        """Between which F~ lies, the errors of both sums included."""
        low, high = self.riemann()
        return (
            float(low.mean() - ERRORS * standard_error(low)),
            float(high.mean() + ERRORS * standard_error(high)),
        )

    def thermodynamic(self) -> np.ndarray:
        """F~ by the trapezoidal rule corrected by the slope d<psi>/ds = -var psi (Friel, Hurn & Wyse 2014), (K,)."""
        low, high = self.riemann()
        variance = np.stack([climb.variance for climb in self.climbs])
        return (low + high) / 2 - (np.diff(self.s) ** 2 / 12 * np.diff(variance)).sum(axis=1)


class _Plan(NamedTuple):
    """How the populations climb."""

    finer: int  # parts of each of the pilot's rungs
    fewer: int  # moves on each part
    moves: int  # draws of each chain at s = 0, and half of those at s = 1


def follow(
    potential: Potential,
    *,
    populations: int,
    chains: int,
    moves: int,
    tol: float,
    budget: int,
    generator: Generator,
    progress: Progress,
) -> Tempered:
    """All populations at one radius.

    Args:
        potential: psi.
        populations: independent ones, at least 2; their spread is the error.
        chains: of each population.
        moves: of each chain on each rung of the pilot's ladder; where rungs are refined, they are shared out.
        tol: width of the bracket asked for, relative to |F~|.
        budget: gradients at most.
        generator: of everything random.
        progress: called as ``progress(range(populations), description)``.

    Raises:
        BudgetError: the budget does not last for a ladder and the populations.
        ValueError: no draw has a finite loss.
    """
    pilot = find_ladder(potential, chains, moves, budget, generator)
    rungs = len(pilot.s) - 1

    def cost(plan: _Plan) -> int:
        return populations * chains * (plan.moves + rungs * plan.finer * plan.fewer + LONGER * plan.moves)

    plan = _Plan(1, moves, moves)
    if cost(plan) > budget - potential.gradients:
        raise BudgetError(
            f"budget={budget}: a ladder of {rungs} rungs with {populations} populations of {chains} chains and {moves} "
            f"moves takes {potential.gradients} gradients to find and {cost(plan)} to climb: give as many",
            potential.gradients,
        )
    while pilot.width / plan.finer > _GUESSED * tol * abs(pilot.value):
        more = _Plan(plan.finer + 1, max(1, round(moves / (plan.finer + 1))), moves)
        if cost(more) > budget - potential.gradients:
            break
        plan = more
    while True:
        found = _run(potential, *pilot.refined(plan.finer), plan, populations, chains, generator, progress)
        better = _better(found, plan, tol)
        if better is None:
            return found
        if cost(better) > budget - potential.gradients:
            return replace(found, wanted=potential.gradients + cost(better))
        plan = better


def _run(
    potential: Potential,
    s: np.ndarray,
    steps: np.ndarray,
    plan: _Plan,
    populations: int,
    chains: int,
    generator: Generator,
    progress: Progress,
) -> Tempered:
    # side by side as far as that is faster; more would only hold more memory
    groups = np.array_split(np.arange(populations), -(-populations * chains // max(chains, potential.at_once)))
    climbs: list[Climb] = []
    for group in progress(groups, f"tempered, radius {potential.radius:.3g}"):
        climbs += climb(potential, s, steps, len(group), chains, plan.moves, plan.fewer, generator)
    shifts = potential.displacement(torch.stack([c.y for c in climbs]))
    if potential.from_q:
        ball = np.array([c.loss[0] if c.finite == 1 else np.inf for c in climbs])
    else:
        ball = potential.ball(populations * chains, generator)
    return Tempered(
        s=s,
        climbs=climbs,
        log_normaliser=potential.log_normaliser,
        shift=shifts.mean(dim=0),
        shift_stderr=error_of_mean(shifts),
        ball=ball,
        values=potential.values,
        gradients=potential.gradients,
        not_finite=potential.not_finite,
    )


def _better(found: Tempered, plan: _Plan, tol: float) -> _Plan | None:
    """What it would take to reach the tolerance, or None where it is reached or nobody can tell."""
    (low, high), (lower, upper) = found.riemann(), found.bracket()
    asked, apart = tol * abs(found.value()), float((high - low).mean())
    noise = upper - lower - apart
    if not (np.isfinite(noise) and asked > 0) or upper - lower <= asked:
        return None
    finer = int(np.ceil(plan.finer * max(1.0, apart / (_APART * asked))))
    more = max(1.0, (noise / (_NOISE * asked)) ** 2)
    return _Plan(finer, max(1, round(plan.finer * plan.fewer * more / finer)), int(np.ceil(plan.moves * more)))


def error_of_mean(vectors: Tensor) -> float:
    """Root of the expected squared length of the error of the mean of ``vectors`` (K, n), which are independent."""
    return float((vectors.var(dim=0).sum() / len(vectors)).sqrt())

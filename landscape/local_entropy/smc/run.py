"""Annealed sequential Monte Carlo from a known Gaussian to the Gibbs measure.

With psi and log Z_b as in ``landscape.local_entropy.smc.potential`` the particles go through the distributions

    pi_s(y) ~ exp(-|y|^2 / 2 - s psi(y)),  s from 0 to 1,
    F~ = log Z_b + log E_{y ~ N(0, I)} exp(-psi)

(Del Moral, Doucet & Jasra 2006). A pilot run finds the schedule 0 = s_0 < ... < s_T = 1. Independent populations are
then annealed along it, with its temperature steps divided as finely as the tolerance requires and the budget allows;
the spread of the populations is the error. If their bracket is wider than the tolerance, they run again with more
temperature steps or more moves, according to which of the two limits it. At s = 1 the chains continue, for the
diagnostics and for means over the Gibbs measure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator

from landscape.local_entropy.smc.populations import FINAL_CHAIN_LENGTH, Population, anneal_populations
from landscape.local_entropy.smc.potential import Potential
from landscape.local_entropy.smc.result import SMCResult
from landscape.local_entropy.smc.schedule import BudgetError, find_schedule
from landscape.local_entropy.thermodynamic_integration import vector_standard_error
from landscape.progress import Progress

__all__ = ["run_smc"]

# Fractions of the tolerance. The gap between the Riemann sums that the first run aims at, where only the pilot run's
# rough estimate is known, and standard errors are added to it:
_PILOT_GAP = 0.7
_GAP, _NOISE = 0.5, 0.4  # the gap and the standard errors that further runs aim at, where both are known


class _Plan(NamedTuple):
    """The length of a run."""

    refinement: int  # parts of each temperature step of the pilot run
    moves_per_step: int  # moves after each of these parts
    moves: int  # initial draws for each chain, and half of its draws at s = 1


def run_smc(
    potential: Potential,
    *,
    populations: int,
    chains: int,
    moves: int,
    tol: float,
    budget: int,
    generator: Generator,
    progress: Progress,
) -> SMCResult:
    """All populations at one radius.

    Args:
        potential: psi.
        populations: independent ones, at least 2; their spread is the error.
        chains: of each population.
        moves: of each chain at each temperature of the pilot run; where its steps are divided, so are the moves.
        tol: width of the bracket to reach, relative to |F~|.
        budget: gradients at most.
        generator: for everything random.
        progress: called as ``progress(range(populations), description)``.

    Raises:
        BudgetError: the budget is too small for the pilot run and the populations.
        ValueError: no draw has a finite loss.
    """
    pilot = find_schedule(potential, chains, moves, budget, generator)
    steps = len(pilot.s) - 1

    def cost(plan: _Plan) -> int:
        moves_per_chain = plan.moves + steps * plan.refinement * plan.moves_per_step + FINAL_CHAIN_LENGTH * plan.moves
        return populations * chains * moves_per_chain

    plan = _Plan(1, moves, moves)
    if cost(plan) > budget - potential.gradients:
        raise BudgetError(
            f"budget={budget}: {populations} populations of {chains} chains and {moves} moves at each of {steps} "
            f"temperature steps take {potential.gradients} gradients for the pilot run and {cost(plan)} after it: give "
            "their sum",
            potential.gradients,
        )
    while pilot.bracket_width / plan.refinement > _PILOT_GAP * tol * abs(pilot.value):
        finer = plan.refinement + 1
        longer = _Plan(finer, max(1, round(moves / finer)), moves)
        if cost(longer) > budget - potential.gradients:
            break
        plan = longer
    while True:
        result = _run(potential, *pilot.refined(plan.refinement), plan, populations, chains, generator, progress)
        longer_or_none = _longer_plan(result, plan, tol)
        if longer_or_none is None:
            return result
        if cost(longer_or_none) > budget - potential.gradients:
            return replace(result, required_budget=potential.gradients + cost(longer_or_none))
        plan = longer_or_none


def _run(
    potential: Potential,
    s: np.ndarray,
    step_sizes: np.ndarray,
    plan: _Plan,
    populations: int,
    chains: int,
    generator: Generator,
    progress: Progress,
) -> SMCResult:
    # side by side while that is faster; more would only take more memory
    groups = np.array_split(np.arange(populations), -(-populations * chains // max(chains, potential.rows_per_call)))
    annealed: list[Population] = []
    for group in progress(groups, f"SMC, radius {potential.radius:.3g}"):
        annealed += anneal_populations(
            potential, s, step_sizes, len(group), chains, plan.moves, plan.moves_per_step, generator
        )
    shifts = potential.displacement(torch.stack([population.mean_y for population in annealed]))
    if potential.starts_at_q:
        losses_over_q = np.array([p.loss[0] if p.finite_fraction == 1 else np.inf for p in annealed])
    else:
        losses_over_q = potential.losses_over_q(populations * chains, generator)
    return SMCResult(
        s=s,
        populations=annealed,
        log_normalizer=potential.log_normalizer,
        shift=shifts.mean(dim=0),
        shift_stderr=vector_standard_error(shifts),
        losses_over_q=losses_over_q,
        values=potential.values,
        gradients=potential.gradients,
        not_finite=potential.not_finite,
    )


def _longer_plan(result: SMCResult, plan: _Plan, tol: float) -> _Plan | None:
    """An estimate of what reaches the tolerance; None where it is reached, or where there is no estimate."""
    (low, high), (lower, upper) = result.riemann_estimates(), result.bracket()
    target, gap = tol * abs(result.value()), float((high - low).mean())
    noise = upper - lower - gap
    if not (np.isfinite(noise) and target > 0) or upper - lower <= target:
        return None
    refinement = int(np.ceil(plan.refinement * max(1.0, gap / (_GAP * target))))
    more = max(1.0, (noise / (_NOISE * target)) ** 2)
    moves_per_step = max(1, round(plan.refinement * plan.moves_per_step * more / refinement))
    return _Plan(refinement, moves_per_step, int(np.ceil(plan.moves * more)))

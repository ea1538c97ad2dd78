"""Diagnostics of sequential Monte Carlo, and whether its estimate is reliable.

On the way to s = 1: the acceptance rate of the moves and the effective sample size of the weights. At s = 1: split
R-hat and the autocorrelation time of psi along the chains (Vehtari et al. 2021), its drift along them, which is
negative where they are still burning in, and the virial <y . grad U> / n with U = |y|^2 / 2 + psi, which is 1 in
equilibrium.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from arviz_stats.base import array_stats
from scipy.stats import t as student

from landscape.local_entropy.smc.result import SMCResult
from landscape.results import standard_error

__all__ = ["diagnose", "mean_over_populations"]

_FALSE_ALARM = 0.01  # probability that a drift is found where there is none
# Heuristics. Populations that differ by more than a factor e^2 in exp F~: few of them determine the mean. Acceptance
# and effective sample size: far below the targets of the pilot run, 0.6 and 0.8. R-hat: Vehtari et al. require 1.01 of
# long chains; these are short, and their halves differ.
_LARGEST_SPREAD, _LOWEST_ACCEPTANCE, _LOWEST_ESS, _LARGEST_R_HAT = 2.0, 0.1, 0.3, 1.2


def diagnose(runs: list[SMCResult], radii: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """The diagnostic fields of a LocalEntropy at each radius, and notes on what is wrong and what to do about it."""
    virials = np.array([[population.virial for population in run.populations] for run in runs])
    # (populations x chains, draws) at each radius
    final = [np.concatenate([population.final_psi for population in run.populations]) for run in runs]
    drifts = np.stack([_drifts(run) for run in runs])
    drift, drift_stderr = drifts.mean(axis=1), standard_error(drifts)
    r_hat = np.array([_arviz(array_stats.rhat, psi) for psi in final])

    burning_in = drift < student.ppf(_FALSE_ALARM, drifts.shape[1] - 1) * drift_stderr
    spread_out = np.stack([run.estimates() for run in runs]).std(axis=1, ddof=1) > _LARGEST_SPREAD
    rejected = np.array([mean_over_populations(run, "acceptance").min() for run in runs]) < _LOWEST_ACCEPTANCE
    degenerate = np.array([mean_over_populations(run, "relative_ess").min() for run in runs]) < _LOWEST_ESS
    flagged = (
        (
            burning_in,
            "psi still decreases at s = 1, so that all estimates and the bracket are too low: give more moves",
        ),
        (
            spread_out,
            f"the populations' F~ has a standard deviation above {_LARGEST_SPREAD:g}: go by the bracket, or give more "
            "chains or moves",
        ),
        (
            rejected,
            f"the acceptance rate is below {_LOWEST_ACCEPTANCE} at some temperature: give more moves, during which the "
            "step size is adapted",
        ),
        (
            degenerate,
            f"the effective sample size is below {_LOWEST_ESS} of the particles at some temperature: give more chains, "
            "by which the schedule is found",
        ),
        (r_hat > _LARGEST_R_HAT, f"R-hat is above {_LARGEST_R_HAT}: shift and its error are rough; give more moves"),
    )
    notes = [
        f"at radius {', '.join(f'{radius:.3g}' for radius in radii[flag])} {what}"
        for flag, what in flagged
        if flag.any()
    ]
    for radius, run in zip(radii, runs, strict=True):
        if run.required_budget:
            lower, upper = run.bracket()
            notes.append(
                f"at radius {radius:.3g} the bracket is {100 * (upper - lower) / abs(run.value()):.2g} % of |F~| wide, "
                f"more than tol: it takes a budget of about {run.required_budget}, as estimated from "
                f"{len(run.populations)} populations"
            )
    if not_finite := sum(run.not_finite for run in runs):
        notes.append(f"{not_finite} proposals had a loss that is not finite: zero density")
    fields = {
        "reliable": ~(burning_in | spread_out | rejected | degenerate),
        "virial": virials.mean(axis=1),
        "virial_stderr": standard_error(virials),
        "drift": drift,
        "drift_stderr": drift_stderr,
        "r_hat": r_hat,
        "autocorrelation_time": np.array([psi.size / _arviz(array_stats.ess, psi) for psi in final]),
    }
    return fields, notes


def mean_over_populations(run: SMCResult, name: str) -> np.ndarray:
    """The mean over the populations of one of their arrays."""
    return np.mean([getattr(population, name) for population in run.populations], axis=0)


def _drifts(run: SMCResult) -> np.ndarray:
    """The change of psi along the chains at s = 1, from their first quarter to the last, of each population."""
    psi = np.stack([population.final_psi for population in run.populations])  # (populations, chains, draws)
    quarter = psi.shape[2] // 4 or 1
    return psi[:, :, -quarter:].mean(axis=(1, 2)) - psi[:, :, :quarter].mean(axis=(1, 2))


def _arviz(diagnostic: Callable[..., Any], draws: np.ndarray) -> float:
    """Of an array (chains, draws); split and rank-normalized (Vehtari et al. 2021)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # chains that never moved
        return float(diagnostic(draws, chain_axis=0, draw_axis=1))

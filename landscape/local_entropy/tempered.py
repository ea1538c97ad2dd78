"""F~ from what independent populations found on the tempered path, at each of several radii."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from arviz_stats.base import array_stats
from scipy.stats import t as student
from torch import Tensor

from landscape.local_entropy.ladder import BudgetError
from landscape.local_entropy.path import Tempered, follow
from landscape.local_entropy.potential import Potential
from landscape.objective import Objective
from landscape.results import Eigenpairs, standard_error

__all__ = ["tempered"]

_FALSE_ALARM = 0.01  # how often psi is said to fall where it does not
# Heuristics. Populations apart by more than a factor e^2 in exp F~: few of them carry the mean. Shares: the pilot aims
# at 0.6 of the moves and 0.8 of the particles, and these are far below. R-hat: Vehtari et al. ask for 1.01 of chains
# that are long; ours are not, and halves of short ones differ.
_DISAGREE, _ACCEPTED, _EFFECTIVE, _R_HAT = 2.0, 0.1, 0.3, 1.2


def tempered(
    objective: Objective,
    theta: Tensor,
    radii: np.ndarray,
    beta: float,
    start: Eigenpairs | None,
    *,
    sweep: bool,
    **options: Any,
) -> dict[str, Any]:
    """The fields of a LocalEntropy that differ by method, at each radius.

    Args:
        objective: f.
        theta: x, shape (n,).
        radii: r.
        beta: inverse temperature.
        start: eigenpairs to begin near; None: at q.
        sweep: rows of radii for which the budget does not last are NaN. If not, they are an error.
        **options: of ``follow``.
    """
    runs: list[Tempered | BudgetError] = []
    for radius in radii:
        potential = Potential(objective, theta, float(radius), beta, start)
        try:
            runs.append(follow(potential, **options))
        except BudgetError as spent:
            if not sweep:
                raise
            runs.append(spent)
    there = np.array([isinstance(run, Tempered) for run in runs])
    found = _found([run for run in runs if isinstance(run, Tempered)], radii[there]) if there.any() else {}
    rows = {**_nothing(len(runs), options["populations"]), **found}
    rows = {name: item if name in ("note", "cost") else _spread(item, there) for name, item in rows.items()}
    for radius, run in zip(radii, runs, strict=True):
        if isinstance(run, BudgetError):
            rows["note"] = "; ".join(filter(None, [rows["note"], f"nothing at radius {radius:.3g}: {run}"]))
            rows["cost"]["gradients"] += run.gradients
    rows["within_tol"] = rows["upper"] - rows["lower"] <= options["tol"] * abs(rows["value"])
    return rows


def _spread(rows: Any, there: np.ndarray) -> Any:
    """With rows of NaN, or False, where there is none."""
    if len(rows) == len(there):
        return rows
    if isinstance(rows, torch.Tensor):
        return torch.from_numpy(_spread(rows.numpy(), there))
    all_rows = np.full((len(there), *rows.shape[1:]), False if rows.dtype == bool else np.nan, rows.dtype)
    all_rows[there] = rows
    return all_rows


def _nothing(radii: int, populations: int) -> dict[str, Any]:
    """What is told where there is no run at all."""
    numbers = ("value", "stderr", "effective_samples", "mean_loss", "mean_loss_stderr", "lower", "upper")
    return {
        **dict.fromkeys(numbers, np.full(radii, np.nan)),
        "contributions": np.full((radii, populations), np.nan),
        "reliable": np.zeros(radii, bool),
        "note": "",
        "cost": {"values": 0, "gradients": 0, "products": 0},
    }


def _found(runs: list[Tempered], radii: np.ndarray) -> dict[str, Any]:
    log_means = np.stack([run.log_means() for run in runs])
    value = np.array([run.value() for run in runs])
    contributions = value[:, None] + np.exp(log_means - value[:, None]) - 1  # linearised, as for Monte Carlo
    lower, upper = np.array([run.bracket() for run in runs]).T
    thermodynamic = np.stack([run.thermodynamic() for run in runs])
    virials = np.array([[climb.virial for climb in run.climbs] for run in runs])
    ends = [np.concatenate([climb.chains for climb in run.climbs]) for run in runs]  # (populations x chains, draws)
    rungs = max(len(run.s) for run in runs)

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(row, (0, rungs - len(row)), constant_values=np.nan) for row in rows])

    def mean_of(name: str) -> list[np.ndarray]:
        return [np.mean([getattr(climb, name) for climb in run.climbs], axis=0) for run in runs]

    acceptance, effective = mean_of("acceptance"), mean_of("effective")
    drifts = np.stack([_drifts(run) for run in runs])
    drift, drift_stderr = drifts.mean(axis=1), standard_error(drifts)
    r_hat = np.array([_arviz(array_stats.rhat, end) for end in ends])

    lagging = drift < student.ppf(_FALSE_ALARM, drifts.shape[1] - 1) * drift_stderr
    apart = log_means.std(axis=1, ddof=1) > _DISAGREE
    stuck = np.array([share.min() for share in acceptance]) < _ACCEPTED
    thin = np.array([share.min() for share in effective]) < _EFFECTIVE
    notes = [
        f"at radius {', '.join(f'{radius:.3g}' for radius in radii[flag])} {what}"
        for flag, what in (
            (lagging, "psi still falls at s = 1, so that all estimates and the bracket are too low: give more moves"),
            (
                apart,
                f"populations are more than {_DISAGREE:g} apart in F~: go by the bracket, or give more chains or moves",
            ),
            (stuck, "moves are hardly accepted on some rung: give more moves, with each of which the step is adapted"),
            (thin, "few particles carry the weight on some rung: give more chains, by which the ladder is found"),
            (r_hat > _R_HAT, f"R-hat is above {_R_HAT}: the shift and its error are rough, and want more moves"),
        )
        if flag.any()
    ]
    notes += [
        f"at radius {radius:.3g} the bracket is {100 * (b - a) / abs(f):.2g} % of |F~| wide, more than tol: it takes "
        f"a budget of about {run.wanted}, as far as {len(run.climbs)} populations tell"
        for radius, run, a, b, f in zip(radii, runs, lower, upper, value, strict=True)
        if run.wanted
    ]
    if not_finite := sum(run.not_finite for run in runs):
        notes.append(f"{not_finite} proposals had a loss that is not finite: zero density")
    return {
        "value": value,
        "stderr": standard_error(contributions),
        "contributions": contributions,
        "reliable": ~(lagging | apart | stuck | thin),
        "effective_samples": 1 / (np.exp(2 * (log_means - value[:, None])) / log_means.shape[1] ** 2).sum(axis=1),
        "mean_loss": np.array([run.ball.mean() for run in runs]),
        "mean_loss_stderr": np.array([standard_error(run.ball) for run in runs]),
        "lower": lower,
        "upper": upper,
        "thermodynamic": thermodynamic.mean(axis=1),
        "thermodynamic_stderr": standard_error(thermodynamic),
        "virial": virials.mean(axis=1),
        "virial_stderr": standard_error(virials),
        "shift": torch.stack([run.shift.cpu() for run in runs]),
        "shift_stderr": np.array([run.shift_stderr for run in runs]),
        "drift": drift,
        "drift_stderr": drift_stderr,
        "r_hat": r_hat,
        "autocorrelation": np.array([end.size / _arviz(array_stats.ess, end) for end in ends]),
        "ladder": padded([run.s for run in runs]),
        "rung_loss": padded(mean_of("loss")),
        "rung_psi": padded(mean_of("psi")),
        "rung_acceptance": padded([np.append(np.nan, share) for share in acceptance]),  # nothing moved to s = 0
        "rung_effective": padded([np.append(np.nan, share) for share in effective]),
        "note": "; ".join(notes),
        "cost": {
            "values": sum(run.values for run in runs),
            "gradients": sum(run.gradients for run in runs),
            "products": 0,
        },
    }


def _drifts(run: Tempered) -> np.ndarray:
    """By how much psi rises over the chains at s = 1, from their first quarter to the last, of each population."""
    psi = np.stack([climb.chains for climb in run.climbs])  # (populations, chains, draws)
    quarter = psi.shape[2] // 4 or 1
    return psi[:, :, -quarter:].mean(axis=(1, 2)) - psi[:, :, :quarter].mean(axis=(1, 2))


def _arviz(diagnostic: Callable[..., Any], draws: np.ndarray) -> float:
    """Of an array (chains, draws); split and rank-normalised (Vehtari et al. 2021)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # chains that never moved
        return float(diagnostic(draws, chain_axis=0, draw_axis=1))

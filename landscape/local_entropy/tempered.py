"""F~ from what independent populations found on the tempered path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from arviz_stats.base import array_stats
from scipy.special import logsumexp

from landscape.local_entropy.path import BudgetError, Tempered
from landscape.results import standard_error

__all__ = ["tempered"]

_ERRORS = 2.0  # standard errors that widen the bracket
_ERRORS_OF_DRIFT = 3.0  # beyond which psi is said to fall


def tempered(runs: list[Tempered | BudgetError], radii: np.ndarray, populations: int, from_q: bool) -> dict[str, Any]:
    """The fields of a LocalEntropy that differ by method, of one run for each radius.

    Args:
        runs: of each radius, or why there is none: its row then is NaN.
        radii: as many.
        populations: in each run.
        from_q: whether the paths begin at q, so that their first rung tells the mean loss over the ball.
    """
    there = np.array([isinstance(run, Tempered) for run in runs])
    found = _found([run for run in runs if isinstance(run, Tempered)], radii[there], from_q) if there.any() else {}
    rows = {**_nothing(len(runs), populations), **found}
    rows = {name: item if name in ("note", "cost") else _spread(item, there) for name, item in rows.items()}
    for radius, run in zip(radii, runs, strict=True):
        if isinstance(run, BudgetError):
            rows["note"] = "; ".join(filter(None, [rows["note"], f"nothing at radius {radius:.3g}: {run}"]))
            rows["cost"]["gradients"] += run.gradients
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
    numbers = ("value", "stderr", "effective_samples", "mean_loss", "mean_loss_stderr")
    return {
        **dict.fromkeys(numbers, np.full(radii, np.nan)),
        "contributions": np.full((radii, populations), np.nan),
        "reliable": np.zeros(radii, bool),
        "note": "",
        "cost": {"values": 0, "gradients": 0, "products": 0},
    }


def _found(runs: list[Tempered], radii: np.ndarray, from_q: bool) -> dict[str, Any]:
    log_means = np.stack([run.log_means() for run in runs])
    value = logsumexp(log_means, axis=1) - np.log(log_means.shape[1])
    contributions = value[:, None] + np.exp(log_means - value[:, None]) - 1  # linearised, as for Monte Carlo
    low, high = (np.stack(sums) for sums in zip(*(run.riemann() for run in runs), strict=True))
    thermodynamic = np.stack([run.thermodynamic() for run in runs])
    losses = [np.stack([climb.loss for climb in run.climbs]) for run in runs]
    ends = [np.concatenate([climb.chains for climb in run.climbs]) for run in runs]  # (populations x chains, draws)
    rungs = max(len(run.s) for run in runs)

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(row, (0, rungs - len(row)), constant_values=np.nan) for row in rows])

    drifts = np.stack([_drifts(run) for run in runs])
    drift, drift_stderr = drifts.mean(axis=1), standard_error(drifts)
    lagging = drift < -_ERRORS_OF_DRIFT * drift_stderr
    # heuristic: where single populations differ by more than a factor e^2 in exp F~, few of them carry the mean
    apart = log_means.std(axis=1, ddof=1) > 2
    notes = []
    for flag, what in (
        (lagging, "psi still falls at s = 1, so that all estimates and the bracket are too low: give more moves"),
        (apart, "populations differ by more than 2 in F~: go by the bracket, or give more chains or moves"),
    ):
        if flag.any():
            notes.append(f"at radius {', '.join(f'{radius:.3g}' for radius in radii[flag])} {what}")
    if not_finite := sum(run.not_finite for run in runs):
        notes.append(f"{not_finite} proposals had a loss that is not finite: zero density")
    return {
        "value": value,
        "stderr": standard_error(contributions),
        "contributions": contributions,
        "reliable": ~(lagging | apart),
        "effective_samples": 1 / (np.exp(2 * (log_means - value[:, None])) / log_means.shape[1] ** 2).sum(axis=1),
        "mean_loss": np.array([loss[:, 0].mean() if from_q else np.nan for loss in losses]),
        "mean_loss_stderr": np.array([standard_error(loss[:, 0]) if from_q else np.nan for loss in losses]),
        "lower": low.mean(axis=1) - _ERRORS * standard_error(low),
        "upper": high.mean(axis=1) + _ERRORS * standard_error(high),
        "thermodynamic": thermodynamic.mean(axis=1),
        "thermodynamic_stderr": standard_error(thermodynamic),
        "virial": np.array([np.mean([climb.virial for climb in run.climbs]) for run in runs]),
        "shift": torch.stack([run.shift.cpu() for run in runs]),
        "shift_stderr": np.array([run.shift_stderr for run in runs]),
        "drift": drift,
        "drift_stderr": drift_stderr,
        "r_hat": np.array([_arviz(array_stats.rhat, end) for end in ends]),
        "autocorrelation": np.array([end.size / _arviz(array_stats.ess, end) for end in ends]),
        "ladder": padded([run.s for run in runs]),
        "rung_loss": padded([loss.mean(axis=0) for loss in losses]),
        "rung_psi": padded([np.mean([climb.psi for climb in run.climbs], axis=0) for run in runs]),
        "rung_acceptance": padded([_after_first([climb.acceptance for climb in run.climbs]) for run in runs]),
        "rung_effective": padded([_after_first([climb.effective for climb in run.climbs]) for run in runs]),
        "note": "; ".join(notes),
        "cost": {"values": 0, "gradients": sum(run.gradients for run in runs), "products": 0},
    }


def _drifts(run: Tempered) -> np.ndarray:
    """By how much psi rises over the chains at s = 1, from their first quarter to the last, of each population."""
    psi = np.stack([climb.chains for climb in run.climbs])  # (populations, chains, draws)
    quarter = psi.shape[2] // 4 or 1
    return psi[:, :, -quarter:].mean(axis=(1, 2)) - psi[:, :, :quarter].mean(axis=(1, 2))


def _after_first(of_climbs: list[np.ndarray]) -> np.ndarray:
    """Their mean, with NaN for the rung s = 0, to which nothing was carried."""
    return np.append(np.nan, np.mean(of_climbs, axis=0))


def _arviz(diagnostic: Callable[..., Any], draws: np.ndarray) -> float:
    """Of an array (chains, draws); split and rank-normalised (Vehtari et al. 2021)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # chains that never moved
        return float(diagnostic(draws, chain_axis=0, draw_axis=1))

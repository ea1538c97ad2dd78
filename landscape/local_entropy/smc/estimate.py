"""F~ by annealed sequential Monte Carlo, at each of several radii."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.local_entropy.smc.diagnostics import diagnose, mean_over_populations
from landscape.local_entropy.smc.potential import Potential
from landscape.local_entropy.smc.result import SMCResult
from landscape.local_entropy.smc.run import run_smc
from landscape.local_entropy.smc.schedule import BudgetError
from landscape.objective import Objective
from landscape.results import Eigenpairs, standard_error

__all__ = ["smc"]


def smc(
    objective: Objective,
    theta: Tensor,
    radii: np.ndarray,
    beta: float,
    pairs: Eigenpairs | None,
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
        pairs: eigenpairs for the initial distribution; None: start from q.
        sweep: radii for which the budget is too small give NaN; if False, they raise an error.
        **options: of ``run_smc``.
    """
    runs: list[SMCResult | BudgetError] = []
    for radius in radii:
        potential = Potential(objective, theta, float(radius), beta, pairs)
        try:
            runs.append(run_smc(potential, **options))
        except BudgetError as error:
            if not sweep:
                raise
            runs.append(error)
    succeeded = np.array([isinstance(run, SMCResult) for run in runs])
    results = [run for run in runs if isinstance(run, SMCResult)]
    fields = {**_empty_fields(len(runs), options["populations"])}
    if results:
        fields |= _fields(results, radii[succeeded])
    for name in fields.keys() - {"note", "cost"}:
        fields[name] = _at_all_radii(fields[name], succeeded)
    for radius, run in zip(radii, runs, strict=True):
        if isinstance(run, BudgetError):
            fields["note"] = "; ".join(filter(None, [fields["note"], f"no estimate at radius {radius:.3g}: {run}"]))
            fields["cost"]["gradients"] += run.gradients
    fields["within_tol"] = fields["upper"] - fields["lower"] <= options["tol"] * abs(fields["value"])
    return fields


def _at_all_radii(rows: Any, succeeded: np.ndarray) -> Any:
    """``rows`` of the radii that succeeded, with NaN, or False, at the others."""
    if len(rows) == len(succeeded):
        return rows
    if isinstance(rows, torch.Tensor):
        return torch.from_numpy(_at_all_radii(rows.numpy(), succeeded))
    all_rows = np.full((len(succeeded), *rows.shape[1:]), False if rows.dtype == bool else np.nan, rows.dtype)
    all_rows[succeeded] = rows
    return all_rows


def _empty_fields(radii: int, populations: int) -> dict[str, Any]:
    """The fields where no radius succeeded."""
    numbers = ("value", "stderr", "effective_samples", "mean_loss", "mean_loss_stderr", "lower", "upper")
    return {
        **dict.fromkeys(numbers, np.full(radii, np.nan)),
        "contributions": np.full((radii, populations), np.nan),
        "reliable": np.zeros(radii, bool),
        "note": "",
        "cost": {"values": 0, "gradients": 0, "products": 0},
    }


def _fields(runs: list[SMCResult], radii: np.ndarray) -> dict[str, Any]:
    estimates = np.stack([run.estimates() for run in runs])
    value = np.array([run.value() for run in runs])
    contributions = value[:, None] + np.exp(estimates - value[:, None]) - 1  # linearised, as for Monte Carlo
    lower, upper = np.array([run.bracket() for run in runs]).T
    thermodynamic = np.stack([run.thermodynamic() for run in runs])
    temperatures = max(len(run.s) for run in runs)

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        """(radii, temperatures), with NaN after the end of a row."""
        return np.stack([np.pad(row, (0, temperatures - len(row)), constant_values=np.nan) for row in rows])

    def means(name: str) -> list[np.ndarray]:
        return [mean_over_populations(run, name) for run in runs]

    diagnostics, notes = diagnose(runs, radii)
    return {
        "value": value,
        "stderr": standard_error(contributions),
        "contributions": contributions,
        "effective_samples": 1 / (np.exp(2 * (estimates - value[:, None])) / estimates.shape[1] ** 2).sum(axis=1),
        "mean_loss": np.array([run.losses_over_q.mean() for run in runs]),
        "mean_loss_stderr": np.array([standard_error(run.losses_over_q) for run in runs]),
        "lower": lower,
        "upper": upper,
        "thermodynamic": thermodynamic.mean(axis=1),
        "thermodynamic_stderr": standard_error(thermodynamic),
        "shift": torch.stack([run.shift.cpu() for run in runs]),
        "shift_stderr": np.array([run.shift_stderr for run in runs]),
        **diagnostics,
        "schedule": padded([run.s for run in runs]),
        "step_loss": padded(means("loss")),
        "step_potential": padded(means("psi")),
        # there are no moves and no weights at s = 0
        "step_acceptance": padded([np.append(np.nan, row) for row in means("acceptance")]),
        "step_relative_ess": padded([np.append(np.nan, row) for row in means("relative_ess")]),
        "note": "; ".join(notes),
        "cost": {
            "values": sum(run.values for run in runs),
            "gradients": sum(run.gradients for run in runs),
            "products": 0,
        },
    }

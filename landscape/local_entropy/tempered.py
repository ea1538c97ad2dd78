"""F~ from what independent populations found on the tempered path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp

from landscape.local_entropy.path import Tempered
from landscape.results import standard_error

__all__ = ["tempered"]

_ERRORS = 2.0  # standard errors that widen the bracket


def tempered(runs: list[Tempered], radii: np.ndarray, beta: float) -> dict[str, Any]:
    """The fields of a LocalEntropy that differ by method, of one run for each radius."""
    populations = len(runs[0].climbs)
    log_means = np.stack([run.log_means() for run in runs])
    value = logsumexp(log_means, axis=1) - np.log(populations)
    contributions = value[:, None] + np.exp(log_means - value[:, None]) - 1  # linearised, as for Monte Carlo
    low, high = (np.stack(sums) for sums in zip(*(run.riemann() for run in runs), strict=True))
    thermodynamic = np.stack([run.thermodynamic() for run in runs])
    losses = [np.stack([climb.phi for climb in run.climbs]) / beta for run in runs]
    rungs = max(len(run.s) for run in runs)

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(row, (0, rungs - len(row)), constant_values=np.nan) for row in rows])

    # heuristic: where single populations differ by more than a factor e in exp F~, few of them carry the mean
    reliable = log_means.std(axis=1, ddof=1) < 1
    notes = []
    if not reliable.all():
        where = ", ".join(f"{radius:.3g}" for radius in radii[~reliable])
        notes.append(
            f"populations differ by more than 1 in F~ at radius {where}: go by the bracket, or give more particles or "
            "moves"
        )
    if not_finite := sum(run.not_finite for run in runs):
        notes.append(f"{not_finite} proposals had a loss that is not finite: zero density")
    return {
        "value": value,
        "stderr": standard_error(contributions),
        "contributions": contributions,
        "reliable": reliable,
        "effective_samples": 1 / (np.exp(2 * (log_means - value[:, None])) / populations**2).sum(axis=1),
        "mean_loss": np.array([loss[:, 0].mean() for loss in losses]),
        "mean_loss_stderr": np.array([standard_error(loss[:, 0]) for loss in losses]),
        "lower": low.mean(axis=1) - _ERRORS * standard_error(low),
        "upper": high.mean(axis=1) + _ERRORS * standard_error(high),
        "thermodynamic": thermodynamic.mean(axis=1),
        "thermodynamic_stderr": standard_error(thermodynamic),
        "virial": np.array([np.mean([climb.virial for climb in run.climbs]) for run in runs]),
        "shift": torch.stack(
            [
                float(radius) * torch.stack([climb.z for climb in run.climbs]).mean(dim=0).cpu()
                for run, radius in zip(runs, radii, strict=True)
            ]
        ),
        "ladder": padded([run.s for run in runs]),
        "rung_loss": padded([loss.mean(axis=0) for loss in losses]),
        "rung_acceptance": padded(
            [np.append(np.nan, np.mean([climb.acceptance for climb in run.climbs], axis=0)) for run in runs]
        ),
        "note": "; ".join(notes),
        "cost": {"values": 0, "gradients": sum(run.gradients for run in runs), "products": 0},
    }

"""F~ by stochastic gradient Langevin dynamics: biased, for networks whose full gradients are too expensive.

Chains of SGLD (Welling & Teh 2011) are annealed along a fixed schedule s = 0 ... 1: the proposals are those of
``landscape.local_entropy.smc.moves`` without the Metropolis correction, and each uses the gradient of one part of the
data, drawn at random. The mean of f at each temperature, which each part estimates without bias, gives

    F~ = -beta integral_0^1 <f>_s ds

by the trapezoidal rule (``landscape.local_entropy.thermodynamic_integration``). The step size h and the noise of the
gradients give each <f>_s a bias of first order in h. The chains are run with h and with h/2, and the difference of both
estimates is about the bias that remains in the second; the bracket is widened by it. Nothing bounds the bias beyond
that, so that the estimate is never called reliable.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.local_entropy.smc.moves import propose
from landscape.local_entropy.thermodynamic_integration import bracket, riemann_sums, vector_standard_error
from landscape.objective import ModelObjective
from landscape.objective.contract import number
from landscape.operators import Hessian
from landscape.progress import Progress
from landscape.randomness import normal
from landscape.results import standard_error
from landscape.spectrum import eigenpairs

__all__ = ["sgld"]

_TEMPERATURE_STEPS = 16
# Heuristic: s = (k / T)^4 is densest near 0, where <f>_s decreases fastest (Friel & Pettitt 2008)
_POWER = 4


def sgld(
    objective: ModelObjective,
    theta: Tensor,
    radii: np.ndarray,
    beta: float,
    *,
    parts: int,
    chains: int,
    moves: int,
    generator: Generator,
    progress: Progress,
) -> dict[str, Any]:
    """The fields of a LocalEntropy that differ by method, at each radius.

    Args:
        objective: f, whose data can be divided.
        theta: x, shape (n,).
        radii: r.
        beta: inverse temperature.
        parts: of the data, of equal size up to one example of a batch.
        chains: independent ones; their spread is the error.
        moves: of each chain at each temperature, after as many of burn-in.
        generator: for everything random.
        progress: called as ``progress(range(chains), description)``.
    """
    pieces = objective.parts(parts)
    sharpest = eigenpairs(Hessian(objective, theta), 1, which="largest", tol=0.1, generator=generator)
    s = (np.arange(_TEMPERATURE_STEPS + 1) / _TEMPERATURE_STEPS) ** _POWER
    found: dict[str, list[Any]] = defaultdict(list)
    not_finite = 0
    for radius in radii:
        a = beta * radius**2 * max(float(sharpest.values[0]), 0.0)
        coarse: list[_Chain] = []  # with step size h
        fine: list[_Chain] = []  # with step size h / 2, and twice the moves
        for _ in progress(range(chains), f"SGLD, radius {radius:.3g}"):
            for divisor, runs in ((1, coarse), (2, fine)):
                # a step size of 1/(1 + s a) is stable along the sharpest direction
                step_sizes = 1 / (1 + s * a) / divisor
                runs.append(
                    _anneal_chain(pieces, theta, float(radius), beta, s, step_sizes, moves * divisor, generator)
                )
        not_finite += sum(run.not_finite for run in (*coarse, *fine))
        losses = np.stack([run.losses for run in fine])
        estimates = -beta * np.trapezoid(losses, s, axis=1)
        coarse_estimates = -beta * np.trapezoid(np.stack([run.losses for run in coarse]), s, axis=1)
        left, right = riemann_sums(s, losses)
        lower, upper = bracket(-beta * left, -beta * right)
        found["estimates"].append(estimates)
        found["value"].append(estimates.mean())
        bias = estimates - coarse_estimates
        found["bias"].append(bias.mean())
        found["bias_stderr"].append(standard_error(bias))
        found["lower"].append(lower - abs(bias.mean()))
        found["upper"].append(upper + abs(bias.mean()))
        shifts = radius * torch.stack([run.mean_z for run in fine]).cpu()
        found["shift"].append(shifts.mean(dim=0))
        found["shift_stderr"].append(vector_standard_error(shifts))
        found["loss"].append(losses)
    contributions = np.stack(found["estimates"])
    losses = np.stack(found["loss"])
    # burn-in doubles the moves, and those with h / 2 are twice those with h
    gradients = len(radii) * chains * (_TEMPERATURE_STEPS + 1) * 2 * moves * 3
    note = "stochastic gradients without correction: biased, by about step_size_bias and by what that does not see"
    if not_finite:
        note += f"; {not_finite} moves led to a loss that is not finite and were undone"
    return {
        "value": np.array(found["value"]),
        "stderr": standard_error(contributions),
        "contributions": contributions,
        "reliable": np.zeros(len(radii), bool),
        "effective_samples": np.full(len(radii), np.nan),
        "mean_loss": losses[:, :, 0].mean(axis=1),
        "mean_loss_stderr": standard_error(losses[:, :, 0]),
        "lower": np.array(found["lower"]),
        "upper": np.array(found["upper"]),
        "step_size_bias": np.array(found["bias"]),
        "step_size_bias_stderr": np.array(found["bias_stderr"]),
        "shift": torch.stack(found["shift"]),
        "shift_stderr": np.array(found["shift_stderr"]),
        "schedule": np.tile(s, (len(radii), 1)),
        "step_loss": losses.mean(axis=1),
        "step_potential": beta * losses.mean(axis=1),
        "note": note,
        "cost": {"values": 0, "gradients": -(-gradients // parts), "products": sharpest.products},
    }


class _Chain(NamedTuple):
    losses: np.ndarray  # <f>_s at each temperature
    mean_z: Tensor  # (n,), at s = 1
    not_finite: int


def _anneal_chain(
    pieces: list[ModelObjective],
    theta: Tensor,
    radius: float,
    beta: float,
    s: np.ndarray,
    step_sizes: np.ndarray,
    moves: int,
    generator: Generator,
) -> _Chain:
    """One chain along the schedule, with ``moves`` of burn-in and as many that count at each temperature."""
    sizes = torch.tensor([piece.examples for piece in pieces], dtype=torch.float64)

    def draw() -> Tensor:
        return normal(len(theta), generator, theta.dtype, theta.device)

    z, means, mean_z, not_finite = draw(), [], torch.zeros_like(theta), 0
    previous = z
    for inverse_temperature, h in zip(s, step_sizes, strict=True):
        losses, sum_z = [], torch.zeros_like(theta)
        for i in range(2 * moves):
            piece = pieces[int(torch.multinomial(sizes, 1, generator=generator))]
            loss, gradient = piece.value_and_gradient(theta + radius * z)
            loss = number(loss)
            if not (np.isfinite(loss) and bool(gradient.isfinite().all())):
                not_finite += 1
                z = draw() if z is previous else previous  # there is nothing before the first draw
                continue
            if i >= moves:  # the loss of a part that is independent of the moves that led to z
                losses.append(loss)
                sum_z += z
            previous, z = z, propose(z, float(inverse_temperature) * beta * radius * gradient, float(h), draw())
        means.append(np.mean(losses) if losses else np.nan)
        mean_z = sum_z / max(len(losses), 1)
    return _Chain(np.array(means), mean_z, not_finite)

"""The tempered path by gradients of parts of the data: biased, for networks whose full gradients are too dear.

Chains of stochastic gradient Langevin dynamics (Welling & Teh 2011) climb a fixed ladder s = 0 ... 1: the moves are
those of ``landscape.local_entropy.moves`` without the correction by Metropolis, and each sees one part of the data,
drawn afresh. The mean of f over each rung, which any part tells without bias, gives

    F~ = -beta integral_0^1 <f>_s ds

by the trapezoidal rule. Step size and noisy gradients leave each <f>_s a bias of first order in the step h: the chains
climb once with h and once with h/2, and the difference of both estimates is about the bias that is left in the second;
the Riemann bracket is widened by it. Nothing tells how far it is wrong beyond that, so it is never called reliable.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.local_entropy.moves import propose
from landscape.local_entropy.path import ERRORS, error_of_mean
from landscape.objective import ModelObjective
from landscape.objective.contract import number
from landscape.operators import Hessian
from landscape.progress import Progress
from landscape.randomness import normal
from landscape.results import standard_error
from landscape.spectrum import eigenpairs

__all__ = ["stochastic"]

_RUNGS = 16
# Heuristic: rungs s = (k / R)^4 crowd where <f>_s falls fastest, at the ball itself (Friel & Pettitt 2008)
_POWER = 4


def stochastic(
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
        objective: f, whose data can be parted.
        theta: x, shape (n,).
        radii: r.
        beta: inverse temperature.
        parts: of the data, each as large as the others up to one example of a batch.
        chains: independent ones; their spread is the error.
        moves: on each rung, as many again before them that are not counted.
        generator: of everything random.
        progress: called as ``progress(range(chains), description)``.
    """
    pieces = objective.parts(parts)
    sharpest = eigenpairs(Hessian(objective, theta), 1, which="largest", tol=0.1, generator=generator)
    s = (np.arange(_RUNGS + 1) / _RUNGS) ** _POWER
    found: dict[str, list[Any]] = defaultdict(list)
    not_finite = 0
    for radius in radii:
        a = beta * radius**2 * max(float(sharpest.values[0]), 0.0)
        coarse: list[_Climb] = []
        fine: list[_Climb] = []
        for _ in progress(range(chains), f"SGLD, radius {radius:.3g}"):
            for halves, runs in ((1, coarse), (2, fine)):
                # a step of 1/(1 + s a) is stable along the sharpest direction
                steps = 1 / (1 + s * a) / halves
                runs.append(_climb(pieces, theta, float(radius), beta, s, steps, moves * halves, generator))
        not_finite += sum(run.not_finite for run in (*coarse, *fine))
        losses = np.stack([run.losses for run in fine])
        draws = -beta * np.trapezoid(losses, s, axis=1)
        rough = -beta * np.trapezoid(np.stack([run.losses for run in coarse]), s, axis=1)
        low, high = (-beta * (np.diff(s) * side).sum(axis=1) for side in (losses[:, :-1], losses[:, 1:]))
        found["draws"].append(draws)
        found["value"].append(draws.mean())
        bias = draws - rough
        found["bias"].append(bias.mean())
        found["bias_stderr"].append(standard_error(bias))
        found["lower"].append(low.mean() - ERRORS * standard_error(low) - abs(bias.mean()))
        found["upper"].append(high.mean() + ERRORS * standard_error(high) + abs(bias.mean()))
        shifts = radius * torch.stack([run.z for run in fine]).cpu()
        found["shift"].append(shifts.mean(dim=0))
        found["shift_stderr"].append(error_of_mean(shifts))
        found["loss"].append(losses)
    contributions = np.stack(found["draws"])
    losses = np.stack(found["loss"])
    taken = len(radii) * chains * (_RUNGS + 1) * 2 * moves * 3  # by h/2 twice as many as by h
    note = "stochastic gradients without correction: biased, by about step_bias and by what that does not see"
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
        "step_bias": np.array(found["bias"]),
        "step_bias_stderr": np.array(found["bias_stderr"]),
        "shift": torch.stack(found["shift"]),
        "shift_stderr": np.array(found["shift_stderr"]),
        "ladder": np.tile(s, (len(radii), 1)),
        "rung_loss": losses.mean(axis=1),
        "rung_psi": beta * losses.mean(axis=1),
        "note": note,
        "cost": {"values": 0, "gradients": -(-taken // parts), "products": sharpest.products},
    }


class _Climb(NamedTuple):
    losses: np.ndarray  # <f>_s at each rung
    z: Tensor  # (n,), mean at s = 1
    not_finite: int


def _climb(
    pieces: list[ModelObjective],
    theta: Tensor,
    radius: float,
    beta: float,
    s: np.ndarray,
    steps: np.ndarray,
    moves: int,
    generator: Generator,
) -> _Climb:
    """One chain up the ladder."""
    shares = torch.tensor([piece.examples for piece in pieces], dtype=torch.float64)

    def draw() -> Tensor:
        return normal(len(theta), generator, theta.dtype, theta.device)

    z, means, mean_z, not_finite = draw(), [], torch.zeros_like(theta), 0
    before = z
    for rung, h in zip(s, steps, strict=True):
        losses, places = [], torch.zeros_like(theta)
        for i in range(2 * moves):
            piece = pieces[int(torch.multinomial(shares, 1, generator=generator))]
            loss, gradient = piece.value_and_gradient(theta + radius * z)
            loss = number(loss)
            if not (np.isfinite(loss) and bool(gradient.isfinite().all())):
                not_finite += 1
                z = draw() if z is before else before  # at the very first draw there is nothing before
                continue
            if i >= moves:  # the loss where the chain is, by a part that did not move it there
                losses.append(loss)
                places += z
            before, z = z, propose(z, float(rung) * beta * radius * gradient, float(h), draw())
        means.append(np.mean(losses) if losses else np.nan)
        mean_z = places / max(len(losses), 1)
    return _Climb(np.array(means), mean_z, not_finite)

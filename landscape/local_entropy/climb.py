"""How populations climb the ladder of the tempered path of ``landscape.local_entropy.path``, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Generator, Tensor

from landscape.local_entropy.ladder import effective_share
from landscape.local_entropy.moves import move, systematic
from landscape.local_entropy.potential import Particles, Potential

__all__ = ["LONGER", "Climb", "climb"]

LONGER = 2  # the chains at s = 1, in those of a rung


@dataclass(frozen=True)
class Climb:
    """What one population found on its way from s = 0 to s = 1."""

    log_mean: float  # log of the estimate of E exp(-psi)
    finite: float  # the share of N(0, I) on which psi is finite; what follows is of that part
    psi: np.ndarray  # (R + 1,), mean at each rung
    variance: np.ndarray  # (R + 1,), of psi
    loss: np.ndarray  # (R + 1,), mean of f
    effective: np.ndarray  # (R,), effective share of the particles that were weighed
    acceptance: np.ndarray  # (R,), of this and of the populations at its side
    y: Tensor  # (n,), mean at s = 1
    virial: float  # mean of y . grad(|y|^2 / 2 + psi) at s = 1, over n: it should be 1
    chains: np.ndarray  # (chains, draws), psi along each chain at s = 1


def climb(
    potential: Potential,
    s: np.ndarray,
    steps: np.ndarray,
    populations: int,
    chains: int,
    moves: int,
    fewer: int,
    generator: Generator,
) -> list[Climb]:
    """Carry populations up the ladder side by side, with ``fewer`` moves a rung, and let them go on at s = 1.

    They share calls and nothing else. All arrays of particles are as if of shape (moves, populations, chains).
    """

    def each(x: np.ndarray) -> np.ndarray:
        """(populations, moves x chains)."""
        return x.reshape(-1, populations, chains).swapaxes(0, 1).reshape(populations, -1)

    at = potential.draw(moves * populations * chains, generator)
    first = each(at.psi), each(at.loss)
    log_mean, rungs = np.zeros(populations), []
    acceptance, effective = [], []
    for low, high, h in zip(s, s[1:], steps, strict=False):
        log_weights = each(-(high - low) * at.psi)
        log_mean += logsumexp(log_weights, axis=1) - np.log(log_weights.shape[1])
        effective.append([effective_share(row) for row in log_weights])
        chosen = [
            rows[systematic(row, chains, generator)]
            for rows, row in zip(each(np.arange(len(at))), log_weights, strict=True)
        ]
        chain, rate = _chain(potential, at[np.concatenate(chosen)], high, h, fewer, generator)
        at = Particles.together(chain)
        rungs.append((each(at.psi), each(at.loss)))
        acceptance.append(rate)
    # only sums of the points at s = 1 are kept, which may be many
    last, longer = chain[-1], LONGER * moves
    y, virial = torch.zeros_like(last.y[:populations]), np.zeros(populations)
    ends = []
    for _ in range(longer):
        last, _ = move(potential, last, 1.0, steps[-1], generator)
        y += last.y.unflatten(0, (populations, chains)).mean(dim=1) / longer
        virial += each((last.y * (last.y + last.slope)).sum(dim=1).cpu().numpy()).mean(axis=1) / longer
        ends.append((last.psi, last.loss))
    end_psi, end_loss = (each(np.concatenate(found)) for found in zip(*ends, strict=True))
    rungs[-1] = np.hstack([rungs[-1][0], end_psi]), np.hstack([rungs[-1][1], end_loss])

    def one(k: int) -> Climb:
        finite = np.isfinite(first[0][k])
        psis, losses = ([x[k][finite], *(rung[i][k] for rung in rungs)] for i, x in enumerate(first))
        return Climb(
            log_mean=float(log_mean[k]),
            finite=float(finite.mean()),
            psi=np.array([_mean(psi) for psi in psis]),
            variance=np.array([psi.var(ddof=1) if len(psi) > 1 else np.nan for psi in psis]),
            loss=np.array([_mean(loss) for loss in losses]),
            effective=np.array([shares[k] for shares in effective]),
            acceptance=np.array(acceptance),
            y=y[k],
            virial=float(virial[k]) / potential.size,
            chains=end_psi[k].reshape(longer, chains).T,
        )

    return [one(k) for k in range(populations)]


def _chain(
    potential: Potential, at: Particles, s: float, h: float, moves: int, generator: Generator
) -> tuple[list[Particles], float]:
    """The particles after each move, and the share accepted."""
    chain, rates = [], []
    for _ in range(moves):
        at, rate = move(potential, at, s, h, generator)
        chain.append(at)
        rates.append(rate)
    return chain, float(np.mean(rates))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan

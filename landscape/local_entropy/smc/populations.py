"""Populations of particles that are annealed along a fixed schedule, independently and side by side.

At each inverse temperature s_k the particles are weighted by exp(-(s_k - s_{k-1}) psi), resampled, and moved by a
kernel that leaves pi_{s_k} invariant. Only ``chains`` particles are resampled, and each starts a chain of moves whose
every state is a particle of the next step (waste-free; Dau & Chopin 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Generator, Tensor

from landscape.local_entropy.smc.moves import move
from landscape.local_entropy.smc.potential import Particles, Potential
from landscape.local_entropy.smc.resampling import relative_ess, systematic_resampling

__all__ = ["FINAL_CHAIN_LENGTH", "Population", "anneal_populations"]

FINAL_CHAIN_LENGTH = 2  # of the chains at s = 1, in multiples of ``moves``


@dataclass(frozen=True)
class Population:
    """Estimates of one population, from s = 0 to s = 1."""

    log_evidence: float  # log of the unbiased estimate of E exp(-psi)
    finite_fraction: float  # of N(0, I), where psi is finite; the following are of that part
    psi: np.ndarray  # (T + 1,), mean at each temperature
    psi_variance: np.ndarray  # (T + 1,)
    loss: np.ndarray  # (T + 1,), mean of f
    relative_ess: np.ndarray  # (T,), effective fraction of the weighted particles
    acceptance: np.ndarray  # (T,), rate of this population and of those side by side with it
    mean_y: Tensor  # (n,), at s = 1
    virial: float  # mean of y . grad(|y|^2 / 2 + psi) at s = 1, divided by n: 1 in equilibrium
    final_psi: np.ndarray  # (chains, draws), psi along each chain at s = 1


def anneal_populations(
    potential: Potential,
    s: np.ndarray,
    step_sizes: np.ndarray,
    populations: int,
    chains: int,
    moves: int,
    moves_per_step: int,
    generator: Generator,
) -> list[Population]:
    """Anneal independent populations along the schedule ``s``, and continue their chains at s = 1.

    The populations share calls of ``potential`` and nothing else. All arrays of particles have the order of the shape
    (moves, populations, chains).

    Args:
        potential: psi.
        s: inverse temperatures, (T + 1,).
        step_sizes: h of the moves at s_1, ..., s_T.
        populations: their number.
        chains: of each population.
        moves: initial draws for each chain, and half the length of the final chains.
        moves_per_step: moves of each chain at s_1, ..., s_T.
        generator: for everything random.
    """

    def by_population(x: np.ndarray) -> np.ndarray:
        """(populations, moves x chains)."""
        return x.reshape(-1, populations, chains).swapaxes(0, 1).reshape(populations, -1)

    particles = potential.sample_initial(moves * populations * chains, generator)
    initial_psi, initial_loss = by_population(particles.psi), by_population(particles.loss)
    log_evidence, steps = np.zeros(populations), []
    acceptance, effective = [], []
    for before, now, h in zip(s, s[1:], step_sizes, strict=False):
        log_weights = by_population(-(now - before) * particles.psi)
        log_evidence += logsumexp(log_weights, axis=1) - np.log(log_weights.shape[1])
        effective.append([relative_ess(row) for row in log_weights])
        resampled = [
            rows[systematic_resampling(row, chains, generator)]
            for rows, row in zip(by_population(np.arange(len(particles))), log_weights, strict=True)
        ]
        start = particles[np.concatenate(resampled)]
        states, rate = _run_chains(potential, start, now, h, moves_per_step, generator)
        particles = Particles.concatenate(states)
        steps.append((by_population(particles.psi), by_population(particles.loss)))
        acceptance.append(rate)
    # the chains at s = 1 may be long: only sums of their states are kept
    state, length = states[-1], FINAL_CHAIN_LENGTH * moves
    mean_y, virial = torch.zeros_like(state.y[:populations]), np.zeros(populations)
    final = []
    for _ in range(length):
        state, _ = move(potential, state, 1.0, step_sizes[-1], generator)
        mean_y += state.y.unflatten(0, (populations, chains)).mean(dim=1) / length
        virial += by_population((state.y * (state.y + state.gradient)).sum(dim=1).cpu().numpy()).mean(axis=1) / length
        final.append((state.psi, state.loss))
    final_psi, final_loss = (by_population(np.concatenate(rows)) for rows in zip(*final, strict=True))
    steps[-1] = np.hstack([steps[-1][0], final_psi]), np.hstack([steps[-1][1], final_loss])

    def estimates(k: int) -> Population:
        finite = np.isfinite(initial_psi[k])
        psis = [initial_psi[k][finite], *(psi[k] for psi, _ in steps)]
        losses = [initial_loss[k][finite], *(loss[k] for _, loss in steps)]
        return Population(
            log_evidence=float(log_evidence[k]),
            finite_fraction=float(finite.mean()),
            psi=np.array([_mean(psi) for psi in psis]),
            psi_variance=np.array([psi.var(ddof=1) if len(psi) > 1 else np.nan for psi in psis]),
            loss=np.array([_mean(loss) for loss in losses]),
            relative_ess=np.array([row[k] for row in effective]),
            acceptance=np.array(acceptance),
            mean_y=mean_y[k],
            virial=float(virial[k]) / potential.size,
            final_psi=final_psi[k].reshape(length, chains).T,
        )

    return [estimates(k) for k in range(populations)]


def _run_chains(
    potential: Potential, start: Particles, s: float, h: float, moves: int, generator: Generator
) -> tuple[list[Particles], float]:
    """The states after each move, and the acceptance rate."""
    state, states, rates = start, [], []
    for _ in range(moves):
        state, rate = move(potential, state, s, h, generator)
        states.append(state)
        rates.append(rate)
    return states, float(np.mean(rates))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan

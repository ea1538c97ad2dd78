"""Markov moves that leave the distribution of the particles at a given temperature invariant.

On pi_s(y) ~ exp(-|y|^2 / 2 - s psi(y)) these are preconditioned Crank-Nicolson Langevin proposals with a Metropolis
correction (pCNL; Cotter, Roberts, Stuart & White 2013). The proposal leaves N(0, I) invariant, so that the acceptance
rate does not decrease with n. With step size h in (0, 2] and c = (2 - h) / (2 + h):

    y' = c y + sqrt(1 - c^2) xi - 2 h / (2 + h) s grad psi(y),    xi ~ N(0, I).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from landscape.local_entropy.smc.potential import Particles, Potential

__all__ = ["TARGET_ACCEPTANCE", "move", "propose"]

TARGET_ACCEPTANCE = 0.6  # for adapting h: near the optimum of Langevin proposals, 0.574 (Roberts & Rosenthal 1998)


def move(
    potential: Potential, particles: Particles, s: float, h: float, generator: torch.Generator
) -> tuple[Particles, float]:
    """One move of each particle, and the acceptance rate."""
    noise = potential.standard_normal(len(particles), generator)
    proposed = potential(propose(particles.y, s * particles.gradient, h, noise))
    with np.errstate(invalid="ignore"):  # inf - inf, where neither is finite
        log_ratio = _rho(particles, proposed, s, h) - _rho(proposed, particles, s, h)
    uniform = torch.rand(len(particles), generator=generator, dtype=torch.float64).numpy()
    accepted = np.isfinite(proposed.psi) & (np.log(uniform) < np.where(np.isfinite(particles.psi), log_ratio, np.inf))
    index = torch.from_numpy(accepted).to(particles.y.device)[:, None]
    moved = Particles(
        torch.where(index, proposed.y, particles.y),
        np.where(accepted, proposed.psi, particles.psi),
        torch.where(index, proposed.gradient, particles.gradient),
        np.where(accepted, proposed.loss, particles.loss),
    )
    return moved, float(accepted.mean())


def propose(y: Tensor, gradient: Tensor, h: float, xi: Tensor) -> Tensor:
    """The proposal y', with ``gradient`` for s grad psi."""
    c = (2 - h) / (2 + h)
    return c * y + (1 - c**2) ** 0.5 * xi - 2 * h / (2 + h) * gradient


def _rho(u: Particles, v: Particles, s: float, h: float) -> np.ndarray:
    """rho(u, v) of Cotter et al.: the acceptance probability is min(1, exp(rho(y, y') - rho(y', y)))."""
    g = s * u.gradient.double()
    difference, total = (v.y - u.y).double(), (v.y + u.y).double()
    linear = ((difference / 2 + h / 4 * total + h / 4 * g) * g).sum(dim=1)
    return s * u.psi + linear.cpu().numpy()

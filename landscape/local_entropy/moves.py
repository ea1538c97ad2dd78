"""How particles move on a rung of the tempered path without leaving its measure.

On pi_s(y) ~ exp(-|y|^2 / 2 - s psi(y)) the moves are Crank-Nicolson Langevin proposals, corrected by Metropolis. They
leave N(0, I) itself invariant, so that the acceptance does not fall with n (pCNL; Cotter, Roberts, Stuart & White
2013). With h in (0, 2], c = (2 - h) / (2 + h):

    y' = c y + sqrt(1 - c^2) xi - 2 h / (2 + h) s grad psi(y),    xi ~ N(0, I).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from landscape.local_entropy.potential import Particles, Potential

__all__ = ["ACCEPTANCE", "move", "propose", "systematic"]

ACCEPTANCE = 0.6  # to adapt h to: near the optimum of Langevin proposals, 0.574 (Roberts & Rosenthal 1998)


def move(
    potential: Potential, at: Particles, s: float, h: float, generator: torch.Generator
) -> tuple[Particles, float]:
    """One proposal per particle, and the share accepted."""
    there = potential(propose(at.y, s * at.slope, h, potential.normal(len(at), generator)))
    with np.errstate(invalid="ignore"):  # inf - inf, where neither is finite
        log_ratio = _rho(at, there, s, h) - _rho(there, at, s, h)
    uniform = torch.rand(len(at), generator=generator, dtype=torch.float64).numpy()
    accepted = np.isfinite(there.psi) & (np.log(uniform) < np.where(np.isfinite(at.psi), log_ratio, np.inf))
    index = torch.from_numpy(accepted).to(at.y.device)[:, None]
    moved = Particles(
        torch.where(index, there.y, at.y),
        np.where(accepted, there.psi, at.psi),
        torch.where(index, there.slope, at.slope),
        np.where(accepted, there.loss, at.loss),
    )
    return moved, float(accepted.mean())


def propose(y: Tensor, force: Tensor, h: float, xi: Tensor) -> Tensor:
    """y', with ``force`` for s grad psi."""
    c = (2 - h) / (2 + h)
    return c * y + (1 - c**2) ** 0.5 * xi - 2 * h / (2 + h) * force


def _rho(u: Particles, v: Particles, s: float, h: float) -> np.ndarray:
    """rho(u, v) of Cotter et al.: the acceptance is min(1, exp(rho(y, y') - rho(y', y)))."""
    g = s * u.slope.double()
    difference, total = (v.y - u.y).double(), (v.y + u.y).double()
    linear = ((difference / 2 + h / 4 * total + h / 4 * g) * g).sum(dim=1)
    return s * u.psi + linear.cpu().numpy()


def systematic(log_weights: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """Which ``count`` particles go on, by systematic resampling: each as often as its weight says, up to one."""
    weights = np.exp(log_weights - logsumexp(log_weights))
    offset = float(torch.rand(1, generator=generator, dtype=torch.float64))
    chosen = np.searchsorted(np.cumsum(weights), (np.arange(count) + offset) / count)
    return chosen.clip(max=len(weights) - 1)

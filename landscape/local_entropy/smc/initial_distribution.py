"""The initial distribution of the particles: the Gibbs measure of a quadratic approximation of the loss.

In coordinates z with x' = x + r z, r = 1/sqrt(beta gamma), the reference q is N(0, I). Let phi(z) = beta f(x + r z).
The approximation uses the top eigenvectors V of the Hessian, whose eigenvalues lambda > 0 are a = beta r^2 lambda in
these coordinates, and g = beta r grad f(x). The component of g orthogonal to V is divided by 1 + min a: the curvature
there may be as large as min a, and then the mean is shifted no farther. With

    Q(z) = phi(0) + g.z + 1/2 z'V a V'z

the initial distribution is

    b ~ q exp(-Q) = N(m, (I + V a V')^-1),   m = -(I + V a V')^-1 g,
    log Z_b = log E_q exp(-Q) = -phi(0) - 1/2 sum log(1 + a) + 1/2 g'(I + V a V')^-1 g.

In the whitened coordinates y, z = m + S y with S = (I + V a V')^(-1/2), b is N(0, I). The sharp directions, which limit
the step size of the moves, have unit width in y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.results import Eigenpairs
from landscape.sums import dots, norm

__all__ = ["GaussianApproximation", "gaussian_approximation"]


@dataclass
class GaussianApproximation:
    """b, defined by the coefficients of Q."""

    constant: float  # phi(0)
    g: Tensor  # (n,)
    a: Tensor  # (k,)
    v: Tensor  # (n, k)

    def _precision_power(self, power: float, z: Tensor) -> Tensor:
        """(I + V a V')^power z, for z of shape (..., n)."""
        along = dots(z.reshape(-1, z.shape[-1]), self.v)
        return z + ((along * ((1 + self.a.to(along)) ** power - 1)).to(z) @ self.v.T).view_as(z)

    def log_normalizer(self) -> float:
        """log Z_b."""
        along = dots(self.g[None], self.v)[0]
        # g and its component in V may be far longer than the remainder
        rest = norm(self.g - self.v @ along.to(self.g))
        half = (rest**2 + float((along**2 / (1 + self.a.to(along))).sum())) / 2
        return -self.constant - float(self.a.double().log1p().sum()) / 2 + half

    def unwhiten(self, y: Tensor) -> Tensor:
        """The coordinates z of y, shape (..., n)."""
        return self._precision_power(-0.5, y) - self._precision_power(-1, self.g)

    def subtract_quadratic(self, z: Tensor, phi: np.ndarray, gradient: Tensor) -> tuple[np.ndarray, Tensor]:
        """phi - Q and its gradient in y, from phi (P,) and its gradient in z (P, n)."""
        along = dots(z, self.v)
        rise = (dots(z, self.g) + along**2 @ self.a.to(along) / 2).cpu().numpy()
        # phi may be large, and float32 would lose the digits of the difference
        difference = gradient - self.g - (along.to(z) * self.a) @ self.v.T
        return phi - self.constant - rise, self._precision_power(-0.5, difference)


def gaussian_approximation(
    objective: Objective, theta: Tensor, radius: float, beta: float, pairs: Eigenpairs
) -> GaussianApproximation | None:
    """b at theta, by one gradient; None where none of the eigenpairs is positive and converged.

    Args:
        objective: f.
        theta: x, shape (n,).
        radius: r.
        beta: inverse temperature.
        pairs: the largest eigenpairs of the Hessian at theta; those that are not positive or not converged are left
            out.
    """
    used = torch.from_numpy((pairs.values > 0) & pairs.converged)
    if not bool(used.any()):
        return None
    loss, gradient = objective.value_and_gradient(theta)
    a = beta * radius**2 * torch.from_numpy(pairs.values)[used]
    v = pairs.vectors[:, used].to(gradient)
    g = beta * radius * gradient
    along = v @ dots(g[None], v)[0].to(v)
    return GaussianApproximation(beta * number(loss), along + (g - along) / (1 + float(a.min())), a.to(gradient), v)

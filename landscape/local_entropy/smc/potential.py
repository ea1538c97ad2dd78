"""The potential psi, by which the target of sequential Monte Carlo differs from its initial distribution.

With phi(z) = beta f(x + r z) and q = N(0, I) as in ``landscape.local_entropy.smc.initial_distribution``,

    F~ = log E_q exp(-phi).

If the initial distribution is q itself, psi = phi and y = z. If it is b, the Gibbs measure of the quadratic
approximation Q, then with its whitened coordinates y

    psi(y) = phi(z) - Q(z),    F~ = log Z_b + log E_{y ~ N(0, I)} exp(-psi(y)).

For q, log Z_b is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.local_entropy.smc.initial_distribution import gaussian_approximation
from landscape.objective import Objective
from landscape.objective.batched import values_and_gradients
from landscape.objective.contract import number
from landscape.results import Eigenpairs

__all__ = ["Particles", "Potential"]


@dataclass
class Particles:
    """Points y with their potential, its gradient, and the loss."""

    y: Tensor  # (P, n)
    psi: np.ndarray  # (P,), inf where f is not finite
    gradient: Tensor  # (P, n), grad psi, zero where f is not finite
    loss: np.ndarray  # (P,), f

    def __len__(self) -> int:
        return len(self.psi)

    def __getitem__(self, indices: np.ndarray) -> Particles:
        index = torch.from_numpy(indices).to(self.y.device)
        return Particles(self.y[index], self.psi[indices], self.gradient[index], self.loss[indices])

    @staticmethod
    def concatenate(parts: list[Particles]) -> Particles:
        """All particles of ``parts``, in order."""
        return Particles(
            torch.cat([p.y for p in parts]),
            np.concatenate([p.psi for p in parts]),
            torch.cat([p.gradient for p in parts]),
            np.concatenate([p.loss for p in parts]),
        )


class Potential:
    """psi and its gradient, with a count of the evaluations.

    Args:
        objective: f.
        theta: x, shape (n,).
        radius: r.
        beta: inverse temperature.
        pairs: the largest eigenpairs of the Hessian at theta, to start from b. None, or where none of them is positive
            and converged: start from q.

    Attributes:
        log_normalizer: log Z_b.
        starts_at_q: whether the initial distribution is q.
        rows_per_call: particles that are evaluated in one call.
        values, gradients: evaluations of f and of its gradient so far.
        not_finite: points at which f or its gradient was not finite.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, radius: float, beta: float, pairs: Eigenpairs | None = None
    ) -> None:
        self._objective, self._theta, self.radius, self._beta = objective, theta, radius, beta
        self._values_and_gradients, self.rows_per_call = values_and_gradients(objective)
        self.size, self.dtype, self.device = objective.size, objective.dtype, objective.device
        self.values = self.gradients = self.not_finite = 0
        self._initial = None if pairs is None else gaussian_approximation(objective, theta, radius, beta, pairs)
        self.starts_at_q, self.log_normalizer = self._initial is None, 0.0
        if self._initial is not None:
            self.gradients += 1
            self.log_normalizer = self._initial.log_normalizer()

    def __call__(self, y: Tensor) -> Particles:
        """Particles at the rows of y (P, n)."""
        z = y if self._initial is None else self._initial.unwhiten(y)
        loss, loss_gradient = self._values_and_gradients(self._theta + self.radius * z)
        psi, gradient = self._beta * loss, self._beta * self.radius * loss_gradient
        if self._initial is not None:
            psi, gradient = self._initial.subtract_quadratic(z, psi, gradient)
        finite = np.isfinite(psi) & gradient.isfinite().all(dim=1).cpu().numpy()
        gradient[torch.from_numpy(~finite).to(gradient.device)] = 0.0
        self.not_finite += int((~finite).sum())
        self.gradients += len(y)
        return Particles(y, np.where(finite, psi, np.inf), gradient, np.where(finite, loss, np.inf))

    def sample_initial(self, count: int, generator: torch.Generator) -> Particles:
        """Independent draws from the initial distribution."""
        return self(self.standard_normal(count, generator))

    def losses_over_q(self, count: int, generator: torch.Generator) -> np.ndarray:
        """f at independent draws of q, (count,)."""
        self.values += count
        points = (self._theta + self.radius * z for z in self.standard_normal(count, generator))
        return np.array([number(self._objective.value(point)) for point in points])

    def standard_normal(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of N(0, I), (count, n)."""
        return torch.randn(count, self.size, generator=generator, dtype=self.dtype).to(self.device)

    def displacement(self, y: Tensor) -> Tensor:
        """x' - x at y, shape (..., n)."""
        return self.radius * (y if self._initial is None else self._initial.unwhiten(y))

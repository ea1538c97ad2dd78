"""The two ends of the tempered path: a Gaussian whose normaliser is known, and what the loss adds to it.

In coordinates z with x' = x + r z, r = 1/sqrt(beta gamma), the reference q is N(0, I). With phi(z) = beta f(x + r z),

    F~ = log E_q exp(-phi).

The path may begin at q itself, or nearer to its end: at the Gaussian b that q and the loss' own parabola make along the
top eigenvectors V of the Hessian, whose eigenvalues lambda > 0 are a = beta r^2 lambda in these coordinates. With
g = beta r grad f(x), divided by 1 + min a where it is orthogonal to V: curvatures there may be as large as min a, and
then lead no further,

    Q(z) = phi(0) + g.z + 1/2 z'V a V'z,   b ~ q exp(-Q) = N(m, (I + V a V')^-1),   m = -(I + V a V')^-1 g,
    log Z_b = log E_q exp(-Q) = -phi(0) - 1/2 sum log(1 + a) + 1/2 g'(I + V a V')^-1 g.

In its own coordinates y, z = m + S y with S = (I + V a V')^(-1/2), b is N(0, I), and what is left to climb is psi:

    psi(y) = phi(z) - Q(z),    F~ = log Z_b + log E_{y ~ N(0, I)} exp(-psi(y)).

Begun at q, psi is phi and log Z_b is 0. The sharp directions, which limit the moves' steps, are of unit width in y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.at_once import values_and_gradients
from landscape.objective.contract import number
from landscape.results import Eigenpairs
from landscape.sums import dots, norm

__all__ = ["Particles", "Potential"]


@dataclass
class Particles:
    """Points of the path, each with psi and its gradient, and the loss there."""

    y: Tensor  # (P, n)
    psi: np.ndarray  # (P,), inf where f is not finite
    slope: Tensor  # (P, n), grad psi, zero there
    loss: np.ndarray  # (P,), f

    def __len__(self) -> int:
        return len(self.psi)

    def __getitem__(self, chosen: np.ndarray) -> Particles:
        index = torch.from_numpy(chosen).to(self.y.device)
        return Particles(self.y[index], self.psi[chosen], self.slope[index], self.loss[chosen])

    @staticmethod
    def together(parts: list[Particles]) -> Particles:
        """All of them."""
        return Particles(
            torch.cat([p.y for p in parts]),
            np.concatenate([p.psi for p in parts]),
            torch.cat([p.slope for p in parts]),
            np.concatenate([p.loss for p in parts]),
        )


class Potential:
    """psi and its gradient, with a count of what was spent.

    Args:
        objective: f.
        theta: x, shape (n,).
        radius: r.
        beta: inverse temperature.
        start: the largest eigenpairs of the Hessian at theta, to begin at b; those that are not positive and converged
            are left out. None, or where none is left: begin at q.

    Attributes:
        log_normaliser: log Z_b.
        from_q: whether the path begins at q.
        at_once: rows that are evaluated in one call.
        values, gradients: of f, spent.
        not_finite: points at which f or its gradient was not finite.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, radius: float, beta: float, start: Eigenpairs | None = None
    ) -> None:
        self._objective, self._theta, self.radius, self._beta = objective, theta, radius, beta
        self._at_each, self.at_once = values_and_gradients(objective)
        self.size, self.dtype, self.device = objective.size, objective.dtype, objective.device
        self.values = self.gradients = self.not_finite = 0
        self.log_normaliser = 0.0
        self._start: _Gaussian | None = None
        used = None if start is None else torch.from_numpy((start.values > 0) & start.converged)
        self.from_q = used is None or not bool(used.any())
        if start is not None and not self.from_q:
            value, slope = objective.value_and_gradient(theta)
            value = number(value)
            self.gradients += 1
            a = beta * radius**2 * torch.from_numpy(start.values)[used]
            v = start.vectors[:, used].to(slope)
            g = beta * radius * slope
            along = v @ dots(g[None], v)[0].to(v)
            self._start = _Gaussian(beta * value, along + (g - along) / (1 + float(a.min())), a.to(slope), v)
            self.log_normaliser = self._start.log_normaliser()

    def __call__(self, y: Tensor) -> Particles:
        """At each row of y (P, n)."""
        z = y if self._start is None else self._start.place(y)
        loss, gradient = self._at_each(self._theta + self.radius * z)
        psi, slope = self._beta * loss, self._beta * self.radius * gradient
        if self._start is not None:
            psi, slope = self._start.take_off(z, psi, slope)
        finite = np.isfinite(psi) & slope.isfinite().all(dim=1).cpu().numpy()
        slope[torch.from_numpy(~finite).to(slope.device)] = 0.0
        self.not_finite += int((~finite).sum())
        self.gradients += len(y)
        return Particles(y, np.where(finite, psi, np.inf), slope, np.where(finite, loss, np.inf))

    def ball(self, count: int, generator: torch.Generator) -> np.ndarray:
        """f at draws of q, (count,)."""
        self.values += count
        points = (self._theta + self.radius * z for z in self.normal(count, generator))
        return np.array([number(self._objective.value(point)) for point in points])

    def draw(self, count: int, generator: torch.Generator) -> Particles:
        """From the beginning of the path, exactly."""
        return self(self.normal(count, generator))

    def normal(self, count: int, generator: torch.Generator) -> Tensor:
        """N(0, I), (P, n)."""
        return torch.randn(count, self.size, generator=generator, dtype=self.dtype).to(self.device)

    def displacement(self, y: Tensor) -> Tensor:
        """x' - x of y (..., n)."""
        return self.radius * (y if self._start is None else self._start.place(y))


@dataclass
class _Gaussian:
    """b, told by Q."""

    constant: float  # phi(0)
    g: Tensor  # (n,)
    a: Tensor  # (k,)
    v: Tensor  # (n, k)

    def _times(self, power: float, z: Tensor) -> Tensor:
        """(I + V a V')^power z, of z (..., n)."""
        along = dots(z.reshape(-1, z.shape[-1]), self.v)
        return z + ((along * ((1 + self.a.to(along)) ** power - 1)).to(z) @ self.v.T).view_as(z)

    def log_normaliser(self) -> float:
        along = dots(self.g[None], self.v)[0]
        # g and its parts along V may be far longer than what is left of them
        rest = norm(self.g - self.v @ along.to(self.g))
        half = (rest**2 + float((along**2 / (1 + self.a.to(along))).sum())) / 2
        return -self.constant - float(self.a.double().log1p().sum()) / 2 + half

    def place(self, y: Tensor) -> Tensor:
        """Z of y."""
        return self._times(-0.5, y) - self._times(-1, self.g)

    def take_off(self, z: Tensor, phi: np.ndarray, slope: Tensor) -> tuple[np.ndarray, Tensor]:
        """Psi and its gradient in y, of phi and its gradient in z."""
        along = dots(z, self.v)
        rise = (dots(z, self.g) + along**2 @ self.a.to(along) / 2).cpu().numpy()
        # beta f may be large, and float32 would round what is left of it
        return phi - self.constant - rise, self._times(-0.5, slope - self.g - (along.to(z) * self.a) @ self.v.T)

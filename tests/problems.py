"""Functions whose landscape is known in closed form, or by brute force."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from landscape import ModelObjective

DOUBLE = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(eigenvalues: list[float] | np.ndarray | Tensor, seed: int = 0) -> Tensor:
    """A dense symmetric matrix with these eigenvalues and random eigenvectors, float64."""
    values = torch.as_tensor(np.asarray(eigenvalues), dtype=DOUBLE)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE))
    return (q * values) @ q.T


@dataclass
class Quadratic:
    """f(x) = c + 1/2 (x - m)' H (x - m); H may be indefinite."""

    hessian: Tensor
    minimum: Tensor
    constant: float = 0.0

    def __post_init__(self) -> None:
        self.size, self.dtype, self.device = len(self.minimum), DOUBLE, torch.device("cpu")

    def value(self, theta: Tensor) -> float:
        return self.value_and_gradient(theta)[0]

    def gradient(self, theta: Tensor) -> Tensor:
        return self.hessian @ (theta - self.minimum)

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        gradient = self.gradient(theta)
        return self.constant + float((theta - self.minimum) @ gradient) / 2, gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        return self.hessian @ v

    def local_entropy(self, x: Tensor, gamma: float, beta: float = 1.0) -> float:
        """F~ = -beta c - 1/2 log det(I + H/gamma) - beta/2 (x-m)' gamma H (H + gamma I)^-1 (x-m)."""
        d = x - self.minimum
        identity = torch.eye(self.size, dtype=DOUBLE)
        pulled = gamma * self.hessian @ torch.linalg.solve(self.hessian + gamma * identity, d)
        return float(-beta * self.constant - torch.logdet(identity + self.hessian / gamma) / 2 - beta / 2 * d @ pulled)


class LogisticRegression:
    """f(w) = 1/N sum_i log(1 + exp(-y_i x_i'w)), y_i = +-1; H = X' diag(p (1 - p)) X / N."""

    def __init__(self, examples: int = 60, size: int = 8, seed: int = 0) -> None:
        g = seeded(seed)
        self.x = torch.randn(examples, size, generator=g, dtype=DOUBLE)
        self.y = torch.randint(0, 2, (examples,), generator=g).to(DOUBLE) * 2 - 1
        self.size, self.dtype, self.device = size, DOUBLE, torch.device("cpu")
        self.examples = examples

    def value(self, w: Tensor) -> float:
        return float(nn.functional.softplus(-self.y * (self.x @ w)).mean())

    def gradient(self, w: Tensor) -> Tensor:
        return -(self.x.T @ (self.y * torch.sigmoid(-self.y * (self.x @ w)))) / self.examples

    def value_and_gradient(self, w: Tensor) -> tuple[float, Tensor]:
        return self.value(w), self.gradient(w)

    def dense_hessian(self, w: Tensor) -> Tensor:
        p = torch.sigmoid(self.x @ w)
        return self.x.T @ (self.x * (p * (1 - p))[:, None]) / self.examples

    def hvp(self, w: Tensor, v: Tensor) -> Tensor:
        return self.dense_hessian(w) @ v


def tiny_mlp(examples: int = 50, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """4-5-3 with tanh, 43 weights, in float64, with data."""
    g = seeded(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs = torch.randn(examples, 4, generator=g, dtype=DOUBLE)
    return model, (inputs, torch.randint(0, 3, (examples,), generator=g))


def tiny_objective(**options: object) -> ModelObjective:
    model, data = tiny_mlp()
    return ModelObjective(model, nn.CrossEntropyLoss(), data, **options)


def dense_hessian(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Column by column through functional_call and autograd: no code of ours."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        outputs = torch.func.functional_call(model, weights, (data[0],))
        return nn.functional.cross_entropy(outputs, data[1])

    return torch.autograd.functional.hessian(loss, theta)

"""What can be seen of a step of Entropy-SGD, for the price of a few norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optim.langevin import Chain

__all__ = ["Watch"]


class Watch:
    """Looks on while the inner loop runs, and sums up at its end."""

    def __init__(self, chains: list[Chain]) -> None:
        self._chains = chains
        self._losses: list[float] = []
        self._distances: list[float] = []
        self._gradients: list[list[Tensor | None]] = []
        self._gamma = max(chain.group["gamma"] for chain in chains)

    def before_move(self, loss: Any, last: bool) -> None:
        """With grad f(x') still in ``.grad``."""
        self._losses.append(loss.item() if isinstance(loss, Tensor) else loss)
        if last:
            self._gradients = [
                [None if p.grad is None else p.grad.clone() for p in chain.x_prime] for chain in self._chains
            ]

    def after_move(self) -> None:
        """With the new x' in place."""
        squares = [
            (p - x).double().square().sum()
            for chain in self._chains
            for p, x in zip(chain.x_prime, chain.x, strict=True)
        ]
        self._distances.append(float(sum(s.cpu() for s in squares)) ** 0.5)

    def summary(self) -> dict[str, float]:
        """After ``Chain.finish``, when ``.grad`` holds x - mu."""
        pairs = [
            (p.grad.double(), g.double())
            for chain, gradients in zip(self._chains, self._gradients, strict=True)
            for p, g in zip(chain.x_prime, gradients, strict=True)
            if p.grad is not None and g is not None
        ]
        distance = _norm([d for d, _ in pairs])
        dot = sum(float((d * g).sum()) for d, g in pairs)
        length = distance * _norm([g for _, g in pairs])
        return {
            "gamma": self._gamma,
            "distance": distance,
            "mean_distance": sum(self._distances) / len(self._distances),
            "cosine": dot / length if length > 0 else float("nan"),
            "first_loss": self._losses[0],
            "last_loss": self._losses[-1],
        }


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.square().sum().cpu() for t in tensors]).sum()) ** 0.5 if tensors else 0.0

"""The inner loop of Entropy-SGD: L Langevin steps around x, and their running mean mu.

    x', mu <- x
    L times:
        dx' <- grad f(x') - gamma (x - x')
        x'  <- x' - eta' dx' + noise
        mu  <- mean of mu and x'

mu estimates <x'>, the mean of the Gibbs measure exp(-beta (f(x') + gamma/2 ||x - x'||^2)), so that x - mu points
along -grad F, with F the local entropy. The paper and its authors' published code differ in places that people mix
up; ``convention`` names the one meant:

    ===============  ==================================  ==========================================
    convention       "paper"                             "reference", the authors' code
    ===============  ==================================  ==========================================
    averaging alpha  weighs the new iterate:             weighs the old mean:
                     mu <- (1 - alpha) mu + alpha x'     mu <- alpha mu + (1 - alpha) x'
    noise            eps sqrt(eta') N(0, I)              eps sqrt(2 eta') N(0, I)
    temperature      1/beta = eps^2 / 2                  1/beta = eps^2
    gamma at step t  gamma_0 (1 + gamma_1)^t, t = 0...   gamma_0 (1 + gamma_1)^t, t = 1...
    inner momentum   on dx', the pull of gamma included  on grad f; the pull and the noise come after
    ===============  ==================================  ==========================================

The temperatures are those of the stationary chain without momentum, for small eta'. Momentum m makes the drift it acts
on 1/(1 - m) times faster, and the noise not. In the paper's convention that leaves the mean where it is and cools the
chain to (1 - m) eps^2 / 2. In the reference the pull of gamma is not sped up, so the chain is that of a gamma 1/(1 - m)
times weaker, mean included, at (1 - m) eps^2. The L = 5 to 20 steps of practice are far from stationary anyhow.

What both share: the momentum is Nesterov's and its buffer starts at zero in every inner loop; the first mini-batch of
a step is used (the authors' code computes one gradient more, and drops it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["CONVENTIONS", "Chain"]

CONVENTIONS = ("paper", "reference")


@dataclass
class Chain:
    """The inner loop over the parameters of one group.

    The parameters themselves are x'. Beside them it holds x, mu and, with inner momentum, one buffer: nothing else of
    the parameters' size outlives a line.
    """

    group: dict[str, Any]  # its settings
    weight_decay: float  # lambda of f + lambda/2 ||x'||^2
    x_prime: list[Tensor]
    x: list[Tensor]
    mu: list[Tensor]
    momentum: list[Tensor]  # empty without inner momentum
    moved: list[bool]  # parameters that never had a gradient are not in f, and stay

    @classmethod
    def begin(cls, group: dict[str, Any], weight_decay: float) -> Chain:
        """x' = mu = x, the group's present parameters."""
        ps: Sequence[Tensor] = group["params"]
        buffers = [torch.zeros_like(p) for p in ps] if group["langevin_momentum"] else []
        x, mu = ([p.detach().clone() for p in ps] for _ in range(2))
        return cls(group, weight_decay, list(ps), x, mu, buffers, [False] * len(ps))

    def step(self, generator: torch.Generator) -> None:
        """One Langevin step along the gradients in ``.grad``, which it overwrites."""
        live = [i for i, p in enumerate(self.x_prime) if p.grad is not None]
        if not live:
            return
        for i in live:
            self.moved[i] = True
        x_prime, x, mu = (_chosen(tensors, live) for tensors in (self.x_prime, self.x, self.mu))
        d = [p.grad for p in x_prime if p.grad is not None]
        if any(g.is_sparse for g in d):
            raise ValueError("a gradient is sparse: use dense ones, such as nn.Embedding(..., sparse=False)")
        group, gamma, eta = self.group, self.group["gamma"], self.group["langevin_lr"]
        if group.get("maximize", False):
            torch._foreach_neg_(d)
        if self.weight_decay:
            torch._foreach_add_(d, x_prime, alpha=self.weight_decay)
        pull = gamma * eta
        if self.momentum:
            if group["convention"] == "paper" and gamma:  # d <- d - gamma (x - x'), without a temporary
                torch._foreach_add_(d, x_prime, alpha=gamma)
                torch._foreach_add_(d, x, alpha=-gamma)
                pull = 0.0
            self._accelerate(d, live)
        if pull:  # x' <- x' + eta gamma (x - x')
            torch._foreach_lerp_(x_prime, x, pull)
        torch._foreach_add_(x_prime, d, alpha=-eta)
        if group["noise"]:
            variance = eta if group["convention"] == "paper" else 2 * eta
            _draw_normal(d, generator)  # dx' is spent, so the noise takes its memory
            torch._foreach_add_(x_prime, d, alpha=math.sqrt(variance) * group["noise"])
        alpha = group["averaging"]
        torch._foreach_lerp_(mu, x_prime, alpha if group["convention"] == "paper" else 1 - alpha)

    def _accelerate(self, d: list[Tensor], live: list[int]) -> None:
        """Nesterov's momentum, as torch.optim.SGD has it: b <- m b + d, then d <- d + m b."""
        m, buffers = self.group["langevin_momentum"], _chosen(self.momentum, live)
        torch._foreach_mul_(buffers, m)
        torch._foreach_add_(buffers, d)
        torch._foreach_add_(d, buffers, alpha=m)

    def restore(self) -> None:
        """Put the parameters back to x."""
        torch._foreach_copy_(self.x_prime, self.x)

    def finish(self) -> None:
        """Put the parameters back to x, and x - mu into ``.grad``; mu is overwritten."""
        self.restore()
        torch._foreach_neg_(self.mu)
        torch._foreach_add_(self.mu, self.x)
        for p, direction, moved in zip(self.x_prime, self.mu, self.moved, strict=True):
            p.grad = direction if moved else None


def _chosen(tensors: list[Tensor], live: list[int]) -> list[Tensor]:
    return tensors if len(live) == len(tensors) else [tensors[i] for i in live]


def _draw_normal(tensors: list[Tensor], generator: torch.Generator) -> None:
    """Fill the tensors with N(0, I) drawn on the CPU, in the order of their indices: the same on any device."""
    for t in tensors:
        if t.device.type == "cpu" and t.is_contiguous():
            t.normal_(generator=generator)
        else:
            t.copy_(torch.empty(t.shape, dtype=t.dtype).normal_(generator=generator))

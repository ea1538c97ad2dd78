"""Entropy-SGD and Entropy-Adam: the two outer optimizers of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch

from optim.entropy import EntropyOptimizer

__all__ = ["EntropyAdam", "EntropySGD"]


class LangevinSettings(TypedDict, total=False):
    """The settings of the inner loop; see EntropyOptimizer."""

    L: int
    gamma: float
    scoping: float
    gamma_max: float
    gamma_scaled: bool
    langevin_lr: float
    langevin_momentum: float
    noise: float
    averaging: float
    convention: str
    gradient_hook: Callable[[], None] | None
    diagnostics: bool
    generator: torch.Generator | None


class EntropySGD(EntropyOptimizer):
    """Entropy-SGD: SGD on the local entropy, whose gradient an inner Langevin loop estimates.

    Args:
        params: parameters or parameter groups.
        lr: eta, the outer step. 1 moves x all the way to mu (with ``momentum=0``).
        momentum: momentum of the outer SGD.
        nesterov: whether that momentum is Nesterov's.
        weight_decay: lambda, adds lambda/2 ||x||^2 to f.
        maximize: climb f instead.
        inner: the inner loop's settings: ``L``, ``gamma``, ``scoping``, ``langevin_lr``, ``noise``, ``averaging`` and
            the others of EntropyOptimizer, which says what they mean and how ``step`` is to be called.

    Example:
        On f(x) = x^2 / 2 with gamma = 0 and no noise, two inner steps of length 1/2 take x' from 1 to 1/2 to 1/4, and
        averaging = 1 makes mu the last of them:

        >>> x = torch.ones(1, requires_grad=True)
        >>> optimizer = EntropySGD([x], lr=1.0, L=2, gamma=0.0, langevin_lr=0.5, noise=0.0, averaging=1.0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (x**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> loss.item(), x.item()
        (0.5, 0.25)
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        **inner: Unpack[LangevinSettings],
    ) -> None:
        outer = torch.optim.SGD(
            params, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, maximize=maximize
        )
        super().__init__(outer, **inner)


class EntropyAdam(EntropyOptimizer):
    """Entropy-Adam: Adam on the local entropy (the paper's choice for recurrent networks).

    Args:
        params: parameters or parameter groups.
        lr: Adam's step.
        betas: decay rates of Adam's moments.
        eps: Adam's eps, not the noise.
        weight_decay: lambda, adds lambda/2 ||x||^2 to f.
        maximize: climb f instead.
        inner: the inner loop's settings; see EntropyOptimizer.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        **inner: Unpack[LangevinSettings],
    ) -> None:
        outer = torch.optim.Adam(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)
        super().__init__(outer, **inner)

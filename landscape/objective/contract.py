"""What an analysis asks of a function: its value and derivatives at a flat vector of shape (n,)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Objective", "number"]


@runtime_checkable
class Objective(Protocol):
    """A twice differentiable function f of one flat vector theta of shape (n,).

    Any object with these members serves; nothing need be inherited. ``size`` is n.
    """

    @property
    def size(self) -> int:
        """n."""

    @property
    def dtype(self) -> torch.dtype:
        """That of theta and of all derivatives."""

    @property
    def device(self) -> torch.device:
        """Where theta and all derivatives are."""

    def value(self, theta: Tensor) -> float:
        """f(theta)."""

    def gradient(self, theta: Tensor) -> Tensor:
        """grad f(theta), shape (n,)."""

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Both, for the price of the gradient."""

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """H(theta) v with H the Hessian of f, shape (n,)."""


def number(value: float | Tensor) -> float:
    """What an objective returns as its value, which may be a tensor of no dimension, with a graph or without."""
    return float(value.detach() if isinstance(value, Tensor) else value)

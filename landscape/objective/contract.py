"""The interface that every analysis uses: value and derivatives of a function of a flat vector of shape (n,)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Objective", "number"]


@runtime_checkable
class Objective(Protocol):
    """A twice differentiable function f of one flat vector theta of shape (n,).

    A structural type: any object with these members is an Objective, without inheritance. ``size`` is n.
    """

    @property
    def size(self) -> int:
        """n."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of theta and of all derivatives."""

    @property
    def device(self) -> torch.device:
        """Device of theta and of all derivatives."""

    def value(self, theta: Tensor) -> float:
        """f(theta)."""

    def gradient(self, theta: Tensor) -> Tensor:
        """grad f(theta), shape (n,)."""

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """f(theta) and grad f(theta), at the cost of the gradient."""

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """H(theta) v with H the Hessian of f, shape (n,)."""


def number(value: float | Tensor) -> float:
    """The value of an objective as a float; objectives may return a zero-dimensional tensor, also with a graph."""
    return float(value.detach() if isinstance(value, Tensor) else value)

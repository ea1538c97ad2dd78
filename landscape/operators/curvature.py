"""The Hessian of an objective at theta, its Gauss-Newton matrix and their difference, as linear operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from landscape.objective import Objective
from landscape.parameters import check_vector

__all__ = ["GaussNewton", "Hessian", "Residual"]


class _Curvature(ABC):
    """A matrix of second derivatives of an objective at theta.

    Args:
        objective: the function f.
        theta: where, shape (n,). Default: ``objective.theta``, the network's own weights.
    """

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        if theta is None:
            theta = objective.theta  # type: ignore[attr-defined]  # a ModelObjective has its own
        else:
            check_vector("theta", theta, objective.size)
            # a copy, since the caller's may change; it may be a checkpoint's, on the CPU
            theta = theta.detach().to(objective.device, objective.dtype, copy=True)
        self.objective: Any = objective
        self.theta = theta
        self.size, self.dtype, self.device = objective.size, objective.dtype, objective.device

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """The product with ``v`` (n,)."""


class Hessian(_Curvature):
    """H(theta), the Hessian of an objective at theta.

    Args:
        objective: the function f.
        theta: where, shape (n,). Default: ``objective.theta``, the network's own weights.

    Example:
        >>> import torch
        >>> from landscape import ModelObjective
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> f = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1)))
        >>> Hessian(f).matvec(torch.tensor([3.0]))  # f(w) = w^2
        tensor([6.])
    """

    def matvec(self, v: Tensor) -> Tensor:
        """H v by one Hessian-vector product."""
        return self.objective.hvp(self.theta, v)


class GaussNewton(_Curvature):
    """G(theta), the generalised Gauss-Newton matrix of a ModelObjective: J' (d^2 l/dz^2) J, averaged over examples.

    Args:
        objective: the function f, with a ``gnvp(theta, v)``.
        theta: where, shape (n,). Default: ``objective.theta``, the network's own weights.
    """

    def matvec(self, v: Tensor) -> Tensor:
        """G v by one Gauss-Newton-vector product."""
        return self.objective.gnvp(self.theta, v)


class Residual(_Curvature):
    """H(theta) - G(theta), the curvature of the network itself, weighted by the slope of the loss.

    All negative curvature is in it where the loss is convex in the outputs.

    Args:
        objective: the function f, with a ``gnvp(theta, v)``.
        theta: where, shape (n,). Default: ``objective.theta``, the network's own weights.
    """

    def matvec(self, v: Tensor) -> Tensor:
        """H v - G v by one product of each."""
        return self.objective.hvp(self.theta, v) - self.objective.gnvp(self.theta, v)

"""Symmetric linear operators on flat vectors of shape (n,): all that a spectrum needs to know."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.parameters import check_vector

__all__ = ["Dense", "Hessian", "LinearOperator", "as_operator"]


@runtime_checkable
class LinearOperator(Protocol):
    """A symmetric matrix (n, n) that is only ever multiplied. ``size`` is n."""

    @property
    def size(self) -> int:
        """n."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the vectors."""

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""

    def matvec(self, v: Tensor) -> Tensor:
        """The product with ``v`` (n,)."""


class Hessian:
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

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        if theta is None:
            theta = objective.theta  # type: ignore[attr-defined]  # a ModelObjective has its own
        check_vector("theta", theta, objective.size)
        self.objective = objective
        self.theta = theta.clone()
        self.size, self.dtype, self.device = objective.size, objective.dtype, objective.device

    def matvec(self, v: Tensor) -> Tensor:
        """H v by one Hessian-vector product."""
        return self.objective.hvp(self.theta, v)


class Dense:
    """A symmetric matrix (n, n) held as a tensor.

    Raises:
        ValueError: it is not square, not of floating dtype or not symmetric.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
            raise ValueError(f"matrix has shape {tuple(matrix.shape)}: give a square one of at least one row")
        if not matrix.is_floating_point():
            raise ValueError(f"matrix has dtype {matrix.dtype}: give a floating one, as matrix.double() does")
        # entries summed in other orders than their mirror images differ by some eps times the terms: sqrt(eps) of the
        # largest entry is far more than that. Where an entry is not finite, this says nothing
        asymmetry, scale = float((matrix - matrix.T).abs().max()), float(matrix.abs().max())
        if asymmetry > torch.finfo(matrix.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"matrix differs from its transpose by up to {asymmetry:.3g}, so it is not symmetric: give a symmetric "
                "one, such as (matrix + matrix.T) / 2"
            )
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def matvec(self, v: Tensor) -> Tensor:
        """The product of the matrix with ``v``."""
        return self.matrix @ v


class _FromSciPy:
    """A ``scipy.sparse.linalg.LinearOperator``, which works on NumPy arrays on the CPU."""

    def __init__(self, operator: Any) -> None:
        if operator.shape[0] != operator.shape[1]:
            raise ValueError(f"operator has shape {operator.shape}: give a square one")
        self._operator = operator
        self.size = operator.shape[0]
        self.dtype = torch.float32 if operator.dtype == np.float32 else torch.float64
        self.device = torch.device("cpu")

    def matvec(self, v: Tensor) -> Tensor:
        return torch.as_tensor(self._operator.matvec(v.numpy()), dtype=self.dtype)


class _FromPyHessian:
    """A ``pyhessian.hessian``: its parameters and its product, on one flat vector."""

    def __init__(self, hessian: Any) -> None:
        self._hessian = hessian
        self._shapes = [p.shape for p in hessian.params]
        self.size = sum(p.numel() for p in hessian.params)
        self.dtype, self.device = hessian.params[0].dtype, hessian.params[0].device

    def matvec(self, v: Tensor) -> Tensor:
        pieces = v.split([shape.numel() for shape in self._shapes])
        along = [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        if self._hessian.full_dataset:
            _, product = self._hessian.dataloader_hv_product(along)
        else:
            # the gradient's graph was built by PyHessian's constructor and is kept for every product
            product = torch.autograd.grad(self._hessian.gradsH, self._hessian.params, along, retain_graph=True)
        return torch.cat([p.detach().reshape(-1) for p in product])


def as_operator(source: Any) -> LinearOperator:
    """Anything with a symmetric product as an operator of ours.

    Args:
        source: one of ours; a square tensor or array; a ``scipy.sparse.linalg.LinearOperator``; or a
            ``pyhessian.hessian`` object.

    Raises:
        TypeError: ``source`` is none of these.
        ValueError: a matrix that is not square, floating and symmetric.

    Example:
        >>> import torch
        >>> as_operator(torch.diag(torch.tensor([1.0, 2.0]))).matvec(torch.ones(2))
        tensor([1., 2.])
    """
    if isinstance(source, scipy.sparse.linalg.LinearOperator):
        return _FromSciPy(source)
    if isinstance(source, LinearOperator):
        return source
    if isinstance(source, Tensor | np.ndarray):
        return Dense(torch.as_tensor(source))
    if type(source).__module__.partition(".")[0] == "pyhessian":
        return _FromPyHessian(source)
    raise TypeError(
        f"source={source!r} of type {type(source).__name__} is no operator: give an object with size, "
        "dtype, device and matvec(v), a square tensor, a SciPy LinearOperator or a pyhessian.hessian"
    )

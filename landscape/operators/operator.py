"""Symmetric linear operators on flat vectors of shape (n,)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from landscape.sums import dot, norm

__all__ = ["Dense", "LinearOperator", "check_same", "finite_norm"]


@runtime_checkable
class LinearOperator(Protocol):
    """A symmetric matrix (n, n), given by its product with a vector. ``size`` is n."""

    @property
    def size(self) -> int:
        """n."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors."""

    @property
    def device(self) -> torch.device:
        """The device of the vectors."""

    def matvec(self, v: Tensor) -> Tensor:
        """The product with ``v`` (n,)."""


class Dense:
    """A symmetric matrix (n, n) stored as a tensor.

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


def finite_norm(product: Tensor, which: str) -> float:
    """The norm of a product with an operator.

    Raises:
        FloatingPointError: it is not finite; the message begins with ``which`` product it is.
    """
    length = norm(product)
    if not length < float("inf"):
        raise FloatingPointError(
            f"{which} is not finite: a matrix needs finite entries; where the operator is made of derivatives, the "
            "loss or its derivatives overflow at theta, so check f(theta) and its gradient there first"
        )
    return length


def check_same(operator: LinearOperator, q: Tensor, known: float, source: str) -> None:
    """Check by one product that q'Hq / q'q is ``known``, as it was for the operator of a run to be resumed.

    Raises:
        ValueError: they differ by more than rounding; the message names ``source``, where the run is stored.
    """
    product = operator.matvec(q)
    found = dot(q, product) / dot(q, q)
    # threads and devices sum in other orders, which costs some eps of the terms; other weights change far more
    rounding = 1e3 * torch.finfo(operator.dtype).eps * norm(product) / norm(q)
    if not abs(found - known) <= rounding:
        raise ValueError(
            f"{source} holds a run of another operator: of one vector, q'Hq is {known:.9g} there and {found:.9g} here. "
            "Give the operator (theta, data and all) that it was begun with, or begin anew"
        )

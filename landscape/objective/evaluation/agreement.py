"""Whether two ways to compute a loss give the same function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from landscape.objective.products import gradient_of
from landscape.sums import norm

__all__ = ["agree"]


def agree(one: Callable[[], Tensor], other: Callable[[], Tensor], parameters: Sequence[Tensor]) -> bool:
    """Whether both give the same loss and gradient up to rounding; False if either raises an error.

    The tolerance is generous: another order of operations changes some digits, and may move a ReLU across its kink.
    """
    try:
        pairs = zip(_value_and_gradient(one, parameters), _value_and_gradient(other, parameters), strict=True)
    except Exception:  # shapes or layouts that do not fit, which may raise anything
        return False
    # in float64, where the square of any float32 number is finite: an overflow to inf would pass every comparison
    return all(norm(a - b) <= 1e4 * torch.finfo(a.dtype).eps * norm(a) for a, b in pairs)


def _value_and_gradient(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    value = loss()
    return value.detach().reshape(1), torch.cat([piece.reshape(-1) for piece in gradient_of(value, parameters)])

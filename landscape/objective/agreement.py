"""Whether two ways to calculate a loss are the same function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from landscape.objective.products import gradient_of

__all__ = ["agree"]


def agree(one: Callable[[], Tensor], other: Callable[[], Tensor], parameters: Sequence[Tensor]) -> bool:
    """Whether both give the same loss and gradient, to rounding; not so where one fails.

    Rounding is generous: another order of operations moves some digits, and some ReLU across its kink.
    """
    try:
        pairs = zip(_value_and_gradient(one, parameters), _value_and_gradient(other, parameters), strict=True)
    except RuntimeError:  # shapes or layouts that do not fit
        return False
    return all(bool((a - b).norm() <= 1e4 * torch.finfo(a.dtype).eps * a.norm()) for a, b in pairs)


def _value_and_gradient(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    value = loss()
    return value.detach(), torch.cat([piece.reshape(-1) for piece in gradient_of(value, parameters)])

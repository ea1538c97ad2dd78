"""Copies of tensors with their types and attributes, and bitwise comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["detached_copy", "identical", "parameter_like"]


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN included."""
    if one.is_nested or other.is_nested:  # nested tensors have no shape
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype or one.layout is not torch.strided:
        return one is other
    if one.is_quantized:  # cannot be viewed as bytes
        return one is other
    if one.is_meta:  # no data to compare
        return other.is_meta
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))


def detached_copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy that requires no gradient, of the same type and attributes; a floating tensor in ``dtype`` if given."""
    own = tensor.detach().clone()
    vars(own).update(vars(tensor))
    if dtype is not None and own.is_floating_point():
        own = own.to(dtype)
    return parameter_like(own, tensor, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


def parameter_like(own: Tensor, given: Tensor, *, requires_grad: bool = True) -> Tensor:
    """``own`` as a parameter, with the type and the attributes of ``given``."""
    kind = type(given) if isinstance(given, nn.Parameter) else nn.Parameter
    parameter = torch.Tensor._make_subclass(kind, own, requires_grad)
    vars(parameter).update(vars(given))
    return parameter

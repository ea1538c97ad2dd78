"""Bitwise comparison of tensors, and the effect of a conversion to another dtype."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bytes_of", "conversion_effect", "dtype_name", "equal"]


def bytes_of(tensor: Tensor) -> Tensor:
    """The bytes of the entries, as a flat uint8 tensor, with which NaNs can be compared too."""
    if tensor.is_quantized:  # cannot be viewed as bytes
        tensor = tensor.dequantize()
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether shape, dtype and bytes are equal."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bytes_of(a), bytes_of(b))


def conversion_effect(value: Tensor, dtype: torch.dtype) -> str:
    """A description of what conversion to ``dtype`` does to the values; "" if it does more than rounding."""
    if value.is_complex() != dtype.is_complex or value.is_quantized:
        return ""
    converted = value.to(dtype)
    if equal(converted.to(value.dtype), value):
        return "every value is kept"
    numbers = value.is_complex() or (value.is_floating_point() and dtype.is_floating_point)
    rounds = numbers and bool((converted.isfinite() == value.isfinite()).all())
    return "values are rounded" if rounds else ""


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")

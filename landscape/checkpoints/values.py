"""Tensors as they are stored: whether two are the same, and what becomes of one in another dtype."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bytes_of", "effect_of", "equal", "named"]


def bytes_of(tensor: Tensor) -> Tensor:
    """Its entries as they are stored, one after the other: NaNs too can be compared."""
    if tensor.is_quantized:  # whose memory cannot be looked at as bytes
        tensor = tensor.dequantize()
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether shape, dtype and bytes are the same."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bytes_of(a), bytes_of(b))


def effect_of(value: Tensor, dtype: torch.dtype) -> str:
    """What becomes of the values in another dtype, or nothing if they are lost."""
    if value.is_complex() != dtype.is_complex or value.is_quantized:
        return ""
    converted = value.to(dtype)
    if equal(converted.to(value.dtype), value):
        return "every value is kept"
    numbers = value.is_complex() or (value.is_floating_point() and dtype.is_floating_point)
    rounds = numbers and bool((converted.isfinite() == value.isfinite()).all())
    return "values are rounded" if rounds else ""


def named(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")

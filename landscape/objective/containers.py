"""What modules hold in nested lists and dictionaries: found, copied and exchanged."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CONTAINERS", "found", "own_copy", "parameter_like", "renewed", "same_bits"]

CONTAINERS = frozenset({dict, OrderedDict, defaultdict, list, deque, set, tuple})


def renewed(value: Any, swaps: Mapping[int, Any]) -> Any:
    """``value`` with its containers copied and what ``swaps`` names by ``id`` exchanged."""
    if id(value) in swaps:
        return swaps[id(value)]
    kind = type(value)
    if kind not in CONTAINERS:
        return value
    if kind is tuple:
        return tuple(renewed(item, swaps) for item in value)
    new = value.copy()
    if kind is list or kind is deque:
        for i, item in enumerate(value):
            new[i] = renewed(item, swaps)
    elif kind is not set:
        for key, item in value.items():
            new[key] = renewed(item, swaps)
    return new


def found(value: Any, kind: type) -> Iterator[Any]:
    """All of a kind, however they are nested in containers."""
    if isinstance(value, kind):
        yield value
    elif type(value) in CONTAINERS:
        for item in value.values() if isinstance(value, dict) else value:
            yield from found(item, kind)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype or one.layout is not torch.strided:
        return one is other
    if one.is_meta:  # no bits at all
        return other.is_meta
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))


def own_copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy without gradient; floating ones in ``dtype``."""
    own = tensor.detach().clone()
    vars(own).update(vars(tensor))
    if dtype is not None and own.is_floating_point():
        own = own.to(dtype)
    return parameter_like(own, tensor, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


def parameter_like(own: Tensor, given: Tensor, *, requires_grad: bool = True) -> Tensor:
    """``own`` as a parameter of the type and with the attributes of ``given``."""
    kind = type(given) if isinstance(given, nn.Parameter) else nn.Parameter
    parameter = torch.Tensor._make_subclass(kind, own, requires_grad)
    vars(parameter).update(vars(given))
    return parameter

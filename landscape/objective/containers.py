"""What modules hold in nested lists and dictionaries: found, copied and exchanged."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["CONTAINERS", "found", "renewed"]

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

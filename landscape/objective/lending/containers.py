"""What modules hold in nested lists and dictionaries: found, copied and exchanged.

A container may be held by several modules, and by closures and hooks besides. So while a network is lent its containers
stay the objects that they are, and what is in them is exchanged: whoever holds one sees what the others put there.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "Held",
    "anew",
    "every",
    "found",
    "held_by",
    "own_copy",
    "owned",
    "parameter_like",
    "renewed",
    "same_bits",
    "which",
]

# by methods of these and not by a subclass's own: a Counter adds in ``update``
_REGISTRIES = ("_parameters", "_buffers", "_modules")  # copied for each evaluation, which is less work than exchanging
_HOOKS = frozenset(vars(nn.Module())).difference(_REGISTRIES)
_EXCHANGED = Tensor | torch.Generator
_MUTABLE: tuple[Any, ...] = (OrderedDict, dict, list, deque, set)


@dataclass
class Held:
    """A container of the user's, and what is in it while the network is lent.

    Args:
        container: the one.
        content: a dict, a list of its items, or an array.
    """

    container: Any
    content: Any

    def __post_init__(self) -> None:
        self.array = isinstance(self.content, np.ndarray)
        items = () if self.array else tuple(self.content)
        if isinstance(self.content, dict):
            items += tuple(self.content.values())
        # whether something in it may be exchanged
        self.moves = _exchangeable(items)

    def now(self) -> Any:
        """A copy of what is in the container."""
        return _content(self.container)

    def has(self, content: Any) -> bool:
        """Whether that is in the array, bit for bit."""
        return self.container.tobytes() == content.tobytes()

    def put(self, content: Any) -> None:
        """Have ``content`` in it, and nothing else."""
        c = self.container
        if self.array:
            c[...] = content
        elif isinstance(c, list):
            list.__setitem__(c, slice(None), content)
        else:
            base = _base(c)
            base.clear(c)
            (deque.extend if base is deque else base.update)(c, content)

    def with_swaps(self, swaps: Mapping[int, Any]) -> Any:
        """The content with what ``swaps`` names by ``id`` exchanged."""
        if not (swaps and self.moves):
            return self.content
        if isinstance(self.content, dict):
            return {renewed(key, swaps): renewed(item, swaps) for key, item in self.content.items()}
        return [renewed(item, swaps) for item in self.content]


def held_by(states: Sequence[Mapping[str, Any]]) -> list[Held]:
    """The containers that the attributes of modules hold at any depth, each once, with what is in them now.

    A module's registries are its own, and not among them, but where modules share one; nor are hooks where there are
    none.
    """
    registries = Counter(id(state.get(key)) for state in states for key in _REGISTRIES)
    left = [
        value
        for state in states
        for key, value in state.items()
        if not (key in _HOOKS and not value) and not (key in _REGISTRIES and registries[id(value)] == 1)
    ]
    containers: dict[int, Any] = {}
    while left:
        item = left.pop()
        if id(item) in containers:
            continue
        if _base(item) is not None or (type(item) is np.ndarray and item.flags.writeable):
            containers[id(item)] = item
        left += _items(item)
    return [Held(container, _content(container)) for container in containers.values()]


def every(kind: type, states: Sequence[Mapping[str, Any]], held: Sequence[Held]) -> Iterator[Any]:
    """All of a kind in ``states``, and in the content of ``held`` instead of what is in its containers now."""
    yield from found((*states, *(h.content for h in held if not h.array)), kind, {id(h.container) for h in held})


def owned(
    states: Sequence[Mapping[str, Any]], held: Sequence[Held], ours: dict[int, Any], dtype: torch.dtype | None
) -> tuple[list[dict[str, Any]], list[Held]]:
    """Both with copies of their tensors, which ``ours`` then names by ``id``; containers in ``held`` stay theirs."""
    for tensor in every(Tensor, states, held):
        if id(tensor) not in ours:
            ours[id(tensor)] = own_copy(tensor, dtype)
    theirs = {id(h.container) for h in held}

    def own(value: Any) -> Any:
        base = None if id(value) in theirs else _base(value)
        if base is None:
            return renewed(value, ours)
        new = copy.copy(value)
        if issubclass(base, dict):
            new.update((key, renewed(item, ours)) for key, item in value.items())
        return new

    return (
        [{key: own(value) for key, value in state.items()} for state in states],
        [Held(h.container, h.with_swaps(ours)) for h in held],
    )


def which(states: Sequence[Mapping[str, Any]], held: Sequence[Held]) -> tuple[list[list[str]], list[list[str]]]:
    """Which registries to copy for each evaluation, and which attributes are tuples with something to exchange."""
    theirs = {id(h.container) for h in held}
    registries = [[k for k in _REGISTRIES if isinstance(s.get(k), dict) and id(s[k]) not in theirs] for s in states]
    tuples = [[k for k, v in s.items() if issubclass(type(v), tuple) and _exchangeable(v)] for s in states]
    return registries, tuples


def anew(
    states: Sequence[dict[str, Any]], keys: tuple[list[list[str]], list[list[str]]], swaps: Mapping[int, Any]
) -> Iterator[dict[str, Any]]:
    """Copies for one evaluation, with what ``swaps`` names exchanged; ``keys`` as ``which`` gives them."""
    for state, copied, tuples in zip(states, *keys, strict=True):
        new = state.copy()
        for key in copied:
            new[key] = own = state[key].copy()
            if swaps:
                own.update((name, swaps[id(item)]) for name, item in state[key].items() if id(item) in swaps)
        if swaps:
            for key, value in state.items():
                if id(value) in swaps:
                    new[key] = swaps[id(value)]
            for key in tuples:
                new[key] = renewed(state[key], swaps)
        yield new


def renewed(value: Any, swaps: Mapping[int, Any]) -> Any:
    """What ``swaps`` has for ``value``; a tuple anew, where there is something for what is in it."""
    if id(value) in swaps:
        return swaps[id(value)]
    kind = type(value)
    if not issubclass(kind, tuple):
        return value
    items = [renewed(item, swaps) for item in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return kind._make(items) if hasattr(kind, "_make") else tuple(items) if kind is tuple else value


def found(value: Any, kind: Any, but: Collection[int] = (), *, deep: bool = True) -> Iterator[Any]:
    """All of a kind, however they are nested in containers, each container once.

    Args:
        value: to look into.
        kind: a class, or a union of some.
        but: ids of containers that are passed by.
        deep: whether to look into other containers than tuples.
    """
    left, seen = [value], set(but)
    while left:
        item = left.pop()
        # the type's word: proxies of what is dead raise where they are asked for their class
        if issubclass(type(item), kind):
            yield item
        elif id(item) not in seen and (deep or issubclass(type(item), tuple)):
            seen.add(id(item))
            left += reversed(_items(item))


def _exchangeable(items: tuple[Any, ...]) -> bool:
    return any(True for _ in found(items, _EXCHANGED, deep=False))


def _base(value: Any) -> Any:
    kind = type(value)
    return next((base for base in _MUTABLE if issubclass(kind, base)), None)


def _content(container: Any) -> Any:
    if isinstance(container, np.ndarray):
        return container.copy()
    base = _base(container)
    return dict(base.items(container)) if issubclass(base, dict) else list(base.__iter__(container))


def _items(value: Any) -> Sequence[Any]:
    base = _base(value)
    if base is None:
        return value if issubclass(type(value), tuple) else ()
    return list(base.values(value) if issubclass(base, dict) else base.__iter__(value))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, NaN included."""
    if one.is_nested or other.is_nested:  # which have no shape
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype or one.layout is not torch.strided:
        return one is other
    if one.is_quantized:  # whose memory cannot be looked at as bytes
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

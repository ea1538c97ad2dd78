"""Tensors and other objects in the nested lists and dictionaries of modules: find, copy and replace them.

A container may be shared by several modules, closures and hooks. So while a network is lent, its containers remain the
same objects, and only their contents are replaced.
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

from landscape.objective.lending.copies import detached_copy

__all__ = [
    "Container",
    "all_instances",
    "containers_in",
    "copies_of",
    "copy_keys",
    "fresh_states",
    "instances_in",
    "replaced",
]

_REGISTRIES = ("_parameters", "_buffers", "_modules")  # copied for each evaluation, which is faster than replacing
_HOOKS = frozenset(vars(nn.Module())).difference(_REGISTRIES)
_REPLACEABLE = Tensor | torch.Generator
# subclasses are changed by the methods of these, since they may override them: ``Counter.update`` adds
_MUTABLE: tuple[Any, ...] = (OrderedDict, dict, list, deque, set)


@dataclass
class Container:
    """A container of the user's, and its content while the network is lent.

    Args:
        container: the container.
        content: a dict, a list of the items, or an array.
    """

    container: Any
    content: Any

    def __post_init__(self) -> None:
        self.is_array = isinstance(self.content, np.ndarray)
        items = () if self.is_array else tuple(self.content)
        if isinstance(self.content, dict):
            items += tuple(self.content.values())
        # whether it has items that may have to be replaced
        self.replaceable = _has_replaceable(items)

    def current(self) -> Any:
        """A copy of the current content of the container."""
        return _content(self.container)

    def equals(self, content: Any) -> bool:
        """Whether the array has this content, bit for bit."""
        return self.container.tobytes() == content.tobytes()

    def write(self, content: Any) -> None:
        """Replace the content of the container."""
        c = self.container
        if self.is_array:
            c[...] = content
        elif isinstance(c, list):
            list.__setitem__(c, slice(None), content)
        else:
            base = _base(c)
            base.clear(c)
            (deque.extend if base is deque else base.update)(c, content)

    def with_swaps(self, swaps: Mapping[int, Any]) -> Any:
        """The content, with objects replaced by ``swaps[id(object)]``."""
        if not (swaps and self.replaceable):
            return self.content
        if isinstance(self.content, dict):
            return {replaced(key, swaps): replaced(item, swaps) for key, item in self.content.items()}
        return [replaced(item, swaps) for item in self.content]


def containers_in(states: Sequence[Mapping[str, Any]]) -> list[Container]:
    """The containers in the attributes of modules, at any depth, each once, with their current content.

    Not included are a module's registries, unless modules share one, and empty dictionaries of hooks.
    """
    registries = Counter(id(state.get(key)) for state in states for key in _REGISTRIES)
    queue = [
        value
        for state in states
        for key, value in state.items()
        if not (key in _HOOKS and not value) and not (key in _REGISTRIES and registries[id(value)] == 1)
    ]
    containers: dict[int, Any] = {}
    while queue:
        item = queue.pop()
        if id(item) in containers:
            continue
        if _base(item) is not None or (type(item) is np.ndarray and item.flags.writeable):
            containers[id(item)] = item
        queue += _items(item)
    return [Container(container, _content(container)) for container in containers.values()]


def all_instances(kind: type, states: Sequence[Mapping[str, Any]], contents: Sequence[Container]) -> Iterator[Any]:
    """All instances of a type in ``states``, with ``contents`` instead of the current content of their containers."""
    yield from instances_in(
        (*states, *(h.content for h in contents if not h.is_array)), kind, {id(h.container) for h in contents}
    )


def copies_of(
    states: Sequence[Mapping[str, Any]],
    contents: Sequence[Container],
    ours: dict[int, Any],
    dtype: torch.dtype | None,
) -> tuple[list[dict[str, Any]], list[Container]]:
    """States and contents with copies of all tensors, which are added to ``ours`` by the ``id`` of the originals.

    The containers in ``contents`` themselves are not copied.
    """
    for tensor in all_instances(Tensor, states, contents):
        if id(tensor) not in ours:
            ours[id(tensor)] = detached_copy(tensor, dtype)
    theirs = {id(h.container) for h in contents}

    def own(value: Any) -> Any:
        base = None if id(value) in theirs else _base(value)
        if base is None:
            return replaced(value, ours)
        new = copy.copy(value)
        if issubclass(base, dict):
            new.update((key, replaced(item, ours)) for key, item in value.items())
        return new

    return (
        [{key: own(value) for key, value in state.items()} for state in states],
        [Container(h.container, h.with_swaps(ours)) for h in contents],
    )


def copy_keys(
    states: Sequence[Mapping[str, Any]], contents: Sequence[Container]
) -> tuple[list[list[str]], list[list[str]]]:
    """The registries to copy for each evaluation, and the attributes that are tuples with items to replace."""
    theirs = {id(h.container) for h in contents}
    registries = [[k for k in _REGISTRIES if isinstance(s.get(k), dict) and id(s[k]) not in theirs] for s in states]
    tuples = [[k for k, v in s.items() if issubclass(type(v), tuple) and _has_replaceable(v)] for s in states]
    return registries, tuples


def fresh_states(
    states: Sequence[dict[str, Any]], keys: tuple[list[list[str]], list[list[str]]], swaps: Mapping[int, Any]
) -> Iterator[dict[str, Any]]:
    """Copies for one evaluation, with objects replaced by ``swaps[id(object)]``; ``keys`` from ``copy_keys``."""
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
                new[key] = replaced(state[key], swaps)
        yield new


def replaced(value: Any, swaps: Mapping[int, Any]) -> Any:
    """``swaps[id(value)]`` if there is one; a new tuple if ``value`` is a tuple with items to replace; or ``value``."""
    if id(value) in swaps:
        return swaps[id(value)]
    kind = type(value)
    if not issubclass(kind, tuple):
        return value
    items = [replaced(item, swaps) for item in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return kind._make(items) if hasattr(kind, "_make") else tuple(items) if kind is tuple else value


def instances_in(value: Any, kind: Any, excluded: Collection[int] = (), *, deep: bool = True) -> Iterator[Any]:
    """All instances of a type, however deeply nested in containers, visiting each container once.

    Args:
        value: the object to search.
        kind: a class, or a union of classes.
        excluded: ids of containers that are skipped.
        deep: whether to search other containers than tuples.
    """
    queue, seen = [value], set(excluded)
    while queue:
        item = queue.pop()
        # not isinstance, since dead weak proxies raise an error when asked for their class
        if issubclass(type(item), kind):
            yield item
        elif id(item) not in seen and (deep or issubclass(type(item), tuple)):
            seen.add(id(item))
            queue += reversed(_items(item))


def _has_replaceable(items: tuple[Any, ...]) -> bool:
    return any(True for _ in instances_in(items, _REPLACEABLE, deep=False))


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

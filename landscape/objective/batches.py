"""The examples of an objective: read once, kept on the device, weighted by their number.

A batch is whatever forward takes: a tensor, a tuple, a mapping, a dataclass, or an object with a ``.to(device)``. What
is in it is reached through :func:`mapped` and :func:`tensors_in` alone. A list is taken for a tuple, since a DataLoader
makes lists of pairs.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from landscape.objective.generators import generators_kept

__all__ = [
    "can_be_split",
    "digest",
    "is_pair",
    "lent_batch",
    "mapped",
    "read_batches",
    "rows_of",
    "tensors_in",
]


def read_batches(
    data: Any,
    batch_size: int | None,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    count: Callable[[Any], Any] | None = None,
) -> list[tuple[Any, float]]:
    """Every batch of ``data`` on ``device``, with its number of examples.

    Args:
        data: a pair of tensors ``(inputs, targets)``, split into batches of ``batch_size``; or an
            iterable of batches (a DataLoader, a list), read once and copied, since a loader may refill its tensors.
        batch_size: examples per batch, for a pair of tensors. None: all in one.
        device: where the batches are kept.
        dtype: of floating tensors. Default: their own.
        count: how many examples a batch weighs. Default: the first dimension that its tensors have in common.

    Raises:
        TypeError: ``data`` is neither.
        ValueError: there is no example, or a batch without a number of examples.
    """
    batches: Iterable[Any] = data
    pair = is_pair(data)
    if pair:
        inputs, targets = data
        if len(inputs) != len(targets):
            raise ValueError(f"data has {len(inputs)} inputs and {len(targets)} targets: give one target for each")
        # nearly equal parts: a last batch of one would have no variance for BatchNorm
        parts = max(1, -(-len(inputs) // (batch_size or max(1, len(inputs)))))
        batches = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
    elif isinstance(data, Tensor | str | bytes | Mapping) or not isinstance(data, Iterable | torch.utils.data.Dataset):
        raise TypeError(
            f"data is a {type(data).__name__}: give (inputs, targets), or a list or DataLoader of batches; a single "
            "batch goes into a list"
        )
    if type(data) is tuple and not pair and isinstance(data[-1] if data else None, Tensor):
        raise TypeError(
            f"data is a tuple of {len(data)} items that are no pair of tensors, and so neither a pair nor batches: "
            "give (inputs, targets), or a batch such as ((x1, x2), y) inside a list"
        )
    with generators_kept():  # a DataLoader draws a seed from torch's generator
        kept = [_kept(batch, device, dtype, copied=not pair) for batch in batches]
    counted = [(batch, weight_of(batch, count)) for batch in kept]
    counted = [(batch, weight) for batch, weight in counted if weight > 0]
    if not counted:
        raise ValueError("data is empty: give at least one example")
    return counted


def is_pair(data: Any) -> bool:
    """Whether ``data`` is ``(inputs, targets)``, which may be split into batches of any size."""
    return type(data) is tuple and len(data) == 2 and all(isinstance(d, Tensor) for d in data)


def weight_of(batch: Any, count: Callable[[Any], Any] | None) -> float:
    """How many examples a batch weighs.

    Raises:
        ValueError: ``count`` gives no number, or without it the tensors have no first dimension in common.
    """
    if count is None:
        rows = rows_of(batch)
        if rows is None:
            raise ValueError(_no_rows(batch))
        return rows
    number = count(batch)
    if isinstance(number, Tensor) and number.numel() == 1:
        number = number.item()
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not 0 <= float(number) < float("inf"):
        raise ValueError(f"count gives {number!r} for a batch: give a function that returns its number of examples")
    return number if isinstance(number, int) else float(number)


def rows_of(batch: Any) -> int | None:
    """The first dimension that all tensors in the batch have in common; None where there is none."""
    lengths = {t.shape[0] if t.dim() else None for t in tensors_in(batch)}
    return lengths.pop() if len(lengths) == 1 else None


def can_be_split(batch: Any) -> bool:
    """Whether examples can be taken out: not where a list or array tells something of each beside the tensors."""
    return rows_of(batch) is not None and not any(_tells(item) for item in _items(batch))


def _items(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        yield from batch.values()
    elif isinstance(batch, tuple):
        for item in batch:
            yield item
            yield from _items(item)
    elif _has_tensors(batch) and not isinstance(batch, Tensor):
        yield from vars(batch).values()


def _tells(item: Any) -> bool:
    if isinstance(item, list):
        return not all(isinstance(each, Tensor) for each in item)
    return isinstance(item, np.ndarray) and item.ndim > 0


def mapped(function: Callable[[Tensor], Any], item: Any) -> Any:
    """The same with every tensor exchanged, in new containers of the same types."""
    if isinstance(item, Tensor):
        return function(item)
    if isinstance(item, PackedSequence):
        return item  # its tensors belong together in a way of their own
    if isinstance(item, tuple):
        items = [mapped(function, each) for each in item]
        return type(item)(*items) if hasattr(item, "_fields") else type(item)(items)
    if isinstance(item, list):
        return [mapped(function, each) for each in item]
    if isinstance(item, Mapping):
        new: Any = dict(item) if type(item) is dict else copy.copy(item)
        for key in item:
            new[key] = mapped(function, item[key])
        return new
    if isinstance(item, np.ndarray):
        return item.copy()
    if _has_tensors(item):
        new = copy.copy(item)
        for key, value in vars(item).items():
            object.__setattr__(new, key, mapped(function, value))  # a frozen dataclass too
        return new
    return item


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All of them, however they are nested."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, PackedSequence):
        yield batch.data
        yield batch.batch_sizes.sum()  # of no dimension, as none counts examples
    else:
        items: Iterable[Any] = ()
        if isinstance(batch, Mapping):
            items = batch.values()
        elif isinstance(batch, list | tuple):
            items = batch
        elif _has_tensors(batch):
            items = vars(batch).values()
        for item in items:
            yield from tensors_in(item)


def lent_batch(batch: Any, *, cloned: bool) -> Any:
    """The batch for one evaluation, in containers and tensors of its own: forward may pop keys from it.

    Args:
        batch: the one that is kept.
        cloned: whether forward writes into its tensors, so that their memory is copied as well.
    """
    return mapped(_cloned if cloned else Tensor.detach, batch)


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def digest(batches: list[tuple[Any, float]]) -> str:
    """SHA-256 of the examples, in whatever order and batches they come."""
    examples = []
    for batch, _ in batches:
        tensors = [t.detach().cpu().contiguous() for t in tensors_in(batch)]
        rows = rows_of(batch)
        for i in range(1 if rows is None else rows):
            sha = hashlib.sha256()
            for tensor in tensors:
                piece = tensor if rows is None else tensor[i]
                sha.update(piece.flatten().view(torch.uint8).numpy().tobytes())
            examples.append(sha.digest())
    return hashlib.sha256(b"".join(sorted(examples))).hexdigest()


def _kept(batch: Any, device: torch.device, dtype: torch.dtype | None, *, copied: bool) -> Any:
    def moved(tensor: Tensor) -> Tensor:
        # autograd takes no tensor that was made in inference mode, but for its copy
        copy_it = copied or tensor.is_inference()
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None, copy=copy_it)

    def kept(item: Any) -> Any:
        if isinstance(item, PackedSequence):
            moved_on: Any = item.to  # whose stub knows less than it takes
            return moved_on(device) if dtype is None else moved_on(device, dtype)
        if type(item) in (tuple, list):
            return tuple(map(kept, item)) if item is batch else type(item)(map(kept, item))
        # an object may hold more than we see, and knows how to move it
        return mapped(moved, item.to(device) if _has_tensors(item) and hasattr(item, "to") else item)

    return kept(batch)


def _has_tensors(item: Any) -> bool:
    """Dataclasses, objects that move to a device by themselves, and others that hold a tensor."""
    if isinstance(item, type | torch.nn.Module | np.ndarray):
        return False
    if dataclasses.is_dataclass(item) or (callable(getattr(item, "to", None)) and hasattr(item, "__dict__")):
        return True
    return any(isinstance(value, Tensor) for value in getattr(item, "__dict__", {}).values())


def _no_rows(batch: Any) -> str:
    shapes = [tuple(t.shape) for t in tensors_in(batch)]
    if not shapes:
        return (
            f"data has a batch of type {type(batch).__name__} without a tensor: give (inputs, targets), or a "
            "dictionary or list of tensors, or with count= a function of the batch that returns its number of examples"
        )
    return (
        f"data has a batch of tensors of shapes {shapes}: all must begin with the number of examples, or count= give "
        "it, a function of the batch. A Dataset goes into a DataLoader first"
    )

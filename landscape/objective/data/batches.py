"""Batches: what is in one, how many examples it weighs, whether they can be taken out of it.

A batch is whatever forward takes: a tensor, a tuple, a mapping, a dataclass, or an object with a ``.to(device)``. What
is in it is reached through :func:`mapped` and :func:`tensors_in` alone. A list is taken for a tuple, since a DataLoader
makes lists of pairs.

Lists and tuples within a batch are of two kinds that look alike: inputs, each with a row for every example, as a
DataLoader makes of nested tuples; or the examples themselves, as detection networks take images of different sizes.
Tensors outside of them tell which.
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

__all__ = [
    "can_be_split",
    "children",
    "digest",
    "has_rows",
    "holds_tensors",
    "lent_batch",
    "mapped",
    "rows_of",
    "tensors_in",
    "weight_of",
]


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
    return int(number) if isinstance(number, numbers.Integral) else float(number)


def rows_of(batch: Any) -> int | None:
    """The first dimension that its tensors have in common, or where a list holds examples, their number.

    None where there is none, and where all tensors are within lists or tuples, so that neither tells.
    """
    lengths = set(map(_length, _outside_lists(batch)))
    if len(lengths) != 1:
        return None
    (rows,) = lengths
    return rows if all(_agrees(item, rows) for item in _items(batch) if _is_nested(item)) else None


def can_be_split(batch: Any) -> bool:
    """Whether taking rows out of its tensors takes out examples, with all that it tells of each."""
    rows = rows_of(batch)
    return rows is not None and all(_splits(item, rows) for item in _items(batch))


def _items(batch: Any) -> Iterator[Any]:
    """What is in it, with lists and tuples within as they are."""
    if isinstance(batch, Tensor | PackedSequence):
        yield batch
    for item in children(batch):
        if _is_nested(item) or not _is_container(item):
            yield item
        else:
            yield from _items(item)


def _outside_lists(batch: Any) -> list[Tensor]:
    return [tensor for item in _items(batch) if not _is_nested(item) for tensor in tensors_in(item)]


def _is_nested(item: Any) -> bool:
    return type(item) in (list, tuple)


def _length(tensor: Tensor) -> int | None:
    return tensor.shape[0] if tensor.dim() else None


def has_rows(tensor: Tensor) -> bool:
    """Whether some of its rows can be taken out: of a sparse one they may be the nodes of a graph."""
    return tensor.layout is torch.strided and not tensor.is_nested and tensor.dim() > 0


def _agrees(nested: list[Any] | tuple[Any, ...], rows: int | None) -> bool:
    tensors = list(tensors_in(nested))
    return not tensors or len(nested) == rows or all(_length(t) == rows for t in tensors)


def _splits(item: Any, rows: int) -> bool:
    if isinstance(item, Tensor):
        return has_rows(item)
    if isinstance(item, np.ndarray):
        return item.ndim == 0
    if _is_nested(item) and len(item) == rows:  # it may hold the examples
        return False
    if isinstance(item, list) and not all(isinstance(each, Tensor) for each in item):
        return False
    return all(_splits(each, rows) for each in children(item))


def mapped(function: Callable[[Tensor], Any], item: Any) -> Any:
    """The same with every tensor exchanged, in new containers of the same types."""
    if isinstance(item, Tensor):
        new: Any = function(item)
        # what the loss is to be differentiated by begins a graph of its own each time
        return new.detach().requires_grad_() if item.requires_grad else new
    if isinstance(item, PackedSequence):
        return item._replace(data=mapped(function, item.data))  # the others say where each sequence is in it
    if isinstance(item, tuple):
        items = [mapped(function, each) for each in item]
        return type(item)(*items) if hasattr(item, "_fields") else type(item)(items)
    if isinstance(item, list):
        return [mapped(function, each) for each in item]
    if isinstance(item, Mapping):
        new = copy.copy(item) if hasattr(item, "__setitem__") else dict(item)
        for key in item:
            new[key] = mapped(function, item[key])
        return new
    if isinstance(item, np.ndarray):
        return item.copy()
    if holds_tensors(item):
        new = copy.copy(item)
        for key, value in _attributes(item).items():
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
        for item in children(batch):
            yield from tensors_in(item)


def _is_container(item: Any) -> bool:
    if isinstance(item, Tensor | PackedSequence):
        return False
    return isinstance(item, Mapping | list | tuple) or holds_tensors(item)


def children(item: Any) -> Iterable[Any]:
    """What a container holds; nothing where it is none."""
    if not _is_container(item):
        return ()
    if isinstance(item, Mapping):
        return item.values()
    return item if isinstance(item, list | tuple) else _attributes(item).values()


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
        tensors, rows = list(tensors_in(batch)), rows_of(batch)
        if not all(has_rows(t) and _length(t) == rows for t in tensors):
            rows = None  # all of it is one
        plain = [part for tensor in tensors for part in _plain(tensor.detach().cpu())]
        for i in range(1 if rows is None else rows):
            sha = hashlib.sha256()
            for part in plain:
                piece = part if rows is None else part[i]
                sha.update(piece.flatten().view(torch.uint8).numpy().tobytes())
            examples.append(sha.digest())
    return hashlib.sha256(b"".join(sorted(examples))).hexdigest()


def _plain(tensor: Tensor) -> list[Tensor]:
    """The same in tensors whose memory can be read; sparse ones alike in all layouts."""
    if tensor.layout is torch.strided:
        return [tensor.resolve_conj().resolve_neg().contiguous()]
    entries = tensor.to_sparse_coo().coalesce()
    return [torch.tensor(tensor.shape), entries.indices().contiguous(), entries.values().contiguous()]


def holds_tensors(item: Any) -> bool:
    """Dataclasses, objects that move to a device by themselves, and others that hold a tensor."""
    if isinstance(item, type | torch.nn.Module | np.ndarray):
        return False
    if dataclasses.is_dataclass(item) or (callable(getattr(item, "to", None)) and hasattr(item, "__dict__")):
        return True
    return any(isinstance(value, Tensor) for value in getattr(item, "__dict__", {}).values())


def _attributes(item: Any) -> dict[str, Any]:
    """What an object holds; a dataclass may hold it in slots."""
    fields = dataclasses.fields(item) if dataclasses.is_dataclass(item) else ()
    held = {field.name: getattr(item, field.name) for field in fields if hasattr(item, field.name)}
    return {**held, **getattr(item, "__dict__", {})}


def _no_rows(batch: Any) -> str:
    tensors = list(tensors_in(batch))
    shapes = f"{[tuple(t.shape) for t in tensors[:5]]}{' and more' if len(tensors) > 5 else ''}"
    if not tensors:
        return (
            f"data has a batch of type {type(batch).__name__} without a tensor: give (inputs, targets), or a "
            "dictionary or list of tensors, or with count= a function of the batch that returns its number of examples"
        )
    if not _outside_lists(batch):
        return (
            f"data has a batch whose tensors, of shapes {shapes}, are all within lists or tuples, so whether these "
            "hold inputs or examples is not known: give count=, a function of the batch that returns its number of "
            "examples, as count=lambda batch: len(batch[0]) where they hold examples"
        )
    return (
        f"data has a batch of tensors of shapes {shapes}: all must begin with the number of examples, or count= give "
        "it, a function of the batch. A Dataset goes into a DataLoader first"
    )

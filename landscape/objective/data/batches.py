"""The structure of a batch: its tensors, its number of examples, and whether it can be split into examples.

A batch is whatever forward accepts: a tensor, a tuple, a mapping, a dataclass, or an object with a ``.to(device)``. Its
tensors are accessed through :func:`map_tensors` and :func:`tensors_in` only. A list is treated as a tuple, since
DataLoaders turn pairs into lists.

A list or tuple inside a batch is ambiguous: it holds either several inputs, each with one row per example (as a
DataLoader collates nested tuples), or one item per example (as detection networks take images of different sizes).
Tensors outside such lists give the number of examples, which decides between the two.
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
    "copied_batch",
    "digest",
    "has_rows",
    "holds_tensors",
    "map_tensors",
    "rows_of",
    "tensors_in",
    "weight_of",
]


# each batch with its weight in the mean: its number of examples
Batches = list[tuple[Any, float]]


def weight_of(batch: Any, count: Callable[[Any], Any] | None) -> float:
    """The weight of a batch in the mean: its number of examples, or what ``count`` returns.

    Raises:
        ValueError: ``count`` returns no number, or without it the tensors have no first dimension in common.
    """
    if count is None:
        rows = rows_of(batch)
        if rows is None:
            raise ValueError(_no_rows_message(batch))
        return rows
    number = count(batch)
    if isinstance(number, Tensor) and number.numel() == 1:
        number = number.item()
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not 0 <= float(number) < float("inf"):
        raise ValueError(f"count gives {number!r} for a batch: give a function that returns its number of examples")
    return int(number) if isinstance(number, numbers.Integral) else float(number)


def rows_of(batch: Any) -> int | None:
    """The number of examples: the first dimension that the tensors have in common, or the length of a list of examples.

    None if they have none in common, or if all tensors are inside lists or tuples, which leaves it ambiguous.
    """
    lengths = set(map(_length, _outside_lists(batch)))
    if len(lengths) != 1:
        return None
    (rows,) = lengths
    return rows if all(_matches_rows(item, rows) for item in _items(batch) if _is_nested(item)) else None


def can_be_split(batch: Any) -> bool:
    """Whether selecting rows of its tensors selects examples, with everything that belongs to them."""
    rows = rows_of(batch)
    return rows is not None and all(_is_splittable(item, rows) for item in _items(batch))


def _items(batch: Any) -> Iterator[Any]:
    """The items of a batch; lists and tuples inside it are yielded whole."""
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
    """Whether rows can be selected. Not so for sparse tensors, whose rows may be the nodes of a graph."""
    return tensor.layout is torch.strided and not tensor.is_nested and tensor.dim() > 0


def _matches_rows(nested: list[Any] | tuple[Any, ...], rows: int | None) -> bool:
    tensors = list(tensors_in(nested))
    return not tensors or len(nested) == rows or all(_length(t) == rows for t in tensors)


def _is_splittable(item: Any, rows: int) -> bool:
    if isinstance(item, Tensor):
        return has_rows(item)
    if isinstance(item, np.ndarray):
        return item.ndim == 0
    if _is_nested(item) and len(item) == rows:  # it may hold one item per example
        return False
    if isinstance(item, list) and not all(isinstance(each, Tensor) for each in item):
        return False
    return all(_is_splittable(each, rows) for each in children(item))


def map_tensors(function: Callable[[Tensor], Any], item: Any) -> Any:
    """Apply ``function`` to every tensor, and return new containers of the same types."""
    if isinstance(item, Tensor):
        new: Any = function(item)
        # a tensor that the loss differentiates with respect to is a new leaf in each evaluation
        return new.detach().requires_grad_() if item.requires_grad else new
    if isinstance(item, PackedSequence):
        return item._replace(data=map_tensors(function, item.data))  # the other fields are indices into it
    if isinstance(item, tuple):
        items = [map_tensors(function, each) for each in item]
        return type(item)(*items) if hasattr(item, "_fields") else type(item)(items)
    if isinstance(item, list):
        return [map_tensors(function, each) for each in item]
    if isinstance(item, Mapping):
        new = copy.copy(item) if hasattr(item, "__setitem__") else dict(item)
        for key in item:
            new[key] = map_tensors(function, item[key])
        return new
    if isinstance(item, np.ndarray):
        return item.copy()
    if holds_tensors(item):
        new = copy.copy(item)
        for key, value in _attributes(item).items():
            object.__setattr__(new, key, map_tensors(function, value))  # works for frozen dataclasses too
        return new
    return item


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All tensors in a batch, however deeply nested."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, PackedSequence):
        yield batch.data
        yield batch.batch_sizes.sum()  # zero-dimensional: no dimension of it counts examples
    else:
        for item in children(batch):
            yield from tensors_in(item)


def _is_container(item: Any) -> bool:
    if isinstance(item, Tensor | PackedSequence):
        return False
    return isinstance(item, Mapping | list | tuple) or holds_tensors(item)


def children(item: Any) -> Iterable[Any]:
    """The items of a container; empty if ``item`` is not a container."""
    if not _is_container(item):
        return ()
    if isinstance(item, Mapping):
        return item.values()
    return item if isinstance(item, list | tuple) else _attributes(item).values()


def copied_batch(batch: Any, *, cloned: bool) -> Any:
    """A copy of the batch for one evaluation, so that forward may change its containers, e.g. pop keys.

    Args:
        batch: the stored batch.
        cloned: whether to copy the tensors' memory as well, because forward writes into it.
    """
    return map_tensors(_cloned if cloned else Tensor.detach, batch)


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def digest(batches: list[tuple[Any, float]]) -> str:
    """SHA-256 of the examples, independent of their order and of the batches."""
    examples = []
    for batch, _ in batches:
        tensors, rows = list(tensors_in(batch)), rows_of(batch)
        if not all(has_rows(t) and _length(t) == rows for t in tensors):
            rows = None  # hash the batch as a whole
        plain = [part for tensor in tensors for part in _readable_parts(tensor.detach().cpu())]
        for i in range(1 if rows is None else rows):
            sha = hashlib.sha256()
            for part in plain:
                piece = part if rows is None else part[i]
                sha.update(piece.flatten().view(torch.uint8).numpy().tobytes())
            examples.append(sha.digest())
    return hashlib.sha256(b"".join(sorted(examples))).hexdigest()


def _readable_parts(tensor: Tensor) -> list[Tensor]:
    """Strided tensors with the same content; a sparse tensor gives the same ones in every layout."""
    if tensor.layout is torch.strided:
        return [tensor.resolve_conj().resolve_neg().contiguous()]
    entries = tensor.to_sparse_coo().coalesce()
    return [torch.tensor(tensor.shape), entries.indices().contiguous(), entries.values().contiguous()]


def holds_tensors(item: Any) -> bool:
    """Whether it is a dataclass, has a ``.to(device)``, or has a tensor among its attributes."""
    if isinstance(item, type | torch.nn.Module | np.ndarray):
        return False
    if dataclasses.is_dataclass(item) or (callable(getattr(item, "to", None)) and hasattr(item, "__dict__")):
        return True
    return any(isinstance(value, Tensor) for value in getattr(item, "__dict__", {}).values())


def _attributes(item: Any) -> dict[str, Any]:
    """The attributes of an object, including the slots of a dataclass."""
    fields = dataclasses.fields(item) if dataclasses.is_dataclass(item) else ()
    attributes = {field.name: getattr(item, field.name) for field in fields if hasattr(item, field.name)}
    return {**attributes, **getattr(item, "__dict__", {})}


def _no_rows_message(batch: Any) -> str:
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

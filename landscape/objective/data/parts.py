"""Disjoint parts of the data: select examples from batches, and concatenate them into new batches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from landscape.objective.data.batches import can_be_split, children, map_tensors, rows_of

__all__ = ["batch_kind", "concatenated", "partition", "select", "split_batches", "split_examples"]


def partition(batches: list[Any], parts: int, *, whole: bool) -> list[list[Any]]:
    """Partition the examples into ``parts``; if ``whole``, or if a batch cannot be split, partition the batches.

    Raises:
        ValueError: a part would be empty.
    """
    whole = whole or not all(map(can_be_split, batches))
    units, what = (len(batches), "batches") if whole else (sum(rows_of(batch) or 0 for batch in batches), "examples")
    if not 1 <= parts <= units:
        raise ValueError(f"parts={parts}: give 1 to {units}, as many as there are {what}")
    return (split_batches if whole else split_examples)(batches, parts)


def split_examples(batches: list[Any], parts: int) -> list[list[Any]]:
    """Partition the examples at random with a fixed seed, each part in batches no larger than the largest given.

    At random rather than stratified, so that each part is a random sample even of sorted data.
    """
    rows = [rows_of(batch) or 0 for batch in batches]
    order = torch.randperm(sum(rows), generator=torch.Generator().manual_seed(0))
    part_of = (order % parts).split(rows)  # equally many examples for each part, up to one
    found = []
    for p in range(parts):
        chosen = [(part == p).nonzero().flatten() for part in part_of]
        pieces = [select(batch, index) for batch, index in zip(batches, chosen, strict=True) if len(index)]
        found.append(_rebatched(pieces, max(rows)))
    return found


def split_batches(batches: list[Any], parts: int) -> list[list[Any]]:
    """Partition whole batches at random with a fixed seed."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    return [[batches[i] for i in sorted(order[p::parts])] for p in range(parts)]


def select(batch: Any, index: Tensor) -> Any:
    """The examples of a batch at the given indices."""
    return map_tensors(lambda tensor: tensor[index.to(tensor.device)], batch)


def batch_kind(batch: Any) -> Hashable:
    """A key that is equal for batches that differ only in the values of tensors and the number of rows.

    Forward is assumed to treat such batches in the same way.
    """
    if isinstance(batch, Tensor):
        # floating dtypes are not distinguished: data are converted if the network needs it
        return batch.is_floating_point() or batch.dtype, batch.shape[1:], batch.requires_grad
    if isinstance(batch, bool | int | float | str):
        return type(batch), batch
    keys = tuple(map(str, batch)) if isinstance(batch, Mapping) else ()
    return type(batch), keys, tuple(map(batch_kind, children(batch)))


def concatenated(pieces: list[Any]) -> list[Any]:
    """Concatenate consecutive batches of the same structure."""
    return [_concatenate(list(alike)) for _, alike in groupby(pieces, key=_structure)]


def _rebatched(pieces: list[Any], most: int) -> list[Any]:
    batches = []
    for whole in concatenated(pieces):
        examples = torch.arange(rows_of(whole) or 0)
        batches += [select(whole, index) for index in examples.tensor_split(-(-len(examples) // most))]
    return batches


def _structure(item: Any) -> Any:
    """A key that is equal for batches that can be concatenated."""
    if isinstance(item, Tensor):
        return item.dtype, item.shape[1:], item.requires_grad
    if isinstance(item, Mapping):
        return type(item), {key: _structure(value) for key, value in item.items()}
    # any other object may describe its own batch, so it is equal to nothing else
    return (type(item), *map(_structure, item)) if isinstance(item, tuple) else object()


def _concatenate(alike: list[Any]) -> Any:
    """One batch of the type of the first, with the tensors of all concatenated in order."""
    if len(alike) == 1:
        return alike[0]
    if isinstance(alike[0], Tensor):
        return map_tensors(lambda _: torch.cat(alike), alike[0])
    if isinstance(alike[0], tuple):
        items = [_concatenate(list(each)) for each in zip(*alike, strict=True)]
        return type(alike[0])(*items) if hasattr(alike[0], "_fields") else tuple(items)
    new = map_tensors(lambda tensor: tensor, alike[0])
    for key in new:
        new[key] = _concatenate([item[key] for item in alike])
    return new

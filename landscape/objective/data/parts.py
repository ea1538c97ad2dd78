"""Parts of the data: examples taken out of batches, and put together again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from landscape.objective.data.batches import can_be_split, children, mapped, rows_of

__all__ = ["divided", "kind_of", "split", "taken", "together", "whole_parts"]


def divided(batches: list[Any], parts: int, *, whole: bool) -> list[list[Any]]:
    """Disjoint parts of the data: of the examples, or where batches are ``whole`` or cannot be split, of these.

    Raises:
        ValueError: a part would hold none.
    """
    whole = whole or not all(map(can_be_split, batches))
    units, what = (len(batches), "batches") if whole else (sum(rows_of(batch) or 0 for batch in batches), "examples")
    if not 1 <= parts <= units:
        raise ValueError(f"parts={parts}: give 1 to {units}, as many as there are {what}")
    return (whole_parts if whole else split)(batches, parts)


def split(batches: list[Any], parts: int) -> list[list[Any]]:
    """Disjoint parts of the examples, drawn the same in every run, each in batches no larger than the largest here.

    At random, since data often come sorted: a part that took from each class alike would be no sample.
    """
    rows = [rows_of(batch) or 0 for batch in batches]
    order = torch.randperm(sum(rows), generator=torch.Generator().manual_seed(0))
    part_of = (order % parts).split(rows)  # so many numbers of each remainder, up to one
    found = []
    for p in range(parts):
        chosen = [(part == p).nonzero().flatten() for part in part_of]
        pieces = [taken(batch, index) for batch, index in zip(batches, chosen, strict=True) if len(index)]
        found.append(_joined(pieces, max(rows)))
    return found


def whole_parts(batches: list[Any], parts: int) -> list[list[Any]]:
    """The same of batches that cannot be split, or must not be."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    return [[batches[i] for i in sorted(order[p::parts])] for p in range(parts)]


def taken(batch: Any, index: Tensor) -> Any:
    """Some examples of a batch."""
    return mapped(lambda tensor: tensor[index.to(tensor.device)], batch)


def kind_of(batch: Any) -> Hashable:
    """What tells that forward may treat two batches alike: all but the numbers in their tensors, and how many rows."""
    if isinstance(batch, Tensor):
        # of one dtype they all are where that matters
        return batch.is_floating_point() or batch.dtype, batch.shape[1:], batch.requires_grad
    if isinstance(batch, bool | int | float | str):
        return type(batch), batch
    keys = tuple(map(str, batch)) if isinstance(batch, Mapping) else ()
    return type(batch), keys, tuple(map(kind_of, children(batch)))


def together(pieces: list[Any]) -> list[Any]:
    """Those that follow each other and are alike put into one batch."""
    return [_together(list(alike)) for _, alike in groupby(pieces, key=_structure)]


def _joined(pieces: list[Any], most: int) -> list[Any]:
    batches = []
    for whole in together(pieces):
        examples = torch.arange(rows_of(whole) or 0)
        batches += [taken(whole, index) for index in examples.tensor_split(-(-len(examples) // most))]
    return batches


def _structure(item: Any) -> Any:
    """What pieces have in common that can be put together."""
    if isinstance(item, Tensor):
        return item.dtype, item.shape[1:], item.requires_grad
    if isinstance(item, Mapping):
        return type(item), {key: _structure(value) for key, value in item.items()}
    # what is no tensor may tell something of its own batch: it is like nothing else
    return (type(item), *map(_structure, item)) if isinstance(item, tuple) else object()


def _together(alike: list[Any]) -> Any:
    """One batch of the type of the first, whose tensors are those of all, in their order."""
    if len(alike) == 1:
        return alike[0]
    if isinstance(alike[0], Tensor):
        return mapped(lambda _: torch.cat(alike), alike[0])
    if isinstance(alike[0], tuple):
        items = [_together(list(each)) for each in zip(*alike, strict=True)]
        return type(alike[0])(*items) if hasattr(alike[0], "_fields") else tuple(items)
    new = mapped(lambda tensor: tensor, alike[0])
    for key in new:
        new[key] = _together([item[key] for item in alike])
    return new

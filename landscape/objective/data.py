"""The examples of an objective: read once, kept on the device, weighted by their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest", "is_pair", "read_batches", "split", "tensors_in"]


def read_batches(data: Any, batch_size: int, device: torch.device) -> list[tuple[Any, int]]:
    """Every batch of ``data`` on ``device``, with its number of examples.

    Args:
        data: a pair of tensors ``(inputs, targets)``, split into batches of ``batch_size``; or an
            iterable of batches (a DataLoader, a list), read once.
        batch_size: examples per batch, for a pair of tensors.
        device: where the batches are kept.

    Raises:
        ValueError: there is no example.
    """
    batches: Iterable[Any] = data
    if is_pair(data):
        inputs, targets = data
        if len(inputs) != len(targets):
            raise ValueError(f"data has {len(inputs)} inputs and {len(targets)} targets: give one target for each")
        # nearly equal parts: a last batch of one would have no variance for BatchNorm
        parts = max(1, -(-len(inputs) // batch_size))
        batches = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed from torch's generator
        counted = [(_to_device(batch, device), _examples(batch)) for batch in batches]
    counted = [(batch, count) for batch, count in counted if count > 0]
    if not counted:
        raise ValueError("data is empty: give at least one example")
    return counted


def is_pair(data: Any) -> bool:
    """Whether ``data`` is ``(inputs, targets)``, which may be split into batches of any size."""
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(d, Tensor) for d in data)


def digest(batches: list[tuple[Any, int]]) -> str:
    """SHA-256 of the examples, in whatever order and batches they come."""
    examples = []
    for batch, count in batches:
        tensors = [t.cpu().contiguous() for t in tensors_in(batch)]
        for i in range(count):
            sha = hashlib.sha256()
            for tensor in tensors:
                sha.update(tensor[i].flatten().view(torch.uint8).numpy().tobytes())
            examples.append(sha.digest())
    return hashlib.sha256(b"".join(sorted(examples))).hexdigest()


def split(batches: list[tuple[Any, int]], parts: int) -> list[list[Any]]:
    """Disjoint parts of the examples, drawn the same in every run, each in batches no larger than the largest here.

    At random, since data often come sorted: a part that took from each class alike would be no sample.
    """
    counts = [count for _, count in batches]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))
    part_of = (order % parts).split(counts)  # so many numbers of each remainder, up to one
    found = []
    for p in range(parts):
        chosen = [(part == p).nonzero().flatten() for part in part_of]
        pieces = [_take(batch, index) for (batch, _), index in zip(batches, chosen, strict=True) if len(index)]
        found.append(_joined(pieces, max(counts)))
    return found


def _joined(pieces: list[Any], most: int) -> list[Any]:
    """Those that follow each other and are alike put together, then cut into as few nearly equal batches as may be."""
    batches = []
    for _, alike in groupby(pieces, key=_structure):
        whole = _together(list(alike))
        examples = torch.arange(_examples(whole))
        batches += [_take(whole, index) for index in examples.tensor_split(-(-len(examples) // most))]
    return batches


def _structure(item: Any) -> Any:
    """What pieces have in common that can be put together."""
    if isinstance(item, Tensor):
        return item.dtype, item.shape[1:]
    if isinstance(item, Mapping):
        return {key: _structure(value) for key, value in item.items()}
    # what is no tensor may tell something of its own batch: it is like nothing else
    return tuple(map(_structure, item)) if isinstance(item, tuple) else object()


def _together(alike: list[Any]) -> Any:
    first = alike[0]
    if isinstance(first, Tensor):
        return torch.cat(alike)
    if isinstance(first, Mapping):
        return {key: _together([item[key] for item in alike]) for key in first}
    return tuple(_together(list(items)) for items in zip(*alike, strict=True)) if isinstance(first, tuple) else first


def _take(item: Any, index: Tensor) -> Any:
    if isinstance(item, Tensor):
        return item[index.to(item.device)]
    if isinstance(item, Mapping):
        return {key: _take(value, index) for key, value in item.items()}
    return tuple(_take(value, index) for value in item) if isinstance(item, tuple) else item


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All of them, however they are nested."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from tensors_in(item)
    elif isinstance(batch, list | tuple):
        for item in batch:
            yield from tensors_in(item)


def _examples(batch: Any) -> int:
    shapes = [tuple(t.shape) for t in tensors_in(batch)]
    if not shapes:
        raise ValueError(
            f"data has a batch of type {type(batch).__name__} without a tensor: give (inputs, targets), or a "
            "dictionary or list of tensors"
        )
    if any(shape == () for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"data has a batch of tensors of shapes {shapes}: all must begin with the number of examples. A Dataset "
            "goes into a DataLoader first"
        )
    return shapes[0][0]


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        # autograd takes no tensor that was made in inference mode, but for its copy
        return batch.clone().to(device) if batch.is_inference() else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to_device(item, device) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return tuple(_to_device(item, device) for item in batch)
    return batch

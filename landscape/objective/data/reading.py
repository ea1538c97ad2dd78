"""The data of an objective: read once, split into batches if they are a pair of tensors, and stored on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from landscape.objective.data.batches import has_rows, holds_tensors, map_tensors, tensors_in, weight_of
from landscape.objective.evaluation.generators import preserve_rng_state

__all__ = ["is_pair", "read_batches"]

_LAYOUTS = {torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


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
        device: where the batches are stored.
        dtype: of floating tensors. Default: their own.
        count: the weight of a batch. Default: the first dimension that its tensors have in common.

    Raises:
        TypeError: ``data`` is neither, or has nested tensors.
        ValueError: there is no example, a batch without a number of examples, or a tensor on the meta device.
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
    elif type(data) is tuple and _two_tensors(data):
        batches = [data]  # sparse or nested: rows cannot be selected
    elif not isinstance(data, Iterable | torch.utils.data.Dataset) or _is_one_batch(data):
        raise TypeError(
            f"data is a {type(data).__name__}: give (inputs, targets), or a list or DataLoader of batches; a single "
            "batch goes into a list"
        )
    elif type(data) is tuple and isinstance(data[-1] if data else None, Tensor):
        raise TypeError(
            f"data is a tuple of {len(data)} items that are no pair of tensors, and so neither a pair nor batches: "
            "give (inputs, targets), or a batch such as ((x1, x2), y) inside a list"
        )
    with preserve_rng_state(), _preserve_loader_generators(data):  # a DataLoader draws a seed from its own or torch's
        kept = [_stored(batch, device, dtype, copied=not pair) for batch in batches]
    if type(data) is list and _two_tensors(data) and _are_a_pair(*data):
        x, y = (f"{t.dtype} of shape {tuple(t.shape)}" for t in data)
        raise TypeError(
            f"data is a list of two tensors, {x} and {y}, which seem to be inputs and targets, but a list holds "
            "batches: give the tuple (x, y), or for batches of inputs alone tensors of one dtype and number of "
            "dimensions"
        )
    counted = [(batch, weight_of(batch, count)) for batch in kept]
    counted = [(batch, weight) for batch, weight in counted if weight > 0]
    if not counted:
        raise ValueError("data is empty: give at least one example")
    return counted


def is_pair(data: Any) -> bool:
    """Whether ``data`` is ``(inputs, targets)``, which may be split into batches of any size."""
    return type(data) is tuple and _two_tensors(data) and all(map(has_rows, data))


def _two_tensors(data: Any) -> bool:
    return len(data) == 2 and all(isinstance(d, Tensor) for d in data)


def _are_a_pair(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors look like inputs and targets: of the same length, but different dtypes or dimensions."""
    return x.shape[:1] == y.shape[:1] and (x.dtype, x.dim()) != (y.dtype, y.dim())


def _is_one_batch(data: Any) -> bool:
    return isinstance(data, Tensor | str | bytes | Mapping) or (isinstance(data, tuple) and hasattr(data, "_fields"))


def _stored(batch: Any, device: torch.device, dtype: torch.dtype | None, *, copied: bool) -> Any:
    for tensor in tensors_in(batch):
        _check(tensor)

    def moved(tensor: Tensor) -> Tensor:
        # autograd accepts no inference tensor, but a copy of it
        copy_it = copied or tensor.is_inference()
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None, copy=copy_it)

    def kept(item: Any) -> Any:
        if type(item) in (tuple, list):
            return tuple(map(kept, item)) if item is batch else type(item)(map(kept, item))
        # an object may have tensors that we do not find, which its own .to() moves
        return map_tensors(moved, item.to(device) if holds_tensors(item) and hasattr(item, "to") else item)

    return kept(batch)


def _check(tensor: Tensor) -> None:
    """Check that a tensor is of a supported kind.

    Raises:
        TypeError: it is nested, or of another layout than strided and the sparse ones.
        ValueError: it is on the meta device.
    """
    if tensor.is_nested:
        raise TypeError(
            "data holds a nested tensor (torch.nested), whose rows cannot be taken out: give a padded one, as "
            "torch.nested.to_padded_tensor makes it, with a mask for forward, or a list of tensors with count="
        )
    if tensor.layout not in _LAYOUTS:
        raise TypeError(f"data holds a tensor of layout {tensor.layout}: give tensor.to_dense()")
    if tensor.is_meta:
        raise ValueError(
            f"data holds a tensor of shape {tuple(tensor.shape)} on the meta device, which has no numbers: give one on "
            "the CPU or the network's device"
        )


@contextmanager
def _preserve_loader_generators(data: Any) -> Iterator[None]:
    """Context that restores the generators of a DataLoader and of its samplers."""
    batch_sampler = getattr(data, "batch_sampler", None)
    holders = data, getattr(data, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)
    generators = [getattr(holder, "generator", None) for holder in holders]
    states = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)

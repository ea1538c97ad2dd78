"""The examples of an objective: read once, kept on the device, weighted by their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest", "read_batches"]


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
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(d, Tensor) for d in data):
        inputs, targets = data
        if len(inputs) != len(targets):
            raise ValueError(f"data has {len(inputs)} inputs and {len(targets)} targets: give one target for each")
        batches = zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    counted = [(_to_device(batch, device), _examples(batch)) for batch in batches]
    counted = [(batch, count) for batch, count in counted if count > 0]
    if not counted:
        raise ValueError("data is empty: give at least one example")
    return counted


def digest(batches: list[tuple[Any, int]]) -> str:
    """SHA-256 over the bytes of all tensors, batch after batch."""
    sha = hashlib.sha256()
    for batch, _ in batches:
        for tensor in _tensors(batch):
            sha.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from _tensors(item)
    elif isinstance(batch, list | tuple):
        for item in batch:
            yield from _tensors(item)


def _examples(batch: Any) -> int:
    first = next(_tensors(batch), None)
    if first is None:
        raise ValueError(
            f"data has a batch of type {type(batch).__name__} without a tensor: "
            "give (inputs, targets), or a dictionary or list of tensors"
        )
    return len(first)


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to_device(item, device) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return tuple(_to_device(item, device) for item in batch)
    return batch

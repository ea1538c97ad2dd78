"""Mini-batches, epoch after epoch, from a position that can be kept and returned to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["Batches", "Data", "in_order"]

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


class Batches:
    """An endless stream of batches.

    Args:
        data: a pair of tensors ``(inputs, targets)``, shuffled anew each epoch into batches of ``batch_size``; or an
            iterable of batches, read again and again (a DataLoader). The position in a DataLoader cannot be kept.
        batch_size: examples per batch, for a pair of tensors.
        generator: of the shuffling.
    """

    def __init__(self, data: Data, batch_size: int, generator: torch.Generator) -> None:
        if isinstance(data, tuple) and len(data[1]) == 0:
            raise ValueError("train_data is empty: give at least one example")
        self._data, self._size, self._generator = data, batch_size, generator
        self._epoch_began = generator.get_state()
        self._used = 0  # batches of this epoch
        self._stream: Iterator[tuple[Tensor, Tensor]] | None = None

    def __next__(self) -> tuple[Tensor, Tensor]:
        """The next batch."""
        for _ in range(2):  # the present epoch, then a new one
            if self._stream is None:
                self._epoch_began, self._used = self._generator.get_state(), 0
                self._stream = self._epoch()
            batch = next(self._stream, None)
            if batch is not None:
                self._used += 1
                return batch
            self._stream = None
        raise ValueError("train_data is empty: give at least one example")

    def state_dict(self) -> dict[str, Any]:
        """The position: how the epoch was shuffled, and how many of its batches are used."""
        return {"epoch_began": self._epoch_began, "used": self._used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position.

        Raises:
            ValueError: the data is not a pair of tensors.
        """
        if not isinstance(self._data, tuple):
            raise ValueError(
                f"train_data is a {type(self._data).__name__}, whose position cannot be returned to: resume needs a "
                "pair of tensors (inputs, targets)"
            )
        self._generator.set_state(state["epoch_began"])
        self._epoch_began, self._used = state["epoch_began"], state["used"]
        self._stream = self._epoch()
        for _ in range(self._used):
            next(self._stream)

    def _epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not isinstance(self._data, tuple):
            return iter(self._data)
        inputs, targets = self._data
        order = torch.randperm(len(targets), generator=self._generator)
        return ((inputs[i], targets[i]) for i in order.split(self._size))


def in_order(data: Data, size: int = 1024) -> Iterable[tuple[Tensor, Tensor]]:
    """The data once, as it comes; a pair of tensors in nearly equal parts of at most ``size`` examples."""
    if isinstance(data, tuple):
        inputs, targets = data
        # a last batch of one would have no variance for BatchNorm
        parts = max(1, -(-len(targets) // size))
        return zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
    return data

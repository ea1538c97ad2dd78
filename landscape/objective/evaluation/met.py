"""The batches that were evaluated already, and what was seen of them the first time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from landscape.objective.data.parts import kind_of
from landscape.objective.evaluation.checks import refused_clearly

__all__ = ["Met"]


class Met:
    """Which batches were, and which kinds of them need no further look.

    Args:
        batches: of the data, each with its number of examples.
        means: the kinds whose loss was found to be a mean over examples; None where it need not be.

    Attributes:
        written: the ids of those that forward writes into.
    """

    def __init__(self, batches: Sequence[tuple[Any, float]] = (), means: set[Hashable] | None = None) -> None:
        self.batches, self.means = batches, means
        self.written: set[int] = set()
        self._seen: dict[int, Any] = {}  # by id, and so alive
        self._alike: dict[Hashable, list[Any]] = {}  # the batches by their kinds, once asked for

    def __contains__(self, batch: Any) -> bool:
        return id(batch) in self._seen

    def add(self, batch: Any) -> None:
        """Take it for one that was evaluated."""
        self._seen[id(batch)] = batch

    @contextmanager
    def whole(self, batch: Any) -> Iterator[None]:
        """Within it the batch is evaluated for the first time; not so where an error arises."""
        try:
            yield
        except BaseException:
            self._seen.pop(id(batch), None)
            raise

    @contextmanager
    def passing(self) -> Iterator[None]:
        """What is met within is let go of at the end."""
        seen, written = dict(self._seen), set(self.written)
        try:
            yield
        finally:
            self._seen, self.written = seen, written

    @contextmanager
    def named(self, batch: Any, dtype: torch.dtype, which: str | None = None) -> Iterator[None]:
        """Within it errors say in which batch they arise, the first time that it is evaluated."""
        first = batch not in self
        try:
            yield
        except Exception as cause:
            if first and which is None:
                which = next((f"batch {i} of data" for i, (each, _) in enumerate(self.batches) if each is batch), None)
            told = refused_clearly(cause, batch, dtype, f"{which} (from 0)") if first and which else cause
            if told is cause:
                raise
            raise told from cause

    @contextmanager
    def unlooked(self, batch: Any) -> Iterator[list[Any]]:
        """The batches of its kind, none where one was looked at; from then on they were, unless an error arises."""
        if self.means is None or (kind := kind_of(batch)) in self.means:
            yield []
            return
        if not self._alike:
            for each, _ in self.batches:
                self._alike.setdefault(kind_of(each), []).append(each)
        self.means.add(kind)
        try:
            yield self._alike.get(kind, [batch])
        except BaseException:
            self.means.discard(kind)
            raise

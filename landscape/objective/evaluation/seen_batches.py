"""The batches that were evaluated before, and what was found in their first evaluation."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from landscape.objective.data.parts import batch_kind
from landscape.objective.evaluation.checks import evaluation_error

__all__ = ["SeenBatches"]


class SeenBatches:
    """The set of batches that were evaluated before, and of the kinds of batches that were checked.

    Args:
        batches: of the data, each with its number of examples.
        checked_kinds: the kinds whose loss was found to be a mean over examples; None if that is not required.

    Attributes:
        mutated: the ids of batches that forward writes into.
    """

    def __init__(self, batches: Sequence[tuple[Any, float]] = (), checked_kinds: set[Hashable] | None = None) -> None:
        self.batches, self.checked_kinds = batches, checked_kinds
        self.mutated: set[int] = set()
        self._seen: dict[int, Any] = {}  # by id, with a reference, so that the id is not reused
        self._by_kind: dict[Hashable, list[Any]] = {}  # filled when needed

    def __contains__(self, batch: Any) -> bool:
        return id(batch) in self._seen

    def add(self, batch: Any) -> None:
        """Mark the batch as evaluated."""
        self._seen[id(batch)] = batch

    @contextmanager
    def first_evaluation(self, batch: Any) -> Iterator[None]:
        """Context of the first evaluation of a batch; after an error the batch does not count as evaluated."""
        try:
            yield
        except BaseException:
            self._seen.pop(id(batch), None)
            raise

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Context after which the batches that were added inside are removed again."""
        seen, mutated = dict(self._seen), set(self.mutated)
        try:
            yield
        finally:
            self._seen, self.mutated = seen, mutated

    @contextmanager
    def naming_errors(self, batch: Any, dtype: torch.dtype, which: str | None = None) -> Iterator[None]:
        """Context that adds the number of the batch to errors in its first evaluation."""
        first = batch not in self
        try:
            yield
        except Exception as cause:
            if first and which is None:
                which = next((f"batch {i} of data" for i, (each, _) in enumerate(self.batches) if each is batch), None)
            error = evaluation_error(cause, batch, dtype, f"{which} (from 0)") if first and which else cause
            if error is cause:
                raise
            raise error from cause

    @contextmanager
    def unchecked_alike(self, batch: Any) -> Iterator[list[Any]]:
        """Context that yields the batches of the same kind if that was not checked, and marks it as checked.

        Yields an empty list if the kind was checked before. After an error it does not count as checked.
        """
        if self.checked_kinds is None or (kind := batch_kind(batch)) in self.checked_kinds:
            yield []
            return
        if not self._by_kind:
            for each, _ in self.batches:
                self._by_kind.setdefault(batch_kind(each), []).append(each)
        self.checked_kinds.add(kind)
        try:
            yield self._by_kind.get(kind, [batch])
        except BaseException:
            self.checked_kinds.discard(kind)
            raise

"""The problem's loss at each checkpoint, and between them, each made once."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from landscape.checkpoints import Checkpoint
from landscape.compare.settings import CompareSettings
from landscape.objective import ModelObjective
from landscape.objective.evaluation.generators import preserve_rng_state
from landscape.problems import Problem

__all__ = ["Objectives"]


class Objectives:
    """All objectives of a comparison.

    Args:
        problem: whose data are read once, so that every analysis sees the same batches.
        settings: which training examples, and the weight decay.

    Attributes:
        problem: with what was an iterable as a list.
        train: the training loss, at no checkpoint's weights.
        test: the test loss, likewise.
    """

    def __init__(self, problem: Problem, settings: CompareSettings) -> None:
        self.problem = replace(problem, train=_read(problem.train), test=_read(problem.test))
        self._settings = settings
        decay = settings.weight_decay
        self.train = self.problem.objective("train", **settings.chosen, weight_decay=decay)
        self.test = self.problem.objective("test", weight_decay=decay)
        self._at: dict[tuple[str, str], ModelObjective] = {}

    def at(self, checkpoint: Checkpoint, split: str = "train") -> ModelObjective:
        """The ``"train"`` or ``"test"`` loss with the checkpoint's weights and buffers.

        Raises:
            ValueError: its names or shapes do not fit the network.
        """
        f = self.train if split == "train" else self.test
        key = (split, checkpoint.name)
        if key not in self._at:
            self._at[key] = f.at(checkpoint)
        return self._at[key]

    @cached_property
    def between(self) -> dict[str, ModelObjective]:
        """The ``"train"`` and ``"test"`` loss for points between checkpoints.

        BatchNorm statistics are gathered anew on the training examples at every point: those of either end mean
        nothing between them.
        """
        chosen = self._settings.chosen
        options: dict[str, Any] = {
            "weight_decay": self._settings.weight_decay,
            "batch_norm": "recalibrated",
            "calibration": self.problem.data("train", **chosen),
        }
        return {
            "train": self.problem.objective("train", **chosen, **options),
            "test": self.problem.objective("test", **options),
        }


def _read(data: Any) -> Any:
    if isinstance(data, tuple):
        return data
    with preserve_rng_state():  # a DataLoader draws a seed from torch's generator
        return list(data)

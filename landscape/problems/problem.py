"""A problem: how to build a network, what its loss is, and the data it is trained and tested on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objective import ModelObjective
from landscape.objective.evaluation.loss import is_criterion

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """What ``landscape train`` and ``landscape compare`` need to know.

    A problem function takes no argument, or one (the folder given by ``--data``), and returns this.
    """

    name: str
    model: Callable[[], nn.Module]  # builds the network; called with torch's generator seeded
    loss: Callable[..., Tensor] | None  # loss(outputs, targets), a mean; None: outputs carry their .loss
    train: Any  # (inputs, targets), or an iterable of batches
    test: Any
    forward: Callable[[nn.Module, Any], Any] | None = None  # as for ModelObjective
    options: Mapping[str, Any] = field(default_factory=dict)  # of ModelObjective: count, whole_batches, noise, ...

    def build(self, seed: int) -> nn.Module:
        """The network at the initial weights of ``seed``; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return self.model()

    def data(self, split: str, *, examples: int | None = None, seed: int = 0) -> Any:
        """The data of ``split``, ``"train"`` or ``"test"``.

        Args:
            split: which.
            examples: only so many of them, drawn without replacement. Default: all.
            seed: of that draw.

        Raises:
            ValueError: an unknown split; ``examples`` of data that is no pair of tensors.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split={split!r}: give 'train' or 'test'")
        data = self.train if split == "train" else self.test
        return data if examples is None else _subset(data, examples, seed)

    def objective(
        self, split: str = "train", *, examples: int | None = None, seed: int = 0, **options: Any
    ) -> ModelObjective:
        """The mean loss over ``data(split, examples=..., seed=...)``; options are ModelObjective's."""
        # the weights do not matter: every analysis brings its own theta
        model = self.build(seed=0)
        data = self.data(split, examples=examples, seed=seed)
        loss = self.loss
        if loss is not None and not is_criterion(loss):
            loss = partial(_on_targets, loss)  # a plain function: ModelObjective would hand it the batch
        return ModelObjective(model, loss, data, forward=self.forward, **{**self.options, **options})


def _on_targets(criterion: Callable[..., Tensor], outputs: Any, batch: Any) -> Tensor:
    """As a training loop calls it, where a batch is a pair; else on the batch."""
    return criterion(outputs, batch[1] if isinstance(batch, tuple) and len(batch) == 2 else batch)


def _subset(data: Any, examples: int, seed: int) -> Any:
    if not (isinstance(data, tuple) and all(isinstance(item, Tensor) for item in data)):
        raise ValueError(
            f"examples={examples}: the problem's data is a {type(data).__name__}, of which only the "
            "problem function can take fewer; give (inputs, targets) tensors or leave examples out"
        )
    chosen = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))[:examples]
    return tuple(item[chosen] for item in data)

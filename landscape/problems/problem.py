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
    """A network, its loss and its data, as ``landscape train`` and ``landscape compare`` need them.

    A problem function takes no argument, or one (the folder given by ``--data``), and returns a Problem.
    """

    name: str
    model: Callable[[], nn.Module]  # builds the network; called with torch's generator seeded
    loss: Callable[..., Tensor] | None  # loss(outputs, targets), a mean; None: outputs carry their .loss
    train: Any  # (inputs, targets), or an iterable of batches
    test: Any
    forward: Callable[[nn.Module, Any], Any] | None = None  # as for ModelObjective
    options: Mapping[str, Any] = field(default_factory=dict)  # of ModelObjective: count, whole_batches, noise, ...

    def build(self, seed: int) -> nn.Module:
        """The network at the initial weights of ``seed``; the state of torch's global generator is restored."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return self.model()

    def data(self, split: str, *, examples: int | None = None, seed: int = 0) -> Any:
        """The data of ``split``, ``"train"`` or ``"test"``.

        Args:
            split: ``"train"`` or ``"test"``.
            examples: size of a random subset, drawn without replacement. Default: all.
            seed: of that subset.

        Raises:
            ValueError: an unknown split; ``examples`` of data that is not a pair of tensors.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split={split!r}: give 'train' or 'test'")
        data = self.train if split == "train" else self.test
        return data if examples is None else _subset(data, examples, seed)

    def objective(
        self, split: str = "train", *, examples: int | None = None, seed: int = 0, **options: Any
    ) -> ModelObjective:
        """The mean loss over ``data(split, examples=..., seed=...)``; options are ModelObjective's."""
        # the weights do not matter: every analysis sets its own theta
        model = self.build(seed=0)
        data = self.data(split, examples=examples, seed=seed)
        loss = self.loss
        if loss is not None and not is_criterion(loss):
            loss = partial(_on_targets, loss)  # to a plain function ModelObjective would pass the batch
        return ModelObjective(model, loss, data, forward=self.forward, **{**self.options, **options})


def _on_targets(criterion: Callable[..., Tensor], outputs: Any, batch: Any) -> Tensor:
    """Call the loss as a training loop does: on the targets if the batch is a pair, otherwise on the batch."""
    return criterion(outputs, batch[1] if isinstance(batch, tuple) and len(batch) == 2 else batch)


def _subset(data: Any, examples: int, seed: int) -> Any:
    if not (isinstance(data, tuple) and all(isinstance(item, Tensor) for item in data)):
        raise ValueError(
            f"examples={examples}: the problem's data is a {type(data).__name__}, of which only the "
            "problem function can take fewer; give (inputs, targets) tensors or leave examples out"
        )
    chosen = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))[:examples]
    return tuple(item[chosen] for item in data)

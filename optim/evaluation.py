"""How good a network is on data: its mean loss, and the share of right answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from optim.batch_norm import refresh_batch_norm
from optim.batches import Data, in_order

__all__ = ["Criterion", "accuracy_of", "evaluate"]

Criterion = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def evaluate(model: nn.Module, loss: Criterion, data: Data, *, calibration: Data | None = None) -> dict[str, float]:
    """Mean loss, and accuracy for classifiers, over all of ``data`` in evaluation mode; the mode is put back.

    Args:
        model: the network.
        loss: ``loss(outputs, targets)``, a mean over the batch.
        data: a pair of tensors, or an iterable of batches.
        calibration: the data on which BatchNorm's running statistics are gathered first. Default: they are used as
            they are.
    """
    if calibration is not None:
        refresh_batch_norm(model, in_order(calibration))
    device = next(model.parameters()).device
    mode = model.training
    model.eval()
    total, accuracy, examples = 0.0, 0.0, 0
    for inputs, targets in in_order(data):
        outputs, targets = model(inputs.to(device)), targets.to(device)
        total += float(loss(outputs, targets)) * len(targets)
        accuracy += accuracy_of(outputs, targets) * len(targets)
        examples += len(targets)
    model.train(mode)
    if examples == 0:
        raise ValueError("data is empty: give at least one example")
    found = {"loss": total / examples, "accuracy": accuracy / examples}
    return {key: value for key, value in found.items() if key == "loss" or not math.isnan(value)}


def accuracy_of(outputs: Tensor, targets: Tensor) -> float:
    """The share of right answers, NaN where targets are no class indices."""
    if targets.is_floating_point() or outputs.dim() != targets.dim() + 1 or outputs.shape[1] < 2:
        return math.nan
    return float((outputs.argmax(1) == targets).double().mean())

"""Images with their channels last in memory.

On a CPU the kernels of two-dimensional convolutions take them so without copies, and all that follows keeps the layout
(``benchmarks/spectrum.py`` measures what that brings). Shapes and numbers stay as they are. Only BatchNorm's second
derivative is slower so, by more than the convolutions gain: where one is left that is not folded, so is the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objective.agreement import agree
from landscape.objective.folding import Fold

__all__ = ["channels_last"]


def channels_last(
    batches: list[tuple[Any, int]],
    model: nn.Module,
    folds: Sequence[Fold],
    loss_on: Callable[[Any], Tensor],
    parameters: Sequence[Tensor],
) -> list[tuple[Any, int]]:
    """The batches with images laid out so, where the network is one of convolutions on a CPU and takes them.

    Some networks do not: ``x.view(len(x), -1)`` after a convolution fails. Then the batches come back as they are.

    Args:
        batches: each batch with its number of examples.
        model: the network.
        folds: its BatchNorm layers that are folded.
        loss_on: its loss on a batch.
        parameters: those that the loss is differentiated by.
    """
    on_cpu = all(p.device.type == "cpu" for p in parameters)
    convolutions, norms = (
        sum(isinstance(module, kind) for module in model.modules())
        for kind in (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    )
    if not (on_cpu and convolutions and norms == len(folds)):
        return batches
    first = batches[0][0]
    if not agree(partial(loss_on, first), partial(loss_on, _laid_out(first)), parameters):
        return batches
    return [(_laid_out(batch), count) for batch, count in batches]


def _laid_out(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.to(memory_format=torch.channels_last) if item.dim() == 4 and item.is_floating_point() else item
    if isinstance(item, dict):
        return {key: _laid_out(value) for key, value in item.items()}
    return tuple(_laid_out(value) for value in item) if isinstance(item, tuple) else item

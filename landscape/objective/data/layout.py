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

from landscape.objective.data.batches import mapped
from landscape.objective.data.parts import kind_of
from landscape.objective.evaluation.agreement import agree
from landscape.objective.evaluation.folding import Fold
from landscape.objective.lending.network import Network

__all__ = ["channels_last"]


def channels_last(
    batches: list[tuple[Any, float]],
    network: Network,
    folds: Sequence[Fold],
    loss_on: Callable[[Any], Tensor],
    few: Callable[[Any], Any],
) -> list[tuple[Any, float]]:
    """The batches with images laid out so, where the network is one of convolutions on a CPU and takes them.

    Some networks do not: ``x.view(len(x), -1)`` after a convolution fails. Batches for which that is so come back as
    they are; those of one size may be taken and others not.

    Args:
        batches: each batch with its number of examples.
        network: the one.
        folds: its BatchNorm layers that are folded.
        loss_on: its loss on a batch.
        few: some examples of a batch.
    """
    on_cpu = network.flat.device.type == "cpu"
    convolutions, norms = (
        sum(isinstance(module, kind) for module in network.modules)
        for kind in (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    )
    if not (on_cpu and convolutions and norms == len(folds)):
        return batches
    takes: dict[Any, bool] = {}
    for batch, _ in batches:
        kind = kind_of(batch)
        if kind not in takes:
            looked_at = few(batch) if takes else batch
            takes[kind] = agree(partial(loss_on, looked_at), partial(loss_on, _laid_out(looked_at)), network.weights)
    return [(_laid_out(batch) if takes[kind_of(batch)] else batch, count) for batch, count in batches]


def _laid_out(batch: Any) -> Any:
    def laid_out(tensor: Tensor) -> Tensor:
        image = tensor.dim() == 4 and tensor.is_floating_point() and tensor.layout is torch.strided
        return tensor.to(memory_format=torch.channels_last) if image else tensor

    return mapped(laid_out, batch)

"""Images in the channels-last memory format.

On a CPU the kernels of two-dimensional convolutions use this format without copies, and later layers keep it
(``benchmarks/spectrum.py`` measures the gain). Shapes and values do not change. The second derivative of BatchNorm is
slower in it, by more than the convolutions gain, so the format is used only if every BatchNorm layer is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objective.data.batches import map_tensors
from landscape.objective.data.parts import batch_kind
from landscape.objective.evaluation.agreement import agree
from landscape.objective.evaluation.folding import Fold
from landscape.objective.lending.network import Network

__all__ = ["channels_last"]


def channels_last(
    batches: list[tuple[Any, float]],
    network: Network,
    folds: Sequence[Fold],
    loss_on: Callable[[Any], Tensor],
    first_examples: Callable[[Any], Any],
) -> list[tuple[Any, float]]:
    """The batches with images in channels-last format, for a convolutional network on a CPU that accepts it.

    Some networks do not, as ``x.view(len(x), -1)`` after a convolution fails. This is checked for each kind of batch;
    batches that are not accepted are returned unchanged.

    Args:
        batches: each batch with its number of examples.
        network: the network.
        folds: its BatchNorm layers that are folded.
        loss_on: its loss on a batch.
        first_examples: selects some examples of a batch.
    """
    on_cpu = network.flat.device.type == "cpu"
    convolutions, norms = (
        sum(isinstance(module, kind) for module in network.modules)
        for kind in (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    )
    if not (on_cpu and convolutions and norms == len(folds)):
        return batches
    accepted: dict[Any, bool] = {}
    for batch, _ in batches:
        kind = batch_kind(batch)
        if kind not in accepted:
            checked = first_examples(batch) if accepted else batch
            accepted[kind] = agree(
                partial(loss_on, checked), partial(loss_on, _to_channels_last(checked)), network.weights
            )
    return [(_to_channels_last(batch) if accepted[batch_kind(batch)] else batch, count) for batch, count in batches]


def _to_channels_last(batch: Any) -> Any:
    def to_channels_last(tensor: Tensor) -> Tensor:
        image = tensor.dim() == 4 and tensor.is_floating_point() and tensor.layout is torch.strided
        return tensor.to(memory_format=torch.channels_last) if image else tensor

    return map_tensors(to_channels_last, batch)

"""The statistics that BatchNorm uses when the weights change.

The running statistics belong to the weights at which they were estimated. At other weights they can be kept
("frozen"), estimated again ("recalibrated"), or replaced by the statistics of each batch ("batch"). The choice
matters most between two minima: frozen statistics produce a barrier that disappears with recalibration (Garipov et
al. 2018 recompute them at every point).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["POLICIES", "norm_layers", "recalibrate"]

POLICIES = ("frozen", "recalibrated", "batch")


def norm_layers(modules: Iterable[nn.Module]) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    return [
        module
        for module in modules
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]


@torch.no_grad()
def recalibrate(
    norms: list[nn.modules.batchnorm._BatchNorm],
    batches: list[tuple[Any, float]],
    forward: Callable[[Any], Any],
) -> None:
    """Estimate the running statistics again, as the mean over batches weighted by their number of examples.

    A layer that no batch reaches keeps its statistics.

    Args:
        norms: the layers, in evaluation mode, to which they return.
        batches: each batch with its number of examples.
        forward: runs the network on a batch.
    """
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    seen = dict.fromkeys(norms, 0.0)
    count = 0.0

    def counted(norm: nn.modules.batchnorm._BatchNorm, _: Any) -> None:
        seen[norm] += count  # a layer may run twice in a batch, or not at all
        norm.momentum = count / seen[norm]  # running <- running + momentum (batch's - running)

    handles = [norm.register_forward_pre_hook(counted) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        for batch, count in batches:  # noqa: B007  # which ``counted`` reads
            forward(batch)
    finally:
        for norm, momentum, buffers, handle in zip(norms, momenta, before, handles, strict=True):
            handle.remove()
            norm.momentum = momentum
            norm.eval()
            if not seen[norm]:
                for name, buffer in norm.named_buffers(recurse=False):
                    buffer.copy_(buffers[name])

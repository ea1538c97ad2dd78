"""The tensors of a network by name: the user's own, and ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from landscape.objective.lending.copies import identical
from landscape.objective.lending.network import Network

__all__ = ["buffers_of", "differing", "originals"]


def originals(network: Network) -> dict[str, Tensor]:
    """The user's own parameters and buffers."""
    return {**dict(network.model.named_parameters()), **dict(network.model.named_buffers())}


def differing(network: Network, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors among ``theirs``, the user's own, that differ from ours, or may differ: those of theta."""
    ours = network.named_tensors() if theirs else {}
    return {
        name: tensor
        for name, tensor in theirs.items()
        if name in network.space.names or not identical(ours[name].detach(), tensor.detach())
    }


def buffers_of(network: Network, modules: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Our buffers of some modules, by the network's names."""
    chosen, buffers = set(modules), {}
    with network.lent() as model:
        for name, module in model.named_modules():
            if module in chosen:
                buffers.update(module.named_buffers(name, recurse=False))
    return buffers

"""Tensors of a network by the names that it gives them: the user's own, and ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from landscape.objective.lending.containers import same_bits
from landscape.objective.lending.network import Network

__all__ = ["buffers_of", "differing", "originals"]


def originals(network: Network) -> dict[str, Tensor]:
    """The user's own parameters and buffers."""
    return {**dict(network.model.named_parameters()), **dict(network.model.named_buffers())}


def differing(network: Network, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the user's own tensors that ours may differ from: theta's, and others with other values."""
    ours = network.named_tensors() if theirs else {}
    return {
        name: tensor
        for name, tensor in theirs.items()
        if name in network.space.names or not same_bits(ours[name].detach(), tensor.detach())
    }


def buffers_of(network: Network, modules: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Our buffers of some modules."""
    chosen, found = set(modules), {}
    with network.lent() as model:
        for name, module in model.named_modules():
            if module in chosen:
                found.update(module.named_buffers(name, recurse=False))
    return found

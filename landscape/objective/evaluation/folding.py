"""Frozen BatchNorm folded into the preceding layer.

With running mean m and variance v, scale g and shift b, BatchNorm after a convolution or linear layer with weight W
and bias c is that layer with another weight and bias,

    scale (W x + c - m) + b = (scale W) x + scale (c - m) + b,    scale = g / sqrt(v + eps).

This saves BatchNorm's pass over the activations, and those of its first and second derivatives
(``benchmarks/spectrum.py`` measures the gain). W, c, g and b remain the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape.objective.evaluation.agreement import agree
from landscape.objective.lending.network import Network

__all__ = ["Fold", "NotFoldedError", "foldable", "folded", "unfold"]

# a layer, and the BatchNorm layer that is the only consumer of its outputs
Fold = tuple[Any, Any]

# exactly these types: a subclass may override forward
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def foldable(
    network: Network, running: Callable[[], AbstractContextManager[None]], loss_on: Callable[[Any], Tensor], batch: Any
) -> list[Fold]:
    """The frozen BatchNorm layers of ``network`` that can be folded into the preceding layer.

    Candidates are found by hooks during one forward pass. They are accepted if, with arbitrary statistics, loss and
    gradient are the same with and without folding; otherwise, e.g. if another layer uses the outputs too, none is.

    Args:
        network: the network.
        running: context manager that lends it.
        loss_on: the loss of a batch, while the network is lent.
        batch: some examples.
    """
    with running():
        pairs = _consecutive_layers(network.modules, partial(loss_on, batch))
    if not pairs:
        return []
    generator = torch.Generator().manual_seed(0)
    with running():
        for _, norm in pairs:
            # with the statistics of a new layer BatchNorm is the identity, and the test would always pass
            noise = torch.randn(2, len(norm.running_mean), generator=generator).to(norm.running_mean)
            norm._buffers["running_mean"] = norm.running_mean + norm.running_var.sqrt() * noise[0]
            norm._buffers["running_var"] = norm.running_var * (noise[1] / 2).exp()
        whole = partial(loss_on, batch)
        return pairs if agree(whole, partial(_folded_loss, pairs, whole), network.weights) else []


class NotFoldedError(RuntimeError):
    """The input of a BatchNorm layer is not the output of the layer that it is folded into, for this batch."""


@contextmanager
def folded(pairs: Sequence[Fold], *, watch_reads: bool = False) -> Iterator[dict[Any, Tensor]]:
    """Context in which each layer of ``pairs`` includes its BatchNorm, whose own forward is the identity.

    Args:
        pairs: layers and their BatchNorm.
        watch_reads: whether to check that nothing else uses the outputs of the layers.

    Yields:
        BatchNorm layer -> outputs of its layer that have not reached it yet; and by their ids, outputs of layers that
        something else uses.
    """
    pending: dict[Any, Tensor] = {}
    watcher = _ReadWatcher(pending) if watch_reads and pairs else None
    try:
        for layer, norm in pairs:
            # replaced on the instances, so that names, parameters and buffers do not change
            layer.forward = partial(_forward, layer, norm, pending, watcher)
            norm.forward = partial(_identity, norm, pending, watcher)
        if watcher is None:
            yield pending
        else:
            with watcher:
                yield pending
    finally:
        unfold(pairs)


def unfold(pairs: Sequence[Fold]) -> None:
    """Restore the forward methods of the layers and of BatchNorm."""
    for pair in pairs:
        for module in pair:
            module.__dict__.pop("forward", None)


def _folded_loss(pairs: Sequence[Fold], loss: Callable[[], Tensor]) -> Tensor:
    with folded(pairs):
        return loss()


def _forward(layer: Any, norm: Any, pending: dict[Any, Tensor], watcher: _ReadWatcher | None, x: Tensor) -> Tensor:
    pending[norm] = outputs = _scaled(layer, norm, x)
    if watcher is not None:
        watcher.outputs[id(outputs)] = outputs
    return outputs


def _scaled(layer: Any, norm: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, shift)
    return layer._conv_forward(x, weight, shift)


def _identity(norm: Any, pending: dict[Any, Tensor], watcher: _ReadWatcher | None, x: Tensor) -> Tensor:
    if pending.pop(norm, None) is not x:
        raise NotFoldedError
    return x if watcher is None else watcher.copy(x)


class _ReadWatcher(TorchDispatchMode):
    """Adds the outputs of layers that an operation reads to ``pending``, under their ``id``."""

    # needed for higher-order operators, some of which refuse modes that do not support them
    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether torch's compiler may run under this mode."""
        return True

    def __init__(self, pending: dict[Any, Tensor]) -> None:
        super().__init__()
        self.outputs: dict[int, Tensor] = {}
        self._pending = pending

    def copy(self, x: Tensor) -> Tensor:
        """The outputs of the BatchNorm, as another tensor than the outputs of the layer."""
        del self.outputs[id(x)]
        copy = x.clone()
        self.outputs[id(x)] = x
        return copy

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._pending.update((id(item), item) for item in tree_leaves((args, kwargs)) if id(item) in self.outputs)
        return function(*args, **(kwargs or {}))


def _consecutive_layers(modules: Sequence[nn.Module], loss: Callable[[], Tensor]) -> list[Fold]:
    """Pairs of a layer and a BatchNorm layer that each ran once, the latter on the outputs of the former."""
    layers = [m for m in modules if type(m) in _LAYERS and not _has_hooks(m)]
    norms = [m for m in modules if type(m) in _NORMS and not _has_hooks(m) and _is_frozen(m)]
    if not layers or not norms:
        return []
    outputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    inputs: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    handles = [layer.register_forward_hook(lambda m, _, y: outputs[m].append(y)) for layer in layers]
    handles += [norm.register_forward_pre_hook(lambda m, x: inputs[m].append(x[0])) for norm in norms]
    try:
        loss()
    finally:
        for handle in handles:
            handle.remove()
    return [
        (layer, norm)
        for layer, ys in outputs.items()
        for norm, xs in inputs.items()
        if len(ys) == len(xs) == 1 and ys[0] is xs[0]
    ]


def _has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, or a forward of its own on the instance."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return bool(hooks) or "forward" in vars(module)


def _is_frozen(norm: Any) -> bool:
    return norm.running_mean is not None and not norm.training

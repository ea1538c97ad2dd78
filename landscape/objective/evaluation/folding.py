"""Frozen BatchNorm folded into the layer before it.

With running mean m and variance v, scale g and shift b, BatchNorm after a convolution or linear layer with weight W
and bias c is that layer with another weight and bias,

    scale (W x + c - m) + b = (scale W) x + scale (c - m) + b,    scale = g / sqrt(v + eps).

Calculated so, no pass over the activations remains of it, and none of its first and second derivatives
(``benchmarks/spectrum.py`` measures what that brings). W, c, g and b stay the parameters that they are.
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

# a layer and the BatchNorm that alone takes its outputs
Fold = tuple[Any, Any]

# exactly these types: a subclass may do anything in its forward
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def foldable(
    network: Network, running: Callable[[], AbstractContextManager[None]], loss_on: Callable[[Any], Tensor], batch: Any
) -> list[Fold]:
    """Which frozen BatchNorm layers of ``network`` can be folded into the layer before.

    Found by watching one forward pass, and then put to the test: with arbitrary statistics the loss and its gradient
    must be the same folded and not. Where they are not, as when something else takes the layer's outputs too, none is.

    Args:
        network: the one.
        running: lends it and has it run as usual.
        loss_on: the loss of a batch, of the network while it is lent.
        batch: some examples.
    """
    with running():
        pairs = _seen_one_after_the_other(network.modules, partial(loss_on, batch))
    if not pairs:
        return []
    generator = torch.Generator().manual_seed(0)
    with running():
        for _, norm in pairs:
            # a fresh layer's statistics make it the identity, which could be left out anywhere
            noise = torch.randn(2, len(norm.running_mean), generator=generator).to(norm.running_mean)
            norm._buffers["running_mean"] = norm.running_mean + norm.running_var.sqrt() * noise[0]
            norm._buffers["running_var"] = norm.running_var * (noise[1] / 2).exp()
        whole = partial(loss_on, batch)
        return pairs if agree(whole, partial(_within, pairs, whole), network.weights) else []


class NotFoldedError(RuntimeError):
    """A BatchNorm was given something else than its layer's outputs: in this batch the two do not belong together."""


@contextmanager
def folded(pairs: Sequence[Fold], *, watched: bool = False) -> Iterator[dict[Any, Tensor]]:
    """Within it the layers of ``pairs`` do the work of their BatchNorm, which does nothing.

    Args:
        pairs: the ones.
        watched: whether to see to it that nothing else takes the layers' outputs.

    Yields:
        by BatchNorm layer, its layer's outputs that it has not been given yet; and those that something else took.
    """
    pending: dict[Any, Tensor] = {}
    watch = _Watch(pending) if watched and pairs else None
    try:
        for layer, norm in pairs:
            # on the instances, so that names, parameters and buffers stay where they are
            layer.forward = partial(_forward, layer, norm, pending, watch)
            norm.forward = partial(_identity, norm, pending, watch)
        if watch is None:
            yield pending
        else:
            with watch:
                yield pending
    finally:
        unfold(pairs)


def unfold(pairs: Sequence[Fold]) -> None:
    """Let layers and BatchNorm do their own work again."""
    for pair in pairs:
        for module in pair:
            module.__dict__.pop("forward", None)


def _within(pairs: Sequence[Fold], loss: Callable[[], Tensor]) -> Tensor:
    with folded(pairs):
        return loss()


def _forward(layer: Any, norm: Any, pending: dict[Any, Tensor], watch: _Watch | None, x: Tensor) -> Tensor:
    pending[norm] = outputs = _scaled(layer, norm, x)
    if watch is not None:
        watch.outputs[id(outputs)] = outputs
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


def _identity(norm: Any, pending: dict[Any, Tensor], watch: _Watch | None, x: Tensor) -> Tensor:
    if pending.pop(norm, None) is not x:
        raise NotFoldedError
    return x if watch is None else watch.copy(x)


class _Watch(TorchDispatchMode):
    """Puts the outputs of layers that an operation reads into ``pending``, under their ``id``."""

    # of higher-order operators, too, some of which refuse all other modes
    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether torch's own compiler may run under it."""
        return True

    def __init__(self, pending: dict[Any, Tensor]) -> None:
        super().__init__()
        self.outputs: dict[int, Tensor] = {}
        self._pending = pending

    def copy(self, x: Tensor) -> Tensor:
        """What is taken for the outputs of the BatchNorm: another tensor than those of the layer."""
        del self.outputs[id(x)]
        copy = x.clone()
        self.outputs[id(x)] = x
        return copy

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._pending.update((id(item), item) for item in tree_leaves((args, kwargs)) if id(item) in self.outputs)
        return function(*args, **(kwargs or {}))


def _seen_one_after_the_other(modules: Sequence[nn.Module], loss: Callable[[], Tensor]) -> list[Fold]:
    """Layers that ran once, with a BatchNorm that ran once and was given their very outputs."""
    layers = [m for m in modules if type(m) in _LAYERS and not _touched(m)]
    norms = [m for m in modules if type(m) in _NORMS and not _touched(m) and _is_frozen(m)]
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


def _touched(module: nn.Module) -> bool:
    """Whether someone looks at what goes in or comes out, or has replaced what it does."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return bool(hooks) or "forward" in vars(module)


def _is_frozen(norm: Any) -> bool:
    return norm.running_mean is not None and not norm.training

"""Frozen BatchNorm folded into the layer before it.

With running mean m and variance v, scale g and shift b, BatchNorm after a convolution or linear layer with weight W
and bias c is that layer with another weight and bias,

    scale (W x + c - m) + b = (scale W) x + scale (c - m) + b,    scale = g / sqrt(v + eps).

Calculated so, no pass over the activations remains of it, and none of its first and second derivatives
(``benchmarks/spectrum.py`` measures what that brings). W, c, g and b stay the parameters that they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objective.agreement import agree

__all__ = ["Fold", "foldable", "folded"]

# a layer and the BatchNorm that alone takes its outputs
Fold = tuple[Any, Any]

# exactly these types: a subclass may do anything in its forward
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def foldable(model: nn.Module, loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> list[Fold]:
    """Which frozen BatchNorm layers of ``model`` can be folded into the layer before.

    Found by watching one forward pass, and then put to the test: with arbitrary statistics the loss and its gradient
    must be the same folded and not. Where they are not, as when something else takes the layer's outputs too, none is.

    Args:
        model: the network. Its statistics are changed for the test, and put back.
        loss: of the network on some examples.
        parameters: those that the loss is differentiated by.
    """
    pairs = _seen_one_after_the_other(model, loss)
    if not pairs:
        return []
    generator = torch.Generator().manual_seed(0)
    kept = [(norm, norm.running_mean.clone(), norm.running_var.clone()) for _, norm in pairs]
    try:
        for norm, mean, variance in kept:
            # a fresh layer's statistics make it the identity, which could be left out anywhere
            noise = torch.randn(2, len(mean), generator=generator).to(mean)
            norm.running_mean.add_(variance.sqrt() * noise[0])
            norm.running_var.mul_((noise[1] / 2).exp())
        same = agree(loss, partial(_within, pairs, loss), parameters)
    finally:
        for norm, mean, variance in kept:
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    return pairs if same else []


@contextmanager
def folded(pairs: Sequence[Fold]) -> Iterator[None]:
    """Within it the layers of ``pairs`` do the work of their BatchNorm, which does nothing."""
    try:
        for layer, norm in pairs:
            # on the instances, so that names, parameters and buffers stay where they are
            layer.forward = partial(_forward, layer, norm)
            norm.forward = _identity
        yield
    finally:
        for pair in pairs:
            for module in pair:
                module.__dict__.pop("forward", None)


def _within(pairs: Sequence[Fold], loss: Callable[[], Tensor]) -> Tensor:
    with folded(pairs):
        return loss()


def _forward(layer: Any, norm: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, shift)
    return layer._conv_forward(x, weight, shift)


def _identity(x: Tensor) -> Tensor:
    return x


def _seen_one_after_the_other(model: nn.Module, loss: Callable[[], Tensor]) -> list[Fold]:
    """Layers that ran once, with a BatchNorm that ran once and was given their very outputs."""
    layers = [m for m in model.modules() if type(m) in _LAYERS and not _touched(m)]
    norms = [m for m in model.modules() if type(m) in _NORMS and not _touched(m) and _is_frozen(m)]
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

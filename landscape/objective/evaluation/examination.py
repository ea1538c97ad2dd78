"""The first evaluations of a network, on one micro-batch, and what they tell of how to go on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from landscape.objective.evaluation.checks import check_elsewhere, check_function, refused_clearly, same
from landscape.objective.evaluation.kernels import Kernels, with_graph
from landscape.objective.evaluation.observation import PaddedRows, goes_on_from, nodes_of, originals_in
from landscape.objective.lending.containers import found
from landscape.objective.lending.named import originals
from landscape.objective.lending.network import Network
from landscape.sums import dot, norm

__all__ = ["Found", "examine"]

# of the step along the gradient that it tells: more than curvature takes away from so small a step
_MOST_OFF = 0.5


@dataclass(frozen=True)
class Found:
    """How a network treats what it is given."""

    needs_graph: bool  # in values too, as losses with derivatives by inputs do
    padded: dict[str, int]  # the row of each embedding that autograd holds fixed


@with_graph
def examine(
    network: Network,
    kernels: Kernels,
    on: Callable[[Any, Callable[[], Tensor]], Tensor],
    loss_on: Callable[[Any], Tensor],
    batch: Any,
    *,
    frozen: bool,
) -> Found:
    """Evaluate the batch, and see to it that the loss is a function of our theta.

    Where an embedding's padded row is also used elsewhere, ``network`` forgets that it is padded.

    Args:
        network: the one, lent for each evaluation.
        kernels: how it is run.
        on: ``on(batch, body)`` is ``body()`` while the network is lent, the first time observed.
        loss_on: the loss of a batch, of the network while it is lent.
        batch: some examples.
        frozen: whether each evaluation begins with the same random numbers.

    Raises:
        ValueError: the batch cannot be evaluated; two evaluations differ; the loss depends on the user's parameters
            in ways that cannot be exchanged; forward moves its own weights.
    """
    before, theirs = network.flat.clone(), originals(network)
    padded = PaddedRows({id(w): name for name, w in zip(network.space.names, network.weights, strict=True)})
    try:
        with padded:
            loss = on(batch, partial(loss_on, batch))
    except Exception as cause:
        raise refused_clearly(cause, batch, network.dtype) from cause
    gradients = _gradients(network, kernels, loss)
    if not torch.equal(network.flat.view(torch.uint8), before.view(torch.uint8)):
        moved = [
            name
            for (name, now), then in zip(
                network.space.views(network.flat).items(), network.space.views(before).values(), strict=True
            )
            if not torch.equal(now, then)
        ]
        raise ValueError(
            f"forward changes the weights {', '.join(moved[:5])} in place, as an embedding with max_norm does, so that "
            "they are no longer those of theta: take that out of forward"
        )
    unused = tuple(name for name, g in zip(network.space.names, gradients, strict=False) if g is None)
    _name_unused(network, unused, theirs)
    value, nodes = float(loss.detach()), nodes_of(loss)

    def value_again() -> float:
        with network.lent(), kernels.running():
            again = loss_on(batch)
        if goes_on_from(again, nodes):
            raise ValueError(
                "forward goes on from what it calculated in an earlier call and keeps, as in a cache, so that f does "
                "not follow theta: let it calculate that each time"
            )
        return float(again.detach())

    needs_graph = _needs_graph(value_again, value, network.dtype, frozen)
    check_elsewhere(value, value_again, network, frozen=frozen)
    if gradients:
        _check_gradient(network, gradients, value, value_again)
    rows = {}
    for name, row in padded.found.items():
        gradient = gradients[network.space.names.index(name)] if gradients else None
        if gradient is not None and bool(gradient[row].any()):
            network.unpad(name)
        else:
            rows[name] = row
    return Found(needs_graph=needs_graph, padded=rows)


def _name_unused(network: Network, unused: tuple[str, ...], theirs: dict[str, Tensor]) -> None:
    """Refuse what was calculated from an unused parameter before and is kept; warn of what else may be so.

    Raises:
        ValueError: a tensor that the network keeps was calculated from one.
    """
    kept = (t for m in network.modules for t in found(dict(vars(m)), Tensor) if t.grad_fn is not None)
    stale = sorted({name for tensor in kept for name in originals_in(tensor, theirs) if name in unused})
    if stale:
        raise ValueError(
            f"the outputs do not follow theta in {', '.join(stale[:5])}: the network keeps what it calculated from "
            "them earlier. Let forward calculate it each time, or clear what it keeps before the objective is made"
        )
    if unused:
        warnings.warn(
            f"no gradient reaches {', '.join(unused[:5])} from the first batch. If forward does not use them, give "
            "them requires_grad_(False); if it does, by a copy that was made earlier or by way of detach(), f does not "
            "follow theta there",
            stacklevel=8,
        )


def _gradients(network: Network, kernels: Kernels, loss: Tensor) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        return (None,) * len(network.weights)
    with network.lent(), kernels.running():  # checkpointed modules run again
        try:
            gradients = torch.autograd.grad(loss, network.weights, allow_unused=True)
        except RuntimeError:  # of a network without a gradient slices can still be had
            return ()
    return tuple(g.to_dense() if g is not None and g.is_sparse else g for g in gradients)


def _needs_graph(value_again: Callable[[], float], value: float, dtype: torch.dtype, frozen: bool) -> bool:
    try:
        with torch.no_grad():
            other = value_again()
    except RuntimeError:  # "element 0 of tensors does not require grad"
        other = math.nan
    if same(value, other, dtype):
        return False
    check_function(value, value_again(), dtype, frozen=frozen)
    return True


def _check_gradient(
    network: Network, gradients: Sequence[Tensor | None], value: float, value_again: Callable[[], float]
) -> None:
    """Warn where the loss moves along its gradient by another amount than the gradient's norm tells.

    That shows a result of an earlier call which forward keeps, at whatever theta that was, and gradients that are none.

    Raises:
        ValueError: as ``value_again`` does.
    """
    pieces = [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, network.weights, strict=True)]
    gradient = torch.cat([piece.detach().reshape(-1) for piece in pieces])
    slope, before, scale = norm(gradient), network.flat.clone(), max(abs(value), 1.0)
    eps = torch.finfo(torch.float32).eps  # many networks and losses calculate in that within, whatever they are in
    ratios: list[float] = []
    # so short that the loss rises by no more than half of its digits, and a shorter one: what is off by curvature or by
    # a kink between is off otherwise there; and one back, which is where theta lies on a kink
    for part in (eps**0.5, eps**0.5 / 8, -(eps**0.5) / 8):
        length = part * min(max(norm(before), 1.0), scale / max(slope, eps))
        try:
            with torch.no_grad():
                network.flat.add_(gradient, alpha=length / max(slope, eps))
            told = dot(gradient, network.flat - before)  # of the step that rounding leaves
            rise = value_again() - value
        finally:
            with torch.no_grad():
                network.flat.copy_(before)
        # next to a minimum the difference is nothing but rounding, which TF32 makes a thousand times coarser
        if not abs(told) > 1e2 * eps * scale or (before.is_cuda and before.dtype is torch.float32):
            return
        ratios.append(rise / told)
        if not abs(ratios[-1] - 1) > _MOST_OFF:
            return
    if max(ratios) - min(ratios) <= _MOST_OFF / 5:
        warnings.warn(
            f"along its gradient f moves by {ratios[1]:.2g} times what the gradient tells. Either forward keeps what "
            "it calculated in an earlier call, at whatever theta that was: let it calculate that each time. Or its "
            "gradient is none of f, as where it detaches, rounds or reverses: then so is what is derived from it. Or "
            "it calculates in half precision, as under autocast, to which so short a step is none: take that out",
            stacklevel=8,
        )

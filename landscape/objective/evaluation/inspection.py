"""The first evaluations of a network, on one micro-batch: checks, and properties that later evaluations rely on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from landscape.objective.evaluation.checks import check_at_other_weights, check_function, equal_losses, evaluation_error
from landscape.objective.evaluation.kernels import Kernels, with_graph
from landscape.objective.evaluation.tracing import PaddingTracer, inner_nodes, original_leaves, shares_nodes
from landscape.objective.lending.containers import instances_in
from landscape.objective.lending.named_tensors import originals
from landscape.objective.lending.network import Network
from landscape.sums import dot, norm

__all__ = ["Inspection", "inspect_first_batch"]

# of the rise that the gradient predicts: curvature changes it by less over so small a step
_MAX_DEVIATION = 0.5


@dataclass(frozen=True)
class Inspection:
    """Properties of a network, found on the first batch."""

    needs_graph: bool  # values need autograd too, as losses with derivatives with respect to inputs do
    padding_rows: dict[str, int]  # weight of an embedding -> its row whose gradient autograd sets to zero


@with_graph
def inspect_first_batch(
    network: Network,
    kernels: Kernels,
    run: Callable[[Any, Callable[[], Tensor]], Tensor],
    loss_on: Callable[[Any], Tensor],
    batch: Any,
    *,
    frozen: bool,
) -> Inspection:
    """Evaluate the batch, and check that the loss is a function of our theta.

    If another layer uses the padding row of an embedding too, ``network`` treats that row like any other.

    Args:
        network: lent for each evaluation.
        kernels: the settings it runs with.
        run: ``run(batch, body)`` is ``body()`` while the network is lent, traced the first time.
        loss_on: the loss of a batch, while the network is lent.
        batch: some examples.
        frozen: whether each evaluation starts from the same random numbers.

    Raises:
        ValueError: the batch cannot be evaluated; two evaluations differ; the loss depends on the user's parameters
            in ways that cannot be substituted; forward changes its own weights.
    """
    before, theirs = network.flat.clone(), originals(network)
    padded = PaddingTracer({id(w): name for name, w in zip(network.space.names, network.weights, strict=True)})
    try:
        with padded:
            loss = run(batch, partial(loss_on, batch))
    except Exception as cause:
        raise evaluation_error(cause, batch, network.dtype) from cause
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
    _check_unused(network, unused, theirs)
    value, nodes = float(loss.detach()), inner_nodes(loss)

    def reevaluate() -> float:
        with network.lent(), kernels.running():
            again = loss_on(batch)
        if shares_nodes(again, nodes):
            raise ValueError(
                "forward goes on from what it calculated in an earlier call and keeps, as in a cache, so that f does "
                "not follow theta: let it calculate that each time"
            )
        return float(again.detach())

    needs_graph = _needs_graph(reevaluate, value, network.dtype, frozen)
    check_at_other_weights(value, reevaluate, network, frozen=frozen)
    if gradients:
        _check_gradient(network, gradients, value, reevaluate)
    rows = {}
    for name, row in padded.found.items():
        gradient = gradients[network.space.names.index(name)] if gradients else None
        if gradient is not None and bool(gradient[row].any()):
            network.unpad(name)
        else:
            rows[name] = row
    return Inspection(needs_graph=needs_graph, padding_rows=rows)


def _check_unused(network: Network, unused: tuple[str, ...], theirs: dict[str, Tensor]) -> None:
    """Warn of parameters without a gradient, and refuse those from which the network stores a computed tensor.

    Raises:
        ValueError: a tensor stored in the network was computed from one of them.
    """
    stored = (t for m in network.modules for t in instances_in(dict(vars(m)), Tensor) if t.grad_fn is not None)
    stale = sorted({name for tensor in stored for name in original_leaves(tensor, theirs) if name in unused})
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
    with network.lent(), kernels.running():  # checkpointed modules run forward again
        try:
            gradients = torch.autograd.grad(loss, network.weights, allow_unused=True)
        except RuntimeError:  # slices need no gradient, so a network without one is accepted
            return ()
    return tuple(g.to_dense() if g is not None and g.is_sparse else g for g in gradients)


def _needs_graph(reevaluate: Callable[[], float], value: float, dtype: torch.dtype, frozen: bool) -> bool:
    try:
        with torch.no_grad():
            other = reevaluate()
    except RuntimeError:  # "element 0 of tensors does not require grad"
        other = math.nan
    if equal_losses(value, other, dtype):
        return False
    check_function(value, reevaluate(), dtype, frozen=frozen)
    return True


def _check_gradient(
    network: Network, gradients: Sequence[Tensor | None], value: float, reevaluate: Callable[[], float]
) -> None:
    """Warn if a step along the gradient changes the loss by another amount than the gradient predicts.

    That reveals a cached result of an earlier call at another theta, and gradients that are not the derivative.

    Raises:
        ValueError: as ``reevaluate`` does.
    """
    pieces = [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, network.weights, strict=True)]
    gradient = torch.cat([piece.detach().reshape(-1) for piece in pieces])
    slope, before, scale = norm(gradient), network.flat.clone(), max(abs(value), 1.0)
    eps = torch.finfo(torch.float32).eps  # many networks and losses compute in float32 internally, whatever their dtype
    ratios: list[float] = []
    # a step so short that the loss changes in the lower half of its digits, and a shorter one: a deviation caused by
    # curvature or by a kink differs between the two; and one backwards, which differs if theta lies on a kink
    for part in (eps**0.5, eps**0.5 / 8, -(eps**0.5) / 8):
        length = part * min(max(norm(before), 1.0), scale / max(slope, eps))
        try:
            with torch.no_grad():
                network.flat.add_(gradient, alpha=length / max(slope, eps))
            predicted = dot(gradient, network.flat - before)  # by the step as rounded
            rise = reevaluate() - value
        finally:
            with torch.no_grad():
                network.flat.copy_(before)
        # near a minimum the difference is only rounding error, which TF32 makes a thousand times larger
        if not abs(predicted) > 1e2 * eps * scale or (before.is_cuda and before.dtype is torch.float32):
            return
        ratios.append(rise / predicted)
        if not abs(ratios[-1] - 1) > _MAX_DEVIATION:
            return
    if max(ratios) - min(ratios) <= _MAX_DEVIATION / 5:
        warnings.warn(
            f"along its gradient f moves by {ratios[1]:.2g} times what the gradient tells. Either forward keeps what "
            "it calculated in an earlier call, at whatever theta that was: let it calculate that each time. Or its "
            "gradient is none of f, as where it detaches, rounds or reverses: then so is what is derived from it. Or "
            "it calculates in half precision, as under autocast, to which so short a step is none: take that out",
            stacklevel=8,
        )

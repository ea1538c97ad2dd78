"""The first evaluations of a network, on one micro-batch, and what they tell of how to go on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.objective.checks import PaddedRows, check_function, originals_in, refused_clearly, same
from landscape.objective.containers import found
from landscape.objective.kernels import Kernels, with_graph
from landscape.objective.network import Network

__all__ = ["Found", "examine"]


@dataclass(frozen=True)
class Found:
    """How a network treats what it is given."""

    needs_graph: bool  # in values too, as losses with derivatives by inputs do
    padded: dict[str, int]  # the row of each embedding that autograd holds fixed


@with_graph
def examine(network: Network, kernels: Kernels, loss_on: Callable[[Any], Tensor], batch: Any, *, frozen: bool) -> Found:
    """Evaluate the batch, and see to it that the loss is a function of our theta.

    Where forward holds on to the user's parameters by other ways than its modules, ``kernels`` is told to exchange
    them; where an embedding's padded row is also used elsewhere, ``network`` forgets that it is padded.

    Args:
        network: the one, lent for each evaluation.
        kernels: how it is run.
        loss_on: the loss of a batch, of the network while it is lent.
        batch: some examples.
        frozen: whether each evaluation begins with the same random numbers.

    Raises:
        ValueError: the batch cannot be evaluated; two evaluations differ; the loss depends on the user's parameters
            in ways that cannot be exchanged; forward moves its own weights.
    """
    before, originals = network.flat.clone(), network.originals()
    padded = PaddedRows({id(w): name for name, w in zip(network.space.names, network.weights, strict=True)})
    try:
        with network.lent(probe=True), kernels.running(), padded:
            loss = loss_on(batch)
            theirs = originals_in(loss, originals)
    except Exception as cause:
        raise refused_clearly(cause, batch, network.dtype) from cause
    if theirs:
        kernels.exchange({name: tensor for name, tensor in originals.values() if name in theirs}, network)
        loss = _exchanged(network, kernels, loss_on, batch, originals)
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
    _name_unused(network, unused, originals)
    value = float(loss.detach())
    needs_graph = _needs_graph(network, kernels, loss_on, batch, value, frozen)
    rows = {}
    for name, row in padded.found.items():
        gradient = gradients[network.space.names.index(name)] if gradients else None
        if gradient is not None and bool(gradient[row].any()):
            network.unpad(name)
        else:
            rows[name] = row
    return Found(needs_graph=needs_graph, padded=rows)


def _exchanged(
    network: Network,
    kernels: Kernels,
    loss_on: Callable[[Any], Tensor],
    batch: Any,
    originals: dict[int, tuple[str, Tensor]],
) -> Tensor:
    with network.lent(probe=True), kernels.running():
        loss = loss_on(batch)
        theirs = originals_in(loss, originals)
    if theirs:
        raise ValueError(
            f"the outputs do not follow theta in {', '.join(theirs[:5])}: forward holds on to the network's own "
            "parameters, or to something that was calculated from them when it was built. Let forward read them from "
            "its module each time, as self.weight"
        )
    return loss


def _name_unused(network: Network, unused: tuple[str, ...], originals: dict[int, tuple[str, Tensor]]) -> None:
    """Refuse what was calculated from an unused parameter before and is kept; warn of what else may be so.

    Raises:
        ValueError: a tensor that the network keeps was calculated from one.
    """
    kept = (t for m in network.modules for t in found(dict(vars(m)), Tensor) if t.grad_fn is not None)
    stale = sorted({name for tensor in kept for name in originals_in(tensor, originals) if name in unused})
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


def _needs_graph(
    network: Network, kernels: Kernels, loss_on: Callable[[Any], Tensor], batch: Any, value: float, frozen: bool
) -> bool:
    def again() -> float:
        with network.lent(), kernels.running():
            return float(loss_on(batch).detach())

    try:
        with torch.no_grad():
            other = again()
    except RuntimeError:  # "element 0 of tensors does not require grad"
        other = math.nan
    if same(value, other, network.dtype):
        return False
    with_one = again()
    check_function(value, with_one, network.dtype, frozen=frozen)
    return True

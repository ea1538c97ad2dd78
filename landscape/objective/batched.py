"""Losses and gradients at a batch of thetas, by ``torch.vmap`` where that is faster."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.objective.contract import Objective, number
from landscape.objective.data.batches import tensors_in
from landscape.objective.evaluation.kernels import with_graph
from landscape.objective.evaluation.memory import cached_bytes, saved_bytes
from landscape.objective.model import ModelObjective
from landscape.sums import norm

__all__ = ["values_and_gradients", "vmapped"]

# thetas (P, n) -> f (P,) in float64, and its gradients (P, n)
Many = Callable[[Tensor], tuple[np.ndarray, Tensor]]

# Where these have all the parameters, a call costs more than the work in it, and many thetas in one call save time.
# With convolutions it takes longer: ``benchmarks/local_entropy.py`` measures both.
_LAYERS = (nn.Linear, nn.LayerNorm, nn.BatchNorm1d)


def values_and_gradients(objective: Objective) -> tuple[Many, int]:
    """The function that gives f and its gradient at each row of its argument, and how many rows it takes in one call.

    Multilayer perceptrons are evaluated at many rows at once, by ``torch.vmap`` over their parameters, if that is found
    to be the same; everything else at one after the other.
    """

    def in_turn(thetas: Tensor) -> tuple[np.ndarray, Tensor]:
        values, gradients = zip(*(objective.value_and_gradient(theta) for theta in thetas), strict=True)
        return np.array([number(value) for value in values]), torch.stack(gradients)

    if isinstance(objective, ModelObjective) and _is_perceptron(objective):
        try:
            together, rows = vmapped(objective)
            if _agree(together, in_turn, objective.theta):
                return together, rows
        except RuntimeError:  # torch cannot batch something in the network, the loss or forward
            pass
    return in_turn, 1


def vmapped(objective: ModelObjective) -> tuple[Many, int]:
    """The same for any network that ``torch.vmap`` can batch, with as many rows in a call as the caches hold."""
    decay, (first, _) = objective.weight_decay, objective._batches[0]
    held = saved_bytes(lambda: objective._evaluation.loss_on(first), [objective.theta, *tensors_in(first)])
    held += objective.size * objective.theta.element_size()
    rows = max(1, int(cached_bytes(objective.device) / held))

    def losses(thetas: Tensor, batch: Any) -> Tensor:
        def of(theta: Tensor) -> Tensor:
            return objective._evaluation.loss_on(batch, list(objective.space.views(theta).values()))

        return torch.vmap(of)(thetas)

    @with_graph
    def some(thetas: Tensor) -> tuple[np.ndarray, Tensor]:
        thetas = thetas.detach().clone().requires_grad_()  # a clone, as tensors of inference mode have no gradient
        gradients = decay * thetas.detach().to(objective.dtype if objective.device.type == "mps" else torch.float64)
        values = (gradients * thetas.detach()).sum(dim=1).cpu().double() / 2
        for batch, count in objective._batches:
            share, loss = count / objective.examples, losses(thetas, batch)
            values += share * loss.detach().cpu()
            gradients += share * torch.autograd.grad(loss.sum(), thetas)[0]
        return values.numpy(), gradients.to(thetas)

    def together(thetas: Tensor) -> tuple[np.ndarray, Tensor]:
        parts = thetas.tensor_split(math.ceil(len(thetas) / rows))
        values, gradients = zip(*map(some, parts), strict=True)
        return np.concatenate(values), torch.cat(gradients)

    return together, rows


def _is_perceptron(objective: ModelObjective) -> bool:
    """With fixed statistics, random numbers for none, and nothing that holds theta but its modules."""
    owners = [m for m in objective._evaluation.network.modules if next(m.parameters(recurse=False), None) is not None]
    free = not (objective._evaluation.norms and objective.batch_norm != "frozen")
    plain = not (
        objective._evaluation.found.needs_graph
        or objective._evaluation.kernels.exchanges
        or objective.noise
        or len(objective.held)
    )
    return free and plain and all(type(m) in _LAYERS for m in owners)


def _agree(one: Many, other: Many, theta: Tensor) -> bool:
    """Whether both are the same to rounding, away from theta: the gradient of a minimum is nothing but rounding."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, len(theta), generator=generator, dtype=theta.dtype).to(theta.device)
    thetas = theta + 0.1 * norm(theta) / len(theta) ** 0.5 * noise
    (values, gradients), (others, other_gradients) = one(thetas), other(thetas)
    # generous, since another order of operations moves some ReLU across its kink
    tolerance = 1e4 * torch.finfo(theta.dtype).eps
    off = norm((gradients - other_gradients).flatten())
    return bool(np.allclose(values, others, rtol=tolerance, atol=0)) and off <= tolerance * norm(
        other_gradients.flatten()
    )

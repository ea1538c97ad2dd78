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
from landscape.objective.evaluation.memory import cache_budget, saved_bytes
from landscape.objective.model import ModelObjective
from landscape.sums import norm

__all__ = ["values_and_gradients", "vmapped"]

# thetas (P, n) -> f (P,) in float64, and its gradients (P, n)
BatchedFunction = Callable[[Tensor], tuple[np.ndarray, Tensor]]

# In networks whose parameters are all in these layers, the overhead of a call exceeds its arithmetic, so that batching
# over thetas saves time. With convolutions it is slower: ``benchmarks/local_entropy.py`` measures both.
_LAYERS = (nn.Linear, nn.LayerNorm, nn.BatchNorm1d)


def values_and_gradients(objective: Objective) -> tuple[BatchedFunction, int]:
    """A function from thetas (P, n) to f and its gradient at each row, and how many rows it evaluates in one call.

    Multilayer perceptrons are evaluated at many rows together, by ``torch.vmap`` over their parameters, if the result
    is the same up to rounding; all other objectives row by row.
    """

    def sequential(thetas: Tensor) -> tuple[np.ndarray, Tensor]:
        values, gradients = zip(*(objective.value_and_gradient(theta) for theta in thetas), strict=True)
        return np.array([number(value) for value in values]), torch.stack(gradients)

    if isinstance(objective, ModelObjective) and _is_perceptron(objective):
        try:
            batched, chunk_size = vmapped(objective)
            if _agree(batched, sequential, objective.theta):
                return batched, chunk_size
        except RuntimeError:  # an operation of the network, the loss or forward has no batching rule
            pass
    return sequential, 1


def vmapped(objective: ModelObjective) -> tuple[BatchedFunction, int]:
    """The same for any network that ``torch.vmap`` can batch, with as many rows in a call as fit in the caches."""
    decay, (first, _) = objective.weight_decay, objective._batches[0]
    row_bytes = saved_bytes(lambda: objective._evaluation.loss_on(first), [objective.theta, *tensors_in(first)])
    row_bytes += objective.size * objective.theta.element_size()
    chunk_size = max(1, int(cache_budget(objective.device) / row_bytes))

    def losses(thetas: Tensor, batch: Any) -> Tensor:
        def loss(theta: Tensor) -> Tensor:
            return objective._evaluation.loss_on(batch, list(objective.space.views(theta).values()))

        return torch.vmap(loss)(thetas)

    @with_graph
    def evaluate_chunk(thetas: Tensor) -> tuple[np.ndarray, Tensor]:
        thetas = thetas.detach().clone().requires_grad_()  # a clone, since inference tensors cannot require gradients
        gradients = decay * thetas.detach().to(objective.dtype if objective.device.type == "mps" else torch.float64)
        values = (gradients * thetas.detach()).sum(dim=1).cpu().double() / 2
        for batch, count in objective._batches:
            share, loss = count / objective.examples, losses(thetas, batch)
            values += share * loss.detach().cpu()
            gradients += share * torch.autograd.grad(loss.sum(), thetas)[0]
        return values.numpy(), gradients.to(thetas)

    def batched(thetas: Tensor) -> tuple[np.ndarray, Tensor]:
        parts = thetas.tensor_split(math.ceil(len(thetas) / chunk_size))
        values, gradients = zip(*map(evaluate_chunk, parts), strict=True)
        return np.concatenate(values), torch.cat(gradients)

    return batched, chunk_size


def _is_perceptron(objective: ModelObjective) -> bool:
    """Whether all parameters are in ``_LAYERS`` and f depends on theta by the modules' parameters alone.

    That excludes BatchNorm statistics that change with theta, random numbers, and parameters read from a closure.
    """
    owners = [m for m in objective._evaluation.network.modules if next(m.parameters(recurse=False), None) is not None]
    free = not (objective._evaluation.norms and objective.batch_norm != "frozen")
    plain = not (
        objective._evaluation.inspection.needs_graph
        or objective._evaluation.kernels.has_substitutes
        or objective.noise
        or len(objective.fixed_entries)
    )
    return free and plain and all(type(m) in _LAYERS for m in owners)


def _agree(one: BatchedFunction, other: BatchedFunction, theta: Tensor) -> bool:
    """Whether both agree up to rounding at points away from theta: at a minimum the gradient would be rounding only."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, len(theta), generator=generator, dtype=theta.dtype).to(theta.device)
    thetas = theta + 0.1 * norm(theta) / len(theta) ** 0.5 * noise
    (values, gradients), (others, other_gradients) = one(thetas), other(thetas)
    # generous, since another order of operations may move a ReLU across its kink
    tolerance = 1e4 * torch.finfo(theta.dtype).eps
    off = norm((gradients - other_gradients).flatten())
    return bool(np.allclose(values, others, rtol=tolerance, atol=0)) and off <= tolerance * norm(
        other_gradients.flatten()
    )

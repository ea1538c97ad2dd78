"""Products of second derivatives with a vector, batch by batch, from graphs that are kept.

    Hessian:       H v = grad_theta (grad f . v), reverse over reverse.
    Gauss-Newton:  G v = J' (d^2 l / d z^2) J v, with z the network's outputs, J = dz/dtheta and l the loss of z.

Both differentiate a graph that depends on theta alone. At a fixed theta the graphs of all batches are built once and
kept while they fit the memory budget, so that each further product pays only for the second backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.objective.data.batches import tensors_in
from landscape.objective.evaluation.memory import free_bytes, saved_bytes

__all__ = ["KeptProducts", "Product", "all_finite", "gauss_newton_product", "gradient_of", "hessian_product"]

# (directions, keep the graph for another call) -> the product, both piece by piece, as the parameters are
Product = Callable[[Sequence[Tensor], bool], Sequence[Tensor]]


def gradient_of(loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False) -> Sequence[Tensor]:
    """The gradient of ``loss``, piece by piece as the parameters are; zeros where it depends on none of them."""
    if not loss.requires_grad:  # torch refuses to differentiate what has no graph at all
        return _zeros(parameters)
    gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph, materialize_grads=True)
    return [g.to_dense() if g.is_sparse else g for g in gradients]


def hessian_product(loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """v -> H v for the Hessian of ``loss``."""
    # never loss.backward(create_graph=True): the graph in .grad would keep itself alive
    gradients = gradient_of(loss, parameters, create_graph=True)
    # a piece without a graph is constant in theta: its rows of H are zero
    curved = [i for i, g in enumerate(gradients) if g.requires_grad]

    def product(directions: Sequence[Tensor], keep: bool) -> Sequence[Tensor]:
        if not curved:
            return _zeros(parameters)
        return torch.autograd.grad(
            [gradients[i] for i in curved],
            parameters,
            grad_outputs=[directions[i] for i in curved],
            retain_graph=keep,
            materialize_grads=True,
        )

    return product


def gauss_newton_product(outputs: Any, loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """v -> G v for ``loss`` as a function of the network's ``outputs``, a tensor or what has it as ``.logits``.

    J v is had from reverse passes alone: J'u is linear in u, and its derivative along v is J v.

    Raises:
        ValueError: the outputs are no tensor and have no ``.logits``; the loss is no function of it, or is it.
    """
    z = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if z is None:
        raise ValueError(
            f"forward returns a {type(outputs).__name__} without .logits: for Gauss-Newton products give a "
            "forward(model, batch) that returns the tensor of which the loss is a function"
        )
    if not loss.requires_grad:  # d^2 l/dz^2 is zero
        return lambda directions, keep: _zeros(parameters)
    # a copy that carries its graph, as logits that were converted or cut out, would say that all products are zero
    slope = torch.autograd.grad(loss, [z], create_graph=True, allow_unused=True)[0] if z.requires_grad else None
    same = z.dim() == 0 or (loss._base is not None and loss._base is (z if z._base is None else z._base))
    itself = slope is not None and not slope.requires_grad and same
    if slope is None or itself:
        found = "is its outputs" if itself else "does not depend on the tensor that forward returns (.logits, if any)"
        raise ValueError(
            f"the loss {found}, so Gauss-Newton products are not known: give a forward(model, batch) that returns the "
            "network's outputs, and a loss(outputs, batch) of them"
        )
    u = torch.zeros_like(z, requires_grad=True)
    pulled = torch.autograd.grad(z, parameters, u, create_graph=True, materialize_grads=True)
    used = [i for i, g in enumerate(pulled) if g.requires_grad]

    def product(directions: Sequence[Tensor], keep: bool) -> Sequence[Tensor]:
        if not slope.requires_grad:  # the loss is linear in the outputs
            return _zeros(parameters)
        (pushed,) = torch.autograd.grad(
            [pulled[i] for i in used], [u], [directions[i] for i in used], retain_graph=True, materialize_grads=True
        )
        (curved,) = torch.autograd.grad(slope, [z], pushed, retain_graph=True, materialize_grads=True)
        return torch.autograd.grad(z, parameters, curved, retain_graph=keep, materialize_grads=True)

    return product


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether each entry of each is."""
    return all(bool(t.isfinite().all()) for t in tensors)


def _zeros(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) for p in parameters]


class KeptProducts:
    """The products of all batches at one theta, those that fit kept with their graphs.

    Args:
        prepare: builds the product of one batch at the present theta.
        batches: each batch with its number of examples.
        flat: theta, whose storage the graphs share.
        memory: bytes of graphs to keep at most. ``"auto"``: a quarter of what is free when the first is built.
    """

    def __init__(
        self,
        prepare: Callable[[Any], Product],
        batches: list[tuple[Any, float]],
        flat: Tensor,
        memory: int | str,
    ) -> None:
        self._prepare = prepare
        self._batches = batches
        self._flat = flat
        self._memory = memory
        self._kept: dict[int, Product] = {}
        self._keepable: int | None = None  # how many batches' graphs fit

    def forget(self) -> None:
        """Let go of the graphs, as must be done whenever theta or a buffer changes."""
        self._kept.clear()

    def apply(self, i: int, directions: Sequence[Tensor]) -> Sequence[Tensor]:
        """The product of batch ``i`` with a vector given piece by piece."""
        if self._keepable is None:
            self._keepable = self._how_many_fit()
        if i in self._kept:
            return self._kept[i](directions, True)
        product = self._prepare(self._batches[i][0])
        keep = i < self._keepable
        if keep:
            self._kept[i] = product
        return product(directions, keep)

    def _how_many_fit(self) -> int:
        if self._memory == 0:
            return 0
        batch, examples = self._batches[0]
        budget = free_bytes(self._flat.device) // 4 if self._memory == "auto" else int(self._memory)
        try:
            per_example = saved_bytes(lambda: self._prepare(batch), [self._flat, *tensors_in(batch)]) / examples
        except RuntimeError:  # a network that does not let its graph be watched
            return 0
        fit, total = 0, 0.0
        for _, count in self._batches:
            total += per_example * count
            if total > budget:
                break
            fit += 1
        return fit

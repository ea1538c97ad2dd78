"""Products of second derivatives with a vector, batch by batch, from cached graphs.

    Hessian:       H v = grad_theta (grad f . v), reverse over reverse.
    Gauss-Newton:  G v = J' (d^2 l / d z^2) J v, with z the network's outputs, J = dz/dtheta and l the loss of z.

Both differentiate a graph that depends on theta only. At a fixed theta the graphs of all batches are built once and
cached if they fit the memory budget, so that each further product costs only the second backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.objective.data.batches import tensors_in
from landscape.objective.evaluation.memory import free_bytes, saved_bytes

__all__ = ["CachedProducts", "Product", "all_finite", "gauss_newton_product", "gradient_of", "hessian_product"]

# (directions, retain_graph for another call) -> the product; both tensor by tensor, like the parameters
Product = Callable[[Sequence[Tensor], bool], Sequence[Tensor]]


def gradient_of(loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False) -> Sequence[Tensor]:
    """The gradient of ``loss``, one tensor per parameter; zeros for those that it does not depend on."""
    if not loss.requires_grad:  # torch raises an error for a loss without a graph
        return _zeros(parameters)
    gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph, materialize_grads=True)
    return [g.to_dense() if g.is_sparse else g for g in gradients]


def hessian_product(loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """v -> H v for the Hessian of ``loss``."""
    # not loss.backward(create_graph=True), which makes a reference cycle between .grad and the graph
    gradients = gradient_of(loss, parameters, create_graph=True)
    # a gradient without a graph is constant in theta: its rows of H are zero
    curved = [i for i, g in enumerate(gradients) if g.requires_grad]

    def product(directions: Sequence[Tensor], retain_graph: bool) -> Sequence[Tensor]:
        if not curved:
            return _zeros(parameters)
        return torch.autograd.grad(
            [gradients[i] for i in curved],
            parameters,
            grad_outputs=[directions[i] for i in curved],
            retain_graph=retain_graph,
            materialize_grads=True,
        )

    return product


def gauss_newton_product(outputs: Any, loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """v -> G v for ``loss`` as a function of the network's ``outputs``, a tensor or an object with ``.logits``.

    J v is computed by reverse mode twice: J'u is linear in u, and the vector-Jacobian product of that map with v is
    J v.

    Raises:
        ValueError: the outputs are not a tensor and have no ``.logits``; the loss does not depend on them, or is equal
            to them.
    """
    z = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if z is None:
        raise ValueError(
            f"forward returns a {type(outputs).__name__} without .logits: for Gauss-Newton products give a "
            "forward(model, batch) that returns the tensor of which the loss is a function"
        )
    if not loss.requires_grad:  # d^2 l/dz^2 is zero
        return lambda directions, retain_graph: _zeros(parameters)
    # for logits that were converted or sliced after the loss was computed, all products would be zero
    output_gradient = (
        torch.autograd.grad(loss, [z], create_graph=True, allow_unused=True)[0] if z.requires_grad else None
    )
    same = z.dim() == 0 or (loss._base is not None and loss._base is (z if z._base is None else z._base))
    itself = output_gradient is not None and not output_gradient.requires_grad and same
    if output_gradient is None or itself:
        found = "is its outputs" if itself else "does not depend on the tensor that forward returns (.logits, if any)"
        raise ValueError(
            f"the loss {found}, so Gauss-Newton products are not known: give a forward(model, batch) that returns the "
            "network's outputs, and a loss(outputs, batch) of them"
        )
    u = torch.zeros_like(z, requires_grad=True)
    vjp = torch.autograd.grad(z, parameters, u, create_graph=True, materialize_grads=True)
    used = [i for i, g in enumerate(vjp) if g.requires_grad]

    def product(directions: Sequence[Tensor], retain_graph: bool) -> Sequence[Tensor]:
        if not output_gradient.requires_grad:  # the loss is linear in the outputs
            return _zeros(parameters)
        (jvp,) = torch.autograd.grad(
            [vjp[i] for i in used], [u], [directions[i] for i in used], retain_graph=True, materialize_grads=True
        )
        (curved,) = torch.autograd.grad(output_gradient, [z], jvp, retain_graph=True, materialize_grads=True)
        return torch.autograd.grad(z, parameters, curved, retain_graph=retain_graph, materialize_grads=True)

    return product


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all entries of all tensors are finite."""
    return all(bool(t.isfinite().all()) for t in tensors)


def _zeros(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) for p in parameters]


class CachedProducts:
    """The products of all batches at one theta, with the graphs of the first batches cached as far as memory allows.

    Args:
        prepare: builds the product of one batch at the current theta.
        batches: each batch with its number of examples.
        flat: theta, whose storage the graphs share.
        memory: bytes of graphs to cache at most. ``"auto"``: a quarter of the free memory when the first is built.
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
        self._cached: dict[int, Product] = {}
        self._cacheable: int | None = None  # number of batches whose graphs fit

    def clear(self) -> None:
        """Discard the graphs, as is required whenever theta or a buffer changes."""
        self._cached.clear()

    def apply(self, i: int, directions: Sequence[Tensor]) -> Sequence[Tensor]:
        """The product of batch ``i`` with a vector given tensor by tensor."""
        if self._cacheable is None:
            self._cacheable = self._cacheable_batches()
        if i in self._cached:
            return self._cached[i](directions, True)
        product = self._prepare(self._batches[i][0])
        retain_graph = i < self._cacheable
        if retain_graph:
            self._cached[i] = product
        return product(directions, retain_graph)

    def _cacheable_batches(self) -> int:
        if self._memory == 0:
            return 0
        batch, examples = self._batches[0]
        budget = free_bytes(self._flat.device) // 4 if self._memory == "auto" else int(self._memory)
        try:
            per_example = saved_bytes(lambda: self._prepare(batch), [self._flat, *tensors_in(batch)]) / examples
        except RuntimeError:  # saved-tensor hooks are disabled in this network
            return 0
        fit, total = 0, 0.0
        for _, count in self._batches:
            total += per_example * count
            if total > budget:
                break
            fit += 1
        return fit

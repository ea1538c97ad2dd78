"""Products of the Hessian and of the Gauss-Newton matrix with a vector, as means over batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.objective.data.batches import Batches
from landscape.objective.evaluation.batch_loss import Evaluation
from landscape.objective.evaluation.kernels import differentiable_twice, no_second_derivative, with_graph
from landscape.objective.products import CachedProducts, Product, all_finite, gauss_newton_product, hessian_product
from landscape.parameters import ParameterSpace

__all__ = ["Curvature", "mean_over"]


class Curvature:
    """The second derivatives of the loss at the network's current weights.

    Args:
        evaluation: the loss of a batch.
        batches: each with its number of examples.
        memory: bytes of graphs to cache for each of H and G, as in ModelObjective.
    """

    def __init__(self, evaluation: Evaluation, batches: Batches, memory: int | str) -> None:
        self._evaluation, self._batches = evaluation, batches
        self.hessians, self.gauss_newtons = (
            CachedProducts(prepare, batches, evaluation.network.flat, memory)
            for prepare in (self._hessian, self._gauss_newton)
        )

    def clear(self) -> None:
        """Discard the cached graphs, as is required whenever theta or a buffer changes."""
        self.hessians.clear()
        self.gauss_newtons.clear()

    def hvp(self, v: Tensor, decay: float) -> Tensor:
        """(H + decay) v."""
        return self._product(self.hessians, v, decay)

    def gnvp(self, v: Tensor, decay: float) -> Tensor:
        """(G + decay) v."""
        return self._product(self.gauss_newtons, v, decay)

    def _product(self, products: CachedProducts, v: Tensor, decay: float) -> Tensor:
        space = self._evaluation.network.space
        directions = list(space.views(v).values())

        # all batches before the first graph is cached, since the checks may change theta temporarily
        for batch, _ in self._batches:
            self._evaluation.ensure_seen(batch)

        def pieces(i: int) -> Sequence[Tensor]:
            try:
                return products.apply(i, directions)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as cause:
                self._evaluation.value_on(self._batches[i][0])  # raises the error if it is not due to derivatives
                raise no_second_derivative(cause) from cause

        total = mean_over(self._batches, pieces, space, v, decay)
        if not bool(total.isfinite().all()):
            broken = [i for i in range(len(self._batches)) if not all_finite(pieces(i))]
            raise FloatingPointError(
                f"the product is not finite in batches {broken} of {len(self._batches)} (from 0): the loss or its "
                "derivatives overflow at theta, so check f(theta) and its gradient there first"
            )
        return total

    @with_graph
    def _hessian(self, batch: Any) -> Product:
        with self._evaluation.running(), differentiable_twice():
            loss = self._evaluation.loss_while_lent(batch)
            return self._while_lent(hessian_product(loss, self._evaluation.network.weights))

    @with_graph
    def _gauss_newton(self, batch: Any) -> Product:
        with self._evaluation.running(), differentiable_twice():
            outputs, loss = self._evaluation.outputs_and_loss(batch)
            return self._while_lent(gauss_newton_product(outputs, loss, self._evaluation.network.weights))

    def _while_lent(self, product: Product) -> Product:
        """The same product, computed while the network is lent: checkpointed modules run forward again."""

        def applied(directions: Sequence[Tensor], retain_graph: bool) -> Sequence[Tensor]:
            with self._evaluation.running():
                return product(directions, retain_graph)

        return applied


def mean_over(
    batches: Batches,
    of_batch: Callable[[int], Sequence[Tensor]],
    space: ParameterSpace,
    vector: Tensor,
    decay: float,
) -> Tensor:
    """The mean over examples of per-batch means, tensor by tensor, plus ``decay * vector`` (n,).

    Sums over several batches are accumulated in float64 where the device has it, so that no digits are lost.
    """
    wide = torch.float64 if len(batches) > 1 and vector.device.type != "mps" else vector.dtype
    examples = sum(count for _, count in batches)
    for i, (_, count) in enumerate(batches):
        addends = of_batch(i)
        if i == 0:  # allocate after the first batch, whose graph is freed by now unless it is cached
            total = decay * vector.to(wide)
            pieces = list(space.views(total).values())
        for piece, addend in zip(pieces, addends, strict=True):
            piece.add_(addend, alpha=count / examples)
    return total.to(vector)

"""Products of the Hessian and of the Gauss-Newton matrix with a vector, as means over batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.objective.evaluation.batch_loss import Evaluation
from landscape.objective.evaluation.kernels import differentiable_twice, with_graph
from landscape.objective.products import KeptProducts, Product, all_finite, gauss_newton_product, hessian_product
from landscape.parameters import ParameterSpace

__all__ = ["Curvature", "mean_over"]

Batches = list[tuple[Any, float]]


class Curvature:
    """The second derivatives of the loss at the network's present weights.

    Args:
        evaluation: the loss of a batch.
        batches: each with its number of examples.
        memory: bytes of graphs to keep for each of the two, as ModelObjective has it.
    """

    def __init__(self, evaluation: Evaluation, batches: Batches, memory: int | str) -> None:
        self._evaluation, self._batches = evaluation, batches
        self.hessians, self.gauss_newtons = (
            KeptProducts(prepare, batches, evaluation.network.flat, memory)
            for prepare in (self._hessian, self._gauss_newton)
        )

    def forget(self) -> None:
        """Let go of kept graphs, as must be done whenever theta or a buffer changes."""
        self.hessians.forget()
        self.gauss_newtons.forget()

    def hvp(self, v: Tensor, decay: float) -> Tensor:
        """(H + decay) v."""
        return self._product(self.hessians, v, decay)

    def gnvp(self, v: Tensor, decay: float) -> Tensor:
        """(G + decay) v."""
        return self._product(self.gauss_newtons, v, decay)

    def _product(self, products: KeptProducts, v: Tensor, decay: float) -> Tensor:
        space = self._evaluation.network.space
        directions = list(space.views(v).values())

        # all of them before the first graph is kept, since the checks may move theta for a while
        for batch, _ in self._batches:
            self._evaluation.meet(batch)

        def pieces(i: int) -> Sequence[Tensor]:
            try:
                return products.apply(i, directions)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as cause:
                self._evaluation.value_on(self._batches[i][0])  # which raises what is no matter of derivatives
                raise ValueError(
                    f"the network cannot be differentiated twice ({cause}): replace the operation, or where it changes "
                    "a tensor in place, write it out of place"
                ) from cause

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
            return self._lent(hessian_product(loss, self._evaluation.network.weights))

    @with_graph
    def _gauss_newton(self, batch: Any) -> Product:
        with self._evaluation.running(), differentiable_twice():
            outputs, loss = self._evaluation.outputs_and_loss(batch)
            return self._lent(gauss_newton_product(outputs, loss, self._evaluation.network.weights))

    def _lent(self, product: Product) -> Product:
        """The same while the network is lent: checkpointed modules run again."""

        def applied(directions: Sequence[Tensor], keep: bool) -> Sequence[Tensor]:
            with self._evaluation.running():
                return product(directions, keep)

        return applied


def mean_over(
    batches: Batches,
    of_batch: Callable[[int], Sequence[Tensor]],
    space: ParameterSpace,
    vector: Tensor,
    decay: float,
) -> Tensor:
    """The mean over examples of what is known by batches, tensor by tensor, plus ``decay * vector`` (n,).

    Sums over batches are in float64, where there is one, so that many batches lose no digits.
    """
    wide = torch.float64 if len(batches) > 1 and vector.device.type != "mps" else vector.dtype
    examples = sum(count for _, count in batches)
    for i, (_, count) in enumerate(batches):
        addends = of_batch(i)
        if i == 0:  # only now that a graph which is not kept is gone, since it may be as large
            total = decay * vector.to(wide)
            pieces = list(space.views(total).values())
        for piece, addend in zip(pieces, addends, strict=True):
            piece.add_(addend, alpha=count / examples)
    return total.to(vector)

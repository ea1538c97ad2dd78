"""The loss of one batch: a network that is lent, run as it is to be, on a batch of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objective.batch_norm import norm_layers, recalibrate
from landscape.objective.batches import lent_batch, tensors_in, weight_of
from landscape.objective.examination import Found, examine
from landscape.objective.folding import Fold, NotFoldedError, folded, unfold
from landscape.objective.kernels import Kernels, with_graph
from landscape.objective.loss import default_forward, loss_of, modules_in
from landscape.objective.network import Network
from landscape.objective.products import gradient_of
from landscape.objective.spectral import find_vectors, spectral_layers

__all__ = ["Evaluation"]


class Evaluation:
    """What ModelObjective evaluates batch by batch; arguments as there.

    Attributes:
        network: our tensors and the user's code.
        norms: its BatchNorm layers that keep statistics.
        spectral: its spectral normalisations, each with what finds its vectors again.
        folds: its BatchNorm layers that are folded into the layer before.
        found: how the network treats what it is given, once :meth:`examine` has seen to it.
    """

    found: Found

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor] | None,
        *,
        forward: Callable[[nn.Module, Any], Any] | None,
        count: Callable[[Any], Any] | None,
        frozen_noise: bool,
        training: bool,
        dtype: torch.dtype | None,
    ) -> None:
        self.loss, self.forward, self.count = loss, forward or default_forward, count
        others = modules_in(loss, forward, model)
        self.network = Network(model, others, dtype=dtype, training=training)
        self.kernels = Kernels(self.network, frozen_noise=frozen_noise, without_dropout=training)
        # of the network alone: those of a loss, or of a teacher in it, stay as they are
        self.norms = norm_layers(model.modules())
        self.spectral = spectral_layers(model.modules())
        self.folds: list[Fold] = []
        self._pending: dict[Any, Tensor] = {}
        self.writes: bool | None = None  # whether forward writes into its batch, which the first evaluation tells
        self._needs_graph = True

    def examine(self, batch: Any, *, frozen: bool) -> None:
        """See how the network treats a batch, and that its loss is a function of our theta."""
        self.found = examine(self.network, self.kernels, self.loss_while_lent, batch, frozen=frozen)
        self._needs_graph = self.found.needs_graph

    def of(self, network: Network) -> Evaluation:
        """The same for another network of the same code."""
        other = copy.copy(self)
        other.network, other.kernels = network, self.kernels.of(network)
        return other

    def weight(self, batch: Any) -> float:
        """How many examples a batch weighs."""
        return weight_of(batch, self.count)

    # --- while the network is lent --------------------------------------------------------------------------------

    @contextmanager
    def running(self, weights: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Within it the network is lent, at our weights or at ``weights``, and runs as it is to."""
        with self.network.lent(weights), self.kernels.running(), folded(self.folds) as self._pending:
            yield

    def outputs_and_loss(self, batch: Any) -> tuple[Any, Tensor]:
        """The outputs, and the mean loss of the batch.

        Raises:
            ValueError: forward wrote into the batch, which it did not when it was examined.
        """
        if self.folds:
            try:
                found = self._outputs_and_loss(batch)
                if not self._pending:
                    return found
            except NotFoldedError:
                pass
            # another way through the network than that of the batch which was looked at
            unfold(self.folds)
            self.folds.clear()
        return self._outputs_and_loss(batch)

    def _outputs_and_loss(self, batch: Any) -> tuple[Any, Tensor]:
        count, mine = self.weight(batch), self._mine(batch)
        tensors = list(tensors_in(mine))  # now, since forward may take some out
        versions = [tensor._version for tensor in tensors]
        with self.kernels.noise():
            outputs = self.forward(self.network.model, mine)
            loss = loss_of(self.loss, outputs, mine, count)
        written = versions != [tensor._version for tensor in tensors]
        if self.writes is None:
            self.writes = written
        elif written and not self.writes:
            raise ValueError(
                "forward wrote into a batch, which it did not when this objective was made, so that f would not be a "
                "function of theta: let forward copy what it changes"
            )
        return outputs, loss

    def loss_while_lent(self, batch: Any) -> Tensor:
        """The mean loss of the batch."""
        return self.outputs_and_loss(batch)[1]

    # --- by itself ------------------------------------------------------------------------------------------------

    def run(self, batch: Any) -> tuple[Any, Tensor]:
        """The outputs and the mean loss; without a graph where autograd is off, unless the loss needs one."""
        if self._needs_graph:
            return self._run_with_graph(batch)
        with self.running():
            return self.outputs_and_loss(batch)

    @with_graph
    def _run_with_graph(self, batch: Any) -> tuple[Any, Tensor]:
        with self.running():
            outputs, loss = self.outputs_and_loss(batch)
            return outputs, loss.detach()

    @with_graph
    def loss_on(self, batch: Any, weights: Sequence[Tensor] | None = None) -> Tensor:
        """The mean loss with its graph."""
        with self.running(weights):
            return self.loss_while_lent(batch)

    @with_graph
    def value_and_gradient_on(self, batch: Any) -> tuple[float, Sequence[Tensor]]:
        """The mean loss as a number, and its gradient tensor by tensor."""
        with self.running():
            loss = self.loss_while_lent(batch)
            return float(loss.detach()), gradient_of(loss, self.network.weights)

    def value_on(self, batch: Any) -> float:
        """The mean loss as a number."""
        with torch.no_grad():
            return float(self.run(batch)[1].detach())

    def find_statistics(self, calibration: list[tuple[Any, float]]) -> None:
        """BatchNorm's statistics of ``calibration``, and the vectors of spectral normalisation, at our weights."""
        with torch.no_grad(), self.network.lent(adopt=[*self.norms, *self.spectral]) as model, self.kernels.running():
            find_vectors(self.spectral)
            if self.norms:
                recalibrate(self.norms, calibration, lambda batch: self.forward(model, self._mine(batch)))

    def find_spectral_vectors(self) -> None:
        """Those of our weights."""
        if self.spectral:
            with self.network.lent(adopt=self.spectral):
                find_vectors(self.spectral)

    def _mine(self, batch: Any) -> Any:
        return lent_batch(batch, cloned=self.writes is not False)

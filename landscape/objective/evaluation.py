"""The loss of one batch: a network that is lent, run as it is to be, on a batch of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape.objective.batch_norm import norm_layers, recalibrate
from landscape.objective.batches import lent_batch, tensors_in, weight_of
from landscape.objective.examination import Found, examine
from landscape.objective.folding import Fold, NotFoldedError, folded, unfold
from landscape.objective.generators import state_of_generators
from landscape.objective.kernels import Kernels, with_graph
from landscape.objective.loss import default_forward, loss_of, modules_in
from landscape.objective.network import Network
from landscape.objective.observation import TensorsRead
from landscape.objective.products import gradient_of
from landscape.objective.spectral import find_vectors, spectral_layers

__all__ = ["Evaluation"]

_T = TypeVar("_T")


class Evaluation:
    """What ModelObjective evaluates batch by batch; arguments as there.

    Attributes:
        network: our tensors and the user's code.
        norms: its BatchNorm layers that keep statistics.
        spectral: its spectral normalisations, each with what finds its vectors again.
        folds: its BatchNorm layers that are folded into the layer before.
        found: how the network treats what it is given, once :meth:`examine` has seen to it.
        writes: whether forward was seen to write into a batch.
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
        self._needs_graph = True
        self.writes = False
        self.meet_anew()

    def meet_anew(self) -> None:
        """Take all batches for ones that were never evaluated."""
        self._met: dict[int, Any] = {}  # batches that were evaluated already, by their id
        self._written: set[int] = set()  # those of them that forward writes into
        self._reading: TensorsRead | None = None  # while a batch is evaluated for the first time

    def examine(self, batch: Any, *, frozen: bool) -> None:
        """See how the network treats a batch, and that its loss is a function of our theta."""
        before = state_of_generators()
        self.found = examine(self.network, self.kernels, self._on, self.loss_while_lent, batch, frozen=frozen)
        self._needs_graph = self.found.needs_graph
        self.kernels.draws = state_of_generators() != before

    def of(self, network: Network) -> Evaluation:
        """The same for another network of the same code."""
        other = copy.copy(self)
        other.network, other.kernels = network, self.kernels.of(network)
        other.meet_anew()
        return other

    def weight(self, batch: Any) -> float:
        """How many examples a batch weighs."""
        return weight_of(batch, self.count)

    # --- while the network is lent --------------------------------------------------------------------------------

    @contextmanager
    def running(self, weights: Sequence[Tensor] | None = None, *, probe: bool = False) -> Iterator[None]:
        """Within it the network is lent, at our weights or at ``weights``, and runs as it is to."""
        with self.network.lent(weights, probe=probe), self.kernels.running(), folded(self.folds) as self._pending:
            yield

    def outputs_and_loss(self, batch: Any) -> tuple[Any, Tensor]:
        """The outputs, and the mean loss of the batch.

        Raises:
            ValueError: forward wrote into the batch, which it did not the first time.
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
        first = id(batch) not in self._met
        count = self.weight(batch)
        mine = lent_batch(batch, cloned=first or id(batch) in self._written)
        tensors = list(tensors_in(mine))  # now, since forward may take some out
        versions = [tensor._version for tensor in tensors]
        with self.kernels.noise():
            outputs = self.forward(self.network.model, mine)
            loss = loss_of(self.loss, outputs, mine, count)
        if versions != [tensor._version for tensor in tensors] and id(batch) not in self._written:
            if not first:
                raise ValueError(
                    "forward wrote into a batch, which it did not the first time, so that f would not be a function of "
                    "theta: let forward copy what it changes"
                )
            self.writes = True
            self._written.add(id(batch))
        if self._reading is not None:
            self._reading.end_in(loss)
        return outputs, loss

    def loss_while_lent(self, batch: Any) -> Tensor:
        """The mean loss of the batch."""
        return self.outputs_and_loss(batch)[1]

    # --- by itself ------------------------------------------------------------------------------------------------

    def run(self, batch: Any) -> tuple[Any, Tensor]:
        """The outputs and the mean loss; without a graph where autograd is off, unless the loss needs one."""
        if self._needs_graph:
            return self._run_with_graph(batch)
        try:
            return self._on(batch, partial(self.outputs_and_loss, batch))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # "element 0 of tensors does not require grad", unlike the batches before
            found = self._run_with_graph(batch)
            self._needs_graph = True
            return found

    @with_graph
    def _run_with_graph(self, batch: Any) -> tuple[Any, Tensor]:
        outputs, loss = self._on(batch, partial(self.outputs_and_loss, batch))
        return outputs, loss.detach()

    @with_graph
    def loss_on(self, batch: Any, weights: Sequence[Tensor] | None = None) -> Tensor:
        """The mean loss with its graph."""
        with self.running(weights):
            return self.loss_while_lent(batch)

    @with_graph
    def value_and_gradient_on(self, batch: Any) -> tuple[float, Sequence[Tensor]]:
        """The mean loss as a number, and its gradient tensor by tensor."""

        def both() -> tuple[float, Sequence[Tensor]]:
            loss = self.loss_while_lent(batch)
            return float(loss.detach()), gradient_of(loss, self.network.weights)

        return self._on(batch, both)

    def value_on(self, batch: Any) -> float:
        """The mean loss as a number."""
        with torch.no_grad():
            return float(self.run(batch)[1].detach())

    def meet(self, batch: Any) -> None:
        """Evaluate a batch that never was, before its graph is built: what is looked at the first time would stay."""
        if id(batch) not in self._met:
            self.value_on(batch)

    def _on(self, batch: Any, body: Callable[[], _T]) -> _T:
        """``body()`` while the network is lent; the first time with a batch, what it reads and changes is observed."""
        if id(batch) not in self._met:
            return self._on_for_the_first_time(batch, body)
        with self.running():
            return body()

    def _on_for_the_first_time(self, batch: Any, body: Callable[[], _T]) -> _T:
        """The same, observed.

        Raises:
            ValueError: forward holds on to tensors of the user's in a way that ours cannot stand in for.
        """
        theirs: dict[str, Tensor] = {}
        for _ in range(2):
            self._reading = TensorsRead(self.network.originals())
            try:
                with self.running(probe=True), self._reading as reading:
                    result = body()
            finally:
                self._reading = None
            theirs = self.network.differing(reading.found)
            if not theirs:
                self._met[id(batch)] = batch
                return result
            self.kernels.exchange(theirs, self.network)
        raise ValueError(
            f"the outputs do not follow theta in {', '.join(list(theirs)[:5])}: forward holds on to the network's own "
            "tensors, or to something that was calculated from them when it was built. Let forward read them from its "
            "module each time, as self.weight"
        )

    def find_statistics(self, calibration: list[tuple[Any, float]]) -> None:
        """BatchNorm's statistics of ``calibration``, and the vectors of spectral normalisation, at our weights."""
        with torch.no_grad(), self.network.lent(adopt=[*self.norms, *self.spectral]) as model, self.kernels.running():
            find_vectors(self.spectral)
            if self.norms:
                recalibrate(self.norms, calibration, lambda batch: self.forward(model, lent_batch(batch, cloned=True)))

    def find_spectral_vectors(self) -> None:
        """Those of our weights."""
        if self.spectral:
            with self.network.lent(adopt=self.spectral):
                find_vectors(self.spectral)

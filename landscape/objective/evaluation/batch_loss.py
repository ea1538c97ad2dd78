"""The loss of one batch: a network that is lent, run as it is to be, on a batch of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape.objective.data.batches import lent_batch, tensors_in, weight_of
from landscape.objective.evaluation.batch_norm import norm_layers, recalibrate
from landscape.objective.evaluation.checks import check_mean_over_examples, checked_for_draws
from landscape.objective.evaluation.examination import Found, examine
from landscape.objective.evaluation.folding import Fold, NotFoldedError, folded, unfold
from landscape.objective.evaluation.generators import state_of_generators
from landscape.objective.evaluation.kernels import Kernels, with_graph
from landscape.objective.evaluation.loss import default_forward, loss_of, modules_in
from landscape.objective.evaluation.met import Met
from landscape.objective.evaluation.observation import TensorsRead
from landscape.objective.evaluation.spectral import find_vectors, spectral_layers
from landscape.objective.lending.named import differing, originals
from landscape.objective.lending.network import Network
from landscape.objective.lending.outsiders import with_outsiders
from landscape.objective.products import gradient_of

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
        met: the batches that were evaluated already.
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
        self.writes = self._holds = False
        self.met = Met()
        self._reading: TensorsRead | None = None  # while a batch is evaluated for the first time

    def meet_anew(self, batches: Sequence[tuple[Any, float]]) -> None:
        """Take all batches, those of the data and others, for ones that were never evaluated."""
        self.met = Met(batches, self.met.means)

    def moved(self) -> None:
        """Take note that other tensors than those of theta have other values now."""
        if self.kernels.exchanges:
            self.kernels.exchange({}, self.network)
        if self._holds:
            self.meet_anew(self.met.batches)

    def examine(self, batch: Any, *, frozen: bool) -> None:
        """See how the network treats a batch, and that its loss is a function of our theta."""
        before = state_of_generators()
        self.found = examine(self.network, self.kernels, self._observed, self.loss_while_lent, batch, frozen=frozen)
        self._needs_graph = self.found.needs_graph
        self.kernels.draws = state_of_generators() != before

    def of(self, network: Network) -> Evaluation:
        """The same for another network of the same code."""
        other = copy.copy(self)
        other.network, other.kernels = network, self.kernels.of(network)
        other.meet_anew(())
        return other

    def weight(self, batch: Any) -> float:
        """How many examples a batch weighs."""
        return weight_of(batch, self.count)

    # --- while the network is lent --------------------------------------------------------------------------------

    @contextmanager
    def running(self, weights: Sequence[Tensor] | None = None, *, probe: bool = False) -> Iterator[None]:
        """Within it the network is lent, at our weights or at ``weights``, and runs as it is to."""
        lent, fold = self.network.lent(weights, probe=probe), folded(self.folds, watched=probe)
        with lent, self.kernels.running(), fold as self._pending:
            yield

    def outputs_and_loss(self, batch: Any) -> tuple[Any, Tensor]:
        """The outputs, and the mean loss of the batch.

        Raises:
            ValueError: forward wrote into the batch, which it did not the first time.
        """
        return self._folded_or_not(partial(self._outputs_and_loss, batch))

    def _folded_or_not(self, body: Callable[[], _T]) -> _T:
        if self.folds:
            try:
                found = body()
                if not self._pending:
                    return found
            except NotFoldedError:
                pass
            # another way through the network than that of the batch which was looked at
            unfold(self.folds)
            self.folds.clear()
        return body()

    def _outputs_and_loss(self, batch: Any) -> tuple[Any, Tensor]:
        first = batch not in self.met
        count = self.weight(batch)
        mine = lent_batch(batch, cloned=first or id(batch) in self.met.written)
        tensors = list(tensors_in(mine))  # now, since forward may take some out
        versions = [tensor._version for tensor in tensors]
        with self.kernels.noise():
            outputs = self.forward(self.network.model, mine)
            loss = loss_of(self.loss, outputs, mine, count)
        if versions != [tensor._version for tensor in tensors] and id(batch) not in self.met.written:
            if not first:
                raise ValueError(
                    "forward wrote into a batch, which it did not the first time, so that f would not be a function of "
                    "theta: let forward copy what it changes"
                )
            self.writes = True
            self.met.written.add(id(batch))
        if self._reading is not None:
            self._reading.end_in(loss)
        return outputs, loss

    def loss_while_lent(self, batch: Any) -> Tensor:
        """The mean loss of the batch."""
        return self.outputs_and_loss(batch)[1]

    # --- by itself ------------------------------------------------------------------------------------------------

    def run(self, batch: Any) -> tuple[Any, Tensor]:
        """The outputs and the mean loss; without a graph where autograd is off, unless the loss needs one."""
        if batch in self.met:
            return self._run(batch)
        with self.met.named(batch, self.network.dtype):
            return self._run(batch)

    def _run(self, batch: Any) -> tuple[Any, Tensor]:
        if self._needs_graph:
            return self._run_with_graph(batch)
        try:
            return self._on(batch, partial(self.outputs_and_loss, batch), _loss_of_both)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # "element 0 of tensors does not require grad", unlike the batches before
            found = self._run_with_graph(batch)
            self._needs_graph = True
            return found

    @with_graph
    def _run_with_graph(self, batch: Any) -> tuple[Any, Tensor]:
        outputs, loss = self._on(batch, partial(self.outputs_and_loss, batch), _loss_of_both)
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

        with self.met.named(batch, self.network.dtype):
            return self._on(batch, both, lambda found: found[0])

    def value_on(self, batch: Any) -> float:
        """The mean loss as a number."""
        with torch.no_grad():
            return float(self.run(batch)[1].detach())

    def meet(self, batch: Any) -> None:
        """Evaluate a batch that never was, before its graph is built: what is looked at the first time would stay."""
        if batch not in self.met:
            self.value_on(batch)

    def _on(self, batch: Any, body: Callable[[], _T], number: Callable[[_T], float]) -> _T:
        """``body()`` while the network is lent; the first time with a batch observed, and checked by its ``number``."""
        if batch in self.met:
            with self.running():
                return body()
        with self.met.whole(batch):
            observed, again = partial(self._observed, batch, body), partial(self._again, body)
            result = checked_for_draws(observed, again, number, self.kernels, self.network)
            with self.met.unlooked(batch) as alike:
                self.check_mean(alike)
        return result

    def _again(self, body: Callable[[], _T]) -> _T:
        with self.running():
            return body()

    def check_mean(self, batches: list[Any]) -> Any:
        """See to it that the loss is a mean over examples, on some of these batches, which come back."""
        with self.met.passing():
            return check_mean_over_examples(self.value_on, self.weight, batches, self.network)

    def _observed(self, batch: Any, body: Callable[[], _T]) -> _T:
        return with_outsiders(self.network, partial(self._on_for_the_first_time, batch, body))

    def _on_for_the_first_time(self, batch: Any, body: Callable[[], _T]) -> _T:
        """``body()`` while the network is lent, and seen what it reads and changes.

        Raises:
            ValueError: forward holds on to tensors of the user's in a way that ours cannot stand in for.
        """
        theirs: dict[str, Tensor] = {}
        for _ in range(2):
            self._reading = TensorsRead(originals(self.network))
            try:
                with self.running(probe=True), self._reading as reading:
                    result = body()
            finally:
                self._reading = None
            # also those that have the same values now: the user's may have others later, and ours at a checkpoint
            theirs = {name: t for name, t in reading.found.items() if not self.kernels.reaches(name)}
            theirs = theirs or differing(self.network, reading.found)
            if not theirs:
                self._holds |= bool(reading.found)
                self.met.add(batch)
                return result
            self.kernels.exchange(theirs, self.network)
        raise ValueError(
            f"the outputs do not follow theta in {', '.join(list(theirs)[:5])}: forward holds on to the network's own "
            "tensors, or to something that was calculated from them when it was built. Let forward read them from its "
            "module each time, as self.weight"
        )

    def find_statistics(self, calibration: list[tuple[Any, float]]) -> None:
        """BatchNorm's statistics of ``calibration``, and the vectors of spectral normalisation, at our weights."""
        if self.norms:
            self._meet_calibration([batch for batch, _ in calibration])
        with torch.no_grad(), self.network.lent(adopt=[*self.norms, *self.spectral]), self.kernels.running():
            find_vectors(self.spectral)
            if self.norms:
                recalibrate(self.norms, calibration, self._outputs)

    @torch.no_grad()
    def _meet_calibration(self, batches: list[Any]) -> None:
        """Observe those that never were, before statistics are gathered from what they read, change and draw."""
        data = {id(batch) for batch, _ in self.met.batches}
        for i, batch in enumerate(batches):
            if id(batch) in data:
                self.meet(batch)
            elif batch not in self.met:  # which may have no loss
                with self.met.named(batch, self.network.dtype, f"batch {i} of calibration"):
                    self._on(batch, partial(self._folded_or_not, partial(self._outputs, batch)), _sum_of)

    def _outputs(self, batch: Any) -> Any:
        with self.kernels.noise():
            return self.forward(self.network.model, lent_batch(batch, cloned=True))

    def find_spectral_vectors(self) -> None:
        """Those of our weights."""
        if self.spectral:
            with self.network.lent(adopt=self.spectral):
                find_vectors(self.spectral)


def _loss_of_both(found: tuple[Any, Tensor]) -> float:
    return float(found[1].detach())


def _sum_of(outputs: Any) -> float:
    return sum(float(tensor.detach().double().sum()) for tensor in tensors_in(outputs) if not tensor.is_complex())

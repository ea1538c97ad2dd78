"""The loss of one batch: runs the lent network, with the settings of ``kernels``, on a copy of the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape.objective.data.batches import copied_batch, tensors_in, weight_of
from landscape.objective.evaluation.batch_norm import norm_layers, recalibrate
from landscape.objective.evaluation.checks import check_mean_over_examples, checked_for_randomness
from landscape.objective.evaluation.folding import Fold, NotFoldedError, folded, unfold
from landscape.objective.evaluation.generators import rng_state
from landscape.objective.evaluation.inspection import Inspection, inspect_first_batch
from landscape.objective.evaluation.kernels import Kernels, with_graph
from landscape.objective.evaluation.loss import batch_loss, default_forward, modules_in
from landscape.objective.evaluation.seen_batches import SeenBatches
from landscape.objective.evaluation.spectral import compute_vectors, spectral_layers
from landscape.objective.evaluation.tracing import ReadTracer
from landscape.objective.lending.external_modules import with_external_modules
from landscape.objective.lending.named_tensors import differing, originals
from landscape.objective.lending.network import Network
from landscape.objective.products import gradient_of

__all__ = ["Evaluation"]

_T = TypeVar("_T")


class Evaluation:
    """The loss of single batches, for ModelObjective; arguments as there.

    Attributes:
        network: our tensors with the user's code.
        norms: its BatchNorm layers with running statistics.
        spectral: its spectral normalisations, each with a function that recomputes its vectors.
        folds: its BatchNorm layers that are folded into the preceding layer.
        inspection: what :meth:`inspect` found on the first batch.
        mutates_batches: whether forward was observed to write into a batch.
        seen: the batches that were evaluated before.
    """

    inspection: Inspection

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
        self.network = Network(model, modules_in(loss, forward, model), dtype=dtype, training=training)
        self.kernels = Kernels(self.network, frozen_noise=frozen_noise, without_dropout=training)
        # of the network only: those of modules in the loss, such as a teacher network, do not change
        self.norms = norm_layers(model.modules())
        self.spectral = spectral_layers(model.modules())
        self.folds: list[Fold] = []
        self._pending: dict[Any, Tensor] = {}
        self._needs_graph = True
        self.mutates_batches = self._reads_originals = False
        self.seen = SeenBatches()
        self._read_tracer: ReadTracer | None = None  # set while a batch is evaluated for the first time

    def reset_seen(self, batches: Sequence[tuple[Any, float]]) -> None:
        """Forget which batches were evaluated before; ``batches`` are those of the data."""
        self.seen = SeenBatches(batches, self.seen.checked_kinds)

    def buffers_changed(self) -> None:
        """Update what depends on the values of tensors outside of theta, after these have changed."""
        if self.kernels.has_substitutes:
            self.kernels.substitute({}, self.network)
        if self._reads_originals:
            self.reset_seen(self.seen.batches)

    def inspect(self, batch: Any, *, frozen: bool) -> None:
        """Evaluate the first batch, and check that its loss is a function of our theta."""
        before = rng_state()
        self.inspection = inspect_first_batch(
            self.network, self.kernels, self._run_observed, self.loss_while_lent, batch, frozen=frozen
        )
        self._needs_graph = self.inspection.needs_graph
        self.kernels.draws = rng_state() != before

    def with_network(self, network: Network) -> Evaluation:
        """The same evaluation of another network with the same code."""
        other = copy.copy(self)
        other.network, other.kernels = network, self.kernels.with_network(network)
        other.reset_seen(())
        return other

    def weight(self, batch: Any) -> float:
        """The weight of a batch in the mean, by default its number of examples."""
        return weight_of(batch, self.count)

    # --- while the network is lent --------------------------------------------------------------------------------

    @contextmanager
    def running(self, weights: Sequence[Tensor] | None = None, *, probe: bool = False) -> Iterator[None]:
        """Context in which the network is lent, at our weights or at ``weights``, with the settings of ``kernels``."""
        lent, fold = self.network.lent(weights, probe=probe), folded(self.folds, watch_reads=probe)
        with lent, self.kernels.running(), fold as self._pending:
            yield

    def outputs_and_loss(self, batch: Any) -> tuple[Any, Tensor]:
        """The outputs, and the mean loss of the batch.

        Raises:
            ValueError: forward wrote into a batch that it left unchanged the first time.
        """
        return self._try_folded(partial(self._outputs_and_loss, batch))

    def _try_folded(self, body: Callable[[], _T]) -> _T:
        if self.folds:
            try:
                found = body()
                if not self._pending:
                    return found
            except NotFoldedError:
                pass
            # this batch takes another path through the network than the one for which folding was checked
            unfold(self.folds)
            self.folds.clear()
        return body()

    def _outputs_and_loss(self, batch: Any) -> tuple[Any, Tensor]:
        first = batch not in self.seen
        copied = copied_batch(batch, cloned=first or id(batch) in self.seen.mutated)
        tensors = list(tensors_in(copied))  # before forward, which may remove some from the batch
        versions = [tensor._version for tensor in tensors]
        with self.kernels.noise():
            outputs = self.forward(self.network.model, copied)
            loss = batch_loss(self.loss, outputs, copied, partial(self.weight, batch))
        if versions != [tensor._version for tensor in tensors] and id(batch) not in self.seen.mutated:
            if not first:
                raise ValueError(
                    "forward wrote into a batch, which it did not the first time, so that f would not be a function of "
                    "theta: let forward copy what it changes"
                )
            self.mutates_batches = True
            self.seen.mutated.add(id(batch))
        if self._read_tracer is not None:
            self._read_tracer.record_leaves(loss)
        return outputs, loss

    def loss_while_lent(self, batch: Any) -> Tensor:
        """The mean loss of the batch."""
        return self.outputs_and_loss(batch)[1]

    # --- lends the network itself ---------------------------------------------------------------------------------

    def run(self, batch: Any) -> tuple[Any, Tensor]:
        """The outputs and the mean loss; without a graph if autograd is off, unless the loss needs one."""
        if batch in self.seen:
            return self._run(batch)
        with self.seen.naming_errors(batch, self.network.dtype):
            return self._run(batch)

    def _run(self, batch: Any) -> tuple[Any, Tensor]:
        if self._needs_graph:
            return self._run_with_graph(batch)
        try:
            return self._run_lent(batch, partial(self.outputs_and_loss, batch), _loss_of_both)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # "element 0 of tensors does not require grad", unlike the batches before
            found = self._run_with_graph(batch)
            self._needs_graph = True
            return found

    @with_graph
    def _run_with_graph(self, batch: Any) -> tuple[Any, Tensor]:
        outputs, loss = self._run_lent(batch, partial(self.outputs_and_loss, batch), _loss_of_both)
        return outputs, loss.detach()

    @with_graph
    def loss_on(self, batch: Any, weights: Sequence[Tensor] | None = None) -> Tensor:
        """The mean loss, with its graph."""
        with self.running(weights):
            return self.loss_while_lent(batch)

    @with_graph
    def value_and_gradient_on(self, batch: Any) -> tuple[float, Sequence[Tensor]]:
        """The mean loss as a number, and its gradient tensor by tensor."""

        def both() -> tuple[float, Sequence[Tensor]]:
            loss = self.loss_while_lent(batch)
            return float(loss.detach()), gradient_of(loss, self.network.weights)

        with self.seen.naming_errors(batch, self.network.dtype):
            return self._run_lent(batch, both, lambda found: found[0])

    def value_on(self, batch: Any) -> float:
        """The mean loss as a number."""
        with torch.no_grad():
            return float(self.run(batch)[1].detach())

    def ensure_seen(self, batch: Any) -> None:
        """Evaluate a batch once if it was not evaluated before, so that its graph is not built under the tracer."""
        if batch not in self.seen:
            self.value_on(batch)

    def _run_lent(self, batch: Any, body: Callable[[], _T], number: Callable[[_T], float]) -> _T:
        """``body()`` while lent; traced the first time for a batch, and its ``number`` checked to be reproducible."""
        if batch in self.seen:
            with self.running():
                return body()
        with self.seen.first_evaluation(batch):
            first_run, rerun = partial(self._run_observed, batch, body), partial(self._rerun, body)
            result = checked_for_randomness(first_run, rerun, number, self.kernels, self.network)
            with self.seen.unchecked_alike(batch) as alike:
                self.check_mean(alike)
        return result

    def _rerun(self, body: Callable[[], _T]) -> _T:
        with self.running():
            return body()

    def check_mean(self, batches: list[Any]) -> Any:
        """Check that the loss is a mean over examples, on a sample of these batches, which is returned."""
        with self.seen.temporary():
            return check_mean_over_examples(self.value_on, self.weight, batches, self.network)

    def _run_observed(self, batch: Any, body: Callable[[], _T]) -> _T:
        return with_external_modules(self.network, partial(self._run_traced, batch, body))

    def _run_traced(self, batch: Any, body: Callable[[], _T]) -> _T:
        """``body()`` under the tracer; parameters that it reads from the user's network are substituted by ours.

        Raises:
            ValueError: forward still reads tensors of the user's network after that.
        """
        stale: dict[str, Tensor] = {}
        for _ in range(2):
            self._read_tracer = ReadTracer(originals(self.network))
            try:
                with self.running(probe=True), self._read_tracer as tracer:
                    result = body()
            finally:
                self._read_tracer = None
            # including those with equal values, which may differ after training or at another checkpoint
            stale = {name: t for name, t in tracer.found.items() if not self.kernels.is_substituted(name)}
            stale = stale or differing(self.network, tracer.found)
            if not stale:
                self._reads_originals |= bool(tracer.found)
                self.seen.add(batch)
                return result
            self.kernels.substitute(stale, self.network)
        raise ValueError(
            f"the outputs do not follow theta in {', '.join(list(stale)[:5])}: forward holds on to the network's own "
            "tensors, or to something that was calculated from them when it was built. Let forward read them from its "
            "module each time, as self.weight"
        )

    def recalibrate_buffers(self, calibration: list[tuple[Any, float]]) -> None:
        """Recompute BatchNorm's statistics on ``calibration``, and spectral normalisation's vectors, at our weights."""
        if self.norms:
            self._trace_calibration([batch for batch, _ in calibration])
        with torch.no_grad(), self.network.lent(adopt=[*self.norms, *self.spectral]), self.kernels.running():
            compute_vectors(self.spectral)
            if self.norms:
                recalibrate(self.norms, calibration, self._outputs)

    @torch.no_grad()
    def _trace_calibration(self, batches: list[Any]) -> None:
        """Trace the calibration batches that were not evaluated before, before statistics are computed from them."""
        data = {id(batch) for batch, _ in self.seen.batches}
        for i, batch in enumerate(batches):
            if id(batch) in data:
                self.ensure_seen(batch)
            elif batch not in self.seen:  # calibration batches may have no targets, so no loss is computed
                with self.seen.naming_errors(batch, self.network.dtype, f"batch {i} of calibration"):
                    self._run_lent(batch, partial(self._try_folded, partial(self._outputs, batch)), _sum_of)

    def _outputs(self, batch: Any) -> Any:
        with self.kernels.noise():
            return self.forward(self.network.model, copied_batch(batch, cloned=True))

    def update_spectral_vectors(self) -> None:
        """Recompute the vectors of spectral normalisation at our weights."""
        if self.spectral:
            with self.network.lent(adopt=self.spectral):
                compute_vectors(self.spectral)


def _loss_of_both(found: tuple[Any, Tensor]) -> float:
    return float(found[1].detach())


def _sum_of(outputs: Any) -> float:
    return sum(float(tensor.detach().double().sum()) for tensor in tensors_in(outputs) if not tensor.is_complex())

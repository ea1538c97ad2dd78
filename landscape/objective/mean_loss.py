"""The mean loss of a network over batches as a function f of the flat vector theta, and its derivatives.

f(theta) is the mean of the loss over the examples, each with the same weight whatever the batch sizes, plus
weight_decay/2 ||theta||^2 if requested. Products with the Hessian are reverse over reverse: H v = grad (grad f . v).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from landscape.checkpoints import Checkpoint
from landscape.objective.curvature import Curvature, mean_over
from landscape.objective.data.batches import Batches, digest
from landscape.objective.data.metrics import PerExampleMetrics, mean_metrics, per_example_metrics
from landscape.objective.data.parts import partition
from landscape.objective.evaluation.batch_loss import Evaluation
from landscape.objective.lending.network import Network
from landscape.parameters import ParameterSpace, check_vector
from landscape.sums import norm

__all__ = ["MeanLoss"]


class MeanLoss:
    """f of a network that has passed inspection; arguments and attributes as in ModelObjective.

    Args:
        evaluation: the loss of a batch.
        batches: each with its weight, by default its number of examples.
        calibration: the batches on which BatchNorm is recalibrated.
        weight_decay, batch_norm, graph_memory, whole_batches, noise, mode: as there.
    """

    theta: Tensor
    fixed_entries: Tensor
    examples: float

    def __init__(
        self,
        evaluation: Evaluation,
        batches: Batches,
        calibration: Batches,
        *,
        weight_decay: float,
        batch_norm: str,
        graph_memory: int | str,
        whole_batches: bool,
        noise: str | None,
        mode: str,
    ) -> None:
        self._evaluation, self._batches, self._calibration = evaluation, batches, calibration
        self.weight_decay, self.batch_norm, self.graph_memory = weight_decay, batch_norm, graph_memory
        self.whole_batches, self.noise, self.mode = whole_batches, noise, mode
        self.load_notes: tuple[str, ...] = ()
        self._reset()

    def _reset(self) -> None:
        """Start at the network's own weights, with empty caches."""
        self.theta = self._network.flat.clone()
        self.fixed_entries = self.space.rows(self._evaluation.inspection.padding_rows).to(self.device)
        self.examples = sum(count for _, count in self._batches)
        self._evaluation.reset_seen(self._batches)
        self._curvature = Curvature(self._evaluation, self._batches, self.graph_memory)
        self._recalibrate()

    @property
    def _network(self) -> Network:
        return self._evaluation.network

    @property
    def size(self) -> int:
        """n, the number of weights."""
        return self._network.flat.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of theta."""
        return self._network.flat.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights and the data."""
        return self._network.flat.device

    @property
    def space(self) -> ParameterSpace:
        """The names and shapes of the tensors in theta."""
        return self._network.space

    def at(self, checkpoint: Checkpoint) -> Self:
        """A new objective with the weights (as ``.theta``) and buffers of ``checkpoint``.

        Raises:
            ValueError: its names or shapes do not fit the network.
        """
        network = self._network.clone()
        load_notes = network.load(checkpoint)
        return self._with_network(network, load_notes=(*checkpoint.notes, *load_notes))

    def restrict(self, *patterns: str) -> Self:
        """f as a function of some of its parameters only, the others fixed at the network's own weights.

        Args:
            patterns: of names as in ``space.names``, with ``*`` and ``?`` as in a shell: ``"layer3.*"``. Weight decay
                then applies to the chosen parameters only.

        Raises:
            ValueError: a pattern matches no name.
        """
        space = self.space.restricted(patterns)
        return self._with_network(self._at_theta().clone(space))

    def parts(self, count: int) -> list[Self]:
        """New objectives on ``count`` disjoint parts of the data, at the network's own weights.

        Examples are assigned to parts at random, with a fixed seed; the sizes of the parts differ by at most one
        example. Batches that cannot be split, or must not be (``whole_batches``, ``noise``), are assigned whole.

        Raises:
            ValueError: a part would be empty.
        """
        whole = self.whole_batches or self.noise is not None
        parts = partition([batch for batch, _ in self._batches], count, whole=whole)
        network, weight = self._at_theta(), self._evaluation.weight
        return [self._with_network(network.clone(), [(batch, weight(batch)) for batch in part]) for part in parts]

    def recalibrated(self) -> Self:
        """A new objective with ``batch_norm="recalibrated"``."""
        return self._with_network(self._network.clone(), batch_norm="recalibrated")

    def _at_theta(self) -> Network:
        """The network at its own weights, whatever theta f was evaluated at last."""
        self._set_theta(self.theta)
        return self._network

    def _with_network(
        self,
        network: Network,
        batches: list[tuple[Any, float]] | None = None,
        *,
        batch_norm: str | None = None,
        load_notes: tuple[str, ...] | None = None,
    ) -> Self:
        """A copy of this objective with another network of the same code, and the other settings that are given."""
        other = copy.copy(self)
        other._evaluation = self._evaluation.with_network(network)
        other._batches = self._batches if batches is None else batches
        other.batch_norm = batch_norm or self.batch_norm
        other.load_notes = self.load_notes if load_notes is None else load_notes
        other._reset()
        return other

    def data_digest(self) -> str:
        """SHA-256 of the examples, independent of their order and of the batches."""
        return digest(self._batches)

    def value(self, theta: Tensor) -> float:
        """f(theta)."""
        return self.metrics(theta)["loss"]

    @torch.no_grad()
    def metrics(self, theta: Tensor) -> dict[str, float]:
        """``loss``, which is f, and for classifiers ``accuracy``, as means over the examples."""
        self._set_theta(theta)
        return mean_metrics(self._evaluation.run, self._batches, self._decay())

    @torch.no_grad()
    def per_example(self, theta: Tensor) -> PerExampleMetrics:
        """The loss of each example at theta, and for classifiers whether it is correct; their means are ``metrics``."""
        self._set_theta(theta)
        return per_example_metrics(self._evaluation.run, self._batches, self._evaluation.loss, self._decay())

    def gradient(self, theta: Tensor) -> Tensor:
        """grad f(theta), shape (n,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """f(theta) and grad f(theta)."""
        self._set_theta(theta)
        losses: list[float] = []
        decay = self._decay()  # before the gradient is allocated

        def pieces(i: int) -> Sequence[Tensor]:
            value, gradient = self._evaluation.value_and_gradient_on(self._batches[i][0])
            losses.append(value * self._batches[i][1])
            return gradient

        gradient = mean_over(self._batches, pieces, self.space, self._network.flat, self.weight_decay)
        if len(self.fixed_entries):
            gradient[self.fixed_entries] = 0.0
        return sum(losses) / self.examples + decay, gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """H v, the Hessian of f at theta times ``v``, both of shape (n,).

        Raises:
            FloatingPointError: the product is not finite; the message names the batch.
        """
        return self._curvature.hvp(self._at(theta, v), self.weight_decay)

    def gnvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """G v, the generalised Gauss-Newton matrix of f at theta times ``v``, both of shape (n,).

        G = E J' (d^2 l/dz^2) J with z the outputs, J = dz/dtheta (Schraudolph 2002): the Hessian without the second
        derivatives of the network. It is positive semi-definite if the loss is convex in z, as cross-entropy and
        squared error are. If the outputs are not a tensor, z is their ``.logits``.

        Raises:
            ValueError: the outputs are not a tensor and have no ``.logits``.
            FloatingPointError: the product is not finite; the message names the batch.
        """
        return self._curvature.gnvp(self._at(theta, v), self.weight_decay)

    def _at(self, theta: Tensor, v: Tensor) -> Tensor:
        """Set the weights to theta, and return ``v`` with its fixed entries set to zero."""
        check_vector("v", v, self.size)
        v = v.to(self._network.flat)
        if not bool(v.isfinite().all()):
            raise ValueError("v is not finite: give a finite direction")
        self._set_theta(theta)
        return v.index_fill(0, self.fixed_entries, 0.0) if len(self.fixed_entries) else v

    def _decay(self) -> float:
        if not self.weight_decay:
            return 0.0
        return self.weight_decay / 2 * norm(self._network.flat) ** 2

    def _set_theta(self, theta: Tensor) -> None:
        check_vector("theta", theta, self.size)
        flat = self._network.flat
        theta = theta.to(flat)
        if len(self.fixed_entries):
            theta = theta.index_copy(0, self.fixed_entries, self.theta[self.fixed_entries])
        if not torch.equal(flat, theta):
            self._curvature.clear()
            flat.copy_(theta)
            self._recalibrate()

    def _recalibrate(self) -> None:
        if self.batch_norm == "recalibrated" and (self._evaluation.norms or self._evaluation.spectral):
            try:
                self._evaluation.recalibrate_buffers(self._calibration)
            except BaseException:
                self._network.flat.fill_(torch.nan)  # the statistics are not those of theta, so force a new update
                raise

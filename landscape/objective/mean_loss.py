"""The mean loss of a network over batches as a function f of the flat vector theta, and its derivatives.

f(theta) is the mean of the loss over the examples, each example weighted alike whatever the batch sizes are, plus
weight_decay/2 ||theta||^2 if asked for. Products with the Hessian are reverse over reverse: H v = grad (grad f . v).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from landscape.checkpoints import Checkpoint
from landscape.objective.curvature import Curvature, mean_over
from landscape.objective.data.batches import digest
from landscape.objective.data.examples import Examples, means, per_example
from landscape.objective.data.parts import divided
from landscape.objective.evaluation.batch_loss import Evaluation
from landscape.objective.lending.network import Network
from landscape.parameters import ParameterSpace, check_vector
from landscape.sums import norm

__all__ = ["MeanLoss"]

Batches = list[tuple[Any, float]]


class MeanLoss:
    """f of a network that has been looked at; arguments and attributes as ModelObjective has them.

    Args:
        evaluation: the loss of a batch.
        batches: each with the number of examples that it weighs.
        calibration: the batches for statistics that are gathered again.
        weight_decay, batch_norm, graph_memory, whole_batches, noise, mode: as there.
    """

    theta: Tensor
    held: Tensor
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
        self.told: tuple[str, ...] = ()
        self._begin()

    def _begin(self) -> None:
        """Start at the network's own weights, with nothing kept."""
        self.theta = self._network.flat.clone()
        self.held = self.space.rows(self._evaluation.found.padded).to(self.device)
        self.examples = sum(count for _, count in self._batches)
        self._evaluation.meet_anew(self._batches)
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
        """That of theta."""
        return self._network.flat.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights and the data are."""
        return self._network.flat.device

    @property
    def space(self) -> ParameterSpace:
        """The names and shapes that theta is made of."""
        return self._network.space

    def at(self, checkpoint: Checkpoint) -> Self:
        """The same problem with the weights (as ``.theta``) and buffers of ``checkpoint``.

        Raises:
            ValueError: its names or shapes do not fit the network.
        """
        network = self._network.sibling()
        told = network.load(checkpoint)
        return self._like(network, told=(*checkpoint.notes, *told))

    def restrict(self, *patterns: str) -> Self:
        """f as a function of some of its parameters only, the others fixed at the network's own weights.

        Args:
            patterns: of names as in ``space.names``, with ``*`` and ``?`` as in a shell: ``"layer3.*"``. Weight decay
                then is that of the chosen parameters.

        Raises:
            ValueError: a pattern fits no name.
        """
        space = self.space.restricted(patterns)
        return self._like(self._at_theta().sibling(space))

    def parts(self, count: int) -> list[Self]:
        """The same problem on ``count`` disjoint parts of the data, at the network's own weights.

        Each example's part is drawn at random, the same in every run, whatever order the data come in; the parts are
        of equal size up to one example. Batches that are taken as they are stay whole.

        Raises:
            ValueError: a part would hold no example.
        """
        whole = self.whole_batches or self.noise is not None
        parts = divided([batch for batch, _ in self._batches], count, whole=whole)
        network, weight = self._at_theta(), self._evaluation.weight
        return [self._like(network.sibling(), [(batch, weight(batch)) for batch in part]) for part in parts]

    def recalibrated(self) -> Self:
        """The same problem with what belongs to the weights found again at every point, as ``batch_norm`` says."""
        return self._like(self._network.sibling(), batch_norm="recalibrated")

    def _at_theta(self) -> Network:
        """The network at its own weights, wherever f was evaluated last."""
        self._move(self.theta)
        return self._network

    def _like(
        self,
        network: Network,
        batches: list[tuple[Any, float]] | None = None,
        *,
        batch_norm: str | None = None,
        told: tuple[str, ...] | None = None,
    ) -> Self:
        """The same problem with another network of the same code, and with whatever else is given."""
        other = copy.copy(self)
        other._evaluation = self._evaluation.of(network)
        other._batches = self._batches if batches is None else batches
        other.batch_norm = batch_norm or self.batch_norm
        other.told = self.told if told is None else told
        other._begin()
        return other

    def data_digest(self) -> str:
        """SHA-256 of the examples, in whatever order and batches they come."""
        return digest(self._batches)

    def value(self, theta: Tensor) -> float:
        """f(theta)."""
        return self.metrics(theta)["loss"]

    @torch.no_grad()
    def metrics(self, theta: Tensor) -> dict[str, float]:
        """``loss``, that is f, and for classifiers ``accuracy``, as means over the examples."""
        self._move(theta)
        return means(self._evaluation.run, self._batches, self._decay())

    @torch.no_grad()
    def per_example(self, theta: Tensor) -> Examples:
        """The loss of each example at theta, and for classifiers whether it is right; their means are ``metrics``."""
        self._move(theta)
        return per_example(self._evaluation.run, self._batches, self._evaluation.loss, self._decay())

    def gradient(self, theta: Tensor) -> Tensor:
        """grad f(theta), shape (n,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """f(theta) and grad f(theta)."""
        self._move(theta)
        losses: list[float] = []
        decay = self._decay()  # before there is a gradient to hold beside it

        def pieces(i: int) -> Sequence[Tensor]:
            value, gradient = self._evaluation.value_and_gradient_on(self._batches[i][0])
            losses.append(value * self._batches[i][1])
            return gradient

        gradient = mean_over(self._batches, pieces, self.space, self._network.flat, self.weight_decay)
        if len(self.held):
            gradient[self.held] = 0.0
        return sum(losses) / self.examples + decay, gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """H v, the Hessian of f at theta times ``v``, both of shape (n,).

        Raises:
            FloatingPointError: it is not finite; the batch is named.
        """
        return self._curvature.hvp(self._at(theta, v), self.weight_decay)

    def gnvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """G v, the generalised Gauss-Newton matrix of f at theta times ``v``, both of shape (n,).

        G = E J' (d^2 l/dz^2) J with z the outputs, J = dz/dtheta (Schraudolph 2002): the part of H that does not hold
        the network's own curvature. It is positive semi-definite where the loss is convex in z, as cross-entropy and
        squared errors are. Where outputs are no tensor, z is their ``.logits``.

        Raises:
            ValueError: the outputs are no tensor and have no ``.logits``.
            FloatingPointError: the product is not finite; the batch is named.
        """
        return self._curvature.gnvp(self._at(theta, v), self.weight_decay)

    def _at(self, theta: Tensor, v: Tensor) -> Tensor:
        """Move to theta; ``v`` without the entries that are held."""
        check_vector("v", v, self.size)
        v = v.to(self._network.flat)
        if not bool(v.isfinite().all()):
            raise ValueError("v is not finite: give a finite direction")
        self._move(theta)
        return v.index_fill(0, self.held, 0.0) if len(self.held) else v

    def _decay(self) -> float:
        if not self.weight_decay:
            return 0.0
        return self.weight_decay / 2 * norm(self._network.flat) ** 2

    def _move(self, theta: Tensor) -> None:
        check_vector("theta", theta, self.size)
        flat = self._network.flat
        theta = theta.to(flat)
        if len(self.held):
            theta = theta.index_copy(0, self.held, self.theta[self.held])
        if not torch.equal(flat, theta):
            self._curvature.forget()
            flat.copy_(theta)
            self._recalibrate()

    def _recalibrate(self) -> None:
        if self.batch_norm == "recalibrated" and (self._evaluation.norms or self._evaluation.spectral):
            try:
                self._evaluation.find_statistics(self._calibration)
            except BaseException:
                self._network.flat.fill_(torch.nan)  # theta and its statistics part: so no theta is taken for this one
                raise

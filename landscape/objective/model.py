"""A network, a loss and data as one function f of the flat vector theta.

f(theta) is the mean of the loss over the examples, each example weighted alike whatever the batch
sizes are, plus weight_decay/2 ||theta||^2 if asked for. Hessian-vector products are
reverse-over-reverse: H v = grad_theta (grad f . v).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint
from landscape.objective.batches import digest
from landscape.objective.curvature import Curvature, mean_over
from landscape.objective.evaluation import Evaluation
from landscape.objective.examples import Examples, means, per_example
from landscape.objective.functional import as_module
from landscape.objective.network import Network
from landscape.objective.notes import notes_on
from landscape.objective.parts import divided
from landscape.objective.preflight import Preflight, preflight
from landscape.objective.preparation import check_options, prepare
from landscape.parameters import ParameterSpace, check_vector
from landscape.sums import norm

__all__ = ["ModelObjective"]


class ModelObjective:
    """The mean loss of a network over data, as an Objective.

    It owns its weights and buffers and borrows the network's code: while f is evaluated, its tensors stand in the
    user's modules, which are as before afterwards, whatever happens. Two objectives over one network may take turns;
    two threads may not. The network is in evaluation mode, so dropout is off.

    When it is made, one micro-batch is evaluated a few times: the loss must follow theta, be the same twice, and be the
    mean of its parts. ``docs/your_network.md`` says what is taken, what is refused, and the option for each.

    Args:
        model: the network. Parameters with ``requires_grad=False`` stay fixed. With ``params``, a function
            ``model(params, *inputs)`` of a dictionary of tensors.
        loss: a criterion of ``torch.nn`` or ``torch.nn.functional`` (or any ``nn.Module``), called as
            ``loss(outputs, targets)`` for batches ``(inputs, targets)`` or inputs alone, which then are the targets; or
            any other callable, called as ``loss(outputs, batch)``; or None for outputs that are or carry their own
            ``.loss`` (Hugging Face). It must be a mean over the batch's examples; ``reduction="sum"`` is divided by
            their number. Modules that it is or refers to are owned like the network, their parameters fixed.
        data: a pair of tensors ``(inputs, targets)``, or an iterable of batches (a DataLoader), read once and kept.
        forward: ``forward(model, batch) -> outputs``. Default: ``model(inputs)`` for a tuple or tensor,
            ``model(**batch)`` for a mapping.
        batch_size: examples evaluated at once when ``data`` is a pair of tensors. ``"auto"``: as many as hold 16 MB in
            a forward pass (about a CPU's caches; 1 GB on a GPU), or up to 128 that hold no more than 512 MB. Always 128
            with ``batch_norm="batch"``.
        batch_norm: ``"frozen"`` keeps the running statistics, ``"recalibrated"`` gathers them, and the vectors of
            spectral normalisation, again at every theta (derivatives hold them fixed), ``"batch"`` uses each batch's.
        calibration: the data on which they are gathered again, for test losses the training data. Default: ``data``.
        weight_decay: adds weight_decay/2 ||theta||^2 to f.
        graph_memory: bytes that ``hvp`` and ``gnvp`` may each hold of the graphs of their first backward passes, which
            makes every product after the first at the same theta 1.5 to 2 times faster. 0 keeps none. Default: a
            quarter of the memory that is free when the first product is asked for.
        count: how many examples a batch weighs, a function of the batch. Default: its tensors' common first dimension.
        whole_batches: takes each batch as it is and never splits it, for losses of a batch as such: f then belongs to
            these batches. A pair of tensors is one batch, or as ``batch_size`` says.
        noise: ``"frozen"`` has each batch evaluated with the same random numbers. None refuses networks that draw some.
        mode: ``"eval"``, or ``"train"`` for losses that exist in training mode only. BatchNorm is as ``batch_norm``
            says and dropout off in both.
        dtype: in which all is evaluated. Default: the network's own, or float32 where that is half precision.
        params: the tensors of a network that is a function; trainable are those that require gradients, or all floating
            ones if none does.

    Attributes:
        theta: the weights of ``model`` when this was made, shape (n,).
        space: the names and shapes that theta is made of.
        examples: the number of examples in ``data``.
        told: what was done to the checkpoint that it is at, to make its names and dtypes fit.
        held: the entries of theta that autograd holds fixed, as rows of an embedding's ``padding_idx``: whatever theta
            says, f has them at the network's own.

    Raises:
        TypeError: ``model``, ``loss`` or ``data`` is of no kind that is taken.
        ValueError: no trainable parameter; empty data; parameters of several dtypes or devices; a loss
            that does not follow theta, is not the same twice, or is no mean over examples; an unknown option.

    Example:
        The mean squared error (w - 3)^2 of a model that outputs w:

        >>> model = nn.Linear(1, 1, bias=False)
        >>> f = ModelObjective(model, nn.MSELoss(), (torch.ones(4, 1), torch.full((4, 1), 3.0)))
        >>> w = torch.tensor([5.0])
        >>> f.value(w), f.gradient(w), f.hvp(w, torch.ones(1))
        (4.0, tensor([4.]), tensor([2.]))
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss: Callable[..., Tensor] | None,
        data: Any,
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        batch_size: int | str = "auto",
        batch_norm: str = "frozen",
        calibration: Any = None,
        weight_decay: float = 0.0,
        graph_memory: int | str = "auto",
        count: Callable[[Any], Any] | None = None,
        whole_batches: bool = False,
        noise: str | None = None,
        mode: str = "eval",
        dtype: torch.dtype | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_options(batch_norm, batch_size, graph_memory, noise, mode)
        self.weight_decay, self.batch_norm, self.graph_memory = weight_decay, batch_norm, graph_memory
        self.whole_batches, self.noise, self.mode = whole_batches, noise, mode
        self.told: tuple[str, ...] = ()
        self._evaluation = Evaluation(
            model if params is None else as_module(model, params),  # type: ignore[arg-type]
            loss,
            forward=forward,
            count=count,
            frozen_noise=noise == "frozen",
            training=mode == "train",
            dtype=dtype,
        )
        self._batches, self._calibration = prepare(
            self._evaluation, data, calibration, batch_size, batch_norm, whole=whole_batches, frozen=noise is not None
        )
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

    def at(self, checkpoint: Checkpoint) -> ModelObjective:
        """The same problem with the weights (as ``.theta``) and buffers of ``checkpoint``.

        Raises:
            ValueError: its names or shapes do not fit the network.
        """
        network = self._network.sibling()
        told = network.load(checkpoint)
        return self._like(network, told=(*checkpoint.notes, *told))

    def restrict(self, *patterns: str) -> ModelObjective:
        """f as a function of some of its parameters only, the others fixed at the network's own weights.

        Args:
            patterns: of names as in ``space.names``, with ``*`` and ``?`` as in a shell: ``"layer3.*"``. Weight decay
                then is that of the chosen parameters.

        Raises:
            ValueError: a pattern fits no name.
        """
        space = self.space.restricted(patterns)
        return self._like(self._at_theta().sibling(space))

    def parts(self, count: int) -> list[ModelObjective]:
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

    def recalibrated(self) -> ModelObjective:
        """The same problem with what belongs to the weights found again at every point, as ``batch_norm`` says."""
        return self._like(self._network.sibling(), batch_norm="recalibrated")

    @property
    def notes(self) -> tuple[str, ...]:
        """What is done to the network and its data, and what of them is held fixed, in sentences."""
        return tuple(notes_on(self))

    def preflight(self, generator: torch.Generator | None = None) -> Preflight:
        """What stands in the way of second derivatives here, and one product checked by other means.

        Raises:
            ValueError: the network cannot be differentiated twice.
        """
        return preflight(self, generator or torch.Generator().manual_seed(0))

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
    ) -> ModelObjective:
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

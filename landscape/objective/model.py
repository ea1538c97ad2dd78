"""A network, a loss and data as one function f of the flat vector theta.

f(theta) is the mean of the loss over the examples, each example weighted alike whatever the batch
sizes are, plus weight_decay/2 ||theta||^2 if asked for. Hessian-vector products are
reverse-over-reverse: H v = grad_theta (grad f . v).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint
from landscape.objective.batch_norm import POLICIES, norm_layers, recalibrate
from landscape.objective.data import digest, is_pair, read_batches, split
from landscape.objective.examples import Examples, means, per_example
from landscape.objective.folding import Fold, foldable, folded
from landscape.objective.kernels import differentiable_twice, with_graph, without_cudnn_rnn
from landscape.objective.layout import channels_last
from landscape.objective.loss import check_mean, default_forward, loss_of
from landscape.objective.memory import USUAL, examples_at_once
from landscape.objective.moving import own_network
from landscape.objective.preflight import Preflight, preflight
from landscape.objective.products import (
    KeptProducts,
    Product,
    all_finite,
    gauss_newton_product,
    gradient_of,
    hessian_product,
)
from landscape.parameters import ParameterSpace, check_vector

__all__ = ["ModelObjective"]


class ModelObjective:
    """The mean loss of a network over data, as an Objective.

    It works on a private copy of the network: the user's keeps its weights, buffers, mode,
    ``requires_grad`` and ``.grad``. The copy is in evaluation mode, so dropout is off.

    Args:
        model: the network. Parameters with ``requires_grad=False`` stay fixed.
        loss: a criterion of ``torch.nn`` or ``torch.nn.functional`` (or any ``nn.Module``), called as
            ``loss(outputs, targets)`` for batches ``(inputs, targets)``; or any other callable,
            called as ``loss(outputs, batch)``; or None for outputs that carry their own ``.loss``
            (Hugging Face). It must be a mean over the batch's examples.
        data: a pair of tensors ``(inputs, targets)``, or an iterable of batches (a DataLoader, a
            list), which is read once and kept.
        forward: ``forward(model, batch) -> outputs``. Default: ``model(inputs)`` for a tuple,
            ``model(**batch)`` for a dictionary.
        batch_size: examples evaluated at once when ``data`` is a pair of tensors. ``"auto"``: as many as hold 16 MB in
            a forward pass (about a CPU's caches; 1 GB on a GPU), or 128 where these are more, but of those no more
            than hold 512 MB. Always 128 where ``batch_norm`` is ``"batch"``.
        batch_norm: ``"frozen"`` keeps the running statistics, ``"recalibrated"`` gathers them again at
            every theta (derivatives then hold them fixed), ``"batch"`` uses each batch's own.
        calibration: the data on which ``"recalibrated"`` gathers them, for test losses the training
            data. Default: ``data``.
        weight_decay: adds weight_decay/2 ||theta||^2 to f.
        graph_memory: bytes that ``hvp`` and ``gnvp`` may each hold of the graphs of their first backward passes, which
            makes every product after the first at the same theta 1.5 to 2 times faster. 0 keeps none. Default: a
            quarter of the memory that is free when the first product is asked for.

    Attributes:
        theta: the weights of ``model`` when this was made, shape (n,).
        space: the names and shapes that theta is made of.
        examples: the number of examples in ``data``.

    Raises:
        ValueError: no trainable parameter; empty data; parameters of several dtypes or devices; a loss
            that is no mean over examples; an unknown ``batch_norm``.

    Example:
        The mean squared error (w - 3)^2 of a model that outputs w:

        >>> model = nn.Linear(1, 1, bias=False)
        >>> f = ModelObjective(model, nn.MSELoss(), (torch.ones(4, 1), torch.full((4, 1), 3.0)))
        >>> w = torch.tensor([5.0])
        >>> f.value(w), f.gradient(w), f.hvp(w, torch.ones(1))
        (4.0, tensor([4.]), tensor([2.]))
    """

    @with_graph
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor] | None,
        data: Any,
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        batch_size: int | str = "auto",
        batch_norm: str = "frozen",
        calibration: Any = None,
        weight_decay: float = 0.0,
        graph_memory: int | str = "auto",
    ) -> None:
        if batch_norm not in POLICIES:
            raise ValueError(f"batch_norm={batch_norm!r}: give one of {POLICIES}")
        if batch_size != "auto" and (isinstance(batch_size, str) or batch_size < 1):
            raise ValueError(f"batch_size={batch_size!r}: give a number of examples, at least 1, or 'auto'")
        if graph_memory != "auto" and (isinstance(graph_memory, str) or graph_memory < 0):
            raise ValueError(f"graph_memory={graph_memory!r}: give a number of bytes, 0 or more, or 'auto'")
        self.space = ParameterSpace.of(model)
        self.weight_decay = weight_decay
        self.batch_norm = batch_norm
        self.graph_memory = graph_memory
        self._loss, self._forward = loss, forward or default_forward
        self._model = copy.deepcopy(model).eval()
        self._model.zero_grad(set_to_none=True)
        self._parameters, self._flat = self.space.as_one_vector(self._model)
        self.theta = self._flat.clone()
        together = USUAL if isinstance(batch_size, str) else batch_size
        self._batches = read_batches(data, together, self.device)
        check_mean(loss, self._batches)
        self.examples = sum(count for _, count in self._batches)
        self._norms = norm_layers(self._model) if batch_norm != "frozen" else []
        if batch_norm == "batch":
            for norm in self._norms:
                norm.train()
        self._folds: list[Fold] = []
        if batch_size == "auto" and batch_norm != "batch" and is_pair(data):
            together = examples_at_once(self._loss_on, *self._batches[0], self._flat)
            self._batches = read_batches(data, together, self.device)
        self._folds = foldable(self._model, partial(self._loss_on, self._batches[0][0]), self._parameters)
        self._batches = channels_last(self._batches, self._model, self._folds, self._loss_on, self._parameters)
        self._calibration = self._batches if calibration is None else read_batches(calibration, together, self.device)
        self._hessians, self._gauss_newtons = (
            KeptProducts(prepare, self._batches, self._flat, graph_memory)
            for prepare in (self._prepare_hessian, self._prepare_gauss_newton)
        )
        # sums over batches are in float64, where there is one, so that many batches lose no digits
        self._wide = self.dtype if self.device.type == "mps" else torch.float64
        self._recalibrate()

    @property
    def size(self) -> int:
        """n, the number of weights."""
        return self._flat.numel()

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return self._flat.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights and the data are."""
        return self._flat.device

    def at(self, checkpoint: Checkpoint) -> ModelObjective:
        """The same problem with the weights (as ``.theta``) and buffers of ``checkpoint``.

        Raises:
            ValueError: its names or shapes do not fit the network.
        """
        model = copy.deepcopy(self._model)
        checkpoint.load_into(model)
        return self._with(model)

    def restrict(self, *patterns: str) -> ModelObjective:
        """f as a function of some of its parameters only, the others fixed at the network's own weights.

        Args:
            patterns: of names as in ``space.names``, with ``*`` and ``?`` as in a shell: ``"layer3.*"``. Weight decay
                then is that of the chosen parameters.

        Raises:
            ValueError: a pattern fits no name.
        """
        return self._with(own_network(self, patterns))

    def parts(self, count: int) -> list[ModelObjective]:
        """The same problem on ``count`` disjoint parts of the data, at the network's own weights.

        Each example's part is drawn at random, the same in every run, whatever order the data come in; the parts are
        of equal size up to one example.

        Raises:
            ValueError: a part would hold no example.
        """
        if not 1 <= count <= self.examples:
            raise ValueError(f"parts={count}: give 1 to {self.examples}, as many as there are examples")
        model = own_network(self)
        return [self._with(model, part) for part in split(self._batches, count)]

    def preflight(self, generator: torch.Generator | None = None) -> Preflight:
        """What stands in the way of second derivatives here, and one product checked by other means.

        Raises:
            ValueError: the network cannot be differentiated twice.
        """
        return preflight(self, generator or torch.Generator().manual_seed(0))

    def _with(self, model: nn.Module, data: Any = None, **options: Any) -> ModelObjective:
        """The same problem with another network, and with whatever else is given."""
        same = {
            "forward": self._forward,
            "batch_norm": self.batch_norm,
            "calibration": [batch for batch, _ in self._calibration],
            "weight_decay": self.weight_decay,
            "graph_memory": self.graph_memory,
        }
        data = [batch for batch, _ in self._batches] if data is None else data
        return ModelObjective(model, self._loss, data, **{**same, **options})

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
        return means(self._run, self._batches, self._loss, self._decay())

    @torch.no_grad()
    def per_example(self, theta: Tensor) -> Examples:
        """The loss of each example at theta, and for classifiers whether it is right; their means are ``metrics``."""
        self._move(theta)
        return per_example(self._run, self._batches, self._loss, self._decay())

    def gradient(self, theta: Tensor) -> Tensor:
        """grad f(theta), shape (n,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """f(theta) and grad f(theta)."""
        self._move(theta)
        losses: list[float] = []
        decay = self._decay()  # before there is a gradient to hold beside it

        def pieces(i: int) -> Sequence[Tensor]:
            batch, count = self._batches[i]
            loss = self._loss_on(batch)
            losses.append(float(loss.detach()) * count)
            return gradient_of(loss, self._parameters)

        gradient = self._mean(pieces, self._flat).to(self._flat)
        return sum(losses) / self.examples + decay, gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """H v, the Hessian of f at theta times ``v``, both of shape (n,).

        Raises:
            FloatingPointError: it is not finite; the batch is named.
        """
        return self._product(self._hessians, theta, v)

    def gnvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """G v, the generalised Gauss-Newton matrix of f at theta times ``v``, both of shape (n,).

        G = E J' (d^2 l/dz^2) J with z the outputs, J = dz/dtheta (Schraudolph 2002): the part of H that does not hold
        the network's own curvature. It is positive semi-definite where the loss is convex in z, as cross-entropy and
        squared errors are. Where outputs are no tensor, z is their ``.logits``.

        Raises:
            ValueError: the outputs are no tensor and have no ``.logits``.
            FloatingPointError: the product is not finite; the batch is named.
        """
        return self._product(self._gauss_newtons, theta, v)

    def _product(self, products: KeptProducts, theta: Tensor, v: Tensor) -> Tensor:
        check_vector("v", v, self.size)
        v = v.to(self._flat)
        if not bool(v.isfinite().all()):
            raise ValueError("v is not finite: give a finite direction")
        self._move(theta)
        directions = list(self.space.views(v).values())
        total = self._mean(lambda i: products.apply(i, directions), v)
        if not bool(total.isfinite().all()):
            broken = [i for i in range(len(self._batches)) if not all_finite(products.apply(i, directions))]
            raise FloatingPointError(
                f"the product is not finite in batches {broken} of {len(self._batches)} (from 0): the loss or its "
                "derivatives overflow at theta, so check f(theta) and its gradient there first"
            )
        return total.to(self._flat)

    def _mean(self, of_batch: Callable[[int], Sequence[Tensor]], decayed: Tensor) -> Tensor:
        """The mean over examples of what is known by batches, piece by piece, plus ``weight_decay * decayed``."""
        # what many batches add up to needs more digits than each of them; a single one does not
        wide = self._wide if len(self._batches) > 1 else self.dtype
        for i, (_, count) in enumerate(self._batches):
            addends = of_batch(i)
            if i == 0:  # only now that a graph which is not kept is gone, since it may be as large
                total = self.weight_decay * decayed.to(wide)
                pieces = list(self.space.views(total).values())
            for piece, addend in zip(pieces, addends, strict=True):
                piece.add_(addend, alpha=count / self.examples)
        return total

    @with_graph
    def _prepare_hessian(self, batch: Any) -> Product:
        with differentiable_twice(self._model):
            return hessian_product(self._loss_on(batch), self._parameters)

    @with_graph
    def _prepare_gauss_newton(self, batch: Any) -> Product:
        with differentiable_twice(self._model):
            outputs = self._run(batch)
            return gauss_newton_product(outputs, loss_of(self._loss, outputs, batch), self._parameters)

    def _run(self, batch: Any) -> Any:
        with folded(self._folds):
            return self._forward(self._model, batch)

    @with_graph
    def _loss_on(self, batch: Any) -> Tensor:
        """With its graph, on kernels that have a gradient in evaluation mode."""
        with without_cudnn_rnn(self._model):
            return loss_of(self._loss, self._run(batch), batch)

    def _decay(self) -> float:
        return self.weight_decay / 2 * float(self._flat.double().square().sum()) if self.weight_decay else 0.0

    def _move(self, theta: Tensor) -> None:
        check_vector("theta", theta, self.size)
        theta = theta.to(self._flat)
        if not torch.equal(self._flat, theta):
            self._hessians.forget()
            self._gauss_newtons.forget()
            self._flat.copy_(theta)
            self._recalibrate()

    def _recalibrate(self) -> None:
        if self.batch_norm == "recalibrated" and self._norms:
            try:
                recalibrate(self._norms, self._calibration, partial(self._forward, self._model))
            except BaseException:
                self._flat.fill_(torch.nan)  # theta and its statistics part: so no theta is taken for this one
                raise

"""A network, a loss and data as one function f of the flat vector theta.

f(theta) is the mean of the loss over the examples, each example weighted alike whatever the batch
sizes are, plus weight_decay/2 ||theta||^2 if asked for. Hessian-vector products are
reverse-over-reverse: H v = grad_theta (grad f . v).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.checkpoints import Checkpoint
from landscape.objective.batch_norm import POLICIES, norm_layers, recalibrate
from landscape.objective.data import digest, read_batches
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
        batch_size: examples evaluated at once when ``data`` is a pair of tensors.
        batch_norm: ``"frozen"`` keeps the running statistics, ``"recalibrated"`` gathers them again at
            every theta (derivatives then hold them fixed), ``"batch"`` uses each batch's own.
        calibration: the data on which ``"recalibrated"`` gathers them, for test losses the training
            data. Default: ``data``.
        weight_decay: adds weight_decay/2 ||theta||^2 to f.

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

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor] | None,
        data: Any,
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        batch_size: int = 512,
        batch_norm: str = "frozen",
        calibration: Any = None,
        weight_decay: float = 0.0,
    ) -> None:
        if batch_norm not in POLICIES:
            raise ValueError(f"batch_norm={batch_norm!r}: give one of {POLICIES}")
        self.space = ParameterSpace.of(model)
        self.weight_decay = weight_decay
        self.batch_norm = batch_norm
        self._loss = loss
        self._forward = forward or _default_forward
        self._model = copy.deepcopy(model).eval()
        self._model.zero_grad(set_to_none=True)
        named = dict(self._model.named_parameters())
        self._parameters = [named[name] for name in self.space.names]
        kinds = {(p.dtype, p.device) for p in self._parameters}
        if len(kinds) > 1:
            raise ValueError(
                f"model has parameters of several dtypes or devices, {sorted(map(str, kinds))}: "
                "convert it with model.to(device, dtype)"
            )
        # all parameters become views of one vector, so that moving to another theta is one copy
        self._flat = self.space.flatten(named)
        for parameter, view in zip(self._parameters, self.space.views(self._flat).values(), strict=True):
            parameter.data = view
        self.theta = self._flat.clone()
        self._batches = read_batches(data, batch_size, self.device)
        _check_mean(loss, self._batches)
        self.examples = sum(count for _, count in self._batches)
        self._calibration = self._batches if calibration is None else read_batches(calibration, batch_size, self.device)
        self._norms = norm_layers(self._model) if batch_norm != "frozen" else []
        if batch_norm == "batch":
            for norm in self._norms:
                norm.train()
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
        return ModelObjective(
            model,
            self._loss,
            [batch for batch, _ in self._batches],
            forward=self._forward,
            batch_norm=self.batch_norm,
            calibration=[batch for batch, _ in self._calibration],
            weight_decay=self.weight_decay,
        )

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
        totals: dict[str, float] = {}
        for batch, count in self._batches:
            outputs = self._forward(self._model, batch)
            means = {"loss": self._loss_of(outputs, batch), **_accuracy(outputs, batch)}
            for name, mean in means.items():
                totals[name] = totals.get(name, 0.0) + float(mean) * count
        metrics = {name: total / self.examples for name, total in totals.items()}
        metrics["loss"] += self._decay()
        return metrics

    def gradient(self, theta: Tensor) -> Tensor:
        """grad f(theta), shape (n,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """f(theta) and grad f(theta)."""
        self._move(theta)
        value = self._decay()
        gradient = self.weight_decay * self._flat
        for batch, count in self._batches:
            loss, pieces = self._backward(batch, create_graph=False)
            value += float(loss) * count / self.examples
            gradient += torch.cat([p.reshape(-1) for p in pieces]) * (count / self.examples)
        return value, gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """H v, the Hessian of f at theta times ``v``, both of shape (n,)."""
        self._move(theta)
        directions = self.space.views(v.to(self._flat)).values()
        product = self.weight_decay * v.to(self._flat)
        for batch, count in self._batches:
            _, pieces = self._backward(batch, create_graph=True)
            # a piece without a graph is constant in theta: its rows of H are zero
            curved = [(g, d) for g, d in zip(pieces, directions, strict=True) if g.requires_grad]
            if not curved:
                continue
            gradients, along = zip(*curved, strict=True)
            second = torch.autograd.grad(gradients, self._parameters, grad_outputs=along, materialize_grads=True)
            product += torch.cat([s.reshape(-1) for s in second]) * (count / self.examples)
        return product

    def _backward(self, batch: Any, create_graph: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The mean loss of one batch and its gradient, piece by piece."""
        # fused attention has no second derivative; its MATH kernel has
        with sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext():
            loss = self._loss_of(self._forward(self._model, batch), batch)
        # never loss.backward(create_graph=True): the graph in .grad would keep itself alive
        pieces = torch.autograd.grad(loss, self._parameters, create_graph=create_graph, materialize_grads=True)
        return loss.detach(), pieces

    def _loss_of(self, outputs: Any, batch: Any) -> Tensor:
        if self._loss is None:
            return outputs.loss
        if _is_criterion(self._loss) and isinstance(batch, tuple):
            return self._loss(outputs, batch[1])
        return self._loss(outputs, batch)

    def _decay(self) -> float:
        return self.weight_decay / 2 * float(self._flat.double().square().sum())

    def _move(self, theta: Tensor) -> None:
        check_vector("theta", theta, self.size)
        theta = theta.to(self._flat)
        if not torch.equal(self._flat, theta):
            self._flat.copy_(theta)
            self._recalibrate()

    def _recalibrate(self) -> None:
        if self.batch_norm == "recalibrated" and self._norms:
            recalibrate(self._norms, self._calibration, partial(self._forward, self._model))


def _default_forward(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(batch[0])


def _is_criterion(loss: Callable[..., Tensor]) -> bool:
    return isinstance(loss, nn.Module) or loss.__module__ == nn.functional.__name__


def _check_mean(loss: Callable[..., Tensor] | None, batches: list[tuple[Any, int]]) -> None:
    """Refuse criteria whose mean over a batch is not over its examples: f would depend on the batches."""
    if getattr(loss, "reduction", "mean") != "mean":
        raise ValueError(
            f"loss has reduction={getattr(loss, 'reduction', None)!r}: give one with reduction='mean', since "
            "batches are weighted by their number of examples"
        )
    if getattr(loss, "weight", None) is not None:
        raise ValueError(
            "loss has class weights, so its mean is not over examples and depends on the batches: give a function "
            "loss(outputs, batch) that weighs each example and divides by their number"
        )
    ignored = getattr(loss, "ignore_index", None)
    for batch, _ in batches if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) else []:
        if isinstance(batch, tuple) and not batch[1].is_floating_point() and bool((batch[1] == ignored).any()):
            raise ValueError(
                f"targets hold the loss's ignore_index={ignored}, so its mean depends on the batches: leave those "
                "examples out, or give a function loss(outputs, batch) that divides by the number of examples"
            )


def _accuracy(outputs: Any, batch: Any) -> dict[str, Tensor]:
    """The share of right answers, where outputs are (N, classes, ...) and targets class indices."""
    if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(outputs, Tensor)):
        return {}
    targets = batch[1]
    if targets.is_floating_point() or outputs.dim() != targets.dim() + 1 or outputs.shape[1] < 2:
        return {}
    return {"accuracy": (outputs.argmax(1) == targets).double().mean()}

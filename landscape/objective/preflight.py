"""What stands in the way of second derivatives, found before hours are spent on them.

One product of the Hessian on the first batch is compared with an independent one: forward-over-reverse (the derivative
of the gradient along v), or where an operation has none, the central difference of gradients in float64,

    (grad f(theta + h v) - grad f(theta - h v)) / 2h,    ||h v|| = 1e-6 ||theta||.

That finds, too, what torch's autograd passes over in silence: the second derivative of a function marked
``once_differentiable`` is zero to it. In float32 a difference is no check: on networks with ReLU or max-pooling it is
off by more than the product itself.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape.objective.kernels import differentiable_twice
from landscape.objective.loss import loss_of

if TYPE_CHECKING:
    from landscape.objective.model import ModelObjective

__all__ = ["Preflight", "preflight"]


@dataclass(frozen=True)
class Preflight:
    """What was found, what was done about it, and how far two ways to a product agree."""

    notes: tuple[str, ...]
    unused: tuple[str, ...]  # parameters that the loss does not depend on: their rows of H are zero
    error: float  # ||H v - independent|| / ||independent||; NaN where there was no second way
    method: str  # of the independent product
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the two products agree within the tolerance."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        if math.isnan(self.error):
            return "\n".join([*self.notes, f"no product could be checked: {self.method}"])
        verdict = "agrees" if self.passed else "DOES NOT AGREE"
        check = (
            f"a product {verdict} with {self.method}: relative error {self.error:.1e} (at most {self.tolerance:.0e})"
        )
        return "\n".join([*self.notes, check])


def preflight(f: ModelObjective, generator: torch.Generator) -> Preflight:
    """Look for what has no second derivative, and check one product on the first batch.

    Args:
        f: the objective, at whose own weights it looks.
        generator: of the direction v.

    Raises:
        ValueError: the network cannot be differentiated twice; the operation is named as far as torch names it.
    """
    with _AttentionCalls() as attention:
        f.value(f.theta)
    # with the statistics that BatchNorm has now: the product holds them fixed, a difference would not
    norms = "frozen" if f.batch_norm == "recalibrated" else f.batch_norm
    small = f._with(copy.deepcopy(f._model), [f._batches[0][0]], batch_norm=norms, calibration=None)
    v = torch.randn(f.size, generator=generator, dtype=torch.float64).to(f.theta)
    try:
        unused = _unused(f)
        product = small.hvp(f.theta, v)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as cause:
        raise ValueError(
            f"the network cannot be differentiated twice ({cause}): replace the operation, or where it changes a "
            "tensor in place, write it out of place"
        ) from cause
    notes = [*_of_modules(f._model, f.batch_norm), *attention.notes()]
    if unused:
        notes.append(f"the loss does not depend on {', '.join(unused)}: these rows of H are zero")
    independent, method = _independent(small, v)
    error = float("nan")
    if independent is not None:
        size = max(float(independent.norm()), torch.finfo(f.dtype).tiny)
        error = float((product.double() - independent.double()).norm()) / size
    return Preflight(
        notes=tuple(notes),
        unused=unused,
        error=error,
        method=method,
        # two orders of summation differ by some eps times the terms, which may cancel; the difference has its own
        # error, about 1e-8 on networks with kinks
        tolerance=max(1e-6, 1e3 * torch.finfo(f.dtype).eps),
    )


def _of_modules(model: nn.Module, batch_norm: str) -> list[str]:
    modules = list(model.modules())
    dropout = sum(_dropped(m) > 0 for m in modules)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    recurrent = sum(isinstance(m, nn.RNNBase) for m in modules)
    notes = []
    if dropout:
        notes.append(f"dropout is off in {dropout} layers")
    if norms:
        notes.append(f"BatchNorm is {batch_norm!r} in {norms} layers, whatever mode the network was in")
    if recurrent:
        notes.append(f"cuDNN is off for {recurrent} recurrent layers, as its kernels have no second derivative")
    return notes


def _dropped(module: nn.Module) -> float:
    """The share that a layer drops in training."""
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout
    return module.p if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0


class _AttentionCalls(TorchFunctionMode):
    """Counts the calls of fused attention in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += function is nn.functional.scaled_dot_product_attention
        return function(*args, **(kwargs or {}))

    def notes(self) -> list[str]:
        if not self.count:
            return []
        return ["attention runs under torch's MATH kernel, as the fused ones have no second derivative"]


def _unused(f: ModelObjective) -> tuple[str, ...]:
    """The parameters that no batch's loss depends on."""
    used: set[str] = set()
    for batch, _ in f._batches:
        with differentiable_twice(f._model):
            loss = f._loss_on(batch)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, f._parameters, allow_unused=True)
            used.update(name for name, g in zip(f.space.names, gradients, strict=True) if g is not None)
    return tuple(name for name in f.space.names if name not in used)


def _independent(f: ModelObjective, v: Tensor) -> tuple[Tensor | None, str]:
    """A product by other means than ours, and what they are."""
    try:
        return _forward_over_reverse(f, v), "forward-over-reverse"
    except (RuntimeError, NotImplementedError, AttributeError):  # an operation without forward derivative
        pass
    try:
        wide = f._with(
            copy.deepcopy(f._model).double(), [_in_float64(batch) for batch, _ in f._batches], calibration=None
        )
        w = v.double()
        h = 1e-6 * float(wide.theta.norm()) / float(w.norm())
        difference = wide.gradient(wide.theta + h * w) - wide.gradient(wide.theta - h * w)
        return difference / (2 * h), "central differences in float64"
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return None, f"neither forward-over-reverse nor float64 serve this network and its data ({error})"


def _in_float64(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.double() if item.is_floating_point() else item
    if isinstance(item, dict):
        return {key: _in_float64(value) for key, value in item.items()}
    return tuple(_in_float64(value) for value in item) if isinstance(item, tuple) else item


def _forward_over_reverse(f: ModelObjective, v: Tensor) -> Tensor:
    model = copy.deepcopy(f._model)
    ((batch, _),) = f._batches

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return loss_of(f._loss, f._forward(_Bound(model, weights), batch), batch)

    with differentiable_twice(model), warnings.catch_warnings():
        # torch warns of its own use of torch.jit when it loads its forward derivatives
        warnings.simplefilter("ignore", DeprecationWarning)
        weights = {name: view.clone() for name, view in f.space.views(f.theta).items()}
        along = {name: view.clone() for name, view in f.space.views(v).items()}
        tangent = torch.func.jvp(torch.func.grad(loss), (weights,), (along,))[1]
    return f.space.flatten(tangent) + f.weight_decay * v


class _Bound(nn.Module):
    """A network called with weights from outside."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights, args, kwargs)

"""Check that f can be differentiated twice, before an expensive analysis.

One Hessian-vector product on the first batch is compared with an independent one: forward-over-reverse (the derivative
of the gradient along v), or if an operation has no forward derivative, the central difference of gradients in float64,

    D(h) = (grad f(theta + h v) - grad f(theta - h v)) / 2h,

at steps ||h v|| of 1e-6 to 1e-3 of ||theta||. ||D(h) - D(10 h)|| estimates the error of D; networks that compute in
float32 internally need the larger steps. This also finds errors that torch's autograd does not report: to it the second
derivative of a function marked ``once_differentiable`` is zero. Differences in float32 are useless as a check: on
networks with ReLU or max-pooling their error exceeds the product itself.

The gradient is compared with central differences of values in the same way: if forward detaches a tensor, or uses a
straight-through estimator, autograd's gradient is not the derivative of f.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.objective.data.batches import map_tensors
from landscape.objective.evaluation.kernels import differentiable_twice, no_second_derivative
from landscape.objective.mean_loss import MeanLoss
from landscape.objective.notes import AttentionCalls, notes_on
from landscape.sums import dot, norm

__all__ = ["Preflight", "preflight"]

# the largest relative error that passes, for any dtype
_MAX_TOLERANCE = 1e-2
_STEPS = (1e-6, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class Preflight:
    """The notes on an objective, and the error of one Hessian-vector product against an independent method."""

    notes: tuple[str, ...]
    unused: tuple[str, ...]  # parameters that the loss does not depend on: their rows of H are zero
    error: float  # ||H v - independent|| / ||independent||; NaN if no independent method works
    method: str  # of the independent product
    tolerance: float
    gradient_error: float = float("nan")  # |g'v - difference of values| / ||g||; NaN if it is not known

    @property
    def passed(self) -> bool:
        """Whether the two products agree within the tolerance, and the gradient is not found to be wrong."""
        return self.error <= self.tolerance and not self.gradient_error > _MAX_TOLERANCE

    def __str__(self) -> str:
        lines = list(self.notes)
        if self.gradient_error > _MAX_TOLERANCE:
            lines.append(
                f"THE GRADIENT IS NOT THE DERIVATIVE of the loss: it differs by {self.gradient_error:.1e} of its norm "
                "along a random direction, as where forward detaches a tensor or rounds one"
            )
        if math.isnan(self.error):
            return "\n".join([*lines, f"no product could be checked: {self.method}"])
        verdict = "agrees" if self.passed or self.error <= self.tolerance else "DOES NOT AGREE"
        check = (
            f"a product {verdict} with {self.method}: relative error {self.error:.1e} (at most {self.tolerance:.0e})"
        )
        return "\n".join([*lines, check])


def preflight(f: MeanLoss, generator: torch.Generator) -> Preflight:
    """Find operations without a second derivative, and check one product on the first batch.

    Args:
        f: the objective; the check is at its own weights.
        generator: of the direction v.

    Raises:
        ValueError: the network cannot be differentiated twice; the message has torch's name of the operation.
    """
    with AttentionCalls() as attention:
        f.value(f.theta)
    # with BatchNorm's current statistics: the product treats them as constants, a difference would not
    norms = "frozen" if f.batch_norm == "recalibrated" else f.batch_norm
    small = f._with_network(f._at_theta().clone(), f._batches[:1], batch_norm=norms)
    v = torch.randn(f.size, generator=generator, dtype=torch.float64).to(f.theta).index_fill(0, f.fixed_entries, 0.0)
    try:
        unused = _unused(f)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as cause:
        raise no_second_derivative(cause) from cause
    product = small.hvp(f.theta, v)
    notes = [*notes_on(f), *attention.notes()]
    # two orders of summation differ by a few eps times the terms, which may cancel
    tolerance = min(max(1e-6, 1e3 * torch.finfo(f.dtype).eps), _MAX_TOLERANCE)
    wide = _in_float64(small)
    gradient_error = _gradient_error(wide, v)
    if unused:
        depends = "no gradient reaches" if gradient_error > _MAX_TOLERANCE else "the loss does not depend on"
        notes.append(f"{depends} {', '.join(unused)}: these rows of H are zero")
    independent, method, known = _independent(small, wide, v)
    error = float("nan")
    if independent is not None:
        error = _relative_error(product, independent)
        tolerance = min(max(tolerance, 3 * known), _MAX_TOLERANCE)
    return Preflight(
        notes=tuple(notes),
        unused=unused,
        error=error,
        method=method,
        tolerance=tolerance,
        gradient_error=gradient_error,
    )


def _unused(f: MeanLoss) -> tuple[str, ...]:
    """The parameters that no batch's loss depends on."""
    used: set[str] = set()
    for batch, _ in f._batches:
        with f._evaluation.running(), differentiable_twice(), torch.inference_mode(False), torch.enable_grad():
            loss = f._evaluation.loss_while_lent(batch)
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, f._network.weights, allow_unused=True)
                used.update(name for name, g in zip(f.space.names, gradients, strict=True) if g is not None)
    return tuple(name for name in f.space.names if name not in used)


def _in_float64(f: MeanLoss) -> MeanLoss | str:
    """The same objective in float64, or the error message if that fails."""

    def widened(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    try:
        wide = f._with_network(
            f._network.clone(dtype=torch.float64), [(map_tensors(widened, batch), count) for batch, count in f._batches]
        )
        wide.gradient(wide.theta)
        return wide
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return str(error)


def _independent(f: MeanLoss, wide: MeanLoss | str, v: Tensor) -> tuple[Tensor | None, str, float]:
    """H v by an independent method, the name of the method, and the relative error to which it is known."""
    # transforms of torch.func do not apply to substituted parameters, nor to TorchScript
    if not (f._evaluation.kernels.has_substitutes or f._evaluation.network.scripted):
        try:
            return _forward_over_reverse(f, v), "forward-over-reverse", 0.0
        except (RuntimeError, NotImplementedError, AttributeError):  # an operation without forward derivative
            pass
    if isinstance(wide, str):
        return None, f"neither forward-over-reverse nor float64 serve this network and its data ({wide})", math.nan
    w, length = v.double(), norm(wide.theta) / norm(v)
    found = [_central_difference(wide, w, _STEPS[0] * length)]
    best, known = found[0], math.inf
    for step in _STEPS[1:]:
        found.append(_central_difference(wide, w, step * length))
        apart = _relative_error(found[-2], found[-1])
        if apart < known:  # the smaller step has less truncation error, the larger less rounding error
            best, known = found[-1] if known < math.inf else found[-2], apart
        if known <= 1e-6:
            break
    method = "central differences in float64"
    if known > _MAX_TOLERANCE:
        return None, f"{method} are known to no more than {known:.0e} here", known
    return best, method if known <= 1e-6 else f"{method}, known to {known:.0e}", known


def _central_difference(f: MeanLoss, w: Tensor, h: float) -> Tensor:
    return (f.gradient(f.theta + h * w) - f.gradient(f.theta - h * w)) / (2 * h)


def _relative_error(one: Tensor, other: Tensor) -> float:
    return norm(one - other) / max(norm(other), torch.finfo(torch.float64).tiny)


def _forward_over_reverse(f: MeanLoss, v: Tensor) -> Tensor:
    ((batch, _),) = f._batches

    def loss(*weights: Tensor) -> Tensor:
        return f._evaluation.loss_on(batch, weights)

    with differentiable_twice(), warnings.catch_warnings():
        # torch's forward derivatives use torch.jit, which is deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        weights = tuple(view.clone() for view in f.space.views(f.theta).values())
        tangents = tuple(view.clone() for view in f.space.views(v).values())
        gradient = torch.func.grad(loss, argnums=tuple(range(len(weights))))
        tangent = torch.func.jvp(gradient, weights, tangents)[1]
    product = f.space.flatten(dict(zip(f.space.names, tangent, strict=True))) + f.weight_decay * v
    return product.index_fill(0, f.fixed_entries, 0.0)


def _gradient_error(wide: MeanLoss | str, v: Tensor) -> float:
    """The relative difference of g'v from the central difference of values; NaN if that is not known well enough."""
    if isinstance(wide, str):
        return math.nan
    w = v.double()
    gradient = wide.gradient(wide.theta)
    scale = norm(gradient)
    found = []
    for step in (1e-5, 1e-4):
        h = step * norm(wide.theta) / norm(w)
        found.append((wide.value(wide.theta + h * w) - wide.value(wide.theta - h * w)) / (2 * h))
    # the steps disagree at a kink, if the network rounds, or if the gradient is nearly zero
    if scale == 0 and all(found):
        return math.inf
    if not scale > 0 or not abs(found[0] - found[1]) <= 1e-3 * scale:
        return math.nan
    return abs(found[0] - dot(gradient, w)) / scale

"""What stands in the way of second derivatives, found before hours are spent on them.

One product of the Hessian on the first batch is compared with an independent one: forward-over-reverse (the derivative
of the gradient along v), or where an operation has none, the central difference of gradients in float64,

    D(h) = (grad f(theta + h v) - grad f(theta - h v)) / 2h,

at steps ||h v|| of 1e-6 to 1e-3 of ||theta||. How far D is known is told by ||D(h) - D(10 h)||: a network that computes
in float32 within needs the larger steps. That finds, too, what torch's autograd passes over in silence: the second
derivative of a function marked ``once_differentiable`` is zero to it. In float32 a difference is no check: on networks
with ReLU or max-pooling it is off by more than the product itself.

The gradient is compared with the difference of values likewise: where forward detaches something, or passes gradients
straight through what has none, autograd's gradient is not the derivative of f.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.objective.data.batches import mapped
from landscape.objective.evaluation.kernels import differentiable_twice
from landscape.objective.mean_loss import MeanLoss
from landscape.objective.notes import AttentionCalls, notes_on
from landscape.sums import dot, norm

__all__ = ["Preflight", "preflight"]

# what no check may pass, whatever the dtype
_COARSEST = 1e-2
_STEPS = (1e-6, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class Preflight:
    """What was found, what was done about it, and how far two ways to a product agree."""

    notes: tuple[str, ...]
    unused: tuple[str, ...]  # parameters that the loss does not depend on: their rows of H are zero
    error: float  # ||H v - independent|| / ||independent||; NaN where there was no second way
    method: str  # of the independent product
    tolerance: float
    gradient_error: float = float("nan")  # |g'v - difference of values| / ||g||; NaN where it is not known

    @property
    def passed(self) -> bool:
        """Whether the two products agree within the tolerance, and no gradient was found wrong."""
        return self.error <= self.tolerance and not self.gradient_error > _COARSEST

    def __str__(self) -> str:
        lines = list(self.notes)
        if self.gradient_error > _COARSEST:
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
    """Look for what has no second derivative, and check one product on the first batch.

    Args:
        f: the objective, at whose own weights it looks.
        generator: of the direction v.

    Raises:
        ValueError: the network cannot be differentiated twice; the operation is named as far as torch names it.
    """
    with AttentionCalls() as attention:
        f.value(f.theta)
    # with the statistics that BatchNorm has now: the product holds them fixed, a difference would not
    norms = "frozen" if f.batch_norm == "recalibrated" else f.batch_norm
    small = f._like(f._at_theta().sibling(), f._batches[:1], batch_norm=norms)
    v = torch.randn(f.size, generator=generator, dtype=torch.float64).to(f.theta).index_fill(0, f.held, 0.0)
    try:
        unused = _unused(f)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as cause:
        raise ValueError(
            f"the network cannot be differentiated twice ({cause}): replace the operation, or where it changes a "
            "tensor in place, write it out of place"
        ) from cause
    product = small.hvp(f.theta, v)
    notes = [*notes_on(f), *attention.notes()]
    # two orders of summation differ by some eps times the terms, which may cancel
    tolerance = min(max(1e-6, 1e3 * torch.finfo(f.dtype).eps), _COARSEST)
    wide = _in_float64(small)
    gradient_error = _gradient_error(wide, v)
    if unused:
        depends = "no gradient reaches" if gradient_error > _COARSEST else "the loss does not depend on"
        notes.append(f"{depends} {', '.join(unused)}: these rows of H are zero")
    independent, method, known = _independent(small, wide, v)
    error = float("nan")
    if independent is not None:
        error = _apart(product, independent)
        tolerance = min(max(tolerance, 3 * known), _COARSEST)
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
    """The same in float64, or what stands in the way."""

    def widened(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    try:
        wide = f._like(
            f._network.sibling(dtype=torch.float64), [(mapped(widened, batch), count) for batch, count in f._batches]
        )
        wide.gradient(wide.theta)
        return wide
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return str(error)


def _independent(f: MeanLoss, wide: MeanLoss | str, v: Tensor) -> tuple[Tensor | None, str, float]:
    """A product by other means than ours, what they are, and how far it is known."""
    if not (f._evaluation.kernels.exchanges or f._evaluation.network.scripted):  # where transforms do not reach
        try:
            return _forward_over_reverse(f, v), "forward-over-reverse", 0.0
        except (RuntimeError, NotImplementedError, AttributeError):  # an operation without forward derivative
            pass
    if isinstance(wide, str):
        return None, f"neither forward-over-reverse nor float64 serve this network and its data ({wide})", math.nan
    w, length = v.double(), norm(wide.theta) / norm(v)
    found = [_difference(wide, w, _STEPS[0] * length)]
    best, known = found[0], math.inf
    for step in _STEPS[1:]:
        found.append(_difference(wide, w, step * length))
        apart = _apart(found[-2], found[-1])
        if apart < known:  # of two steps the smaller has the smaller curve, the larger the smaller rounding
            best, known = found[-1] if known < math.inf else found[-2], apart
        if known <= 1e-6:
            break
    method = "central differences in float64"
    if known > _COARSEST:
        return None, f"{method} are known to no more than {known:.0e} here", known
    return best, method if known <= 1e-6 else f"{method}, known to {known:.0e}", known


def _difference(f: MeanLoss, w: Tensor, h: float) -> Tensor:
    return (f.gradient(f.theta + h * w) - f.gradient(f.theta - h * w)) / (2 * h)


def _apart(one: Tensor, other: Tensor) -> float:
    return norm(one - other) / max(norm(other), torch.finfo(torch.float64).tiny)


def _forward_over_reverse(f: MeanLoss, v: Tensor) -> Tensor:
    ((batch, _),) = f._batches

    def loss(*weights: Tensor) -> Tensor:
        return f._evaluation.loss_on(batch, weights)

    with differentiable_twice(), warnings.catch_warnings():
        # torch warns of its own use of torch.jit when it loads its forward derivatives
        warnings.simplefilter("ignore", DeprecationWarning)
        weights = tuple(view.clone() for view in f.space.views(f.theta).values())
        along = tuple(view.clone() for view in f.space.views(v).values())
        gradient = torch.func.grad(loss, argnums=tuple(range(len(weights))))
        tangent = torch.func.jvp(gradient, weights, along)[1]
    product = f.space.flatten(dict(zip(f.space.names, tangent, strict=True))) + f.weight_decay * v
    return product.index_fill(0, f.held, 0.0)


def _gradient_error(wide: MeanLoss | str, v: Tensor) -> float:
    """How far the gradient along v is from the difference of values; NaN where neither is known well enough."""
    if isinstance(wide, str):
        return math.nan
    w = v.double()
    gradient = wide.gradient(wide.theta)
    scale = norm(gradient)
    found = []
    for step in (1e-5, 1e-4):
        h = step * norm(wide.theta) / norm(w)
        found.append((wide.value(wide.theta + h * w) - wide.value(wide.theta - h * w)) / (2 * h))
    # both steps must tell the same, else a kink lies between, the network rounds, or the gradient is next to nothing
    if scale == 0 and all(found):
        return math.inf
    if not scale > 0 or not abs(found[0] - found[1]) <= 1e-3 * scale:
        return math.nan
    return abs(found[0] - dot(gradient, w)) / scale

"""A curve of low loss between two minima (Garipov, Izmailov, Podoprikhin, Vetrov & Wilson 2018, arXiv:1802.10026).

    phi_t = (1 - t)^2 a + 2 t (1 - t) c + t^2 b,    c = argmin E_t f(phi_t),   t uniform on [0, 1]

The ends a and b stay; only the control point c is trained, by Adam (Kingma & Ba 2015) on

    grad_c f(phi_t) = 2 t (1 - t) grad f(phi_t)

at one t a step, with a learning rate that falls to zero along half a cosine. As in the paper, points count by t and not
by arc length, whose density would depend on c as well. Unlike in the paper, the t are not independent: t_k = u + k g
mod 1 with u uniform and g the golden ratio (Kronecker's sequence). Each is uniform, and any consecutive ones are spread
evenly, so that they add far less noise to c.

c starts at the midpoint, where the curve is the straight line, plus a random displacement of a thousandth of ||b - a||:
if a and b are mirror images, as networks are that differ by a permutation or a sign of hidden units, the gradient
across the line is zero by symmetry, and a curve that starts on the line would stay on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new, unit
from landscape.results import BezierPath, Cost
from landscape.results.bezier import bezier_length, bezier_point
from landscape.slices.policies import batch_norm_of, recalibrated_between
from landscape.slices.sweep import measure
from landscape.sums import norm

__all__ = ["bezier_path"]

_KICK = 1e-3  # of ||b - a||
_GOLDEN = (5**0.5 - 1) / 2
_RATE = 0.02  # of the root mean square of b - a; heuristic: 50 steps of Adam can take c as far as b is from a


def bezier_path(
    objective: Objective,
    theta_a: Tensor,
    theta_b: Tensor,
    *,
    steps: int = 1000,
    points: int = 31,
    batches: Sequence[Objective] | None = None,
    learning_rate: float | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> BezierPath:
    """Train a quadratic Bezier curve between two minima, and evaluate f along it.

    Args:
        objective: f. Frozen BatchNorm statistics are gathered again at every point, on its ``calibration`` data, as
            ``barrier`` does: for a test loss, those are to be the training data.
        theta_a: a, shape (n,).
        theta_b: b, shape (n,).
        steps: of Adam, one gradient each.
        points: even values of t at which f is evaluated in the end, both ends included.
        batches: objectives over parts of the data of like size, of which each step draws one: ``f.parts(8)``. With
            BatchNorm, ``"batch"`` ones save the pass for the statistics, which frozen ones are given as ``objective``
            is. Default: ``objective`` at every step.
        learning_rate: of Adam, in units of a weight. Default: a fiftieth of the root mean square of b - a.
        generator: of the kick, of t and of the batches. Default: seeded by the operating system.
        progress: called as ``progress(steps, description)``; ``tqdm.tqdm`` fits.

    Returns:
        BezierPath on the CPU. Its control point is near a local minimum of E_t f(phi_t), and other seeds may find
        others. ``height`` says how far f still rises on this curve, with its ``stderr`` over examples; the training
        lowers the mean, not this maximum.

    Raises:
        ValueError: sizes that do not fit, ends that coincide or are not finite, steps, points or learning_rate out of
            range, no batch.
        FloatingPointError: the loss stopped being finite.

    Reference:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson 2018, arXiv:1802.10026.

    Example:
        Over f = w^2, whose least mean is at c = -3/4 (a + b):

        >>> from landscape.objective import ModelObjective
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> f = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> path = bezier_path(f, torch.tensor([1.0]), torch.tensor([3.0]))
        >>> round(float(path.control), 1)
        -3.0
    """
    start = time.perf_counter()
    objective = recalibrated_between(objective)
    batches = [objective] if batches is None else [recalibrated_between(batch) for batch in batches]
    _check(objective, theta_a, theta_b, steps, points, batches)
    a, b = (theta.detach().to(objective.device, objective.dtype) for theta in (theta_a, theta_b))
    distance = norm(b - a)
    rate = _RATE * distance / objective.size**0.5 if learning_rate is None else learning_rate
    if not 0 < rate < float("inf"):
        raise ValueError(f"learning_rate={rate}: give a positive number, in units of a weight")
    generator = generator_or_new(generator)
    c = (a + b) / 2 + _KICK * distance * unit(objective.size, generator, a.dtype, a.device)
    adam = torch.optim.Adam([c], lr=rate)
    drawn = (float(torch.rand((), generator=generator, dtype=torch.float64)) + _GOLDEN * np.arange(steps)) % 1
    losses = np.empty(steps)
    chosen = torch.randint(len(batches), (steps,), generator=generator).tolist()
    for k in progress(range(steps), "Bezier path"):
        adam.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * k / steps)) / 2
        losses[k], c.grad = _value_and_gradient(batches[chosen[k]], a, c, b, float(drawn[k]))
        if not math.isfinite(losses[k]):
            raise FloatingPointError(
                f"the loss is {losses[k]} at t = {drawn[k]:.3f} in step {k}: give a learning_rate below {rate:.2g}"
            )
        adam.step()
    c.grad = None
    t = np.linspace(0, 1, points)
    found = [measure(objective, bezier_point(a, c, b, s)) for s in t.tolist()]
    with np.errstate(invalid="ignore"):  # inf - inf
        baseline = replace(found[0], loss=(found[0].loss + found[-1].loss) / 2)
    return BezierPath(
        theta_a=a.cpu(),
        control=c.cpu(),
        theta_b=b.cpu(),
        t=t,
        arc_length=bezier_length(a, c, b, t),
        loss=np.array([each.metrics["loss"] for each in found]),
        rise_stderr=np.array([each.stderr(baseline) for each in found]),
        training_t=drawn,
        training_loss=losses,
        learning_rate=rate,
        batch_norm=batch_norm_of(objective),
        cost=Cost(values=points, gradients=steps, seconds=time.perf_counter() - start),
    )


def _value_and_gradient(f: Objective, a: Tensor, c: Tensor, b: Tensor, t: float) -> tuple[float, Tensor]:
    """f(phi_t) and its gradient with respect to c."""
    value, gradient = f.value_and_gradient(bezier_point(a, c, b, t))
    return number(value), 2 * t * (1 - t) * gradient


def _check(
    objective: Objective, theta_a: Tensor, theta_b: Tensor, steps: int, points: int, batches: Sequence[Objective]
) -> None:
    for name, theta in (("theta_a", theta_a), ("theta_b", theta_b)):
        check_vector(name, theta, objective.size)
        if not bool(theta.isfinite().all()):
            raise ValueError(f"{name} is not finite: give finite weights")
    if torch.equal(theta_a, theta_b):
        raise ValueError("theta_a and theta_b are the same point: give two minima")
    if steps < 1:
        raise ValueError(f"steps={steps}: give at least 1")
    if points < 3:
        raise ValueError(f"points={points}: give at least 3, both ends and one between")
    if not batches:
        raise ValueError("batches is empty: give at least one objective, or None")
    sizes = {batch.size for batch in batches}
    if sizes != {objective.size}:
        raise ValueError(f"batches have sizes {sorted(sizes)}: give objectives of {objective.size} weights")

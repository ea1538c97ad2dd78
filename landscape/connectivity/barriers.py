"""The barrier of the loss or the error on the straight line between two minima.

With m the metric, m(alpha) = m((1 - alpha) a + alpha b) on ``points`` even alpha from 0 to 1, both ends included,

    barrier = max_alpha [m(alpha) - baseline(alpha)]
    "mean":    baseline = (m(0) + m(1)) / 2               (Frankle, Dziugaite, Roy & Carbin 2020, arXiv:1912.05671)
    "linear":  baseline = (1 - alpha) m(0) + alpha m(1)   (Entezari, Sedghi, Saukh & Neyshabur 2022, arXiv:2110.06296)

They differ where the ends do: between two ends on a slope, the first is half their difference, the second zero.

*Error bar.* m is a mean over examples, so the rise at alpha is the mean of the examples' own rises m_i(alpha) -
baseline_i(alpha), and its standard error is that of a mean, in which what is common to the points of the line cancels.
The barrier's is the one at the highest point, as if that point were known: the maximum of noisy rises is biased
upwards, the more so the flatter the curve is near it. The points may miss the true maximum.

*BatchNorm.* Running statistics are valid only for the weights they were computed at; frozen ones cause a barrier that
the network does not have. They are recalibrated at every point (Garipov et al. 2018), on the objective's calibration
data.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from landscape.checkpoints import Checkpoint
from landscape.connectivity.matching import match_weights
from landscape.objective import ModelObjective, Objective
from landscape.objective.data.metrics import PerExampleMetrics
from landscape.objective.tensors import fixed_tensors
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Barrier, BarrierMatrix, Cost
from landscape.slices.policies import batch_norm_of, recalibrated_between
from landscape.slices.sweep import measure
from landscape.sums import norm

__all__ = ["barrier", "barrier_matrix"]

_METRICS = ("loss", "error")
_BASELINES = ("mean", "linear")


def barrier(
    objective: Objective,
    checkpoint_a: Checkpoint | Tensor,
    checkpoint_b: Checkpoint | Tensor,
    *,
    points: int = 30,
    metric: str = "loss",
    baseline: str = "mean",
    progress: Progress = silent,
) -> Barrier:
    """The highest rise of the metric on the straight line from a to b.

    Args:
        objective: f. A network's frozen BatchNorm statistics are gathered again at every point, on its ``calibration``
            data: for a test loss give ``calibration=`` the training data when making the objective, since they are
            gathered on the test data else. With ``batch_norm="batch"`` each batch has its own.
        checkpoint_a: alpha = 0; a checkpoint of the objective's network, or a point of shape (n,).
        checkpoint_b: alpha = 1, likewise.
        points: even values of alpha, the ends among them.
        metric: ``"loss"``, which is f, or ``"error"``, the share of wrong answers.
        baseline: what the rise is measured from: the ``"mean"`` of the ends, or their ``"linear"`` interpolation.
        progress: called as ``progress(points, description)``; ``tqdm.tqdm`` fits.

    Returns:
        Barrier with its ``height``, ``stderr`` over examples and ``at`` which alpha; ``stable`` for the error.

    Raises:
        ValueError: checkpoints that do not fit the network, or that differ in what the line does not move: fixed
            parameters, other buffers; fewer than three points; the error of what is no classifier.

    Reference:
        Frankle, Dziugaite, Roy & Carbin 2020, arXiv:1912.05671.

    Example:
        Networks that output w v x have the same outputs at (w, v) and (-w, -v), and zero half-way between:

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> f = ModelObjective(model, nn.MSELoss(), (torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]])))
        >>> found = barrier(f, torch.ones(2), -torch.ones(2), points=3)
        >>> found.height, found.at, found.stderr
        (2.5, 0.5, 1.5)
    """
    start = time.perf_counter()
    if points < 3:
        raise ValueError(f"points={points}: give at least 3, the two ends and one between")
    if metric not in _METRICS:
        raise ValueError(f"metric={metric!r}: give one of {_METRICS}")
    if baseline not in _BASELINES:
        raise ValueError(f"baseline={baseline!r}: give one of {_BASELINES}")
    f, a, b = _ends(objective, checkpoint_a, checkpoint_b)
    alpha = np.linspace(0, 1, points)
    found = []
    for i in progress(range(points), "barrier"):
        found.append(_measure_metric(f, (1 - float(alpha[i])) * a + float(alpha[i]) * b, metric))
    values = np.array([each.metrics["loss"] for each in found])
    share = alpha if baseline == "linear" else np.full(points, 0.5)  # of b in the baseline
    with np.errstate(invalid="ignore"):  # inf - inf is NaN
        rise = values - ((1 - share) * values[0] + share * values[-1])
        stderr = [
            each.stderr(replace(each, loss=(1 - s) * found[0].loss + s * found[-1].loss))
            for each, s in zip(found, share, strict=True)
        ]
    return Barrier(
        alpha=alpha,
        values=values,
        rise=rise,
        rise_stderr=np.array(stderr),
        names=_names([checkpoint_a, checkpoint_b]),
        metric=metric,
        baseline=baseline,
        distance=norm(b - a),
        batch_norm=batch_norm_of(f),
        not_finite=int((~np.isfinite(values)).sum()),
        cost=Cost(values=points, seconds=time.perf_counter() - start),
    )


def barrier_matrix(
    objective: Objective,
    checkpoints: Sequence[Checkpoint | Tensor],
    *,
    points: int = 30,
    metric: str = "loss",
    baseline: str = "mean",
    matched: bool = False,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> BarrierMatrix:
    """The barriers between all pairs of several checkpoints.

    Args:
        objective: as for :func:`barrier`.
        checkpoints: two or more.
        points: as for :func:`barrier`.
        metric: as for :func:`barrier`.
        baseline: as for :func:`barrier`.
        matched: whether to match the second of each pair to the first beforehand, by :func:`landscape.match_weights`.
        generator: of the matching. Default: seeded by the operating system.
        progress: called as ``progress(pairs, description)``; ``tqdm.tqdm`` fits.

    Returns:
        BarrierMatrix with ``height`` of shape (N, N), symmetric, exactly zero on the diagonal.

    Raises:
        ValueError: fewer than two checkpoints; what :func:`barrier` and :func:`landscape.match_weights` refuse.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> f = ModelObjective(model, nn.MSELoss(), (torch.ones(1, 1), torch.ones(1, 1)))
        >>> barrier_matrix(f, [torch.ones(2), -torch.ones(2), torch.ones(2)], points=3).height
        array([[0., 1., 0.],
               [1., 0., 1.],
               [0., 1., 0.]])
    """
    start = time.perf_counter()
    count = len(checkpoints)
    if count < 2:
        raise ValueError(f"checkpoints has {count}: give at least two")
    generator = generator_or_new(generator)
    height, stderr, distance = (np.zeros((count, count)) for _ in range(3))
    values = not_finite = 0
    for i, j in progress(list(combinations(range(count), 2)), "barriers"):
        first, second = checkpoints[i], checkpoints[j]
        if matched:
            second = _matched(objective, first, second, generator)
        found = barrier(objective, first, second, points=points, metric=metric, baseline=baseline)
        for matrix, entry in ((height, found.height), (stderr, found.stderr), (distance, found.distance)):
            matrix[i, j] = matrix[j, i] = entry
        values += found.cost.values
        not_finite += found.not_finite
    return BarrierMatrix(
        height=height,
        stderr=stderr,
        distance=distance,
        names=_names(checkpoints),
        metric=metric,
        baseline=baseline,
        points=points,
        matched=matched,
        not_finite=not_finite,
        cost=Cost(values=values, seconds=time.perf_counter() - start),
    )


def _matched(
    objective: Objective, first: Checkpoint | Tensor, second: Checkpoint | Tensor, generator: torch.Generator
) -> Checkpoint:
    if not (isinstance(objective, ModelObjective) and isinstance(first, Checkpoint) and isinstance(second, Checkpoint)):
        raise ValueError("matched=True: only checkpoints of a ModelObjective's network have units to match")
    return match_weights(objective, first, second, generator=generator).checkpoint


def _names(ends: Sequence[Checkpoint | Tensor]) -> list[str]:
    return [end.name if isinstance(end, Checkpoint) else f"point {i}" for i, end in enumerate(ends)]


def _ends(objective: Objective, a: Checkpoint | Tensor, b: Checkpoint | Tensor) -> tuple[Objective, Tensor, Tensor]:
    """The objective to evaluate on the line, recalibrated if need be, and the two ends."""
    if not isinstance(objective, ModelObjective):
        if isinstance(a, Checkpoint) or isinstance(b, Checkpoint):
            raise ValueError(
                f"a checkpoint for a {type(objective).__name__}: only a ModelObjective has a network to load it into, "
                f"so give points of shape ({objective.size},)"
            )
        return objective, _point("checkpoint_a", a, objective), _point("checkpoint_b", b, objective)
    first, second = (objective.at(end) if isinstance(end, Checkpoint) else objective for end in (a, b))
    _check_fixed_tensors(first, second)
    theta_a = first.theta if isinstance(a, Checkpoint) else _point("checkpoint_a", a, objective)
    theta_b = second.theta if isinstance(b, Checkpoint) else _point("checkpoint_b", b, objective)
    return recalibrated_between(first), theta_a, theta_b


def _point(name: str, theta: Tensor, objective: Objective) -> Tensor:
    check_vector(name, theta, objective.size)
    return theta.detach().to(objective.device, objective.dtype)


def _check_fixed_tensors(first: ModelObjective, second: ModelObjective) -> None:
    """Raise ValueError if the ends differ in tensors that are neither interpolated nor recalibrated."""
    one, other = (fixed_tensors(end, with_statistics=False) for end in (first, second))
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    if differing:
        raise ValueError(
            f"the checkpoints differ in {', '.join(differing)}, which the line does not move: let these require "
            "gradients, or give checkpoints that share them"
        )


def _measure_metric(f: Objective, theta: Tensor, metric: str) -> PerExampleMetrics:
    """``measure`` at theta, with the error in place of the loss for ``metric="error"``."""
    found = measure(f, theta)
    if metric == "loss":
        return found
    if "accuracy" not in found.metrics:
        raise ValueError(
            f"metric='error' of a {type(f).__name__}: it knows of no right answers, as that of a classifier does, so "
            "ask for 'loss'"
        )
    error = {"loss": 1 - found.metrics["accuracy"]}
    return replace(found, metrics=error, loss=1 - found.right, counts=np.ones(len(found.right)))

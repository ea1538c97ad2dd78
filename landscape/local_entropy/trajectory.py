"""Local entropy at the points of a trajectory, with common random numbers.

Each point is evaluated with a generator in the same state, as if it were the only one, so that differences along the
trajectory are not caused by the random draws. The radii are always a sweep, even if there is only one: a budget that is
too small for one point then gives NaN with a note there, where for a single radius it raises an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.local_entropy.estimate import Method, local_entropy
from landscape.objective import Objective
from landscape.parameters import check_vector
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import Eigenpairs, LocalEntropy, SpectralDensity

__all__ = ["local_entropy_trajectory"]


def local_entropy_trajectory(
    objective: Objective,
    points: Tensor | Sequence[Tensor],
    *,
    radius: float | np.ndarray | list[float],
    method: Method = "smc",
    generator: torch.Generator | None = None,
    progress: Progress = silent,
    **options: Any,
) -> list[LocalEntropy]:
    """F~ at each point of a trajectory, at the same radii.

    Args:
        objective: f. Its buffers are used at all points: give a network with BatchNorm ``batch_norm="recalibrated"``.
        points: shape (points, n), or a list of (n,). From the files of ``optim.train``:
            ``[f.at(load_checkpoint(path)).theta for path in sorted((run / "trajectory").iterdir())]``.
        radius: of the ball, as for ``local_entropy``; a number or several.
        method: one of those of ``local_entropy``.
        generator: its present state is used at each point. Default: seeded by the operating system.
        progress: called as ``progress(points, description)``; ``tqdm.tqdm`` fits.
        **options: of ``local_entropy``, such as ``beta`` and ``budget``.

    Returns:
        A LocalEntropy for each point, whose arrays have an axis of radii even for one.

    Raises:
        ValueError: no point, points of the wrong size or that are not finite, ``method="all"``; for Laplace the
            eigenpairs or the density of one point; whatever ``local_entropy`` raises.
        FloatingPointError: as raised by ``local_entropy``. Both have a note that names the point.

    Example:
        For f(x) = x^2/2 the quadratic approximation is exact, and at gamma = beta = 1, F~ = -x^2/4 - 1/2 log 2:

        >>> from landscape import ModelObjective
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> half_square = ModelObjective(
        ...     model, lambda outputs, batch: (outputs**2).mean() / 2, [(torch.ones(1, 1),)]
        ... )
        >>> results = local_entropy_trajectory(
        ...     half_square, torch.tensor([[2.0], [0.0]]), radius=1.0, beta=1.0, method="laplace"
        ... )
        >>> [round(float(result.value[0]), 4) for result in results]
        [-1.3466, -0.3466]
    """
    points = list(points)
    if not points:
        raise ValueError("points is empty: give at least one")
    for i, point in enumerate(points):
        check_vector(f"points[{i}]", point, objective.size)
        if not bool(point.isfinite().all()):
            raise ValueError(f"points[{i}] is not finite: leave out the points at which training diverged")
    if method == "all":
        raise ValueError("method='all': give one method, and call once for each")
    if method == "laplace":
        for name in ("pairs", "density"):
            if isinstance(options.get(name), Eigenpairs | SpectralDensity):
                raise ValueError(f"{name} is of one theta, and Laplace's method needs that of each point: leave it out")
    radii = np.atleast_1d(np.asarray(radius, float))
    generator = generator_or_new(generator)
    state = generator.get_state()
    results = []
    for i, point in progress(list(enumerate(points)), "local entropy along a trajectory"):
        generator.set_state(state)
        try:
            results.append(local_entropy(objective, point, radius=radii, method=method, generator=generator, **options))
        except (ValueError, FloatingPointError) as error:
            error.add_note(f"this was at points[{i}] of {len(points)}")
            raise
    return results

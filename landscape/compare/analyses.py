"""The table of analyses: what is looked at of each checkpoint, of each with the first, and of all together.

Every checkpoint sees the same examples, probes and perturbations (common random numbers): each computation begins with
a generator of the settings' seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import combinations

import numpy as np
import torch
import xarray
from torch import Tensor

from landscape import sharpness
from landscape.compare import measures, pictures
from landscape.compare.analysis import Analysis, Task
from landscape.connectivity import barrier
from landscape.directions import eigenvector, plane_through, project_onto_plane, random_direction
from landscape.local_entropy import local_entropy
from landscape.operators import Hessian
from landscape.results import (
    Barrier,
    Eigenpairs,
    Frame,
    Line,
    LineBand,
    LocalEntropy,
    Plane,
    Sharpness,
    SpectralDensity,
)
from landscape.slices import line, line_band, path, plane
from landscape.spectrum import eigenpairs, spectral_density

__all__ = ["ANALYSES"]


def _eigenpairs(task: Task) -> Eigenpairs:
    """The largest eigenvalues."""
    count = min(task.settings.eigenvalues, task.f.size)
    generator = task.settings.seeded()
    return eigenpairs(Hessian(task.f), count, which="largest", generator=generator, progress=task.progress)


def _spectral_density(task: Task) -> SpectralDensity:
    """Of all eigenvalues, with the largest taken out."""
    return spectral_density(
        Hessian(task.f),
        steps=task.settings.steps,
        probes=task.settings.probes,
        deflate=task.needed["eigenpairs"],
        runs=task.partial,
        generator=task.settings.seeded(),
        progress=task.progress,
    )


def _laplace(task: Task) -> LocalEntropy:
    density, radii = task.needed["spectral_density"], list(task.settings.radii)
    return local_entropy(
        task.f, task.f.theta, radius=radii, method="laplace", density=density, steps=task.settings.steps
    )


def _monte_carlo(task: Task) -> LocalEntropy:
    return local_entropy(
        task.f,
        task.f.theta,
        radius=list(task.settings.radii),
        method="monte_carlo",
        samples=task.settings.samples,
        generator=task.settings.seeded(),
        progress=task.progress,
    )


def _smc(task: Task) -> LocalEntropy:
    return local_entropy(
        task.f,
        task.f.theta,
        radius=list(task.settings.radii_of_smc),
        method="smc",
        pairs=task.needed["eigenpairs"],
        chains=task.settings.smc_chains,
        moves=task.settings.smc_moves,
        tol=task.settings.smc_tol,
        budget=task.settings.budget,
        generator=task.settings.seeded(),
        progress=task.progress,
    )


def _average_case(task: Task) -> Sharpness:
    """Adaptive, so that rescaled ReLU layers have the same."""
    return sharpness.average_case(task.f, task.f.theta, samples=task.settings.samples, generator=task.settings.seeded())


def _relative_flatness(task: Task) -> Sharpness:
    return sharpness.relative_flatness(task.f, task.f.theta, generator=task.settings.seeded())


def _fisher_rao(task: Task) -> Sharpness:
    return sharpness.fisher_rao(task.f, task.f.theta)


def _reach(task: Task) -> xarray.Dataset:
    """How far lines along top eigenvectors go: where the sharpest parabola lambda/2 a^2 of all has risen by 2."""
    sharpest = max(float(pairs.values.max()) for pairs in task.needed["eigenpairs"].values())
    return xarray.Dataset({"reach": 2 / np.sqrt(sharpest) if sharpest > 0 else 1.0})


def _line_eigenvector(task: Task) -> Line:
    top = eigenvector(task.needed["eigenpairs"], 0, task.f)
    reach = float(task.needed["reach"].reach)
    along = np.linspace(-reach, reach, task.settings.line_points)
    options = {"store": task.partial, "progress": task.progress}
    return line(task.f, task.f.theta, top, along, unit="norm", derivatives=True, **options)


def _band_random(task: Task) -> LineBand:
    return line_band(
        task.f,
        task.f.theta,
        np.linspace(-1, 1, task.settings.line_points),
        directions=task.settings.band_directions,
        generator=task.settings.seeded(),
        store=task.partial,
        progress=task.progress,
    )


def _plane_random(task: Task) -> Plane:
    generator, grid = task.settings.seeded(), np.linspace(-1, 1, task.settings.plane_points)
    d1, d2 = (random_direction(task.f, task.f.theta, generator=generator) for _ in range(2))
    options = {"store": task.partial, "progress": task.progress}
    return plane(task.f, task.f.theta, d1, d2, grid, grid, unit="filter", **options)


def _line_from_first(split: str, task: Task) -> Line:
    """The loss on the straight line from the first checkpoint (0) to another (1)."""
    coordinates = np.linspace(-0.5, 1.5, task.settings.line_points)
    f = task.objectives.between[split]
    return path(f, *task.checkpoints, coordinates, store=task.partial, progress=task.progress)


def _barrier_from_first(task: Task) -> Barrier:
    return barrier(task.objectives.between["train"], *task.checkpoints, progress=task.progress)


def _frame(task: Task) -> Frame:
    """A plane through three checkpoints, or through two and along a random direction, and where all of them lie."""
    between = task.objectives.between["train"]
    points = [between.at(checkpoint).theta for checkpoint in task.checkpoints]
    f, generator = between.at(task.checkpoints[0]), task.settings.seeded()
    spanned = _spanned(points, [points[0] + random_direction(f, points[0], generator=generator) for _ in range(2)])
    names = [checkpoint.name for checkpoint in task.checkpoints]
    return project_onto_plane(torch.stack(points), spanned.origin, *spanned.directions, names=names)


def _spanned(points: Sequence[Tensor], random: Sequence[Tensor]) -> Frame:
    """By the first points that lie on no line with the first, and where there are none by random ones."""
    *pairs, last = combinations([*points[1:], *random], 2)
    for others in pairs:
        with suppress(ValueError):  # on one line
            return plane_through(points[0], *others)
    return plane_through(points[0], *last)


def _plane_of_minima(task: Task) -> Plane:
    frame: Frame = task.needed["frame"]
    low, high = frame.coordinates.min(axis=0), frame.coordinates.max(axis=0)
    # a square around all of them, so that distances are true along both axes
    reach = 0.75 * float((high - low).max())
    a, b = (np.linspace(m - reach, m + reach, task.settings.plane_points) for m in (low + high) / 2)
    f = task.objectives.between["train"].at(task.checkpoints[0])
    return plane(f, frame.origin, *frame.directions, a, b, store=task.partial, progress=task.progress)


_SPECTRUM, _ENTROPY = "Spectrum of the Hessian", "Local entropy"
_AROUND, _BETWEEN = "Around each minimum", "Between the minima"

ANALYSES = (
    Analysis(
        "eigenpairs",
        _eigenpairs,
        settings=("seed", "eigenvalues"),
        title=_SPECTRUM,
        measure=measures.largest_eigenvalue,
    ),
    Analysis(
        "spectral_density",
        _spectral_density,
        needs=("eigenpairs",),
        settings=("seed", "steps", "probes"),
        title=_SPECTRUM,
        draw=pictures.spectra,
        measure=measures.of_the_density,
    ),
    Analysis(
        "laplace",
        _laplace,
        needs=("spectral_density",),
        settings=("radii", "steps"),
        title=_ENTROPY,
        draw=pictures.local_entropies,
        measure=measures.excess_free_energy,
    ),
    Analysis(
        "monte_carlo",
        _monte_carlo,
        settings=("seed", "radii", "samples"),
        title=_ENTROPY,
        draw=pictures.local_entropies,
        measure=measures.excess_free_energy,
    ),
    Analysis(
        "smc",
        _smc,
        needs=("eigenpairs",),
        settings=("seed", "radii_of_smc", "smc_chains", "smc_moves", "smc_tol", "budget"),
        title=_ENTROPY,
        draw=pictures.local_entropies,
        measure=measures.excess_free_energy,
    ),
    Analysis("average_case", _average_case, settings=("seed", "samples"), measure=measures.of_sharpness),
    Analysis("relative_flatness", _relative_flatness, settings=("seed",), measure=measures.of_sharpness),
    Analysis("fisher_rao", _fisher_rao, measure=measures.of_sharpness),
    Analysis("reach", _reach, scope="all", needs=("eigenpairs",)),
    Analysis(
        "line_eigenvector",
        _line_eigenvector,
        needs=("eigenpairs", "reach"),
        settings=("line_points",),
        title=_AROUND,
        draw=pictures.lines_along_eigenvectors,
    ),
    Analysis(
        "band_random",
        _band_random,
        settings=("seed", "line_points", "band_directions"),
        title=_AROUND,
        draw=pictures.random_bands,
    ),
    Analysis(
        "plane_random",
        _plane_random,
        settings=("seed", "plane_points"),
        title=_AROUND,
        draw=pictures.random_planes,
    ),
    *(
        Analysis(
            f"line_from_first_{split}",
            partial(_line_from_first, split),
            scope="pair",
            settings=("line_points",),
            title=_BETWEEN,
            draw=pictures.lines_from_first,
        )
        for split in ("train", "test")
    ),
    Analysis("barrier_from_first", _barrier_from_first, scope="pair", title=_BETWEEN, measure=measures.barrier_height),
    Analysis("frame", _frame, scope="all", settings=("seed",), title=_BETWEEN, least=2),
    Analysis(
        "plane",
        _plane_of_minima,
        scope="all",
        needs=("frame",),
        settings=("plane_points",),
        title=_BETWEEN,
        draw=pictures.plane_of_minima,
        least=2,
    ),
)

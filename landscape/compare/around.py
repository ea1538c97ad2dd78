"""What is looked at around each checkpoint: its spectrum, its local entropy and slices through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from landscape.compare.settings import CompareSettings
from landscape.directions import eigenvector, random_direction
from landscape.local_entropy import local_entropy
from landscape.objective import ModelObjective
from landscape.operators import Hessian
from landscape.slices import line, line_band, plane
from landscape.spectrum import eigenpairs, spectral_density

__all__ = ["Keep", "entropy", "slices", "spectrum"]

# (group, what computes its record given progress=): found in the store, or computed and kept
Keep = Callable[[str, Callable[..., Any]], None]


def spectrum(
    name: str,
    f: ModelObjective,
    results: Mapping[str, Any],
    settings: CompareSettings,
    keep: Keep,
) -> None:
    """The largest eigenvalues, and the density of all with those taken out."""
    hessian = Hessian(f, f.theta)
    keep(
        f"{name}/eigenpairs",
        lambda progress: eigenpairs(
            hessian,
            min(settings.eigenvalues, f.size),
            which="largest",
            generator=settings.seeded(),
            progress=progress,
        ),
    )
    keep(
        f"{name}/spectral_density",
        lambda progress: spectral_density(
            hessian,
            steps=settings.steps,
            probes=settings.probes,
            deflate=results[f"{name}/eigenpairs"],
            generator=settings.seeded(),
            progress=progress,
        ),
    )


def entropy(name: str, f: ModelObjective, results: Mapping[str, Any], settings: CompareSettings, keep: Keep) -> None:
    """By every method, from the same spectrum."""
    radii = list(settings.radii)
    density, pairs = results[f"{name}/spectral_density"], results[f"{name}/eigenpairs"]
    keep(
        f"{name}/laplace",
        lambda progress: local_entropy(
            f, f.theta, radius=radii, method="laplace", density=density, steps=settings.steps
        ),
    )
    keep(
        f"{name}/monte_carlo",
        lambda progress: local_entropy(
            f,
            f.theta,
            radius=radii,
            method="monte_carlo",
            samples=settings.samples,
            generator=settings.seeded(),
            progress=progress,
        ),
    )
    keep(
        f"{name}/tempered",
        lambda progress: local_entropy(
            f,
            f.theta,
            radius=list(settings.radii_of_the_path),
            method="tempered",
            pairs=pairs,
            chains=settings.tempered_chains,
            moves=settings.tempered_moves,
            tol=settings.tempered_tol,
            budget=settings.budget,
            generator=settings.seeded(),
            progress=progress,
        ),
    )


def slices(
    objectives: Mapping[str, tuple[ModelObjective, ModelObjective]],
    results: Mapping[str, Any],
    settings: CompareSettings,
    keep: Keep,
) -> None:
    """Lines along the top eigenvector and random directions, and a random plane, on common axes."""
    sharpest = max(float(results[f"{name}/eigenpairs"].values.max()) for name in objectives)
    # as far as the sharpest parabola lambda/2 a^2 needs to rise by 2
    reach = 2 / np.sqrt(sharpest) if sharpest > 0 else 1.0
    along_eigenvector = np.linspace(-reach, reach, settings.line_points)
    along_random = np.linspace(-1, 1, settings.line_points)
    grid = np.linspace(-1, 1, settings.plane_points)
    for name, (f, _) in objectives.items():
        top = eigenvector(results[f"{name}/eigenpairs"], 0, f)
        generator = settings.seeded()
        d1, d2 = (random_direction(f, f.theta, generator=generator) for _ in range(2))
        keep(
            f"{name}/line_eigenvector",
            partial(line, f, f.theta, top, along_eigenvector, unit="norm", derivatives=True),
        )
        keep(
            f"{name}/band_random",
            partial(
                line_band,
                f,
                f.theta,
                along_random,
                directions=settings.band_directions,
                generator=settings.seeded(),
            ),
        )
        keep(f"{name}/plane_random", partial(plane, f, f.theta, d1, d2, grid, grid, unit="filter"))

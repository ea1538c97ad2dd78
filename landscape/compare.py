"""Several checkpoints of one problem, looked at in the same way.

Every checkpoint sees the same examples, probes and perturbations (common random numbers), so that what
differs between two results is the checkpoints, and differences have error bars of their own, smaller
than those of the two results apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.checkpoints import Checkpoint
from landscape.directions import between, eigenvector, random_direction
from landscape.eigenvalues import eigenpairs
from landscape.local_entropy import local_entropy
from landscape.measures import measure
from landscape.objective import ModelObjective
from landscape.operators import Hessian
from landscape.problems import Problem
from landscape.progress import Progress, silent
from landscape.provenance import check_checkpoints, check_fixed_tensors, provenance_of
from landscape.results import Comparison, SpectralDensity
from landscape.slices import line, plane
from landscape.spectrum import spectral_density
from landscape.store import Store

__all__ = ["CompareSettings", "compare"]


@dataclass(frozen=True)
class CompareSettings:
    """How closely to look. The defaults suit networks of up to about 1e5 weights on two cores."""

    seed: int = 0  # of probes, perturbations, directions and the choice of examples
    examples: int | None = None  # training examples to use; None: all
    weight_decay: float = 0.0  # adds weight_decay/2 ||theta||^2 to the loss looked at
    eigenvalues: int = 10  # largest ones to find, and to take out of the spectral density
    steps: int = 80  # Lanczos steps per probe of the spectral density
    probes: int = 10
    radii: tuple[float, ...] = (0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # of the local entropy
    samples: int = 64  # Monte Carlo draws per radius
    line_points: int = 41
    plane_points: int = 25

    def __post_init__(self) -> None:
        """Refuse what would fail only after minutes of work."""
        if not self.radii or min(self.radii) <= 0:
            raise ValueError(f"radii={self.radii}: give at least one, all positive")
        for name in ("eigenvalues", "steps", "probes", "samples", "line_points", "plane_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if self.plane_points < 2:
            raise ValueError(f"plane_points={self.plane_points}: give at least 2")

    @property
    def reference_radius(self) -> float:
        """The radius in the table of measures: the middle one."""
        return sorted(self.radii)[len(self.radii) // 2]


def compare(
    checkpoints: Sequence[Checkpoint],
    problem: Problem,
    *,
    settings: CompareSettings | None = None,
    store: str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Spectrum, local entropy and slices of each checkpoint, and how they differ.

    Args:
        checkpoints: of networks that ``problem.model`` builds, with different names. Differences are
            from the first.
        problem: the network, loss and data.
        settings: how closely to look.
        store: a Zarr folder in which to keep each record as soon as it is there; records found in it
            are not computed again. Default: keep nothing.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        Comparison, with records ``checkpoint/analysis`` for the analyses ``eigenpairs``,
        ``spectral_density``, ``laplace``, ``monte_carlo``, ``line_eigenvector``, ``line_random``,
        ``plane_random``, and, for all checkpoints but the first, ``line_from_first_train`` and
        ``line_from_first_test``.

    Raises:
        ValueError: no checkpoint; two of one name; one that does not fit the network, or whose loss is
            not finite; a store that was begun for other checkpoints or settings.
    """
    settings = settings or CompareSettings()
    check_checkpoints(checkpoints)
    problem = _read_once(problem)
    chosen = _chosen_examples(settings)
    train = problem.objective("train", **chosen, weight_decay=settings.weight_decay)
    test = problem.objective("test", weight_decay=settings.weight_decay)
    objectives = {c.name: (train.at(c), test.at(c)) for c in checkpoints}
    losses = {name: f.value(f.theta) for name, (f, _) in objectives.items()}
    for name, loss in losses.items():
        if not np.isfinite(loss):
            raise ValueError(
                f"checkpoint {name!r} has a training loss of {loss}: only a checkpoint with a finite "
                "loss has a landscape around it"
            )
    check_fixed_tensors(checkpoints, train)
    provenance = provenance_of(checkpoints, problem, train, test)
    # what the records depend on; the losses, to six digits, tell one loss function from another
    signature = {
        **asdict(settings),
        "sha256": provenance["sha256"],
        "problem": problem.name,
        "network": str(problem.build(seed=0)),
        "version": provenance["versions"]["landscape-toolkit"],
        "losses": {name: f"{loss:.6g}" for name, loss in losses.items()},
    }
    kept = Store(store, signature) if store else None
    results: dict[str, Any] = {}

    def keep(group: str, compute: Callable[..., Any]) -> None:
        shown = partial(compute, progress=partial(_labelled, progress, group))
        results[group] = kept.read_or_compute(group, shown) if kept else shown()

    for name, (f, _) in objectives.items():
        _spectrum(name, f, results, settings, keep)
        _local_entropy(name, f, results[f"{name}/spectral_density"], settings, keep)
    _slices(objectives, results, settings, keep)
    _lines_from_first(checkpoints, problem, settings, keep)

    comparison = Comparison(
        names=[c.name for c in checkpoints],
        results=results,
        measures=measure(objectives, results, settings.reference_radius),
        metadata={c.name: dict(c.metadata) for c in checkpoints},
        settings=asdict(settings),
        provenance=provenance,
    )
    if kept:
        kept.write("measures", comparison.measures)
        kept.finish(provenance)
    return comparison


Keep = Callable[[str, Callable[..., Any]], None]


def _spectrum(
    name: str,
    f: ModelObjective,
    results: Mapping[str, Any],
    settings: CompareSettings,
    keep: Keep,
) -> None:
    hessian = Hessian(f, f.theta)
    keep(
        f"{name}/eigenpairs",
        lambda progress: eigenpairs(
            hessian,
            min(settings.eigenvalues, f.size),
            which="largest",
            generator=_seeded(settings),
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
            generator=_seeded(settings),
            progress=progress,
        ),
    )


def _local_entropy(
    name: str, f: ModelObjective, density: SpectralDensity, settings: CompareSettings, keep: Keep
) -> None:
    radii = list(settings.radii)
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
            generator=_seeded(settings),
            progress=progress,
        ),
    )


def _slices(
    objectives: Mapping[str, tuple[ModelObjective, ModelObjective]],
    results: Mapping[str, Any],
    settings: CompareSettings,
    keep: Keep,
) -> None:
    """Lines along the top eigenvector and a random direction, and a random plane, on common axes."""
    sharpest = max(float(results[f"{name}/eigenpairs"].values.max()) for name in objectives)
    # as far as the sharpest parabola lambda/2 a^2 needs to rise by 2
    reach = 2 / np.sqrt(sharpest) if sharpest > 0 else 1.0
    along_eigenvector = np.linspace(-reach, reach, settings.line_points)
    along_random = np.linspace(-1, 1, settings.line_points)
    grid = np.linspace(-1, 1, settings.plane_points)
    for name, (f, _) in objectives.items():
        top = eigenvector(results[f"{name}/eigenpairs"], 0, f)
        generator = _seeded(settings)
        d1, d2 = (random_direction(f, f.theta, generator=generator) for _ in range(2))
        keep(f"{name}/line_eigenvector", partial(line, f, f.theta, top, along_eigenvector))
        keep(f"{name}/line_random", partial(line, f, f.theta, d1, along_random))
        keep(f"{name}/plane_random", partial(plane, f, f.theta, d1, d2, grid, grid))


def _lines_from_first(
    checkpoints: Sequence[Checkpoint], problem: Problem, settings: CompareSettings, keep: Keep
) -> None:
    """Train and test loss on the straight lines from the first checkpoint (0) to the others (1).

    BatchNorm statistics are gathered anew on the training examples at every point of a line: those of
    either end mean nothing between them.
    """
    chosen = _chosen_examples(settings)
    options: dict[str, Any] = {
        "weight_decay": settings.weight_decay,
        "batch_norm": "recalibrated",
        "calibration": problem.data("train", **chosen),
    }
    splits = {
        "train": problem.objective("train", **chosen, **options),
        "test": problem.objective("test", **options),
    }
    coordinates = np.linspace(-0.5, 1.5, settings.line_points)
    for checkpoint in checkpoints[1:]:
        for split, f in splits.items():
            first, other = f.at(checkpoints[0]), f.at(checkpoint)
            keep(
                f"{checkpoint.name}/line_from_first_{split}",
                partial(line, first, first.theta, between(first.theta, other.theta), coordinates),
            )


def _seeded(settings: CompareSettings) -> torch.Generator:
    """Begun anew for every analysis of every checkpoint: common random numbers."""
    return torch.Generator().manual_seed(settings.seed)


def _chosen_examples(settings: CompareSettings) -> dict[str, Any]:
    return {"examples": settings.examples, "seed": settings.seed}


def _labelled(progress: Progress, group: str, iterable: Iterable[Any], description: str) -> Iterable[Any]:
    return progress(iterable, group)


def _read_once(problem: Problem) -> Problem:
    """With iterables made lists, so that every analysis sees the same batches."""

    def kept(data: Any) -> Any:
        if isinstance(data, tuple):
            return data
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed from torch's generator
            return list(data)

    return replace(problem, train=kept(problem.train), test=kept(problem.test))

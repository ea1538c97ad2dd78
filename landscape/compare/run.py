"""Several checkpoints of one problem, looked at in the same way.

Every checkpoint sees the same examples, probes and perturbations (common random numbers), so that what
differs between two results is the checkpoints, and differences have error bars of their own, smaller
than those of the two results apart; but for the tempered path, whose ladder depends on the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.checkpoints import Checkpoint
from landscape.compare.around import entropy, slices, spectrum
from landscape.compare.between import lines_from_first, plane_of_minima, recalibrated
from landscape.compare.measures import measure
from landscape.compare.provenance import check_checkpoints, check_fixed_tensors, provenance_of
from landscape.compare.settings import CompareSettings
from landscape.problems import Problem
from landscape.progress import Progress, silent
from landscape.results import Comparison
from landscape.results.store import Store

__all__ = ["compare"]


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
        Comparison, with records ``checkpoint/analysis`` for the analyses ``eigenpairs``, ``spectral_density``,
        ``laplace``, ``monte_carlo``, ``tempered``, ``line_eigenvector``, ``band_random``, ``plane_random``, and, for
        all checkpoints but the first, ``line_from_first_train``, ``line_from_first_test`` and ``barrier_from_first``;
        and with ``minima/plane`` and ``minima/frame``, a plane through the first three checkpoints that do not lie on
        one line and where all lie on it and off it. For two it goes through them along a random direction.

    Raises:
        ValueError: no checkpoint; two of one name; one that does not fit the network, or whose loss is
            not finite; a store that was begun for other checkpoints or settings.
    """
    settings = settings or CompareSettings()
    check_checkpoints(checkpoints)
    problem = _read_once(problem)
    chosen = settings.chosen
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
        spectrum(name, f, results, settings, keep)
        entropy(name, f, results, settings, keep)
    slices(objectives, results, settings, keep)
    if len(checkpoints) > 1:
        splits = recalibrated(problem, settings)
        lines_from_first(checkpoints, splits, settings, keep)
        plane_of_minima(checkpoints, splits["train"], results, settings, keep)

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

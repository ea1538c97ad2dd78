"""What is looked at between checkpoints: the lines from the first to the others, and a plane through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.checkpoints import Checkpoint
from landscape.compare.around import Keep
from landscape.compare.settings import CompareSettings
from landscape.connectivity import barrier
from landscape.directions import plane_through, project_onto_plane, random_direction
from landscape.objective import ModelObjective
from landscape.problems import Problem
from landscape.progress import Progress
from landscape.results import Frame
from landscape.slices import path, plane

__all__ = ["lines_from_first", "plane_of_minima", "recalibrated"]


def recalibrated(problem: Problem, settings: CompareSettings) -> dict[str, ModelObjective]:
    """The train and test objective for points between minima.

    BatchNorm statistics are gathered anew on the training examples at every point: those of either end mean nothing
    between them.
    """
    chosen = settings.chosen
    options: dict[str, Any] = {
        "weight_decay": settings.weight_decay,
        "batch_norm": "recalibrated",
        "calibration": problem.data("train", **chosen),
    }
    return {
        "train": problem.objective("train", **chosen, **options),
        "test": problem.objective("test", **options),
    }


def lines_from_first(
    checkpoints: Sequence[Checkpoint], splits: Mapping[str, ModelObjective], settings: CompareSettings, keep: Keep
) -> None:
    """Train and test loss on the straight lines from the first checkpoint (0) to the others (1), and their barrier."""
    coordinates = np.linspace(-0.5, 1.5, settings.line_points)
    for checkpoint in checkpoints[1:]:
        for split, f in splits.items():
            keep(
                f"{checkpoint.name}/line_from_first_{split}",
                partial(path, f, checkpoints[0], checkpoint, coordinates),
            )
        keep(f"{checkpoint.name}/barrier_from_first", partial(barrier, splits["train"], checkpoints[0], checkpoint))


def plane_of_minima(
    checkpoints: Sequence[Checkpoint],
    train: ModelObjective,
    results: Mapping[str, Any],
    settings: CompareSettings,
    keep: Keep,
) -> None:
    """A plane through three checkpoints, or through two and along a random direction, and where all of them lie."""
    first = train.at(checkpoints[0])
    points = [train.at(checkpoint).theta for checkpoint in checkpoints]
    spanned = _spanned(first, points, settings)
    names = [checkpoint.name for checkpoint in checkpoints]

    def placed(progress: Progress) -> Frame:
        return project_onto_plane(torch.stack(points), spanned.origin, *spanned.directions, names=names)

    keep("minima/frame", placed)
    frame: Frame = results["minima/frame"]
    low, high = frame.coordinates.min(axis=0), frame.coordinates.max(axis=0)
    # a square around all of them, so that distances are true along both axes
    reach = 0.75 * float((high - low).max())
    a, b = (np.linspace(m - reach, m + reach, settings.plane_points) for m in (low + high) / 2)
    keep("minima/plane", partial(plane, first, frame.origin, *frame.directions, a, b))


def _spanned(f: ModelObjective, points: Sequence[Tensor], settings: CompareSettings) -> Frame:
    """By the first checkpoints that lie on no line with the first, and where there are none by random directions."""
    generator = settings.seeded()
    random = [points[0] + random_direction(f, points[0], generator=generator) for _ in range(2)]
    *pairs, last = combinations([*points[1:], *random], 2)
    for others in pairs:
        with suppress(ValueError):  # on one line
            return plane_through(points[0], *others)
    return plane_through(points[0], *last)

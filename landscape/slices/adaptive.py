"""A plane evaluated only where interpolation misses.

1. Evaluate a coarse grid: every 2^k-th point of each axis and the last, with the largest k that leaves five steps.
2. Predict the loss in the middle of each cell of it from all that is evaluated so far, then evaluate it there. Where
   the prediction misses by more than ``tol`` times the range (the largest finite loss found so far less the smallest),
   or a loss in the cell or on its edges was found not to be finite, the cell is split in four, each put to the same
   test; a cell of at most two steps a side is evaluated whole instead.
3. Hold out some points that no test used: predict them, evaluate them, and report the largest error.
4. Interpolate the points that are left, shares no further than from 0 to 1 and standard errors no lower than 0.

The test uses one point of a cell, and the loss alone, so it may miss a feature beside that point: the held-out points
estimate by how much.

Interpolation is by polyharmonic splines of |x|^5 with a polynomial of degree 2 (Duchon 1977), which reproduce quadratic
functions and need no grid. Each axis is scaled to [0, 1], and a point is predicted from the 80 known points nearest to
it (heuristic: on planes of 21 x 21 more points change nothing).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator

from landscape.progress import Progress
from landscape.slices.sweep import Index, Sweep

__all__ = ["refine"]

_NEIGHBOURS = 80
_COEFFICIENTS = 6  # of a polynomial of degree 2 in the plane
_ROUNDING = 1e-12  # of interpolation, relative to the losses: else it would split the cells of a constant plane

Cell = tuple[tuple[int, int], tuple[int, int]]  # its first and last row, its first and last column


def refine(
    sweep: Sweep,
    a: np.ndarray,
    b: np.ndarray,
    tol: float,
    held_out: int,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[np.ndarray, int, np.ndarray]:
    """Measure where the test requires it, and interpolate all other ``sweep.table.values``.

    Args:
        sweep: over the plane.
        a: coordinates of the rows, increasing.
        b: coordinates of the columns, increasing.
        tol: the error allowed, as a share of the range.
        held_out: how many points to check at; all that are left if these are fewer.
        generator: draws the held-out points.
        progress: called for each round of points.

    Returns:
        Which points were evaluated, bool (A, B); how many were held out; the largest error among these for
        each objective, in units of its loss, NaN if there was none.
    """
    values = sweep.table.values  # (objectives, A, B, quantities), the loss first
    known = np.zeros((len(a), len(b)), dtype=bool)
    places = np.stack(np.meshgrid(_scaled(a), _scaled(b), indexing="ij"), axis=-1)  # (A, B, 2)

    def evaluate(points: Iterable[Index]) -> None:
        new = sorted({point for point in points if not known[point]})
        sweep.visit(new, progress, "plane")
        for point in new:
            known[point] = True

    def not_finite(cell: Cell) -> bool:
        rows, columns = (slice(first, last + 1) for first, last in cell)
        return not np.isfinite(values[:, rows, columns, 0][:, known[rows, columns]]).all()

    def misses_at(points: list[Index]) -> np.ndarray:
        """Evaluate, and compare with what was predicted before, (objectives, points)."""
        at = tuple(np.transpose(points))
        predicted = np.stack([_interpolated(places, known, v[..., :1], places[at])[:, 0] for v in values])
        evaluate(points)
        with np.errstate(invalid="ignore"):
            misses = np.abs(predicted - values[:, *at, 0])
        return np.where(np.isfinite(misses), misses, np.inf)

    # too thin a plane for a polynomial of degree 2 is evaluated whole
    rows, columns = (_coarse(n) if min(known.shape) >= 3 else list(range(n)) for n in known.shape)
    evaluate((i, j) for i in rows for j in columns)
    cells = [(i, j) for i in pairwise(rows) for j in pairwise(columns) if _divisible((i, j))]
    smooth: list[Cell] = []
    while cells:
        misses = misses_at([_middle(cell) for cell in cells])
        missed = np.any(misses > _allowed(values[..., 0], known, tol), axis=0)
        failed = [cell for cell, miss in zip(cells, missed, strict=True) if miss or not_finite(cell)]
        evaluate(point for cell in failed if _small(cell) for point in _points(cell))
        smooth += [cell for cell in cells if cell not in failed]
        again = [cell for cell in smooth if not_finite(cell)]  # on an edge shared with a neighbour
        smooth = [cell for cell in smooth if cell not in again]
        cells = again + [part for cell in failed if not _small(cell) for part in _split(cell) if _divisible(part)]

    rest = np.argwhere(~known)
    chosen = torch.randperm(len(rest), generator=generator)[:held_out].numpy()
    largest = np.full(len(values), np.nan)
    if len(chosen):
        largest = misses_at([(int(i), int(j)) for i, j in rest[chosen]]).max(axis=1)
    for v in values:
        v[~known] = _interpolated(places, known, v, places[~known]).clip(*sweep.limits)
    return known, len(chosen), largest


def _interpolated(places: np.ndarray, known: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``values`` (A, B, m) interpolated at the places ``wanted`` (k, 2): (k, m), NaN where that is not possible.

    Only known points with a finite loss, ``values[..., 0]``, are used. A quantity that is not finite at one of them,
    such as the accuracy of a regression, is NaN everywhere.
    """
    known = known & np.isfinite(values[..., 0])
    found = np.full((len(wanted), values.shape[-1]), np.nan)
    usable = np.isfinite(values[known]).all(axis=0)
    if known.sum() >= _COEFFICIENTS and usable.any() and len(wanted):
        try:
            spline = RBFInterpolator(
                places[known], values[known][:, usable], kernel="quintic", degree=2, neighbors=_NEIGHBOURS
            )
            found[:, usable] = spline(wanted)
        except np.linalg.LinAlgError:  # all known points lie on a conic section
            pass
    return found


def _allowed(losses: np.ndarray, known: np.ndarray, tol: float) -> np.ndarray:
    """The error allowed for each objective with losses (objectives, A, B), (objectives, 1)."""
    allowed = []
    for loss in losses:
        finite = loss[known & np.isfinite(loss)]
        allowed.append(max(tol * np.ptp(finite), _ROUNDING * np.abs(finite).max()) if len(finite) else 0.0)
    return np.array(allowed)[:, None]


def _scaled(coordinates: np.ndarray) -> np.ndarray:
    return (coordinates - coordinates[0]) / (np.ptp(coordinates) or 1.0)


def _coarse(n: int) -> list[int]:
    step = 1
    while 2 * step * 5 <= n - 1:
        step *= 2
    return [*range(0, n - 1, step), n - 1]


def _divisible(cell: Cell) -> bool:
    return max(last - first for first, last in cell) > 1


def _small(cell: Cell) -> bool:
    return max(last - first for first, last in cell) <= 2


def _middle(cell: Cell) -> Index:
    (i0, i1), (j0, j1) = cell
    return (i0 + i1) // 2, (j0 + j1) // 2


def _points(cell: Cell) -> list[Index]:
    (i0, i1), (j0, j1) = cell
    return [(i, j) for i in range(i0, i1 + 1) for j in range(j0, j1 + 1)]


def _split(cell: Cell) -> list[Cell]:
    rows, columns = ([(lo, (lo + hi) // 2), ((lo + hi) // 2, hi)] if hi - lo > 1 else [(lo, hi)] for lo, hi in cell)
    return [(i, j) for i in rows for j in columns]

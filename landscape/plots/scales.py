"""Scales and axis labels that the plots of slices share."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from landscape.results import Plane

__all__ = [
    "METRIC_NAMES",
    "axis_in_common",
    "blank_note",
    "is_log",
    "on_grid",
    "scale_name",
    "shared_norm",
    "ticks",
    "wrapped",
]

METRIC_NAMES = {"loss": "loss", "error": "error (share of wrong answers)"}


def _values(plane: Plane, metric: str) -> np.ndarray:
    """The loss or the error on the grid, (A, B).

    Raises:
        ValueError: an unknown metric; a grid without an area.
    """
    if metric not in METRIC_NAMES:
        raise ValueError(f"metric={metric!r}: give one of {tuple(METRIC_NAMES)}")
    if min(plane.loss.shape) < 2:
        raise ValueError(f"the plane has {plane.loss.shape} points: give at least two coordinates on each axis")
    return plane.loss if metric == "loss" else plane.error_rate


def on_grid(plane: Plane, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a (A,) and b (B,) in increasing order, and the values at them (A, B)."""
    rows, columns = np.argsort(plane.a), np.argsort(plane.b)
    return plane.a[rows], plane.b[columns], _values(plane, metric)[np.ix_(rows, columns)]


def shared_norm(
    planes: Sequence[Plane], metric: str, scale: str | None, limits: tuple[float, float] | None = None
) -> Normalize:
    """The normalisation of colours and heights of several planes.

    Its range is that of the evaluated points, since interpolation may overshoot. A log scale of the loss starts at the
    interpolation error that was allowed, the largest of the planes' ``tol`` times their own range.

    Args:
        planes: the planes.
        metric: ``"loss"`` or ``"error"``.
        scale: ``"log"``, ``"linear"``, or None for log if all values are positive.
        limits: instead of the range of the values.

    Raises:
        ValueError: no value is finite, an unknown scale, limits that do not increase, a log scale with values that are
            not positive.
    """
    if scale not in (None, "log", "linear"):
        raise ValueError(f"scale={scale!r}: give 'log', 'linear' or None")
    low, high = limits or _range(planes, metric)
    if limits is None and metric == "loss" and low > 0 and scale != "linear":
        low = max(low, *map(_miss, planes))
    if not low < high:
        raise ValueError(f"limits={limits}: give the lower one first")
    if scale == "log" and not low > 0:
        raise ValueError(f"scale='log', but the {metric} goes down to {low:.3g}: give 'linear', or positive limits")
    return Normalize(low, high) if scale == "linear" or low <= 0 else LogNorm(low, high)


def is_log(norm: Normalize) -> bool:
    """Whether the scale is logarithmic."""
    return isinstance(norm, LogNorm)


def scale_name(metric: str, norm: Normalize) -> str:
    """The label of a colour bar, or of the axis of heights."""
    return f"{METRIC_NAMES[metric]}{', log scale' if is_log(norm) else ''}"


def ticks(norm: Normalize) -> tuple[list[float], list[str]]:
    """Round numbers within the scale, and as text: 1, 2, 5, 10... on a log scale, or powers of ten if it is long."""
    low, high = float(norm.vmin or 0), float(norm.vmax or 0)
    found = [float(value) for value in MaxNLocator(6).tick_values(low, high)]
    if is_log(norm):
        tens = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        for steps in ((1,), (1, 2, 5)):
            candidates = [float(step * ten) for ten in tens for step in steps]
            if sum(low <= value <= high for value in candidates) >= 4:  # fewer do not show that the scale is log
                found = candidates
                break
    found = [value for value in found if low <= value <= high]
    return found, [f"{value:.4g}" for value in found]


def blank_note(plane: Plane, metric: str) -> str:
    """A note for the title on points that are left blank; "" if there are none."""
    values = _values(plane, metric)
    blank = int((~np.isfinite(values)).sum())
    return f"{blank} of {values.size} points not finite, left blank" if blank else ""


def axis_in_common(axes: Mapping[str, str]) -> str:
    """The label of an axis that several slices share; the norms of their directions may differ.

    Args:
        axes: by label, the ``axis`` of each record.

    Raises:
        ValueError: they are in different units.
    """
    parts = {label: text.partition(" (1 unit = ") for label, text in axes.items()}
    if len({head for head, _, _ in parts.values()}) > 1:
        raise ValueError(f"the slices have different units, {axes}: draw those of one unit together")
    norms = {label: tail.partition(" ")[0] for label, (_, _, tail) in parts.items()}
    first = next(iter(axes.values()))
    if len(set(norms.values())) == 1:
        return first
    of_each = ", ".join(f"{norm} for {label}" for label, norm in norms.items())
    if len(norms) > 6:
        low, *_, high = sorted(norms.values(), key=float)
        of_each = f"{low} to {high}"
    return f"{next(iter(parts.values()))[0]} (1 unit = {of_each}, in parameter norm)"


def wrapped(text: str, width: int) -> str:
    """The text of an axis label in lines of at most ``width`` characters, with the unit on a new line."""
    head, bracket, tail = text.partition(" (1 unit")
    if len(text) <= width or not bracket:
        return _filled(text, width)
    return f"{_filled(head, width)}\n{_filled(bracket[1:] + tail, width)}"


def _filled(text: str, width: int) -> str:
    """The text in as few lines as the width allows, with lengths as equal as possible."""
    count = len(textwrap.wrap(text, width, break_long_words=False))
    narrower = (textwrap.wrap(text, w, break_long_words=False) for w in range(1, width + 1))
    return "\n".join(next(lines for lines in narrower if len(lines) == count))


def _miss(plane: Plane) -> float:
    """The interpolation error of the loss that was allowed."""
    finite = plane.loss[plane.evaluated & np.isfinite(plane.loss)]
    return plane.tol * float(np.ptp(finite)) if len(finite) else 0.0


def _range(planes: Sequence[Plane], metric: str) -> tuple[float, float]:
    """The range of all finite evaluated values, widened if it is empty, since contour levels have to increase."""
    values = np.concatenate([_values(plane, metric)[plane.evaluated] for plane in planes])
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        raise ValueError(f"no {metric} is finite: there is nothing to draw")
    low, high = float(finite.min()), float(finite.max())
    size = max(abs(low), abs(high))
    margin = 0.0 if high - low > 1e-9 * size else 0.1 * (size or 1.0)  # with 1e-9, 25 levels are distinct in float64
    return low - margin, high + margin

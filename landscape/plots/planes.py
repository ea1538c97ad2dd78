"""Contour plots of the loss over planes, with checkpoints and trajectories.

A ``Frame`` has the orthogonal projections of points onto a plane, and their distances from it. The projections are
drawn, so the loss of a point may differ from the colour at its position.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from landscape.plots.scales import blank_note, is_log, on_grid, scale_name, shared_norm, ticks, wrapped
from landscape.plots.style import palette
from landscape.results import Frame, Plane

__all__ = ["loss_bar", "loss_surface", "loss_surfaces", "on_axes", "rows_and_columns"]

_MOST_IN_A_ROW = 4

_OFF_PLANE = "Reds"  # distinct from viridis, the colours of the loss
_ON_PLANE = 1e-4  # relative to the plane's diagonal: smaller distances are from rounding to float32
_ORTHOGONAL = 0.05  # |cosine| below which angles are correct to 3 degrees
# relative tolerance of fingerprints: rounding to float32 changes one by about 3e-8, another vector by its distance
_SAME = 1e-5
_SLIVER = 2.5  # heuristic: with a larger ratio of the sides, an axis would be shorter than its label


def loss_surface(
    plane: Plane,
    *,
    checkpoints: Frame | None = None,
    trajectory: Frame | None = None,
    metric: str = "loss",
    scale: str | None = None,
    evaluated: bool = False,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Axes, QuadContourSet]:
    """Contours of the loss over a plane, with checkpoints and a trajectory on it.

    For an adaptive plane, a log scale of the loss starts at the interpolation error that was allowed. If the directions
    are orthogonal, the plot is to scale; otherwise the title states their angle.

    Args:
        plane: the result. Its origin is marked by a cross.
        checkpoints: points to mark and label, in a frame with the plane's origin and directions, as returned by
            ``plane_through`` and ``project_onto_plane``. The labels include the distance of points that are off the
            plane.
        trajectory: points to connect in their order, as returned by ``trajectory_plane``, with colours by their
            distance from the plane. The axis labels include the fraction that is explained.
        metric: ``"loss"``, or ``"error"`` for the error rate.
        scale: of the colours, ``"log"`` or ``"linear"``. Default: log if all values are positive.
        evaluated: whether to mark the points that an adaptive plane evaluated, and state their number.
        limits: of the colours, to share them between planes. Default: the range of the plane.
        ax: default: a new one.

    Returns:
        The axes, and the contours, for :func:`loss_bar`. Points with NaN or inf are blank, and the title states their
        number.

    Raises:
        ValueError: no value is finite, a log scale with values that are not positive, a grid without an area, a frame
            with another origin or other directions than the plane, an unknown metric or scale.
    """
    norm = shared_norm([plane], metric, scale, limits)
    to_scale = _can_be_to_scale([plane])
    ax = ax or _figure([plane], to_scale, trajectory is not None).subplots()
    filled = _contours(ax, plane, metric, norm, to_scale)
    if trajectory is not None:
        off = _distances([trajectory])
        _draw_trajectory(ax, plane, trajectory, off)
        _distance_bar(ax.figure, off, ax)
    if checkpoints is not None:
        _mark(ax, plane, checkpoints)
    _set_title(ax, plane, metric, "", evaluated)
    _name_axes(ax, plane, to_scale, trajectory)
    return ax, filled


def loss_surfaces(
    planes: Mapping[str, Plane],
    *,
    checkpoints: Mapping[str, Frame] | None = None,
    trajectories: Mapping[str, Frame] | None = None,
    metric: str = "loss",
    scale: str | None = None,
    evaluated: bool = False,
    limits: tuple[float, float] | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Several planes side by side, with a common colour scale; more than four in several rows.

    Args:
        planes: by label.
        checkpoints: as for :func:`loss_surface`, by the same labels; a plane may have none.
        trajectories: likewise, with a common scale of distances.
        metric: as for :func:`loss_surface`.
        scale: as for :func:`loss_surface`.
        evaluated: as for :func:`loss_surface`.
        limits: as for :func:`loss_surface`. Default: the range of all planes.
        figure: default: a new one.

    Raises:
        ValueError: as for :func:`loss_surface`.
    """
    checkpoints, trajectories = checkpoints or {}, trajectories or {}
    norm = shared_norm(list(planes.values()), metric, scale, limits)
    to_scale = _can_be_to_scale(planes.values())
    figure = figure or _figure(planes.values(), to_scale, bool(trajectories))
    shared = not trajectories
    axes = list(np.ravel(figure.subplots(*rows_and_columns(len(planes)), sharex=shared, sharey=shared)))
    while len(axes) > len(planes):
        axes.pop().remove()
    off = _distances(trajectories.values())
    for ax, (label, plane) in zip(axes, planes.items(), strict=True):
        filled = _contours(ax, plane, metric, norm, to_scale)
        if label in trajectories:
            _draw_trajectory(ax, plane, trajectories[label], off)
        if label in checkpoints:
            _mark(ax, plane, checkpoints[label])
        _set_title(ax, plane, metric, label, evaluated)
        _name_axes(ax, plane, to_scale, trajectories.get(label))
    loss_bar(filled, axes, metric=metric)
    if trajectories:
        _distance_bar(figure, off, axes)
    return figure


def rows_and_columns(count: int) -> tuple[int, int]:
    """Of so many planes side by side: at most four a row, the rows as even as may be."""
    rows = -(-count // _MOST_IN_A_ROW)
    return rows, -(-count // rows)


def loss_bar(contours: QuadContourSet, axes: Axes | Sequence[Axes], *, metric: str = "loss") -> Colorbar:
    """A colour bar beside one or more plots of planes, with round numbers as ticks.

    Args:
        contours: as returned by :func:`loss_surface`.
        axes: the axes beside which it is placed.
        metric: that of the contours.
    """
    first = axes if isinstance(axes, Axes) else axes[0]
    norm: Any = contours.norm
    # as wide beside several rows of planes as beside one
    rows = 1 if isinstance(axes, Axes) else rows_and_columns(len(axes))[0]
    bar = first.figure.colorbar(contours, ax=axes, label=scale_name(metric, norm), aspect=20 * rows)
    positions, texts = ticks(norm)
    bar.set_ticks(positions, labels=texts)
    bar.minorticks_off()
    return bar


def on_axes(plane: Plane, frame: Frame) -> np.ndarray:
    """The coordinates of a frame's points in the plane's unit, (points, 2).

    Raises:
        ValueError: the frame has another origin or other directions.
    """
    vectors = zip(("origin", "direction 1", "direction 2"), frame.fingerprint, plane.fingerprint, strict=True)
    for name, of_frame, of_plane in vectors:
        if not np.abs(of_frame - of_plane).max() <= _SAME * np.sqrt((of_frame**2).mean()):
            raise ValueError(
                f"the frame has another {name} than the plane's: give both the same, as in plane(f, frame.origin, "
                "*frame.directions, ...)"
            )
    return frame.coordinates * (plane.direction_norms if plane.unit == "norm" else 1.0)


def _contours(ax: Axes, plane: Plane, metric: str, norm: Normalize, to_scale: bool) -> QuadContourSet:
    a, b, values = on_grid(plane, metric)
    levels = np.asarray(norm.inverse(np.linspace(0, 1, 25)))
    # interpolation may overshoot below zero
    finite = np.ma.masked_invalid(values.T).clip(min=levels[0] if is_log(norm) else -np.inf)
    filled = ax.contourf(a, b, finite, levels=levels, norm=norm, cmap="viridis", extend="both")
    if inner := [v for v in levels[::3] if finite.min() < v < finite.max()]:  # none for a constant loss
        ax.contour(a, b, finite, levels=inner, colors="white", linewidths=0.5, alpha=0.7)
    ax.plot(0, 0, "+", color="white", ms=9, mew=1.5)
    ax.grid(False)
    ax.set_aspect(_unit_ratio(plane) if to_scale else "auto")
    return filled


def _unit_ratio(plane: Plane) -> float:
    """The length in parameter space of a unit of b, relative to a unit of a."""
    return float(plane.direction_norms[1] / plane.direction_norms[0]) if plane.unit == "direction" else 1.0


def _shape(plane: Plane) -> float:
    """The ratio of height to width of a plot that is to scale."""
    return float(_unit_ratio(plane) * np.ptp(plane.b) / np.ptp(plane.a))


def _can_be_to_scale(planes: Iterable[Plane]) -> bool:
    """Whether all directions are orthogonal, and no plot would be too narrow if drawn to scale."""
    return all(abs(p.cosine) < _ORTHOGONAL and 1 / _SLIVER <= _shape(p) <= _SLIVER for p in planes)


def _figure(planes: Collection[Plane], to_scale: bool, trajectories: bool) -> Figure:
    tallest = max(map(_shape, planes)) if to_scale else 1.0
    rows, columns = rows_and_columns(len(planes))
    size = (4 * columns + 1, (1.2 + 3.2 * tallest + 0.8 * trajectories) * rows)
    return plt.figure(figsize=size, layout="compressed")


def _mark(ax: Axes, plane: Plane, frame: Frame) -> None:
    points = on_axes(plane, frame)
    units = 1.0 if plane.unit == "norm" else plane.direction_norms
    near = _ON_PLANE * np.linalg.norm(units * np.array([np.ptp(plane.a), np.ptp(plane.b)]))
    middle = (plane.a.min() + plane.a.max()) / 2
    for name, (x, y), off, color in zip(frame.names, points, frame.out_of_plane, palette(frame.names), strict=True):
        ax.plot(x, y, "o", color=color, mec="white", ms=8, mew=1.5, zorder=4)
        right = x <= middle  # the side with more space
        ax.annotate(
            name if off <= near else f"{name}\n({off:.3g} off the plane)",
            (x, y),
            xytext=(7 if right else -7, 4),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=9,
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _distances(frames: Iterable[Frame]) -> Normalize:
    """The colour scale of the distances from the plane, starting at zero."""
    distances = np.concatenate([[0.0], *(frame.out_of_plane for frame in frames)])
    return Normalize(0, float(distances[np.isfinite(distances)].max()) or 1.0)


def _draw_trajectory(ax: Axes, plane: Plane, frame: Frame, off: Normalize) -> None:
    x, y = on_axes(plane, frame).T
    ax.plot(x, y, "-", color="white", lw=1.5, path_effects=[withStroke(linewidth=3, foreground="0.2")])
    ax.scatter(x, y, c=frame.out_of_plane, norm=off, cmap=_OFF_PLANE, edgecolors="0.1", linewidths=0.6, s=28, zorder=3)


def _distance_bar(figure: Any, off: Normalize, axes: Any) -> None:
    label = "distance from the plane, in parameter norm"
    figure.colorbar(ScalarMappable(off, _OFF_PLANE), ax=axes, location="bottom", label=label, shrink=0.7, aspect=40)


def _set_title(ax: Axes, plane: Plane, metric: str, label: str, evaluated: bool) -> None:
    """The title: the label, and notes on angles, blank points and interpolation."""
    lines = [label] if label else []
    if abs(plane.cosine) >= _ORTHOGONAL:
        lines.append(f"directions at {plane.angle:.0f}° to each other: not to scale")
    if blank := blank_note(plane, metric):
        lines.append(blank)
    if evaluated:
        i, j = plane.evaluated.nonzero()
        ax.plot(plane.a[i], plane.b[j], "o", color="white", mec="black", mew=0.5, ms=2.4)
        lines.append(f"{len(i)} of {plane.evaluated.size} points evaluated (dots)")
        if metric == "loss" and np.isfinite(plane.held_out_error):
            lines.append(f"held-out error of the others {plane.held_out_error:.2g}")
    ax.set_title("\n".join(lines), fontsize="medium")


def _name_axes(ax: Axes, plane: Plane, to_scale: bool, trajectory: Frame | None) -> None:
    height = min(max(0.6, _shape(plane)), 1) if to_scale else 1  # of the vertical axis, to the horizontal
    names = []
    for i, width in enumerate((42, int(42 * height))):
        lines = [wrapped(plane.axes[i], width)]
        if trajectory is not None:
            lines.append(wrapped(f"explains {100 * trajectory.explained[i]:.3g} % of the trajectory", width))
        names.append("\n".join(lines))
    ax.set(xlabel=names[0], ylabel=names[1])

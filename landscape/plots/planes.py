"""Contours of the loss over planes, with the checkpoints and trajectories that lie on them or near.

A ``Frame`` says where points of the parameter space lie on a plane and how far off it: what is drawn is the foot of
each one's perpendicular, so its loss need not be the one whose colour it stands on.
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

__all__ = ["loss_bar", "loss_surface", "loss_surfaces", "on_axes"]

_OFF_PLANE = "Reds"  # no colour of viridis, under which it lies
_ON_PLANE = 1e-4  # of the plane's diagonal: nearer is on the plane, but for the rounding of float32 weights
_ORTHOGONAL = 0.05  # |cosine| below which right angles are true to 3 degrees
# of a vector's size: rounding to float32 moves a projection by some 3e-8 of that, another vector by its distance
_SAME = 1e-5
_SLIVER = 2.5  # times as long as wide, heuristic: its axis would be shorter than its name


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

    Of an adaptive plane, a log scale of the loss begins at what interpolation may miss by. Lengths are those of the
    parameter space where the directions are orthogonal; where they are not, the title tells their angle.

    Args:
        plane: the result. Its origin is marked by a cross.
        checkpoints: points to mark and name, in a frame of the plane's origin and directions, such as
            ``plane_through`` and ``project_onto_plane`` give. One that is off the plane says so beside its name.
        trajectory: points to join in their order, such as ``trajectory_plane`` gives; the redder, the further off the
            plane. The axes say what share of it they explain.
        metric: ``"loss"``, or ``"error"`` for the share of wrong answers.
        scale: of the colours, ``"log"`` or ``"linear"``. Default: log where all is positive.
        evaluated: whether to dot the points that an adaptive plane evaluated, and tell how many.
        limits: of the colours, to share them between planes. Default: the plane's own.
        ax: default: a new one.

    Returns:
        The axes, and the contours, for :func:`loss_bar`. Points that are NaN or inf stay blank, and are counted in the
        title.

    Raises:
        ValueError: nothing is finite, a log scale of what is not positive, a grid without an area, a frame of another
            origin or other directions than the plane's, an unknown metric or scale.
    """
    norm = shared_norm([plane], metric, scale, limits)
    true = _true_to_scale([plane])
    ax = ax or _figure([plane], true, trajectory is not None).subplots()
    filled = _contours(ax, plane, metric, norm, true)
    if trajectory is not None:
        off = _distances([trajectory])
        _draw_trajectory(ax, plane, trajectory, off)
        _distance_bar(ax.figure, off, ax)
    if checkpoints is not None:
        _mark(ax, plane, checkpoints)
    _say(ax, plane, metric, "", evaluated)
    _name_axes(ax, plane, true, trajectory)
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
    """Several planes side by side, on one colour scale.

    Args:
        planes: by label.
        checkpoints: as for :func:`loss_surface`, by the same labels; a plane may have none.
        trajectories: likewise, on one scale of distances.
        metric: as for :func:`loss_surface`; so are the others.
        scale: see there.
        evaluated: see there.
        limits: see there. Default: those of all planes together.
        figure: default: a new one.

    Raises:
        ValueError: as for :func:`loss_surface`.
    """
    checkpoints, trajectories = checkpoints or {}, trajectories or {}
    norm = shared_norm(list(planes.values()), metric, scale, limits)
    true = _true_to_scale(planes.values())
    figure = figure or _figure(planes.values(), true, bool(trajectories))
    axes = np.atleast_1d(figure.subplots(1, len(planes), sharex=not trajectories, sharey=not trajectories))
    off = _distances(trajectories.values())
    for ax, (label, plane) in zip(axes, planes.items(), strict=True):
        filled = _contours(ax, plane, metric, norm, true)
        if label in trajectories:
            _draw_trajectory(ax, plane, trajectories[label], off)
        if label in checkpoints:
            _mark(ax, plane, checkpoints[label])
        _say(ax, plane, metric, label, evaluated)
        _name_axes(ax, plane, true, trajectories.get(label))
    loss_bar(filled, list(axes), metric=metric)
    if trajectories:
        _distance_bar(figure, off, list(axes))
    return figure


def loss_bar(contours: QuadContourSet, axes: Axes | Sequence[Axes], *, metric: str = "loss") -> Colorbar:
    """The scale of the colours beside one or more pictures of planes, with round numbers on it.

    Args:
        contours: what :func:`loss_surface` returned.
        axes: beside which.
        metric: that of the contours.
    """
    first = axes if isinstance(axes, Axes) else axes[0]
    norm: Any = contours.norm
    bar = first.figure.colorbar(contours, ax=axes, label=scale_name(metric, norm))
    positions, texts = ticks(norm)
    bar.set_ticks(positions, labels=texts)
    bar.minorticks_off()
    return bar


def on_axes(plane: Plane, frame: Frame) -> np.ndarray:
    """The points of a frame in the plane's own unit, (points, 2).

    Raises:
        ValueError: the frame is of another origin or other directions.
    """
    vectors = zip(("origin", "direction 1", "direction 2"), frame.fingerprint, plane.fingerprint, strict=True)
    for name, of_frame, of_plane in vectors:
        if not np.abs(of_frame - of_plane).max() <= _SAME * np.sqrt((of_frame**2).mean()):
            raise ValueError(
                f"the frame has another {name} than the plane's: give both the same, as in plane(f, frame.origin, "
                "*frame.directions, ...)"
            )
    return frame.coordinates * (plane.direction_norms if plane.unit == "norm" else 1.0)


def _contours(ax: Axes, plane: Plane, metric: str, norm: Normalize, true: bool) -> QuadContourSet:
    a, b, values = on_grid(plane, metric)
    levels = np.asarray(norm.inverse(np.linspace(0, 1, 25)))
    # interpolation may overshoot to below zero, which has no logarithm
    finite = np.ma.masked_invalid(values.T).clip(min=levels[0] if is_log(norm) else -np.inf)
    filled = ax.contourf(a, b, finite, levels=levels, norm=norm, cmap="viridis", extend="both")
    if crossed := [v for v in levels[::3] if finite.min() < v < finite.max()]:  # none in a flat plane
        ax.contour(a, b, finite, levels=crossed, colors="white", linewidths=0.5, alpha=0.7)
    ax.plot(0, 0, "+", color="white", ms=9, mew=1.5)
    ax.grid(False)
    ax.set_aspect(_unit_ratio(plane) if true else "auto")
    return filled


def _unit_ratio(plane: Plane) -> float:
    """How long a unit of b is in the parameter space, to one of a."""
    return float(plane.direction_norms[1] / plane.direction_norms[0]) if plane.unit == "direction" else 1.0


def _shape(plane: Plane) -> float:
    """Height to width of a picture whose distances are those of the parameter space."""
    return float(_unit_ratio(plane) * np.ptp(plane.b) / np.ptp(plane.a))


def _true_to_scale(planes: Iterable[Plane]) -> bool:
    """Whether distances can be those of the parameter space, and leave pictures that are no slivers."""
    return all(abs(p.cosine) < _ORTHOGONAL and 1 / _SLIVER <= _shape(p) <= _SLIVER for p in planes)


def _figure(planes: Collection[Plane], true: bool, trajectories: bool) -> Figure:
    tallest = max(map(_shape, planes)) if true else 1.0
    size = (4 * len(planes) + 1, 1.2 + 3.2 * tallest + 0.8 * trajectories)
    return plt.figure(figsize=size, layout="compressed")


def _mark(ax: Axes, plane: Plane, frame: Frame) -> None:
    points = on_axes(plane, frame)
    units = 1.0 if plane.unit == "norm" else plane.direction_norms
    near = _ON_PLANE * np.linalg.norm(units * np.array([np.ptp(plane.a), np.ptp(plane.b)]))
    middle = (plane.a.min() + plane.a.max()) / 2
    for name, (x, y), off, color in zip(frame.names, points, frame.out_of_plane, palette(frame.names), strict=True):
        ax.plot(x, y, "o", color=color, mec="white", ms=8, mew=1.5, zorder=4)
        right = x <= middle  # on the side where there is room
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
    """The scale of the distances from the plane, from zero."""
    distances = np.concatenate([[0.0], *(frame.out_of_plane for frame in frames)])
    return Normalize(0, float(distances[np.isfinite(distances)].max()) or 1.0)


def _draw_trajectory(ax: Axes, plane: Plane, frame: Frame, off: Normalize) -> None:
    x, y = on_axes(plane, frame).T
    ax.plot(x, y, "-", color="white", lw=1.5, path_effects=[withStroke(linewidth=3, foreground="0.2")])
    ax.scatter(x, y, c=frame.out_of_plane, norm=off, cmap=_OFF_PLANE, edgecolors="0.1", linewidths=0.6, s=28, zorder=3)


def _distance_bar(figure: Any, off: Normalize, axes: Any) -> None:
    label = "distance from the plane, in parameter norm"
    figure.colorbar(ScalarMappable(off, _OFF_PLANE), ax=axes, location="bottom", label=label, shrink=0.7, aspect=40)


def _say(ax: Axes, plane: Plane, metric: str, label: str, evaluated: bool) -> None:
    """The title: what the plane is, and what of it is blank or interpolated."""
    said = [label] if label else []
    if abs(plane.cosine) >= _ORTHOGONAL:
        said.append(f"directions at {plane.angle:.0f}° to each other: not to scale")
    if blank := blank_note(plane, metric):
        said.append(blank)
    if evaluated:
        i, j = plane.evaluated.nonzero()
        ax.plot(plane.a[i], plane.b[j], "o", color="white", mec="black", mew=0.5, ms=2.4)
        said.append(f"{len(i)} of {plane.evaluated.size} points evaluated (dots)")
        if metric == "loss" and np.isfinite(plane.held_out_error):
            said.append(f"held-out error of the others {plane.held_out_error:.2g}")
    ax.set_title("\n".join(said), fontsize="medium")


def _name_axes(ax: Axes, plane: Plane, true: bool, trajectory: Frame | None) -> None:
    height = min(max(0.6, _shape(plane)), 1) if true else 1  # of the vertical axis, to the horizontal
    names = []
    for i, width in enumerate((42, int(42 * height))):
        lines = [wrapped(plane.axes[i], width)]
        if trajectory is not None:
            lines.append(wrapped(f"explains {100 * trajectory.explained[i]:.3g} % of the trajectory", width))
        names.append("\n".join(lines))
    ax.set(xlabel=names[0], ylabel=names[1])

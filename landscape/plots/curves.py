"""Plots of a Bezier curve between two minima: its loss and that of the straight line, and the plane that it is in."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.patheffects import withStroke

from landscape.plots.planes import loss_surface, on_axes
from landscape.plots.style import new_axes, palette, set_loss_axis
from landscape.results import BezierPath, Frame, Line, Plane

__all__ = ["curve_in_plane", "path_and_curve"]


def path_and_curve(straight: Line, curve: BezierPath, *, ends: tuple[str, str], ax: Axes | None = None) -> Axes:
    """The loss on the straight line and on the curve between two minima, against the arc length from the first.

    Args:
        straight: of the same objective, from ``path`` between the curve's ends, with 0 and 1 among its coordinates.
        curve: the trained curve.
        ends: the names of the minima.
        ax: default: a new one.

    Raises:
        ValueError: the line is not from ``path``, or has another distance between its ends or another ``batch_norm``
            than the curve.
    """
    _check(straight, curve)
    ax = ax or new_axes()
    within = np.argsort(straight.coordinates)
    within = within[(straight.coordinates[within] >= 0) & (straight.coordinates[within] <= 1)]
    drawn = {
        "straight line": (straight.coordinates[within] * straight.direction_norm, straight.loss[within]),
        "Bézier curve": (curve.arc_length, curve.loss),
    }
    for (name, (length, loss)), color, style in zip(drawn.items(), palette(drawn), ("--", "-"), strict=True):
        height = (loss - (loss[0] + loss[-1]) / 2).max()
        ax.plot(length, loss, style, color=color, label=f"{name}: length {length[-1]:.3g}, barrier {height:.3g}")
        ax.plot(length[[0, -1]], loss[[0, -1]], "o", color=color, mec="white", ms=7, zorder=3)
    ax.set_xlabel(f"arc length from {ends[0]} to {ends[1]}, in parameter norm")
    set_loss_axis(ax, "loss", [loss for _, loss in drawn.values()])
    # above the axes, where it does not cover the barrier
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize="small")
    return ax


def curve_in_plane(
    plane: Plane, frame: Frame, curve: BezierPath, *, ax: Axes | None = None, **options: Any
) -> tuple[Axes, QuadContourSet]:
    """The curve, and the straight line (dashed), on the plane through its ends and its control point.

    Args:
        plane: the loss on that plane.
        frame: from ``plane_through(curve.theta_a, curve.theta_b, curve.control, names=...)``; its points are marked.
        curve: the curve.
        ax: default: a new one.
        **options: of :func:`landscape.plots.loss_surface`.

    Returns:
        The axes, and the contours for a colour bar.

    Raises:
        ValueError: the frame does not belong to the curve.
    """
    points = on_axes(plane, frame)
    if len(points) != 3:
        raise ValueError(f"the frame has {len(points)} points: give plane_through the ends and the control point")
    for name, theta, at in zip(
        ("theta_a", "theta_b", "control"),
        (curve.theta_a, curve.theta_b, curve.control),
        frame.coordinates.tolist(),
        strict=True,
    ):
        # the frame is in float64, the curve in the network's precision
        if float((frame.at(*at) - theta).norm()) > 1e-4 * float(curve.arc_length[-1]):
            raise ValueError(f"the frame's points are not the curve's ends and control point, in this order: {name}")
    ax, filled = loss_surface(plane, checkpoints=frame, ax=ax, **options)
    a, b, c = points
    t = np.linspace(0, 1, 101)[:, None]
    x, y = ((1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b).T
    ax.plot(x, y, "-", color="white", lw=2, path_effects=[withStroke(linewidth=3.5, foreground="0.2")])
    ax.plot(*np.stack([a, b]).T, "--", color="white", lw=1)
    return ax, filled


def _check(straight: Line, curve: BezierPath) -> None:
    if straight.unit != "path" or not {0.0, 1.0} <= set(straight.coordinates.tolist()):
        raise ValueError(
            f"straight has unit {straight.unit!r} and coordinates from {straight.coordinates[0]:g} to "
            f"{straight.coordinates[-1]:g}: give landscape.path between the curve's ends, from 0 to 1"
        )
    if straight.batch_norm != curve.batch_norm:
        raise ValueError(
            f"straight has batch_norm={straight.batch_norm!r}, the curve {curve.batch_norm!r}: give landscape.path an "
            f"objective with batch_norm={curve.batch_norm!r}, so that both are of one function"
        )
    apart = float((curve.theta_b.double() - curve.theta_a.double()).norm())
    if not np.isclose(apart, straight.direction_norm, rtol=1e-4):
        raise ValueError(
            f"straight is between points {straight.direction_norm:.4g} apart, the curve's ends are {apart:.4g} apart: "
            "give both the same ends"
        )

"""Pictures of the loss along lines and over planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from landscape.plots.style import new_axes, palette, set_loss_axis
from landscape.results import Line, Plane

__all__ = ["line_between", "lines", "loss_surface", "loss_surfaces"]


def line_between(
    train: Line,
    test: Line,
    *,
    ends: tuple[str, str],
    colors: tuple[Any, Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Train and test loss on the straight line between two checkpoints, at 0 and 1.

    Args:
        train: the line's train loss.
        test: its test loss.
        ends: the names of the checkpoints.
        colors: of their markers. Default: the first two of the palette.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    black, gray = "0.1", "0.55"
    ax.plot(train.coordinates, train.loss, color=black, label="train")
    ax.plot(test.coordinates, test.loss, color=gray, ls="--", label="test")
    for position, (name, color) in enumerate(zip(ends, colors or palette(ends), strict=True)):
        ax.axvline(position, color=color, lw=1.5, alpha=0.8, label=name)
    ax.set_xlabel(rf"position on the line (1 unit = {train.direction_norm:.3g} in weight norm)")
    set_loss_axis(ax, "loss", [train.loss, test.loss])
    ax.legend(frameon=False)
    return ax


def lines(
    slices: Mapping[str, Line],
    *,
    xlabel: str,
    parabolas: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The loss along one direction per checkpoint, on common axes.

    Args:
        slices: by label.
        xlabel: says what a coordinate is a multiple of.
        parabolas: a curvature per label; f(0) + curvature/2 a^2 is drawn dotted.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    for (label, line), color in zip(slices.items(), palette(slices), strict=True):
        ax.plot(line.coordinates, line.loss, color=color, label=label)
        if parabolas is not None:
            parabola = np.interp(0.0, line.coordinates, line.loss) + parabolas[label] / 2 * line.coordinates**2
            ax.plot(line.coordinates, parabola, color=color, ls=":", lw=1)
    if parabolas is not None:
        ax.plot([], [], color="0.4", ls=":", lw=1, label=r"$f + \lambda a^2/2$")
    ax.set(xlabel=xlabel)
    set_loss_axis(ax, "train loss", [line.loss for line in slices.values()])
    ax.legend(frameon=False)
    return ax


def loss_surface(
    plane: Plane, *, limits: tuple[float, float] | None = None, ax: Axes | None = None
) -> tuple[Axes, QuadContourSet]:
    """Contours of the loss over a plane, on a log colour scale where all losses are positive.

    Args:
        plane: the result.
        limits: of the colours, to share them between planes; log if positive. Default: the plane's own.
        ax: default: a new one.

    Returns:
        The axes, and the contours for a colour bar. Points whose loss is NaN or inf stay blank.
    """
    ax = ax or new_axes()
    low, high = limits or _limits([plane])
    finite = np.ma.masked_invalid(plane.loss.T)
    logarithmic = low > 0
    norm, spaced = (LogNorm, np.geomspace) if logarithmic else (Normalize, np.linspace)
    levels = spaced(low, high, 25)
    colors: dict[str, Any] = {"levels": levels, "norm": norm(low, high), "cmap": "viridis", "extend": "both"}
    filled = ax.contourf(plane.a, plane.b, finite, **colors)
    if crossed := [v for v in levels[::3] if finite.min() < v < finite.max()]:  # none in a flat plane
        ax.contour(plane.a, plane.b, finite, levels=crossed, colors="white", linewidths=0.5, alpha=0.7)
    ax.plot(0, 0, "+", color="white", ms=9, mew=1.5)
    ax.grid(False)
    ax.set(
        aspect="equal",
        xlabel=f"direction 1 (1 unit = {plane.direction_norms[0]:.3g})",
        ylabel=f"direction 2 (1 unit = {plane.direction_norms[1]:.3g})",
    )
    return ax, filled


def loss_surfaces(planes: Mapping[str, Plane], *, figure: Figure | None = None) -> Figure:
    """Several planes side by side, on one colour scale."""
    figure = figure or plt.figure(figsize=(4 * len(planes) + 1, 4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(planes), sharex=True, sharey=True))
    limits = _limits(list(planes.values()))
    for ax, (label, plane) in zip(axes, planes.items(), strict=True):
        _, filled = loss_surface(plane, limits=limits, ax=ax)
        ax.set_title(label)
    bar = figure.colorbar(filled, ax=list(axes), label="train loss (log)" if limits[0] > 0 else "train loss")
    if limits[0] > 0:
        ticks = [t for t in 10.0 ** np.arange(-6, 7) for t in (t, 2 * t, 5 * t) if limits[0] <= t <= limits[1]]
        bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    return figure


def _limits(planes: Sequence[Plane]) -> tuple[float, float]:
    """The range of all finite losses, widened where they are all the same: the levels between must increase."""
    losses = np.concatenate([p.loss.ravel() for p in planes])
    finite = losses[np.isfinite(losses)]
    if len(finite) == 0:
        raise ValueError("no loss is finite: there is nothing to draw")
    low, high = float(finite.min()), float(finite.max())
    size = max(abs(low), abs(high))
    margin = 0.0 if high - low > 1e-9 * size else 0.1 * (size or 1.0)  # 1e-9 leaves 25 levels apart in float64
    return low - margin, high + margin

"""Plots of the loss and the error rate along lines.

The shaded band is plus and minus one standard error over the examples, if known. The dotted parabola is
f(theta) + a g'd + a^2/2 d'Hd, with a circle where the line departs from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plots.scales import METRIC_NAMES, axis_in_common, wrapped
from landscape.plots.style import new_axes, palette, set_legend, set_loss_axis
from landscape.results import Line, LineBand

__all__ = ["line_bands", "line_between", "line_panels", "lines"]

_STYLES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))  # by objective; dotted is the parabola
_WIDTH = 58  # characters in the width of one axes

Curve = tuple[str, Line, Any, Any]  # label, record, colour, line style


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
    for position, (name, color) in enumerate(zip(ends, colors or palette(ends), strict=True)):
        ax.axvline(position, color=color, lw=1.5, alpha=0.8, label=name)
    _draw_losses(ax, [("train", train, "0.1", "-"), ("test", test, "0.55", "--")])
    ax.set_xlabel(wrapped(f"position between the ends (1 unit = {train.direction_norm:.3g} in parameter norm)", _WIDTH))
    set_legend(ax)
    return ax


def lines(
    slices: Mapping[str, Line],
    *,
    xlabel: str | None = None,
    share: float = 0.1,
    ax: Axes | None = None,
) -> Axes:
    """The loss along one direction per checkpoint, on common axes.

    Args:
        slices: by label. If a line was computed with derivatives, its parabola is drawn too.
        xlabel: label of the coordinates. Default: from the records.
        share: deviation from the parabola, as a fraction of the rise, at which a circle is drawn.
        ax: default: a new one.

    Raises:
        ValueError: the slices have different units, and no ``xlabel`` is given.
    """
    ax = ax or new_axes()
    curves = [(label, line, color, "-") for (label, line), color in zip(slices.items(), palette(slices), strict=True)]
    _draw_losses(ax, curves, share=share)
    axis = axis_in_common({label: line.axis for label, line in slices.items()}) if xlabel is None else xlabel
    ax.set_xlabel(wrapped(axis, _WIDTH))
    set_legend(ax)
    return ax


def line_panels(
    slices: Mapping[str, Mapping[str, Line]], *, share: float = 0.1, figure: Figure | None = None
) -> Figure:
    """The loss, and below it the error rate of classifiers, of several checkpoints and objectives.

    Args:
        slices: by checkpoint, then by objective, as ``line`` returns them for several: ``{"SGD": {"train": ...,
            "test": ...}}``. The colour is that of the checkpoint, the line style that of the objective.
        share: as for :func:`lines`.
        figure: default: a new one.

    Raises:
        ValueError: the slices have different units, or those of one checkpoint different directions.
    """
    for label, of_one in slices.items():
        if len(axes_of_one := {line.axis for line in of_one.values()}) > 1:
            raise ValueError(
                f"the slices of {label!r} differ in their axes, {axes_of_one}: give those of one direction"
            )
    objectives = list(dict.fromkeys(name for of_one in slices.values() for name in of_one))
    styles = {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(objectives)}
    curves = [
        (f"{label}, {name}", line, color, styles[name])
        for (label, of_one), color in zip(slices.items(), palette(slices), strict=True)
        for name, line in of_one.items()
    ]
    rows = 1 + any(np.isfinite(line.accuracy).any() for _, line, _, _ in curves)
    figure = figure or plt.figure(figsize=(6, 1.2 + 2.4 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, 1, sharex=True))
    _draw_losses(axes[0], curves, share=share)
    if rows == 2:
        for _, line, color, style in curves:
            axes[1].plot(line.coordinates, line.error_rate, ls=style, color=color)
            _shade(axes[1], line.coordinates, line.error_rate, line.accuracy_stderr, color)
        axes[1].set_ylim(0, None)
        axes[1].set_ylabel(METRIC_NAMES["error"].replace(" (", "\n("))
    axis = axis_in_common({label: next(iter(of_one.values())).axis for label, of_one in slices.items()})
    axes[-1].set_xlabel(wrapped(axis, _WIDTH + 12))
    # outside of the axes, which the lines fill
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, -(-len(labels) // 2)), frameon=False)
    return figure


def line_bands(
    bands: Mapping[str, LineBand], *, quantiles: tuple[float, float] = (0.25, 0.75), ax: Axes | None = None
) -> Axes:
    """The median loss over random directions, with bands between two quantiles, and between minimum and maximum.

    Args:
        bands: by label.
        quantiles: the limits of the darker band.
        ax: default: a new one.

    Raises:
        ValueError: the bands have different units.
    """
    ax = ax or new_axes()
    low, high = quantiles
    for (label, band), color in zip(bands.items(), palette(bands), strict=True):
        name = f"{label}: median of {len(band.loss)} directions{_blank(band.not_finite)}"
        ax.plot(band.coordinates, band.median, color=color, label=name)
        for lower, upper, alpha in ((low, high, 0.3), (0.0, 1.0, 0.12)):
            ax.fill_between(
                band.coordinates, band.quantile(lower), band.quantile(upper), color=color, alpha=alpha, lw=0
            )
    set_loss_axis(ax, "loss", [band.loss for band in bands.values()])
    ax.fill_between([], [], color="0.4", alpha=0.4, lw=0, label=f"quantiles {low:g} to {high:g}")
    ax.fill_between([], [], color="0.4", alpha=0.15, lw=0, label="lowest to highest")
    ax.set_xlabel(wrapped(axis_in_common({label: band.axis for label, band in bands.items()}), _WIDTH))
    set_legend(ax, inside=0, columns=2)  # the bands fill the axes
    return ax


def _draw_losses(ax: Axes, curves: Sequence[Curve], *, share: float | None = None) -> None:
    """Draw lines with their standard errors, and with ``share`` the parabolas of those that have one."""
    for label, line, color, style in curves:
        ax.plot(line.coordinates, line.loss, ls=style, color=color, label=label + _blank(line.not_finite))
    losses = [line.loss for _, line, _, _ in curves]
    set_loss_axis(ax, "loss", losses)
    for _, line, color, _ in curves:
        _shade(ax, line.coordinates, line.loss, line.loss_stderr, color)
    with_parabola = [curve for curve in curves if np.isfinite(curve[1].curvature)] if share is not None else []
    if share is None or not with_parabola:
        return
    ax.set_ylim(ax.get_ylim())  # fixed, so that parabolas may extend beyond the axes
    for _, line, color, _ in with_parabola:
        ax.plot(line.coordinates, line.parabola, ":", color=color, lw=1.2)
        left = [side * a for side, a in zip((-1, 1), line.leaves_parabola(share), strict=True) if np.isfinite(a)]
        at = np.array([int(np.argmin(np.abs(line.coordinates - a))) for a in left], dtype=int)
        # if the loss is not finite, the circle is on the parabola
        heights = np.where(np.isfinite(line.loss[at]), line.loss[at], line.parabola[at])
        ax.plot(line.coordinates[at], heights, "o", color=color, mfc="white", ms=5)
    ax.plot([], [], ":", color="0.4", lw=1.2, label=r"$f + a\,g'd + \frac{1}{2}a^2\,d'Hd$")
    ax.plot([], [], "o", color="0.4", mfc="white", ms=5, ls="none", label=f"off it by {100 * share:g} % of the rise")


def _shade(ax: Axes, at: np.ndarray, values: np.ndarray, errors: np.ndarray, color: Any) -> None:
    known = np.isfinite(values) & np.isfinite(errors)
    if not known.any():
        return
    below = values - errors
    if ax.get_yscale() == "log":  # if the error exceeds the value, the band ends at half of the lowest value
        below = np.maximum(below, values[known].min() / 2)
    ax.fill_between(at, below, values + errors, where=known, color=color, alpha=0.2, lw=0)


def _blank(not_finite: int) -> str:
    """A note for the legend on points that are not drawn."""
    return f" ({not_finite} not finite)" if not_finite else ""

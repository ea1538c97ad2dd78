"""Plots of barriers: the metric on the line between two checkpoints, and the barriers between all pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from landscape.plots.scales import METRIC_NAMES
from landscape.plots.style import new_axes, palette
from landscape.results import Barrier, BarrierMatrix

__all__ = ["barrier_line", "barrier_matrix"]


def barrier_line(
    before: Mapping[str, Barrier], *, after: Mapping[str, Barrier] | None = None, ax: Axes | None = None
) -> Axes:
    """The metric on the line between two checkpoints, with the height of each barrier as a bar above its baseline.

    The shaded band is plus and minus one standard error of the rise, over examples.

    Args:
        before: by label, such as train and test.
        after: the same labels with matched units, drawn dashed.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    first = next(iter(before.values()))
    groups = [("", "-", before), (", matched", "--", after or {})]
    colors = dict(zip(before, palette(before), strict=True))
    for suffix, style, barriers in groups:
        for label, found in barriers.items():
            _line(ax, found, f"{label}{suffix}", style, colors[label])
    ax.set(
        xlabel=rf"position $\alpha$ between {first.names[0]} (0) and {first.names[1]} (1)",
        ylabel=METRIC_NAMES[first.metric],
    )
    # above the axes, where it does not cover the maximum
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize="small")
    return ax


def barrier_matrix(result: BarrierMatrix, *, limits: tuple[float, float] | None = None, ax: Axes | None = None) -> Axes:
    """A heat map of the barriers between all pairs of checkpoints, with their standard errors.

    Fields with inf or NaN are hatched.

    Args:
        result: the barriers.
        limits: of the colour scale, to share it between matrices, as before and after matching. Default: zero to the
            highest barrier.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    broken = ~np.isfinite(result.height)
    low, high = limits or (0.0, float(result.height[~broken].max()) or 1.0)
    rise = {"mean": "above the mean of the ends", "linear": "above the line between the ends"}[result.baseline]
    sns.heatmap(
        result.height,
        mask=broken,
        vmin=low,
        vmax=high,
        cmap="viridis",
        annot=_texts(result),
        fmt="",
        square=True,
        xticklabels=result.names,
        yticklabels=result.names,
        cbar_kws={"label": f"barrier: {result.metric} {rise}"},
        ax=ax,
    )
    for i, j in np.argwhere(broken):
        ax.add_patch(Rectangle((j, i), 1, 1, fill=False, hatch="///", edgecolor="0.7", lw=0))
        text = "not known" if np.isnan(result.height[i, j]) else f"{result.height[i, j]:g}"
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", bbox={"color": "white", "pad": 2})
    units = "units matched" if result.matched else "units as they are"
    blank = f" ({result.not_finite} points not finite)" if result.not_finite else ""
    ax.set(xlabel="checkpoint", ylabel="checkpoint", title=units + blank)
    ax.tick_params(axis="y", labelrotation=0)  # seaborn rotates them, and long names then overlap
    return ax


def _line(ax: Axes, found: Barrier, label: str, style: str, color: Any) -> None:
    baseline = found.values - found.rise
    ax.plot(
        found.alpha,
        found.values,
        style,
        color=color,
        label=f"{label}: barrier {_with_error(found.height, found.stderr)}",
    )
    ax.fill_between(
        found.alpha, found.values - found.rise_stderr, found.values + found.rise_stderr, color=color, alpha=0.2, lw=0
    )
    ax.plot(found.alpha, baseline, ":", color=color, lw=0.8)
    top = int(found.rise.argmax())
    ax.plot([found.at] * 2, [baseline[top], found.values[top]], color=color, ls=style, lw=1, marker="_", ms=8)


def _texts(result: BarrierMatrix) -> np.ndarray:
    """The text in each field, empty on the diagonal."""
    return np.array(
        [
            [
                "" if i == j else _with_error(height, error, "\n± ")
                for j, (height, error) in enumerate(zip(heights, errors, strict=True))
            ]
            for i, (heights, errors) in enumerate(zip(result.height, result.stderr, strict=True))
        ]
    )


def _with_error(height: float, error: float, plus_minus: str = " ± ") -> str:
    """The height with its standard error to two digits, if that is known and above rounding."""
    if not 1e-6 < error < np.inf:
        return f"{height:.3g}"
    decimals = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{height:.{decimals}f}{plus_minus}{error:.{decimals}f}"

"""A plot of the table of flatness measures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from landscape.plots.style import palette
from landscape.results import FlatnessTable

__all__ = ["flatness_dots"]

_INVARIANT = "\N{DAGGER}"
_HIGHER = "\N{UPWARDS ARROW}"


def flatness_dots(table: FlatnessTable, *, ax: Axes | None = None) -> Axes:
    """Each measure relative to the first checkpoint's value, one row per measure and one dot per checkpoint.

    Error bars are one standard error of the paired difference from the first checkpoint, to compare with the line at 1.
    Dots are hollow if that error is not known. If the first checkpoint's value is not positive, the row has that value
    as text instead of dots. Measures that are invariant under rescaling of ReLU layers are marked, and so are those for
    which a higher value is flatter.

    Args:
        table: the result of ``flatness_table``.
        ax: default: a new one, with a height for the number of rows.
    """
    measures = table.measures
    rows = np.arange(len(measures.names))
    if ax is None:
        ax = plt.figure(figsize=(8, 1.6 + 0.3 * len(rows)), layout="constrained").subplots()
    first = measures.values[:, 0]
    drawn = np.isfinite(first) & (first > 0)
    scale = np.where(drawn, first, np.nan)[:, None]
    shares, errors = measures.values / scale, measures.differences_stderr / scale
    offsets = np.linspace(-0.2, 0.2, len(measures.checkpoints)) if len(measures.checkpoints) > 1 else [0.0]
    colors = palette(measures.checkpoints)
    for name, color, offset, share, error in zip(
        measures.checkpoints, colors, offsets, shares.T, errors.T, strict=True
    ):
        known = np.isfinite(error)
        y = rows + offset
        ax.errorbar(share[known], y[known], xerr=error[known], fmt="o", color=color, ms=4, capsize=2, label=name)
        ax.plot(share[~known], y[~known], "o", color=color, mfc="white", ms=4)
    for i in rows[~drawn]:
        ax.text(1, i, f"{measures.checkpoints[0]}: {first[i]:.2g}", ha="center", va="center", fontsize=7, color="0.4")
    ax.axvline(1, color="0.6", lw=1, zorder=0)
    ax.set(
        xlabel=f"relative to {measures.checkpoints[0]} (lower is flatter, but for {_HIGHER})",
        ylabel="flatness measure",
        ylim=(len(rows) - 0.5, -0.5),
    )
    ax.set_yticks(rows, labels=_labels(table), fontsize=8)  # names are long
    _set_scale(ax, shares[np.isfinite(shares)])
    ax.errorbar([], [], fmt="o", mfc="white", color="0.4", ms=4, label="error not known")
    ax.errorbar([], [], fmt=" ", label=f"{_INVARIANT} unchanged by ReLU rescaling")
    ax.errorbar([], [], fmt=" ", label=f"{_HIGHER} higher is flatter")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


def _labels(table: FlatnessTable) -> list[str]:
    """The measures' names, with marks for invariance and for higher values being flatter."""
    marks = [f" {_INVARIANT}" if invariant else "" for invariant in table.measures.invariant]
    ways = [f" {_HIGHER}" if flatter == "higher" else "" for flatter in table.measures.flatter]
    return [name + mark + way for name, mark, way in zip(table.measures.names, marks, ways, strict=True)]


def _set_scale(ax: Axes, shares: np.ndarray) -> None:
    """A logarithmic scale, unless a value is not positive or all values are close together."""
    if len(shares) == 0 or shares.min() <= 0 or shares.max() < 2 * shares.min():
        return
    ax.set_xscale("log")
    decades = np.log10(shares.max() / shares.min())
    # the narrower the range, the denser the ticks, so that it contains at least two
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 2 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())

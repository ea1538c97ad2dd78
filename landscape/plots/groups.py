"""A plot of measures of groups of runs, such as the seeds of each optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from matplotlib.axes import Axes

from landscape.plots.style import palette
from landscape.results import Measures

__all__ = ["group_dots"]

_HIGHER = "\N{UPWARDS ARROW}"
_INVARIANT = "\N{DAGGER}"


def group_dots(measures: Measures, groups: Mapping[str, Sequence[str]], *, ax: Axes | None = None) -> Axes:
    """Each measure relative to the mean of the first group: a row per measure, a dot per run, means with intervals.

    Bars are Student's 95 % confidence intervals of the means over runs. There is none for a group of one run, nor where
    a value is not reliable, whose dot is missing. A row has the first group's mean as text if that is not positive.

    Args:
        measures: of all checkpoints; those that call neither way flatter are left out.
        groups: names of the checkpoints of each group.
        ax: default: a new one, with a height for the number of rows.
    """
    rows = [i for i, way in enumerate(measures.flatter) if way]
    if ax is None:
        ax = plt.figure(figsize=(8, 1.6 + 0.5 * len(rows)), layout="constrained").subplots()
    first, *_ = groups
    places = {group: [measures.checkpoints.index(name) for name in names] for group, names in groups.items()}
    means = np.array([_finite(measures.values[i, places[first]]).mean() for i in rows])
    drawn = means > 0
    scale = np.where(drawn, means, np.nan)[:, None]
    shares = measures.values[rows] / scale
    offsets = np.linspace(-0.2, 0.2, len(groups)) if len(groups) > 1 else [0.0]
    for group, color, offset in zip(groups, palette(groups), offsets, strict=True):
        for row in np.flatnonzero(drawn):
            share = shares[row, places[group]]
            # without an interval where values are missing, since they are not missing at random
            half = _half_interval(share)
            ax.errorbar(_finite(share).mean(), row + offset, xerr=half, fmt="|", color=color, ms=13, lw=1, mew=2)
            ax.plot(share, np.full(len(share), row + offset), "o", color=color, ms=6, mec="white", mew=0.8)
        count = len(places[group])
        ax.plot([], [], "o", color=color, ms=6, label=f"{group} ({count} run{'s' * (count > 1)})")
    for row in np.flatnonzero(~drawn):
        told = "not reliable" if np.isnan(means[row]) else f"mean of {first}: {means[row]:.2g}"
        ax.text(1, float(row), told, ha="center", va="center", fontsize=7, color="0.4")
    ax.axvline(1, color="0.6", lw=1, zorder=0)
    marked = any(measures.flatter[i] == "higher" for i in rows)
    ax.set(
        xlabel=f"relative to the mean of {first} (lower is flatter{f', but for {_HIGHER}' if marked else ''})",
        ylim=(len(rows) - 0.5, -0.5),
    )
    ax.set_yticks(range(len(rows)), labels=[_label(measures, i) for i in rows], fontsize=8)
    if any(measures.invariant[i] for i in rows):
        ax.plot([], [], " ", label=f"{_INVARIANT} unchanged by ReLU rescaling")
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


def _label(measures: Measures, i: int) -> str:
    marks = (_INVARIANT * measures.invariant[i], _HIGHER * (measures.flatter[i] == "higher"))
    return " ".join([measures.names[i].replace(" (", "\n("), *filter(None, marks)])


def _finite(values: np.ndarray) -> np.ndarray:
    found = values[np.isfinite(values)]
    return found if len(found) else np.array([np.nan])


def _half_interval(values: np.ndarray) -> float:
    """Half the length of the 95 % interval of the mean; NaN for one value, or where one is missing."""
    if len(values) < 2:
        return float("nan")
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))

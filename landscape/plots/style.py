"""Colours and axes that all plots share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from landscape.results import without_seed

__all__ = ["new_axes", "palette", "set_legend", "set_loss_axis"]


def palette(labels: Sequence[str] | Mapping[str, Any]) -> list[Any]:
    """One colour per label, by position, from a palette for colour-blind readers.

    Labels ``NAME-seedK`` of one NAME have shades of one colour.
    """
    groups = [without_seed(label) for label in labels]
    unique = list(dict.fromkeys(groups))
    hues = dict(zip(unique, sns.color_palette("colorblind", len(unique)), strict=True))
    colors, seen = [], Counter[str]()
    for group in groups:
        # up to 0.6 of the way to white, so that the last one still stands out
        white = 0.6 * seen[group] / max(1, groups.count(group) - 1)
        colors.append(tuple((1 - white) * channel + white for channel in hues[group]))
        seen[group] += 1
    return colors


def set_legend(ax: Axes, inside: int = 4, columns: int = 3) -> None:
    """A legend that hides no data and does not outgrow the axes.

    Args:
        ax: the axes.
        inside: up to so many labels stand inside the axes, others above.
        columns: of those above. Of more than twelve labels, those ``NAME-seedK`` of one NAME have one entry.
    """
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 12:
        groups = [without_seed(label) for label in labels]
        firsts = [groups.index(group) for group in dict.fromkeys(groups)]
        counts = [groups.count(groups[i]) for i in firsts]
        handles = [handles[i] for i in firsts]
        labels = [groups[i] + f" ({count} runs)" * (count > 1) for i, count in zip(firsts, counts, strict=True)]
    if len(labels) <= inside:
        ax.legend(handles, labels, frameon=False)
    else:
        size: Any = "small" if len(labels) <= 12 else 6
        ax.legend(
            handles, labels, frameon=False, fontsize=size, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1)
        )


def new_axes() -> Axes:
    """The axes of a new figure of column width."""
    return plt.figure(figsize=(5, 3.6), layout="constrained").subplots()


def set_loss_axis(ax: Axes, name: str, losses: Sequence[np.ndarray]) -> None:
    """A log axis if every finite loss is positive; negative log-likelihoods of continuous data may be negative."""
    finite = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    logarithmic = bool((finite > 0).all())
    ax.set(yscale="log" if logarithmic else "linear", ylabel=f"{name} (log)" if logarithmic else name)

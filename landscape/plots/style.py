"""Colours and axes that all plots share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

__all__ = ["new_axes", "palette", "set_legend", "set_loss_axis"]

_SEED = re.compile(r"-seed\d+$")


def palette(labels: Sequence[str] | Mapping[str, Any]) -> list[Any]:
    """One colour per label, by position, from a palette for colour-blind readers.

    Labels ``NAME-seedK`` of one NAME have shades of one colour.
    """
    groups = [_SEED.sub("", label) for label in labels]
    unique = list(dict.fromkeys(groups))
    hues = dict(zip(unique, sns.color_palette("colorblind", len(unique)), strict=True))
    colors, seen = [], Counter[str]()
    for group in groups:
        # up to 0.6 of the way to white, so that the last one still stands out
        white = 0.6 * seen[group] / max(1, groups.count(group) - 1)
        colors.append(tuple((1 - white) * channel + white for channel in hues[group]))
        seen[group] += 1
    return colors


def set_legend(ax: Axes) -> None:
    """The legend of many labels, in columns above the axes, so that it hides no data; of up to four, inside."""
    labels = ax.get_legend_handles_labels()[1]
    if len(labels) <= 4:
        ax.legend(frameon=False)
        return
    size = 8 if len(labels) <= 12 else 6
    ax.legend(frameon=False, fontsize=size, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))


def new_axes() -> Axes:
    """The axes of a new figure of column width."""
    return plt.figure(figsize=(5, 3.6), layout="constrained").subplots()


def set_loss_axis(ax: Axes, name: str, losses: Sequence[np.ndarray]) -> None:
    """A log axis if every finite loss is positive; negative log-likelihoods of continuous data may be negative."""
    finite = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    logarithmic = bool((finite > 0).all())
    ax.set(yscale="log" if logarithmic else "linear", ylabel=f"{name} (log)" if logarithmic else name)

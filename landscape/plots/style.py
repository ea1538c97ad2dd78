"""Colours and axes that all plots share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

__all__ = ["new_axes", "palette", "set_loss_axis"]


def palette(labels: Sequence[str] | Mapping[str, Any]) -> list[Any]:
    """One colour per label, by position, from a palette for colour-blind readers."""
    return sns.color_palette("colorblind", len(labels))


def new_axes() -> Axes:
    """The axes of a new figure of column width."""
    return plt.figure(figsize=(5, 3.6), layout="constrained").subplots()


def set_loss_axis(ax: Axes, name: str, losses: Sequence[np.ndarray]) -> None:
    """A log axis if every finite loss is positive; negative log-likelihoods of continuous data may be negative."""
    finite = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    logarithmic = bool((finite > 0).all())
    ax.set(yscale="log" if logarithmic else "linear", ylabel=f"{name} (log)" if logarithmic else name)

"""Plots of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from landscape.plots.style import palette, set_loss_axis

__all__ = ["training_curves"]


def training_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]], *, figure: Figure | None = None) -> Figure:
    """The log of the training loop against the number of gradients, the common measure of cost of all optimizers.

    Args:
        logs: by label, the lines of ``log.jsonl`` as dictionaries. Drawn are the mini-batch loss, the test accuracy
            if it was evaluated, and if there are diagnostics ||x - mu|| with the mean of ||x - x'||, and gamma.
        figure: default: a new one.
    """
    figure = figure or plt.figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    panels = (
        (axes[0, 0], (("loss", "-"),), "mini-batch loss", "log where positive"),
        (axes[0, 1], (("test_accuracy", "o-"),), "test accuracy", "linear"),
        (
            axes[1, 0],
            (("distance", "-"), ("mean_distance", ":")),
            r"$\|x - \mu\|$, and mean $\|x - x'\|$ (dotted)",
            "log",
        ),
        (axes[1, 1], (("gamma", "-"),), r"$\gamma$", "log"),
    )
    for ax, keys, ylabel, scale in panels:
        for (label, lines), color in zip(logs.items(), palette(logs), strict=True):
            for key, style in keys:
                drawn = [(line["gradients"], line[key]) for line in lines if line.get(key) is not None]
                if drawn:
                    ax.plot(*zip(*drawn, strict=True), style, color=color, lw=1, ms=3, label=label)
        if scale == "log where positive":
            set_loss_axis(ax, ylabel, [line.get_ydata() for line in ax.lines])
        else:
            ax.set(ylabel=ylabel, yscale=scale)
    for ax in axes[1]:
        ax.set_xlabel("gradients spent")
    axes[0, 0].legend(frameon=False)
    return figure

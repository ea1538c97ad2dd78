"""Pictures of local entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from landscape.plots.style import new_axes, palette
from landscape.results import LocalEntropy

__all__ = ["local_entropy_curve"]


def local_entropy_curve(entropies: Mapping[str, Sequence[LocalEntropy]], *, ax: Axes | None = None) -> Axes:
    """The excess free energy -F~/beta - f(x) against the radius of the ball, by every method.

    Args:
        entropies: by label, one sweep for each method. Points that are not reliable are hollow; the tempered path's
            bracket is shaded.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    for (label, sweeps), color in zip(entropies.items(), palette(entropies), strict=True):
        for sweep in sweeps:
            style = {"laplace": ("--", "s"), "monte_carlo": (":", "o"), "tempered": ("-", "D")}[sweep.method]
            name = f"{label}, {sweep.method_name}"
            _with_errors(ax, sweep, color, *style, name)
            if sweep.method == "tempered":
                ax.fill_between(sweep.radius, *sweep.excess_bracket, color=color, alpha=0.2, lw=0)
    first = next(iter(entropies.values()))[0]
    ax.set(
        xscale="log",
        yscale="log",
        xlabel=r"radius $1/\sqrt{\beta\gamma}$ per weight",
        ylabel=r"excess free energy $-\tilde F/\beta - f$",
        title=rf"$\beta$ = {first.beta:g}, in units of the loss",
    )
    ax.plot([], [], "o", mfc="white", color="0.4", ls="none", label="not reliable")
    ax.legend(frameon=False)
    return ax


def _with_errors(ax: Axes, sweep: LocalEntropy, color: Any, line: str, marker: str, label: str) -> None:
    ax.plot(sweep.radius, sweep.excess, line, color=color, lw=1, label=label)
    for chosen, face in ((sweep.reliable, color), (~sweep.reliable, "white")):
        ax.errorbar(
            sweep.radius[chosen],
            sweep.excess[chosen],
            yerr=sweep.excess_stderr[chosen],
            fmt=marker,
            color=color,
            mfc=face,
            ms=4,
            capsize=2,
        )

"""One picture per kind of result. Each function draws into ``ax`` and returns it.

Functions that compare take ``{label: result}`` and give each label the same colour in every picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from landscape.results import Eigenpairs, Line, LocalEntropy, Plane, SpectralDensity

__all__ = [
    "density_curve",
    "eigenvalue_histogram",
    "line_between",
    "lines",
    "local_entropy_curve",
    "loss_surface",
    "loss_surfaces",
    "palette",
    "training_curves",
]


def eigenvalue_histogram(
    densities: Mapping[str, SpectralDensity],
    *,
    eigenpairs: Mapping[str, Eigenpairs] | None = None,
    bins: int = 60,
    ax: Axes | None = None,
) -> Axes:
    """How many eigenvalues lie where, on a log scale and on common bins.

    Args:
        densities: by label.
        eigenpairs: of the same labels; each eigenvalue is marked below the axis' floor, so that single
            outliers are seen.
        bins: over the range of all nodes.
        ax: default: a new one.
    """
    ax = ax or _new_axes()
    places = np.concatenate([d.atoms()[0] for d in densities.values()])
    margin = 0.01 * (np.ptp(places) or 1.0)
    edges = np.linspace(places.min() - margin, places.max() + margin, bins + 1)
    # half an eigenvalue: an estimate below it says that a bin is more likely empty than not
    floor = 0.5
    for (label, density), color in zip(densities.items(), palette(densities), strict=True):
        counts = density.histogram(edges)
        sns.histplot(
            x=edges[:-1] + np.diff(edges) / 2,
            weights=counts,
            bins=edges.tolist(),
            element="step",
            color=color,
            alpha=0.25,
            label=label,
            ax=ax,
        )
        if eigenpairs is not None:
            values = eigenpairs[label].values
            ax.plot(values, np.full(len(values), floor * 0.75), "|", color=color, ms=9, mew=1.5, clip_on=False)
    ax.set(
        yscale="log",
        ylim=(floor * 0.6, None),
        xlabel=r"eigenvalue $\lambda$ of the Hessian",
        ylabel="eigenvalues per bin (log)",
    )
    ax.legend(frameon=False)
    return ax


def density_curve(
    densities: Mapping[str, SpectralDensity], *, width: float | None = None, ax: Axes | None = None
) -> Axes:
    """The spectral density smoothed by a Gaussian, on a log scale, with the spread over probes.

    Args:
        densities: by label.
        width: the Gaussian's standard deviation. Default: 1 % of the range of all nodes.
        ax: default: a new one.
    """
    ax = ax or _new_axes()
    places = np.concatenate([d.atoms()[0] for d in densities.values()])
    width = width or 0.01 * (np.ptp(places) or 1.0)
    grid = np.linspace(places.min() - 5 * width, places.max() + 5 * width, 1001)
    highest = 0.0
    for (label, density), color in zip(densities.items(), palette(densities), strict=True):
        curves = density.density_per_probe(grid, width)
        highest = max(highest, float(curves.max()))
        ax.plot(grid, curves.mean(axis=0), color=color, label=label)
        ax.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, lw=0)
    # a single eigenvalue of n has the peak 1 / (n width sqrt(2 pi)): a decade below it is nothing
    smallest = min(1 / d.size for d in densities.values()) / (width * np.sqrt(2 * np.pi))
    ax.set(
        yscale="log",
        ylim=(smallest / 10, 3 * highest),
        xlabel=r"eigenvalue $\lambda$ of the Hessian",
        ylabel=rf"density (Gaussian, $\sigma$ = {width:.2g})",
    )
    ax.legend(frameon=False)
    return ax


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
    ax = ax or _new_axes()
    black, gray = "0.1", "0.55"
    ax.plot(train.coordinates, train.loss, color=black, label="train")
    ax.plot(test.coordinates, test.loss, color=gray, ls="--", label="test")
    for position, (name, color) in enumerate(zip(ends, colors or palette(ends), strict=True)):
        ax.axvline(position, color=color, lw=1.5, alpha=0.8, label=name)
    ax.set_xlabel(rf"position on the line (1 unit = {train.direction_norm:.3g} in weight norm)")
    _set_loss_axis(ax, "loss", [train.loss, test.loss])
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
    ax = ax or _new_axes()
    for (label, line), color in zip(slices.items(), palette(slices), strict=True):
        ax.plot(line.coordinates, line.loss, color=color, label=label)
        if parabolas is not None:
            parabola = np.interp(0.0, line.coordinates, line.loss) + parabolas[label] / 2 * line.coordinates**2
            ax.plot(line.coordinates, parabola, color=color, ls=":", lw=1)
    if parabolas is not None:
        ax.plot([], [], color="0.4", ls=":", lw=1, label=r"$f + \lambda a^2/2$")
    ax.set(xlabel=xlabel)
    _set_loss_axis(ax, "train loss", [line.loss for line in slices.values()])
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
    ax = ax or _new_axes()
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


def local_entropy_curve(entropies: Mapping[str, Sequence[LocalEntropy]], *, ax: Axes | None = None) -> Axes:
    """The excess free energy -F~/beta - f(x) against the radius of the ball, by every method.

    Args:
        entropies: by label, one sweep for each method. Points that are not reliable are hollow.
        ax: default: a new one.
    """
    ax = ax or _new_axes()
    for (label, sweeps), color in zip(entropies.items(), palette(entropies), strict=True):
        for sweep in sweeps:
            style = {"laplace": ("--", "s"), "monte_carlo": ("-", "o")}[sweep.method]
            name = f"{label}, {sweep.method_name}"
            _with_errors(ax, sweep, color, *style, name)
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


def training_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]], *, figure: Figure | None = None) -> Figure:
    """What the training loop logged, against the gradients spent: the unit in which optimizers are equal.

    Args:
        logs: by label, the lines of ``log.jsonl`` as dictionaries. Drawn are the mini-batch loss, the test accuracy
            where it was evaluated, and where there are diagnostics ||x - mu|| with the mean of ||x - x'||, and gamma.
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
            _set_loss_axis(ax, ylabel, [line.get_ydata() for line in ax.lines])
        else:
            ax.set(ylabel=ylabel, yscale=scale)
    for ax in axes[1]:
        ax.set_xlabel("gradients spent")
    axes[0, 0].legend(frameon=False)
    return figure


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


def _set_loss_axis(ax: Axes, name: str, losses: Sequence[np.ndarray]) -> None:
    """A log axis where every finite loss is positive; likelihoods of continuous data need not be."""
    finite = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    logarithmic = bool((finite > 0).all())
    ax.set(yscale="log" if logarithmic else "linear", ylabel=f"{name} (log)" if logarithmic else name)


def palette(labels: Sequence[str] | Mapping[str, Any]) -> list[Any]:
    """One colour per label, by position, told apart by colour-blind readers too."""
    return sns.color_palette("colorblind", len(labels))


def _new_axes() -> Axes:
    return plt.figure(figsize=(5, 3.6), layout="constrained").subplots()

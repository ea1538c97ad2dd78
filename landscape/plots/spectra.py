"""Plots of eigenvalues: histograms and densities with error bands, and spectra by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plots.style import new_axes, palette, set_legend
from landscape.results import Eigenpairs, SpectralDensity

__all__ = ["density_curve", "eigenvalue_histogram", "hessian_and_gauss_newton", "layer_heatmap", "spectrum_panels"]


def eigenvalue_histogram(
    densities: Mapping[str, SpectralDensity],
    *,
    eigenpairs: Mapping[str, Eigenpairs] | None = None,
    bins: int = 60,
    classes: int | None = None,
    within: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A histogram of the eigenvalues, with a log scale and common bins.

    Args:
        densities: by label.
        eigenpairs: by the same labels; each eigenvalue is marked below the histogram, so that single outliers are
            visible.
        bins: number of bins over the range that is drawn.
        classes: number of classes of a classifier, whose Hessian typically has about as many outliers: the legend then
            states both numbers, for densities with deflated eigenvalues, among which outliers are counted.
        within: the range of eigenvalues to draw. Default: that of all nodes.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    low, high = within or _range(densities.values())
    margin = 0.0 if within else 0.01 * ((high - low) or 1.0)
    edges = np.linspace(low - margin, high + margin, bins + 1)
    # half an eigenvalue: below that, a bin is more likely empty than not
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
            label=_with_outliers(label, density, classes),
            ax=ax,
        )
        if eigenpairs is not None:
            values = eigenpairs[label].values
            values = values[(edges[0] <= values) & (values <= edges[-1])]
            if len(values):  # an unclipped line without points would break the layout
                ax.plot(values, np.full(len(values), floor * 0.75), "|", color=color, ms=9, mew=1.5, clip_on=False)
    ax.set(
        yscale="log",
        ylim=(floor * 0.6, None),
        xlabel=r"eigenvalue $\lambda$ of the Hessian",
        ylabel="eigenvalues per bin (log)",
    )
    set_legend(ax)
    return ax


def _with_outliers(label: str, density: SpectralDensity, classes: int | None) -> str:
    outliers, _ = density.outliers()
    return label if classes is None or outliers is None else f"{label}: {outliers} outliers, {classes} classes"


def density_curve(
    densities: Mapping[str, SpectralDensity], *, width: float | None = None, ax: Axes | None = None
) -> Axes:
    """The spectral density smoothed by a Gaussian, on a log scale, with a band of two standard errors.

    The band includes the spread over probes and the quadrature error. With one probe there is no band.

    Args:
        densities: by label.
        width: the Gaussian's standard deviation. Default: 1 % of the range of all nodes.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    grid, width, smallest = _smoothing(densities.values(), width)
    for (label, density), color in zip(densities.items(), palette(densities), strict=True):
        ax.plot(grid, density.density(grid, width), color=color, label=label)
        below, above = density.density_band(grid, width)
        ax.fill_between(grid, np.maximum(below, smallest / 100), above, color=color, alpha=0.2, lw=0)
    return _density_axes(ax, smallest, width, r"eigenvalue $\lambda$ of the Hessian")


def spectrum_panels(
    densities: Mapping[str, SpectralDensity],
    *,
    eigenpairs: Mapping[str, Eigenpairs] | None = None,
    classes: int | None = None,
    figure: Figure | None = None,
) -> Figure:
    """The histogram in three panels: all eigenvalues, those around zero, and the negative tail.

    Args:
        densities: by label.
        eigenpairs: as in :func:`eigenvalue_histogram`.
        classes: as in :func:`eigenvalue_histogram`.
        figure: default: a new one.
    """
    figure = figure or plt.figure(figsize=(11, 3.8), layout="constrained")
    low, high = _range(densities.values())
    near = 0.01 * max(abs(low), abs(high))
    panels: tuple[tuple[str, tuple[float, float] | None], ...] = (
        ("all", None),
        ("around zero: 1 % of the largest", (-near, near)),
        ("negative tail", (min(low, -near) - near / 10, 0.0)),
    )
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (title, within) in zip(axes, panels, strict=True):
        eigenvalue_histogram(densities, eigenpairs=eigenpairs, classes=classes, within=within, ax=ax)
        ax.set_title(title)
        ax.get_legend().remove()
    # outside of the axes, since the labels are wide
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(densities), frameon=False)
    return figure


def hessian_and_gauss_newton(
    hessians: Mapping[str, SpectralDensity],
    gauss_newtons: Mapping[str, SpectralDensity],
    *,
    width: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The densities of H (solid) and of its Gauss-Newton part G (dashed); negative eigenvalues are due to H - G.

    Args:
        hessians: by label.
        gauss_newtons: of the same labels.
        width: as in :func:`density_curve`.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    grid, width, smallest = _smoothing([*hessians.values(), *gauss_newtons.values()], width)
    for label, color in zip(hessians, palette(hessians), strict=True):
        for name, density, style in (("H", hessians[label], "-"), ("G", gauss_newtons[label], "--")):
            ax.plot(grid, density.density(grid, width), style, color=color, label=f"{label}, {name}")
    return _density_axes(ax, smallest, width, r"eigenvalue $\lambda$")


def layer_heatmap(
    tables: Mapping[str, xarray.Dataset], *, quantity: str = "lambda_max", ax: Axes | None = None
) -> Axes:
    """One number per layer and checkpoint, on a common colour scale.

    Args:
        tables: by label, as returned by ``spectrum_by_layer``, with the same layers.
        quantity: a variable of these tables.
        ax: default: a new one.

    Raises:
        ValueError: the tables have no such variable, or different layers.
    """
    first = next(iter(tables.values()))
    if quantity not in first:
        raise ValueError(f"quantity={quantity!r}: give one of {tuple(map(str, first.data_vars))}")
    layers = first.layer.values.tolist()
    if any(table.layer.values.tolist() != layers for table in tables.values()):
        raise ValueError("tables are over different layers: make all with the same layers")
    ax = ax or plt.figure(figsize=(2.5 + len(tables), 1.5 + 0.3 * len(layers)), layout="constrained").subplots()
    values = np.stack([table[quantity].values for table in tables.values()], axis=1)
    options: dict[str, Any] = {"annot": True, "fmt": ".2g", "cbar_kws": {"label": quantity.replace("_", " ")}}
    sns.heatmap(values, cmap="viridis", xticklabels=list(tables), yticklabels=layers, ax=ax, **options)
    ax.set(xlabel="checkpoint", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)
    return ax


def _smoothing(densities: Collection[SpectralDensity], width: float | None) -> tuple[np.ndarray, float, float]:
    """A grid over all densities, the width of the Gaussian, and the height of its peak for a single eigenvalue."""
    low, high = _range(densities)
    width = width or 0.01 * ((high - low) or 1.0)
    smallest = min(1 / density.size for density in densities) / (width * np.sqrt(2 * np.pi))
    return np.linspace(low - 5 * width, high + 5 * width, 1001), width, smallest


def _density_axes(ax: Axes, smallest: float, width: float, xlabel: str) -> Axes:
    highest = max(float(np.max(line.get_ydata())) for line in ax.lines)
    ax.set(
        yscale="log",
        ylim=(smallest / 10, 3 * highest),  # a decade below the peak of a single eigenvalue is negligible
        xlabel=xlabel,
        ylabel=rf"density (Gaussian, $\sigma$ = {width:.2g})",
    )
    set_legend(ax)
    return ax


def _range(densities: Collection[SpectralDensity]) -> tuple[float, float]:
    ends = [density.atoms()[0][[0, -1]] for density in densities]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))

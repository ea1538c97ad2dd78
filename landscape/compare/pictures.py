"""The pictures of a comparison, drawn off screen: each function those of an analysis, or of several that share them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from landscape import plots
from landscape.compare.analysis import Picture
from landscape.results import Comparison

__all__ = [
    "lines_along_eigenvectors",
    "lines_from_first",
    "local_entropies",
    "new_figure",
    "of_groups",
    "plane_of_minima",
    "random_bands",
    "random_planes",
    "spectra",
    "style",
]

_ENTROPIES = ("laplace", "monte_carlo", "smc")


@contextmanager
def style() -> Iterator[None]:
    """Of all pictures, in which they are drawn."""
    with (
        sns.axes_style("ticks", {"axes.grid": True, "grid.color": "0.93"}),
        sns.plotting_context("notebook", font_scale=0.9),
        mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}),
    ):
        yield


def new_figure(width: float = 5.6, height: float = 4.0, layout: Any = "constrained") -> Figure:
    """Inches; of no window."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def of_groups(comparison: Comparison) -> Picture:
    """The measures of flatness by group, with each run."""
    rows = sum(bool(way) for way in comparison.measures.flatter)
    figure = new_figure(8, 1.6 + 0.5 * rows)
    plots.group_dots(comparison.measures, comparison.groups, ax=figure.subplots())
    caption = "Each measure relative to the first group's mean: a dot per run, the means with their 95 % confidence "
    return Picture("groups", caption + "intervals over runs.", figure, wide=True)


def spectra(comparison: Comparison) -> Iterator[Picture]:
    """Of the analysis ``spectral_density``, with the eigenvalues that are known exactly."""
    densities, pairs = comparison.of("spectral_density"), comparison.of("eigenpairs")
    figure = new_figure()
    plots.eigenvalue_histogram(densities, eigenpairs=pairs, ax=figure.subplots())
    caption = "Eigenvalues per bin, estimated by stochastic Lanczos quadrature. The largest eigenvalues are counted "
    yield Picture("eigenvalue_histogram", caption + "exactly, and marked at the foot.", figure)
    figure = new_figure()
    plots.density_curve(densities, ax=figure.subplots())
    caption = "The same measure smoothed by a Gaussian. The bands hold two standard errors over the probes and what "
    yield Picture("spectral_density", caption + "the quadrature can miss.", figure)


def local_entropies(comparison: Comparison) -> Iterator[Picture]:
    """Of the analyses ``laplace``, ``monte_carlo`` and ``smc``, as far as there are any."""
    by_method = [comparison.of(method) for method in _ENTROPIES]
    found = {name: [method[name] for method in by_method if name in method] for name in comparison.names}
    figure = new_figure(7, 4.6)
    plots.local_entropy_curve({name: sweeps for name, sweeps in found.items() if sweeps}, ax=figure.subplots())
    caption = "How much the loss rises over a Gaussian ball around the checkpoint, softly averaged: lower is flatter."
    yield Picture("local_entropy", caption, figure)


def lines_along_eigenvectors(comparison: Comparison) -> Iterator[Picture]:
    """Of the analysis ``line_eigenvector``."""
    figure = new_figure()
    along = "displacement along the top eigenvector\nin parameter norm"
    plots.lines(comparison.of("line_eigenvector"), xlabel=along, ax=figure.subplots())
    caption = "Along each checkpoint's own top eigenvector, over the same displacement. Dotted: the parabola of the "
    yield Picture("line_eigenvector", caption + "exact first and second derivatives there.", figure)


def random_bands(comparison: Comparison) -> Iterator[Picture]:
    """Of the analysis ``band_random``."""
    figure = new_figure()
    plots.line_bands(comparison.of("band_random"), ax=figure.subplots())
    count = comparison.settings["band_directions"]
    caption = f"Along {count} random directions, scaled filter by filter to each checkpoint's weights (Li et al. "
    yield Picture("band_random", caption + "2018): the median, and the middle half shaded.", figure)


def random_planes(comparison: Comparison) -> Iterator[Picture]:
    """Of the analysis ``plane_random``."""
    planes = comparison.of("plane_random")
    rows, columns = plots.rows_and_columns(len(planes))
    figure = new_figure(3.6 * columns + 1, 4.2 * rows, layout="compressed")
    plots.loss_surfaces(planes, figure=figure)
    caption = "Training loss over the plane of the same two random directions, scaled filter by filter to each "
    caption += "checkpoint's weights. The colours are shared; + marks the checkpoint."
    for name, plane in planes.items():
        if plane.not_finite:
            caption += f" {name}: {plane.not_finite} points have a loss that is not finite; they are blank."
    yield Picture("loss_surfaces", caption, figure, wide=True)


def lines_from_first(comparison: Comparison) -> Iterator[Picture]:
    """Of the analyses ``line_from_first_train`` and ``line_from_first_test``, where there are both."""
    train, test = comparison.of("line_from_first_train"), comparison.of("line_from_first_test")
    first = comparison.names[0]
    colors = dict(zip(comparison.names, plots.palette(comparison.names), strict=True))
    for name in train.keys() & test.keys():
        figure = new_figure()
        ends, pair = (first, name), (colors[first], colors[name])
        plots.line_between(train[name], test[name], ends=ends, colors=pair, ax=figure.subplots())
        caption = f"Train and test loss on the straight line from {first} (0) to {name} (1)."
        yield Picture(f"line_from_{first}_to_{name}", caption, figure)


def plane_of_minima(comparison: Comparison) -> Iterator[Picture]:
    """Of the analysis ``plane``."""
    figure = new_figure(5.6, 4.6)
    ax = figure.subplots()
    frame = comparison.results["minima/frame"]
    _, filled = plots.loss_surface(comparison.results["minima/plane"], checkpoints=frame, ax=ax)
    plots.loss_bar(filled, ax)
    if len(comparison.names) > 2:
        caption = "Training loss over the plane through the first checkpoints that do not lie on one line, or along a "
        caption += "random direction where all do; others stand where they project to, with their distance from it."
    else:
        caption = "Training loss over the plane through both checkpoints and along a random direction, scaled filter "
        caption += "by filter."
    caption += " BatchNorm statistics are gathered anew at every point."
    yield Picture("plane_of_minima", caption, figure)

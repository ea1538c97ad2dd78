"""Plots, one function per kind of result, which draws into ``ax`` and returns it.

Functions that compare results take ``{label: result}``, and give each label the same colour in every plot.
"""

from landscape.plots.barriers import barrier_line, barrier_matrix
from landscape.plots.curves import curve_in_plane, path_and_curve
from landscape.plots.entropy import entropy_along_training, local_entropy_curve, smc_diagnostics
from landscape.plots.flatness import flatness_dots
from landscape.plots.groups import group_dots
from landscape.plots.lines import line_bands, line_between, line_panels, lines
from landscape.plots.planes import loss_bar, loss_surface, loss_surfaces, rows_and_columns
from landscape.plots.spectra import (
    density_curve,
    eigenvalue_histogram,
    hessian_and_gauss_newton,
    layer_heatmap,
    spectrum_panels,
)
from landscape.plots.style import palette
from landscape.plots.surfaces import interactive_surface, surface_3d
from landscape.plots.training import training_curves

__all__ = [
    "barrier_line",
    "barrier_matrix",
    "curve_in_plane",
    "density_curve",
    "eigenvalue_histogram",
    "entropy_along_training",
    "flatness_dots",
    "group_dots",
    "hessian_and_gauss_newton",
    "interactive_surface",
    "layer_heatmap",
    "line_bands",
    "line_between",
    "line_panels",
    "lines",
    "local_entropy_curve",
    "loss_bar",
    "loss_surface",
    "loss_surfaces",
    "palette",
    "path_and_curve",
    "rows_and_columns",
    "smc_diagnostics",
    "spectrum_panels",
    "surface_3d",
    "training_curves",
]

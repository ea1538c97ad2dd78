"""One picture per kind of result. Each function draws into ``ax`` and returns it.

Functions that compare take ``{label: result}`` and give each label the same colour in every picture.
"""

from landscape.plots.entropy import local_entropy_curve
from landscape.plots.slices import line_between, lines, loss_surface, loss_surfaces
from landscape.plots.spectra import (
    density_curve,
    eigenvalue_histogram,
    hessian_and_gauss_newton,
    layer_heatmap,
    spectrum_panels,
)
from landscape.plots.style import palette
from landscape.plots.training import training_curves

__all__ = [
    "density_curve",
    "eigenvalue_histogram",
    "hessian_and_gauss_newton",
    "layer_heatmap",
    "line_between",
    "lines",
    "local_entropy_curve",
    "loss_surface",
    "loss_surfaces",
    "palette",
    "spectrum_panels",
    "training_curves",
]

"""The spectrum of a symmetric operator: eigenpairs, density and trace, by layer and over the data."""

from landscape.spectrum.breakdown import OverData, spectrum_by_layer, spectrum_over_data
from landscape.spectrum.cross_check import CrossCheck, cross_check
from landscape.spectrum.density import spectral_density
from landscape.spectrum.eigenpairs import eigenpairs
from landscape.spectrum.trace import TraceEstimate, trace

__all__ = [
    "CrossCheck",
    "OverData",
    "TraceEstimate",
    "cross_check",
    "eigenpairs",
    "spectral_density",
    "spectrum_by_layer",
    "spectrum_over_data",
    "trace",
]

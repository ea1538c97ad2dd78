"""The results of all analyses, a leaf that producers and consumers share."""

from landscape.results.datasets import from_dataset, to_dataset
from landscape.results.density import SpectralDensity
from landscape.results.records import (
    Comparison,
    Cost,
    Eigenpairs,
    Line,
    LocalEntropy,
    Measures,
    Plane,
    standard_error,
)

__all__ = [
    "Comparison",
    "Cost",
    "Eigenpairs",
    "Line",
    "LocalEntropy",
    "Measures",
    "Plane",
    "SpectralDensity",
    "from_dataset",
    "standard_error",
    "to_dataset",
]

"""The results of all analyses, a leaf that producers and consumers share."""

from landscape.results.barriers import Barrier, BarrierMatrix
from landscape.results.bezier import BezierPath
from landscape.results.datasets import digest_of, from_dataset, to_dataset
from landscape.results.density import SpectralDensity
from landscape.results.estimate import Estimate, check_level, standard_error, student_interval
from landscape.results.failed import Failed
from landscape.results.frames import Frame
from landscape.results.records import (
    Comparison,
    Cost,
    Eigenpairs,
    LocalEntropy,
    Measures,
    error_covariance,
    paired_errors,
    without_seed,
)
from landscape.results.sharpness import FlatnessTable, Sharpness, errors_and_draws
from landscape.results.slices import Line, LineBand, Plane

__all__ = [
    "Barrier",
    "BarrierMatrix",
    "BezierPath",
    "Comparison",
    "Cost",
    "Eigenpairs",
    "Estimate",
    "Failed",
    "FlatnessTable",
    "Frame",
    "Line",
    "LineBand",
    "LocalEntropy",
    "Measures",
    "Plane",
    "Sharpness",
    "SpectralDensity",
    "check_level",
    "digest_of",
    "error_covariance",
    "errors_and_draws",
    "from_dataset",
    "paired_errors",
    "standard_error",
    "student_interval",
    "to_dataset",
    "without_seed",
]

"""The flatness measures of the literature, each a function ``(objective, theta, ...) -> Sharpness``."""

from landscape.results import Sharpness
from landscape.sharpness.average import average_case, local_energy, low_pass
from landscape.sharpness.curvature import (
    fisher_rao,
    gradient_norm,
    hessian_trace,
    largest_eigenvalue,
    relative_flatness,
)
from landscape.sharpness.llc import local_learning_coefficient
from landscape.sharpness.pac_bayes import pac_bayes_sigma
from landscape.sharpness.table import MEASURES, Measure, flatness_table
from landscape.sharpness.worst_case import epsilon_sharpness, sam, worst_case

__all__ = [
    "MEASURES",
    "Measure",
    "Sharpness",
    "average_case",
    "epsilon_sharpness",
    "fisher_rao",
    "flatness_table",
    "gradient_norm",
    "hessian_trace",
    "largest_eigenvalue",
    "local_energy",
    "local_learning_coefficient",
    "low_pass",
    "pac_bayes_sigma",
    "relative_flatness",
    "sam",
    "worst_case",
]

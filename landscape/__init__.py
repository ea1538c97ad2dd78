"""The loss landscape around a trained network: spectra, local entropy, slices, comparisons."""

from landscape.checkpoints import Checkpoint, load_checkpoint
from landscape.compare import CompareSettings, compare
from landscape.connectivity import barrier, barrier_matrix, bezier_path, match_weights
from landscape.directions import (
    between,
    eigenvector,
    gradient_direction,
    plane_through,
    project_onto_plane,
    random_direction,
    sharpest_ascent,
    trajectory_plane,
)
from landscape.local_entropy import local_entropy, local_entropy_trajectory, radii_of_interest
from landscape.objective import ModelObjective, Objective
from landscape.operators import Dense, GaussNewton, Hessian, LinearOperator, Residual, as_operator, to_scipy
from landscape.problems import Problem
from landscape.sharpness import flatness_table
from landscape.slices import estimate_seconds, line, line_band, path, plane
from landscape.spectrum import (
    cross_check,
    eigenpairs,
    spectral_density,
    spectrum_by_layer,
    spectrum_over_data,
    trace,
)

__all__ = [
    "Checkpoint",
    "CompareSettings",
    "Dense",
    "GaussNewton",
    "Hessian",
    "LinearOperator",
    "ModelObjective",
    "Objective",
    "Problem",
    "Residual",
    "as_operator",
    "barrier",
    "barrier_matrix",
    "between",
    "bezier_path",
    "compare",
    "cross_check",
    "eigenpairs",
    "eigenvector",
    "estimate_seconds",
    "flatness_table",
    "gradient_direction",
    "line",
    "line_band",
    "load_checkpoint",
    "local_entropy",
    "local_entropy_trajectory",
    "match_weights",
    "path",
    "plane",
    "plane_through",
    "project_onto_plane",
    "radii_of_interest",
    "random_direction",
    "sharpest_ascent",
    "spectral_density",
    "spectrum_by_layer",
    "spectrum_over_data",
    "to_scipy",
    "trace",
    "trajectory_plane",
]

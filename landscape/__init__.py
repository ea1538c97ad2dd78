"""The loss landscape around a trained network: spectra, local entropy, slices, comparisons."""

from landscape.adapters import as_operator
from landscape.checkpoints import Checkpoint, load_checkpoint
from landscape.compare import CompareSettings, compare
from landscape.cross_check import cross_check
from landscape.directions import between, eigenvector, random_direction
from landscape.eigenvalues import eigenpairs
from landscape.local_entropy import local_entropy
from landscape.objective import ModelObjective, Objective
from landscape.operators import Dense, GaussNewton, Hessian, LinearOperator, Residual
from landscape.problems import Problem
from landscape.slices import line, plane
from landscape.spectrum import spectral_density

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
    "between",
    "compare",
    "cross_check",
    "eigenpairs",
    "eigenvector",
    "line",
    "load_checkpoint",
    "local_entropy",
    "plane",
    "random_direction",
    "spectral_density",
]

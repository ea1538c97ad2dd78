"""Symmetric matrices as linear operators, including those of other libraries."""

from landscape.operators.adapters import as_operator, as_symmetric, check_symmetric, to_scipy
from landscape.operators.curvature import GaussNewton, Hessian, Residual
from landscape.operators.operator import Dense, LinearOperator, check_same, finite_norm

__all__ = [
    "Dense",
    "GaussNewton",
    "Hessian",
    "LinearOperator",
    "Residual",
    "as_operator",
    "as_symmetric",
    "check_same",
    "check_symmetric",
    "finite_norm",
    "to_scipy",
]

"""Directions in parameter space along which to evaluate the loss, as flat vectors (n,)."""

from landscape.directions.checkpoints import between, plane_through, project_onto_plane, trajectory_plane
from landscape.directions.derivatives import eigenvector, gradient_direction, sharpest_ascent
from landscape.directions.random import random_direction

__all__ = [
    "between",
    "eigenvector",
    "gradient_direction",
    "plane_through",
    "project_onto_plane",
    "random_direction",
    "sharpest_ascent",
    "trajectory_plane",
]

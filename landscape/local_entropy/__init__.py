"""Local entropy by four estimators, at a point and along a trajectory."""

from landscape.local_entropy.estimate import local_entropy
from landscape.local_entropy.radii import radii_of_interest
from landscape.local_entropy.trajectory import local_entropy_trajectory

__all__ = ["local_entropy", "local_entropy_trajectory", "radii_of_interest"]

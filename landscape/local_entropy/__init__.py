"""Local entropy by four methods, at a point and along a trajectory."""

from landscape.local_entropy.along import local_entropy_along
from landscape.local_entropy.estimate import local_entropy
from landscape.local_entropy.radii import radii_of_interest

__all__ = ["local_entropy", "local_entropy_along", "radii_of_interest"]

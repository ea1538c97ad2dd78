"""Local entropy by three methods, at a point and along a trajectory."""

from landscape.local_entropy.along import local_entropy_along
from landscape.local_entropy.estimate import local_entropy

__all__ = ["local_entropy", "local_entropy_along"]

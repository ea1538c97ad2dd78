"""Local entropy by three methods."""

from landscape.local_entropy.estimate import local_entropy

__all__ = ["local_entropy"]

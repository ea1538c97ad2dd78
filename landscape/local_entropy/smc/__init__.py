"""Annealed sequential Monte Carlo: F~ from particles that go from a Gaussian to the Gibbs measure."""

from landscape.local_entropy.smc.estimate import smc

__all__ = ["smc"]

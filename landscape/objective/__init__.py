"""The objective f(theta) and its derivatives, which every analysis evaluates."""

from landscape.objective.contract import Objective
from landscape.objective.model import ModelObjective

__all__ = ["ModelObjective", "Objective"]

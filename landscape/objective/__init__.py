"""f(theta) with its derivatives: the one thing that every analysis looks at."""

from landscape.objective.contract import Objective
from landscape.objective.model import ModelObjective

__all__ = ["ModelObjective", "Objective"]

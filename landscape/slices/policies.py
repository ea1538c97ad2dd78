"""BatchNorm policies of objectives, on slices and between networks."""

from __future__ import annotations

from typing import TypeVar

from landscape.objective import ModelObjective, Objective
from landscape.objective.tensors import statistics

__all__ = ["batch_norm_of", "keeps_statistics", "recalibrated_between", "recalibrates"]

F = TypeVar("F", bound=Objective)


def batch_norm_of(objective: Objective) -> str:
    """The objective's BatchNorm policy, as records store it; ``""`` if it is not a ModelObjective."""
    return objective.batch_norm if isinstance(objective, ModelObjective) else ""


def recalibrates(objective: Objective) -> bool:
    """Whether it has running statistics and recalibrates them at every point."""
    return batch_norm_of(objective) == "recalibrated" and _has_statistics(objective)


def keeps_statistics(objective: Objective) -> bool:
    """Whether it has running statistics and keeps them fixed."""
    return batch_norm_of(objective) == "frozen" and _has_statistics(objective)


def recalibrated_between(objective: F) -> F | ModelObjective:
    """The objective, with BatchNorm recalibrated at every point if its statistics are frozen.

    Running statistics and the vectors of spectral normalisation are valid only for the weights they were computed at,
    and for none between two networks.
    """
    if isinstance(objective, ModelObjective) and keeps_statistics(objective):
        return objective.recalibrated()
    return objective


def _has_statistics(objective: Objective) -> bool:
    return isinstance(objective, ModelObjective) and bool(statistics(objective))

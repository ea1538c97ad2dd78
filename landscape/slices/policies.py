"""What BatchNorm does on the way between networks, or away from one."""

from __future__ import annotations

from typing import TypeVar

from landscape.objective import ModelObjective, Objective
from landscape.objective.tensors import statistics

__all__ = ["batch_norm_of", "keeps_statistics", "recalibrated_between", "recalibrates"]

F = TypeVar("F", bound=Objective)


def batch_norm_of(objective: Objective) -> str:
    """Its policy, for a record; "" for what is no network."""
    return objective.batch_norm if isinstance(objective, ModelObjective) else ""


def recalibrates(objective: Objective) -> bool:
    """Whether it has statistics, and recalibrates them at every point."""
    return batch_norm_of(objective) == "recalibrated" and _has_statistics(objective)


def keeps_statistics(objective: Objective) -> bool:
    """Whether there are statistics that it does not gather, so that they are those of some network."""
    return batch_norm_of(objective) == "frozen" and _has_statistics(objective)


def recalibrated_between(objective: F) -> F | ModelObjective:
    """The objective, or where it has frozen statistics the same with those gathered again at every point.

    Statistics, and the vectors of spectral normalisation, belong to the weights they were gathered at: between two
    networks, those of either mean nothing.
    """
    if isinstance(objective, ModelObjective) and keeps_statistics(objective):
        return objective.recalibrated()
    return objective


def _has_statistics(objective: Objective) -> bool:
    return isinstance(objective, ModelObjective) and bool(statistics(objective))

"""Checks of the arguments of ``local_entropy``."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from torch import Tensor

from landscape.objective import Objective
from landscape.objective.contract import number
from landscape.results import Eigenpairs

__all__ = ["check_at_least_two", "check_positive", "check_size", "loss_at", "pairs_or_count"]


def check_positive(**given: Any) -> None:
    """Numbers or arrays that must be positive and finite, by name; None is not checked."""
    for name, value in given.items():
        if value is not None and not np.all((np.asarray(value) > 0) & np.isfinite(value)):
            raise ValueError(f"{name}={value}: give positive numbers")


def check_at_least_two(**given: int) -> None:
    """Numbers of independent runs, by name."""
    for name, count in given.items():
        if count < 2:
            raise ValueError(f"{name}={count}: give at least 2, since their spread is the error")


def check_size(what: str, size: int, objective: Objective) -> None:
    """``what`` must be of the objective's size."""
    if size != objective.size:
        raise ValueError(f"{what} of size {size}: give what is of this objective, which is of size {objective.size}")


def pairs_or_count(pairs: Any, objective: Objective) -> Eigenpairs | int:
    """``pairs``, which must be eigenpairs of the objective's size, or a whole number from 0."""
    if isinstance(pairs, Eigenpairs):
        check_size("pairs has vectors", len(pairs.vectors), objective)
        return pairs
    try:
        count = operator.index(pairs)
    except TypeError:
        raise TypeError(f"pairs={pairs!r}: give eigenpairs, or how many to find as a whole number") from None
    if count < 0:
        raise ValueError(f"pairs={count}: give eigenpairs, or how many to find, 0 or more")
    return count


def loss_at(objective: Objective, theta: Tensor) -> float:
    """f(theta), which must be finite and the same twice."""
    loss, again = (number(objective.value(theta)) for _ in range(2))
    if not np.isfinite(loss):
        raise ValueError(f"the loss at theta is {loss}: local entropy needs a finite one there")
    if loss != again:
        raise ValueError(
            f"the loss at theta is {loss} and, asked again, {again}: the objective is random (dropout, augmentation or "
            "sampled batches), so fix its data and switch its noise off"
        )
    return loss

"""One flatness measure at one point, and all of them at several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from landscape.results.estimate import check_level, student_interval
from landscape.results.records import Cost, Measures

__all__ = ["FlatnessTable", "Sharpness", "errors_and_draws"]


@dataclass(frozen=True)
class Sharpness:
    """A flatness measure of the literature, with its definition beside its value."""

    name: str  # with the settings that tell it from others of its kind
    value: float
    stderr: float  # over `contributions`; 0: exact for these examples; NaN: not known
    # what each draw (probe, chain, part of the data) adds: their mean is `value`, their spread its error; results drawn
    # with the same seed pair up draw by draw. Empty where nothing is drawn.
    contributions: Annotated[np.ndarray, "draw"]
    unit: str
    flatter: str  # "lower" or "higher": which way is flatter; "" where neither is
    formula: str
    source: str
    reparametrisation_invariant: bool  # the same after one ReLU layer is scaled up and the next down (Dinh et al. 2017)
    settings: dict[str, Any]
    diagnostics: dict[str, float]
    cost: Cost

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's confidence interval over ``contributions``; NaN where the error is not known."""
        check_level(level)
        return student_interval(self.value, self.stderr, len(self.contributions) - 1, level)


@dataclass(frozen=True)
class FlatnessTable:
    """Flatness measures of several checkpoints, all drawn with the same seed."""

    measures: Measures  # the numbers, and their paired differences from the first checkpoint's
    results: dict[str, list[Sharpness]]  # name of the measure -> its record at each checkpoint
    seed: int  # of the generator that each measure got at each checkpoint

    @property
    def invariant(self) -> list[bool]:
        """Of each measure, whether the rescaling of ReLU layers leaves it as it is."""
        return self.measures.invariant


def errors_and_draws(row: Sequence[Sharpness]) -> tuple[np.ndarray, np.ndarray | None]:
    """Of each checkpoint's value the error, and the draws where they pair up."""
    draws = [record.contributions for record in row]
    pair_up = len({len(d) for d in draws}) == 1 and len(draws[0]) > 0
    return np.array([record.stderr for record in row]), np.stack(draws) if pair_up else None

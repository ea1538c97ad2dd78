"""One flatness measure at one point, and all of them at several checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from landscape.results.estimate import check_level, student_interval
from landscape.results.records import Cost, Measures

__all__ = ["FlatnessTable", "Sharpness"]


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
        return [records[0].reparametrisation_invariant for records in self.results.values()]

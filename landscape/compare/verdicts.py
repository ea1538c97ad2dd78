"""Which of two checkpoints a measure calls the flatter, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from landscape.results import Measures

__all__ = ["SIGNIFICANT", "Verdict", "verdicts"]

# a difference of fewer standard errors is called none
SIGNIFICANT = 2.0


@dataclass(frozen=True)
class Verdict:
    """What one measure says of a checkpoint against the first."""

    measure: str
    first: str
    other: str
    values: tuple[float, float]
    difference: float  # of the other from the first; NaN where a value is not reliable
    error: float  # its standard error; 0: exact, NaN: not known
    says: str  # "flatter", "no difference", "error not known" or "not reliable"
    flattest: str  # the name of the flatter one; "" where that cannot be told
    contradicted: tuple[str, ...]  # the checkpoints whose value lies outside a reliable bracket of the same quantity


def verdicts(measures: Measures) -> list[Verdict]:
    """What each measure of flatness says of each later checkpoint against the first."""
    return [
        _verdict(measures, i, j)
        for i, direction in enumerate(measures.flatter)
        if direction
        for j in range(1, len(measures.checkpoints))
    ]


def _verdict(measures: Measures, i: int, j: int) -> Verdict:
    first, other = measures.checkpoints[0], measures.checkpoints[j]
    difference, error = float(measures.differences[i, j]), float(measures.differences_stderr[i, j])
    flattest = ""
    if not math.isfinite(difference):
        says = "not reliable"
    elif not math.isfinite(error):
        says = "error not known"
    elif abs(difference) > SIGNIFICANT * error:
        says = "flatter"
        flattest = other if (difference < 0) == (measures.flatter[i] == "lower") else first
    else:
        says = "no difference"
    return Verdict(
        measure=measures.names[i],
        first=first,
        other=other,
        values=(float(measures.values[i, 0]), float(measures.values[i, j])),
        difference=difference,
        error=error,
        says=says,
        flattest=flattest,
        contradicted=tuple(measures.checkpoints[k] for k in (0, j) if _outside_its_bracket(measures, i, k)),
    )


def _outside_its_bracket(measures: Measures, i: int, k: int) -> bool:
    """Whether a local entropy of checkpoint k is none that a reliable bracket of SMC allows at the same radius."""
    ball, _, method = measures.names[i].rpartition(" (")
    smc = f"{ball} (annealed SMC)"
    if f" ({method}" == smc.removeprefix(ball) or smc not in measures.names:
        return False
    value, low, high = (
        measures.values[measures.names.index(name), k] for name in (smc, f"{smc}, at least", f"{smc}, at most")
    )
    # NaN lies neither below nor above
    return math.isfinite(value) and bool(measures.values[i, k] < low or measures.values[i, k] > high)

"""Which of two groups of checkpoints a measure calls the flatter: groups are optimizers, and their runs are seeds.

The p-values of a comparison are adjusted for the number of measures and pairs of groups (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from landscape.compare.replicates import Difference, difference_of_means, holm, permutation_p, runs_to_decide
from landscape.results import Measures, without_seed

__all__ = ["GroupVerdict", "check_groups", "group_verdicts", "groups_by_name", "paired_by_seed"]


@dataclass(frozen=True)
class GroupVerdict:
    """What one measure says of a group of runs against the first group."""

    measure: str
    first: str
    other: str
    values: tuple[np.ndarray, np.ndarray]  # of the runs of each group
    difference: Difference | None  # None: a group has a single run, or a value or its error is not known
    p: float  # of no difference, adjusted; NaN without a difference
    equivalence_p: float  # of a difference of the margin or more, adjusted; likewise
    margin: float
    paired: bool
    says: str  # "flatter", "equal", "cannot tell", "one run" or "not reliable"
    flattest: str  # the name of the flatter group; "" where that cannot be told
    runs: int | None  # a group that would tell; None: more than a thousand, or not needed, or not known
    unreliable: tuple[str, ...]  # checkpoints whose value, or its error, is not known

    @property
    def means(self) -> tuple[float, float]:
        """Of the runs of each group."""
        return float(self.values[0].mean()), float(self.values[1].mean())

    @cached_property
    def permutation_p(self) -> float:
        """Of no difference, not adjusted, by the exact permutation test or 10,000 permutations."""
        return permutation_p(*self.values, paired=self.paired)


def groups_by_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Checkpoints called ``NAME-seedK`` by NAME, and others as groups of their own.

    Empty unless there are at least two groups, one of them of several checkpoints.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(without_seed(name), []).append(name)
    return groups if len(groups) > 1 and any(len(members) > 1 for members in groups.values()) else {}


def check_groups(groups: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError if there is one group only, one is empty, or a checkpoint is in two."""
    if len(groups) < 2:
        raise ValueError(f"groups has {', '.join(groups)} only: give at least two, or checkpoints")
    if empty := [group for group, names in groups.items() if not names]:
        raise ValueError(f"groups has no checkpoint in {', '.join(empty)}: give each group at least one")
    members = [name for names in groups.values() for name in names]
    if twice := sorted({name for name in members if members.count(name) > 1}):
        raise ValueError(
            f"groups has {', '.join(twice)} more than once: put each checkpoint into one group, under a name of its own"
        )


def paired_by_seed(
    groups: Mapping[str, Sequence[str]], metadata: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]] | None:
    """The groups in the order of their seeds if all have the same seeds, and so began at the same weights.

    None if they do not, or if the files do not say.
    """
    seeds = {group: [metadata[name].get("seed") for name in names] for group, names in groups.items()}
    sets = [set(found) for found in seeds.values()]
    if None in set().union(*sets) or any(s != sets[0] for s in sets):
        return None
    if any(len(found) > len(set(found)) for found in seeds.values()):
        return None
    return {group: sorted(names, key=lambda name: metadata[name]["seed"]) for group, names in groups.items()}


def group_verdicts(
    measures: Measures,
    groups: Mapping[str, Sequence[str]],
    *,
    paired: bool = False,
    margin: float = 0.1,
    level: float = 0.05,
) -> list[GroupVerdict]:
    """What each measure of flatness says of each later group against the first.

    Args:
        measures: of all checkpoints.
        groups: names of checkpoints.
        paired: whether the first runs of all groups belong together, the second, and so on.
        margin: groups whose means differ by less than this share of the first group's count as equal.
        level: of the tests, after the adjustment.

    Raises:
        ValueError: margin or level out of range; pairs of groups of unequal size; fewer than two groups, an empty one,
            a checkpoint in two, or one that the measures do not know.
    """
    if not margin > 0 or not 0 < level < 1:
        raise ValueError(f"margin={margin}, level={level}: give a positive margin, and a level between 0 and 1")
    if paired and len({len(names) for names in groups.values()}) > 1:
        raise ValueError("paired=True: the groups are of unequal size, so that their runs do not belong together")
    check_groups(groups)
    if unknown := [name for names in groups.values() for name in names if name not in measures.checkpoints]:
        raise ValueError(f"groups has {', '.join(unknown)}, and the measures are of {', '.join(measures.checkpoints)}")
    first, *others = groups
    pairs = [(i, other) for i, way in enumerate(measures.flatter) if way for other in others]
    found = [_Compared(measures, i, groups[first], groups[other], paired, margin) for i, other in pairs]
    p, equivalence_p = (_adjusted([getattr(compared, name) for compared in found]) for name in ("p", "equivalence_p"))
    tests = sum(compared.difference is not None for compared in found)
    return [
        _verdict(measures, i, (first, other), compared, (p[k], equivalence_p[k]), paired, level, tests)
        for k, ((i, other), compared) in enumerate(zip(pairs, found, strict=True))
    ]


class _Compared:
    """The values of two groups and their difference, before any adjustment."""

    def __init__(
        self, measures: Measures, i: int, first: Sequence[str], other: Sequence[str], paired: bool, margin: float
    ) -> None:
        places = [measures.checkpoints.index(name) for name in (*first, *other)]
        values = measures.values[i, places]
        self.values = values[: len(first)], values[len(first) :]
        # neither of those that are missing, nor of those whose error is not known, says the spread how far off they are
        known = np.isfinite(measures.values[i]) & np.isfinite(measures.stderr[i])
        self.unreliable = tuple(measures.checkpoints[k] for k in places if not known[k])
        self.margin = margin * abs(float(self.values[0].mean()))
        self.difference: Difference | None = None
        if not self.unreliable and min(len(first), len(other)) > 1:
            covariance = measures.covariance[i][np.ix_(places, places)]
            self.difference = difference_of_means(*self.values, covariance, paired=paired)

    @property
    def p(self) -> float:
        return math.nan if self.difference is None else self.difference.p

    @property
    def equivalence_p(self) -> float:
        return math.nan if self.difference is None else self.difference.equivalence_p(self.margin)


def _adjusted(p: list[float]) -> np.ndarray:
    values = np.array(p)
    known = np.isfinite(values)
    values[known] = holm(values[known])
    return values


def _verdict(
    measures: Measures,
    i: int,
    names: tuple[str, str],
    compared: _Compared,
    p: tuple[float, float],
    paired: bool,
    level: float,
    tests: int,
) -> GroupVerdict:
    difference, flattest, runs = compared.difference, "", None
    if compared.unreliable:
        says = "not reliable"
    elif difference is None:
        says = "one run"
    elif p[0] < level:
        says = "flatter"
        flattest = names[1] if (difference.value < 0) == (measures.flatter[i] == "lower") else names[0]
    elif p[1] < level:
        says = "equal"
    else:
        says, runs = "cannot tell", runs_to_decide(difference, compared.margin, level / tests)
    return GroupVerdict(
        measure=measures.names[i],
        first=names[0],
        other=names[1],
        values=compared.values,
        difference=difference,
        p=float(p[0]),
        equivalence_p=float(p[1]),
        margin=compared.margin,
        paired=paired,
        says=says,
        flattest=flattest,
        runs=runs,
        unreliable=compared.unreliable,
    )

"""What an analysis is: a function from what it is about to a record, and how the record is told and drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from landscape.checkpoints import Checkpoint
from landscape.compare.objectives import Objectives
from landscape.compare.settings import CompareSettings
from landscape.objective import ModelObjective
from landscape.progress import Progress
from landscape.results import Comparison, error_covariance, paired_errors

__all__ = ["Analysis", "Picture", "Row", "Task", "with_needs"]

SCOPES = ("checkpoint", "pair", "all")


@dataclass(frozen=True)
class Task:
    """What an analysis is given."""

    checkpoints: tuple[Checkpoint, ...]  # the one, the first and another, or all, as the scope says
    objectives: Objectives
    settings: CompareSettings
    # analysis -> the record of the same checkpoint (of a pair: the later one); of an analysis of all checkpoints: its
    # record; for an analysis of all: the records of the others by checkpoint
    needed: Mapping[str, Any]
    progress: Progress
    partial: Path | None = None  # a folder for what a killed analysis goes on with; None keeps nothing

    @property
    def f(self) -> ModelObjective:
        """The training loss at the checkpoint; at the last of several."""
        return self.objectives.at(self.checkpoints[-1])


@dataclass(frozen=True)
class Row:
    """One measure of several checkpoints; an error of 0 means exact, NaN means not known."""

    name: str  # with what it depends on, such as the radius
    flatter: str  # "lower" or "higher": which way is flatter; "" where neither is
    values: np.ndarray  # (checkpoints,)
    errors: np.ndarray  # (checkpoints,)
    draws: np.ndarray | None = None  # (checkpoints, draws) where the value is their mean, and they pair up
    invariant: bool = False  # whether the rescaling of ReLU layers leaves it as it is (Dinh et al. 2017)

    def paired(self) -> np.ndarray:
        """The error of each difference from the first: over paired draws, else of both together."""
        return paired_errors(self.errors, self.draws)

    def covariance(self) -> np.ndarray:
        """Of the errors of any two checkpoints' values."""
        return error_covariance(self.errors, self.draws)


@dataclass(frozen=True)
class Picture:
    """A figure of the report."""

    name: str  # of its file
    caption: str
    figure: Figure
    wide: bool = False


@dataclass(frozen=True)
class Analysis:
    """A row of the table that ``compare``, the store, the report and the command line read.

    Raises:
        ValueError: an unknown scope.
    """

    name: str  # of its records, and of their place in the store
    compute: Callable[[Task], Any]  # to a record of ``landscape.results``, or an ``xarray.Dataset``
    scope: str = "checkpoint"  # once for each; "pair": for each but the first, with the first; "all": once for all
    needs: tuple[str, ...] = ()  # names of analyses
    settings: tuple[str, ...] = ()  # the fields of CompareSettings that the record depends on
    options: Mapping[str, Any] = field(default_factory=dict)  # what else it depends on, as JSON-able values
    title: str = ""  # of its section in the report, which analyses may share
    least: int = 1  # checkpoints
    # pictures of all its records; analyses that share one name it alike
    draw: Callable[[Comparison], Iterable[Picture]] | None = None
    # rows of the table of measures from its records by checkpoint
    measure: Callable[[Mapping[str, Any], CompareSettings], Iterable[Row]] | None = None

    def __post_init__(self) -> None:
        """Refuse a scope that is none."""
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r} of the analysis {self.name!r}: give one of {SCOPES}")


def with_needs(chosen: Iterable[str | Analysis] | None, known: Iterable[Analysis]) -> tuple[Analysis, ...]:
    """The analyses that are chosen and those that they need, in an order in which none comes before what it needs.

    Args:
        chosen: names of known ones, or analyses of one's own. None: all that are known.
        known: the table; its order is kept.

    Raises:
        ValueError: an unknown name; two analyses of one name; analyses that need each other.
    """
    table = {analysis.name: analysis for analysis in known}
    wanted = list(table) if chosen is None else []
    for item in chosen or ():
        if isinstance(item, Analysis):
            if table.setdefault(item.name, item) is not item:
                raise ValueError(f"analyses hold two of the name {item.name!r}: give each a name of its own")
            wanted.append(item.name)
        else:
            wanted.append(item)
    found: dict[str, Analysis] = {}

    def take(name: str, above: tuple[str, ...]) -> None:
        if name not in table:
            raise ValueError(f"analyses name {name!r}, which is unknown: give some of {', '.join(table)}")
        if name in above:
            raise ValueError(f"analyses {', '.join(above)} need each other")
        for need in table[name].needs:
            take(need, (*above, name))
        found.setdefault(name, table[name])

    # the table's order within what is chosen
    for name in sorted(wanted, key=lambda name: list(table).index(name) if name in table else -1):
        take(name, ())
    return tuple(found.values())

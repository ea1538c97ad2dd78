"""Several checkpoints of one problem, looked at in the same way.

Every checkpoint sees the same examples, probes and perturbations (common random numbers), so that what
differs between two results is the checkpoints, and differences have error bars of their own, smaller
than those of the two results apart; but for sequential Monte Carlo, whose schedule depends on the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from landscape.checkpoints import Checkpoint
from landscape.compare.analyses import ANALYSES
from landscape.compare.analysis import Analysis, Task, with_needs
from landscape.compare.groups import check_groups, groups_by_name
from landscape.compare.keys import Keys
from landscape.compare.measures import measure
from landscape.compare.objectives import Objectives
from landscape.compare.provenance import check_fixed_tensors, check_names, check_weights_differ, provenance_of
from landscape.compare.settings import CompareSettings
from landscape.problems import Problem
from landscape.progress import Progress, silent
from landscape.results import Comparison, Failed
from landscape.results.store import Store

__all__ = ["compare"]


def compare(
    checkpoints: Sequence[Checkpoint] = (),
    problem: Problem | None = None,
    *,
    groups: Mapping[str, Sequence[Checkpoint]] | None = None,
    drop_diverged: bool = False,
    analyses: Iterable[str | Analysis] | None = None,
    settings: CompareSettings | None = None,
    store: str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Spectrum, local entropy and slices of each checkpoint, and how they differ.

    Args:
        checkpoints: of networks that ``problem.model`` builds, with different names. Differences are
            from the first. Those called ``NAME-seedK`` are runs of one group, NAME.
        problem: the network, loss and data; needed.
        groups: the checkpoints by group, such as the seeds of each optimizer, instead of ``checkpoints``; their
            names must differ.
        drop_diverged: whether to leave out checkpoints whose loss is not finite, and say so, instead of an error.
        analyses: names of those in the table ``landscape.compare.ANALYSES``, or ones of your own
            (``docs/extending.md``); what they need is added. Default: the whole table.
        settings: how closely to look.
        store: a Zarr folder in which to keep each record as soon as it is there. A record found in it is not computed
            again where the checkpoint, the data, the analysis and the analysis' own settings are the same; slices and
            densities that were under way go on.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        Comparison, with the records by ``checkpoint/analysis``, and those of analyses of all checkpoints by
        ``minima/analysis``. An analysis that fails is kept in ``failures`` with its reason, and so are those that need
        its record.

    Raises:
        TypeError: no problem.
        ValueError: no checkpoint; two of one name; one that does not fit the network, or whose loss is
            not finite; an unknown analysis; a store of another format; both checkpoints and groups, a checkpoint in
            two groups or a group without any.
    """
    if problem is None:
        raise TypeError("problem is missing: give the network, loss and data")
    settings = settings or CompareSettings()
    table = with_needs(analyses, ANALYSES)
    checkpoints, members = _in_groups(checkpoints, groups)
    objectives = Objectives(problem, settings)
    losses = {c.name: objectives.at(c).value(objectives.at(c).theta) for c in checkpoints}
    diverged = _diverged(losses, drop_diverged)
    checkpoints = [c for c in checkpoints if c.name not in diverged]
    members = {group: [name for name in names if name not in diverged] for group, names in members.items()}
    if empty := [group for group, names in members.items() if not names]:
        raise ValueError(f"every run of {', '.join(empty)} has diverged: nothing is left of that group to compare")
    check_weights_differ(checkpoints)  # diverged ones may all be NaN
    check_fixed_tensors(checkpoints, objectives.train)
    provenance = provenance_of(checkpoints, objectives)
    kept = Store(store) if store else None
    keys = Keys(provenance, losses, settings, str(problem.build(seed=0)))
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for analysis, about, group in _in_order(table, tuple(checkpoints)):
        try:
            needed = _needed(analysis, about, results, failures)
            key = keys.of(analysis, about, needed)
            task = Task(about, objectives, settings, needed, partial(_labelled, progress, group))
            results[group] = _record(analysis, task, kept, group, key)
        except Exception as error:
            failures[group] = f"{type(error).__name__}: {error}"
            if kept:
                kept.write(group, Failed(failures[group]))
    comparison = Comparison(
        names=[c.name for c in checkpoints],
        results=results,
        measures=measure(checkpoints, objectives, table, results, settings),
        metadata={c.name: dict(c.metadata) for c in checkpoints},
        settings=asdict(settings),
        provenance=provenance,
        failures=failures,
        analyses=table,
        groups=members,
        diverged=diverged,
    )
    if kept:
        kept.write("measures", comparison.measures)
        kept.finish(comparison.settings, provenance)
    return comparison


def _in_groups(
    checkpoints: Sequence[Checkpoint], groups: Mapping[str, Sequence[Checkpoint]] | None
) -> tuple[list[Checkpoint], dict[str, list[str]]]:
    """All checkpoints, and their names by group, if they are of any."""
    if groups is None:
        given, members = list(checkpoints), groups_by_name(c.name for c in checkpoints)
    elif checkpoints:
        raise ValueError("checkpoints and groups were both given: give one of them")
    else:
        given = [c for inside in groups.values() for c in inside]
        members = {group: [c.name for c in inside] for group, inside in groups.items()}
        check_groups(members)
    check_names(given)
    return given, members


def _diverged(losses: Mapping[str, float], drop: bool) -> tuple[str, ...]:
    """The names of checkpoints whose loss is not finite.

    Raises:
        ValueError: there are some and they are not to be left out, or nothing else is left.
    """
    found = tuple(name for name, loss in losses.items() if not np.isfinite(loss))
    if found and (not drop or len(found) == len(losses)):
        told = ", ".join(f"{name!r} ({losses[name]})" for name in found)
        raise ValueError(
            f"{len(found)} of {len(losses)} checkpoints have a training loss that is not finite: {told}. Only a "
            "checkpoint with a finite loss has a landscape around it: leave them out, or give drop_diverged=True, "
            "which does so and counts them"
        )
    return found


def _in_order(
    table: tuple[Analysis, ...], checkpoints: tuple[Checkpoint, ...]
) -> Iterator[tuple[Analysis, tuple[Checkpoint, ...], str]]:
    """What is computed, one after the other, and where it is kept.

    All analyses of a checkpoint that follow each other are done before those of the next, so that graphs are kept of
    one network at a time.
    """
    for scope, rows in groupby(table, lambda analysis: analysis.scope):
        block = [analysis for analysis in rows if len(checkpoints) >= analysis.least]
        if scope == "all":
            for analysis in block:
                yield analysis, checkpoints, f"minima/{analysis.name}"
            continue
        for checkpoint in checkpoints if scope == "checkpoint" else checkpoints[1:]:
            about = (checkpoint,) if scope == "checkpoint" else (checkpoints[0], checkpoint)
            for analysis in block:
                yield analysis, about, f"{checkpoint.name}/{analysis.name}"


def _needed(
    analysis: Analysis, about: tuple[Checkpoint, ...], results: dict[str, Any], failures: dict[str, str]
) -> dict[str, Any]:
    """The records that an analysis asks for.

    Raises:
        ValueError: there is none, since its own analysis failed.
    """
    found: dict[str, Any] = {}
    for need in analysis.needs:
        own, of_all = f"{about[-1].name}/{need}", f"minima/{need}"
        by_name = {c.name: results[f"{c.name}/{need}"] for c in about if f"{c.name}/{need}" in results}
        if of_all in results:
            found[need] = results[of_all]
        elif analysis.scope == "all" and by_name:
            found[need] = by_name
        elif analysis.scope != "all" and own in results:
            found[need] = results[own]
        else:
            reason = failures.get(own) or failures.get(of_all) or "it was not computed"
            raise ValueError(f"needs {need}, which failed ({reason})")
    return found


def _record(analysis: Analysis, task: Task, kept: Store | None, group: str, key: str) -> Any:
    if kept is None:
        return analysis.compute(task)
    with kept.partial(group, key) as folder:
        return kept.read_or_compute(group, key, lambda: analysis.compute(replace(task, partial=folder)))


def _labelled(progress: Progress, group: str, iterable: Iterable[Any], description: str) -> Iterable[Any]:
    return progress(iterable, group)

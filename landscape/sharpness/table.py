"""Every flatness measure at every checkpoint, with paired differences from the first.

Each measure gets a generator of the same seed at each checkpoint, so that its draws pair up and the error of a
difference is that of the paired draws, and its value does not depend on which other measures are in the table. tr H / n
reuses the draws of tr H at no cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from landscape.checkpoints import Checkpoint
from landscape.objective import ModelObjective
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import (
    Cost,
    FlatnessTable,
    Measures,
    Sharpness,
    error_covariance,
    errors_and_draws,
    paired_errors,
)
from landscape.sharpness.average import average_case, local_energy, low_pass
from landscape.sharpness.curvature import (
    fisher_rao,
    gradient_norm,
    hessian_trace,
    largest_eigenvalue,
    per_weight_of,
    relative_flatness,
)
from landscape.sharpness.llc import local_learning_coefficient
from landscape.sharpness.pac_bayes import pac_bayes_sigma
from landscape.sharpness.worst_case import epsilon_sharpness, sam, worst_case

__all__ = ["MEASURES", "Measure", "flatness_table"]

Measure = Callable[..., Sharpness]

OF_ACCURACY: tuple[Measure, ...] = (local_energy, pac_bayes_sigma, partial(pac_bayes_sigma, magnitude=True))
MEASURES: tuple[Measure, ...] = (
    gradient_norm,
    largest_eigenvalue,
    hessian_trace,
    partial(hessian_trace, per_weight=True),
    fisher_rao,
    relative_flatness,
    sam,
    partial(sam, adaptive=True),
    epsilon_sharpness,
    partial(worst_case, adaptive=False, parts=8),  # parts, so that it has an error
    partial(worst_case, parts=8),
    low_pass,
    average_case,
    local_learning_coefficient,
    *OF_ACCURACY,
)


def flatness_table(
    objective: ModelObjective,
    checkpoints: Sequence[Checkpoint],
    *,
    measures: Sequence[Measure] | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> FlatnessTable:
    """Several flatness measures of several checkpoints.

    Args:
        objective: the problem; each checkpoint's weights and buffers are put into it in turn.
        checkpoints: of distinct names; the first is what the others are compared with.
        measures: functions of ``landscape.sharpness``, or any ``measure(objective, theta) -> Sharpness``; settings by
            ``functools.partial(sharpness.sam, rho=0.1)``. Default: all, without those that need an accuracy where the
            objective knows none.
        generator: draws the seed that all measures use. Default: seeded by the operating system.
        progress: called as ``progress(measures, description)`` for each checkpoint; ``tqdm.tqdm`` fits.

    Returns:
        FlatnessTable. Errors of differences are paired where the measure has draws, else those of both together.

    Raises:
        ValueError: no checkpoints, or two of the same name; an objective that is no ModelObjective; two measures whose
            records have the same name, which is found when the second is evaluated.

    Example:
        >>> from landscape import sharpness
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> f = ModelObjective(model, torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> points = [Checkpoint(name, {"weight": torch.tensor([[w]])}) for name, w in (("a", 1.0), ("b", 3.0))]
        >>> flatness_table(f, points, measures=[sharpness.gradient_norm]).measures.values
        array([[2., 6.]])
    """
    names = [checkpoint.name for checkpoint in checkpoints]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"checkpoints are called {names}: give at least one, each with a name of its own")
    if not isinstance(objective, ModelObjective):
        raise ValueError(f"objective is a {type(objective).__name__}, which takes no checkpoint: give a ModelObjective")
    if measures is None:
        known = "accuracy" in objective.metrics(objective.theta)
        measures = [measure for measure in MEASURES if known or measure not in OF_ACCURACY]
    seed = int(torch.randint(2**63 - 1, (1,), generator=generator_or_new(generator)))

    rows: dict[str, list[Sharpness]] = {}
    for i, checkpoint in enumerate(checkpoints):
        at_checkpoint = objective.at(checkpoint)
        for measure in progress(measures, f"flatness of {checkpoint.name}"):
            traces = rows.get("Hessian trace", [])[i:]
            record = _from_trace(measure, traces, objective.size) or _evaluate(measure, at_checkpoint, seed)
            row = rows.setdefault(record.name, [])
            if len(row) > i:
                raise ValueError(
                    f"measures hold {record.name!r} twice, with settings {row[i].settings} and {record.settings}: give "
                    "one of them"
                )
            row.append(record)
    values = np.array([[record.value for record in row] for row in rows.values()])
    with np.errstate(invalid="ignore"):  # inf - inf is NaN
        differences = values - values[:, :1]
    measured = Measures(
        names=list(rows),
        flatter=[row[0].flatter for row in rows.values()],
        checkpoints=names,
        values=values,
        stderr=np.array([[record.stderr for record in row] for row in rows.values()]),
        differences=differences,
        differences_stderr=np.stack([paired_errors(*errors_and_draws(row)) for row in rows.values()]),
        covariance=np.stack([error_covariance(*errors_and_draws(row)) for row in rows.values()]),
        invariant=[row[0].reparametrisation_invariant for row in rows.values()],
    )
    return FlatnessTable(measured, rows, seed)


def _evaluate(measure: Measure, objective: ModelObjective, seed: int) -> Sharpness:
    """The measure at the objective's own weights, with a generator if it takes one."""
    if "generator" not in inspect.signature(measure).parameters:
        return measure(objective, objective.theta)
    return measure(objective, objective.theta, generator=torch.Generator().manual_seed(seed))


def _from_trace(measure: Measure, traces: Sequence[Sharpness], n: int) -> Sharpness | None:
    """tr H / n from a known tr H with as many probes; None if that is not the measure, or tr H is not known."""
    asked = inspect.signature(measure).parameters
    if getattr(measure, "func", None) is not hessian_trace or not asked["per_weight"].default:
        return None
    same = {"probes": asked["probes"].default, "per_weight": False}
    known = [trace for trace in traces if trace.settings == same]
    return replace(per_weight_of(known[0], n), cost=Cost()) if known else None

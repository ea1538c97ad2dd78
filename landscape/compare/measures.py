"""The numbers of a comparison: one per measure and checkpoint, with the difference to the first.

Probes and draws of the ball are the same for all checkpoints, so that differences of what they tell have the error of
paired draws. The schedule of SMC depends on the checkpoint: its estimates count as independent. Its bracket stands
beside it, where each bound holds two standard errors of its own.

Which way a measure calls flatter stands beside it, and whether it is invariant under the rescaling of ReLU layers (Dinh
et al. 2017): the same function can have any lambda_max, trace or local entropy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from landscape.checkpoints import Checkpoint
from landscape.compare.analysis import Analysis, Row
from landscape.compare.objectives import Objectives
from landscape.compare.settings import CompareSettings
from landscape.results import (
    Barrier,
    Eigenpairs,
    LocalEntropy,
    Measures,
    Sharpness,
    SpectralDensity,
    errors_and_draws,
    standard_error,
)
from landscape.sums import norm

__all__ = ["barrier_height", "excess_free_energy", "largest_eigenvalue", "measure", "of_sharpness", "of_the_density"]

# |lambda| up to this share of the largest |lambda| of all checkpoints counts as near zero
_NEAR_ZERO = 1e-3


def measure(
    checkpoints: Sequence[Checkpoint],
    objectives: Objectives,
    analyses: Iterable[Analysis],
    results: Mapping[str, Any],
    settings: CompareSettings,
) -> Measures:
    """Tabulate what is known of each checkpoint; NaN where an analysis has no record of it.

    Args:
        checkpoints: the first is what others are compared with.
        objectives: at them.
        analyses: whose ``measure`` makes the rows.
        results: the records ``checkpoint/analysis``.
        settings: of the comparison.
    """
    names = [checkpoint.name for checkpoint in checkpoints]
    rows = list(_of_the_weights(checkpoints, objectives))
    for analysis in analyses:
        groups = {name: f"{name}/{analysis.name}" for name in names}
        known = {name: results[group] for name, group in groups.items() if group in results}
        if analysis.measure is not None and known:
            origin = 0.0 if analysis.scope == "pair" else np.nan  # what is told of the first and itself
            rows += [_among(row, list(known), names, origin) for row in analysis.measure(known, settings)]
    return Measures(
        names=[row.name for row in rows],
        flatter=[row.flatter for row in rows],
        checkpoints=names,
        values=np.stack([row.values for row in rows]),
        stderr=np.stack([row.errors for row in rows]),
        differences=np.stack([row.values - row.values[0] for row in rows]),
        differences_stderr=np.stack([row.paired() for row in rows]),
        covariance=np.stack([row.covariance() for row in rows]),
        invariant=[row.invariant for row in rows],
    )


def largest_eigenvalue(records: Mapping[str, Eigenpairs], settings: CompareSettings) -> Iterator[Row]:
    """Its residual is its error: an eigenvalue is as near to the value; what has not converged is not known."""
    pairs = list(records.values())
    top = [p.values.argmax() for p in pairs]
    errors = [p.residuals[i] if p.converged[i] else np.nan for p, i in zip(pairs, top, strict=True)]
    values = [p.values[i] for p, i in zip(pairs, top, strict=True)]
    yield Row("largest eigenvalue", "lower", np.array(values), np.array(errors))


def of_the_density(records: Mapping[str, SpectralDensity], settings: CompareSettings) -> Iterator[Row]:
    """The trace, and without a verdict what only bounds the smallest eigenvalue, and shares of eigenvalues.

    A Ritz value only bounds the smallest eigenvalue from above, and the spread over probes leaves out where within the
    bulk a quadrature puts its nodes.
    """
    densities = list(records.values())
    yield _sampled("Hessian trace", "lower", [d.size * d.per_probe(lambda t: t) for d in densities])
    lowest = np.array([d.atoms()[0][0] for d in densities])
    yield Row("most negative Ritz value", "", lowest, np.full(len(densities), np.nan))
    near_zero = _NEAR_ZERO * max(abs(d.atoms()[0][[0, -1]]).max() for d in densities)
    shares = {
        f"share of |eigenvalues| below {near_zero:.2g}": lambda t: abs(t) < near_zero,
        f"share of eigenvalues below {-near_zero:.2g}": lambda t: t <= -near_zero,
    }
    for name, inside in shares.items():
        yield _sampled(name, "", [d.per_probe(inside) for d in densities])


def excess_free_energy(records: Mapping[str, LocalEntropy], settings: CompareSettings) -> Iterator[Row]:
    """At the reference radius; of SMC also what it lies between."""
    entropies, radius = list(records.values()), settings.reference_radius
    first = entropies[0]
    at = int(np.flatnonzero(first.radius == radius)[0])
    name = f"excess free energy at radius {radius:g} ({first.method_name})"
    # what is not reliable is no number to compare: NaN, which no verdict is drawn from
    draws = [np.where(e.reliable[at], -e.contributions[at] / e.beta - e.loss, np.nan) for e in entropies]
    row = _sampled(name, "lower", draws)
    if first.method != "smc":
        yield row
        return
    yield replace(row, draws=None)
    # told where the estimate is not reliable too, since populations that differ too much leave the bracket alone; where
    # the chains lag behind it does not hold, which the record's note says
    for bound, side in (("at least", 0), ("at most", 1)):
        ends = np.array([e.excess_bracket[side][at] for e in entropies])
        yield Row(f"{name}, {bound}", "", ends, np.full(len(entropies), np.nan))


def of_sharpness(records: Mapping[str, Sharpness], settings: CompareSettings) -> Iterator[Row]:
    """A measure of ``landscape.sharpness``."""
    found = list(records.values())
    errors, draws = errors_and_draws(found)
    values = np.array([record.value for record in found])
    invariant = all(record.reparametrisation_invariant for record in found)
    yield Row(found[0].name, found[0].flatter, values, errors, draws, invariant)


def barrier_height(records: Mapping[str, Barrier], settings: CompareSettings) -> Iterator[Row]:
    """On the line from the first checkpoint."""
    barriers = list(records.values())
    heights, errors = np.array([b.height for b in barriers]), np.array([b.stderr for b in barriers])
    yield Row("train loss barrier from the first", "", heights, errors)


def _among(row: Row, known: list[str], names: list[str], first: float) -> Row:
    """The row of some checkpoints as one of all, with NaN for the others, or ``first`` for the first."""
    if known == names:
        return row
    places = [names.index(name) for name in known]
    values, errors = np.full(len(names), np.nan), np.full(len(names), np.nan)
    values[0] = errors[0] = first
    values[places], errors[places] = row.values, row.errors
    draws = None
    if row.draws is not None:
        draws = np.full((len(names), row.draws.shape[1]), np.nan)
        draws[places] = row.draws
    return replace(row, values=values, errors=errors, draws=draws)


def _sampled(name: str, flatter: str, draws: Sequence[np.ndarray]) -> Row:
    stacked = np.stack(draws)
    return Row(name, flatter, stacked.mean(axis=1), standard_error(stacked), stacked)


def _of_the_weights(checkpoints: Sequence[Checkpoint], objectives: Objectives) -> Iterator[Row]:
    """What takes no sampling, and so has no error: losses, norms, distances."""
    trains = [objectives.at(checkpoint) for checkpoint in checkpoints]
    columns: dict[str, list[float]] = {}
    for split in ("train", "test"):
        fs = [objectives.at(checkpoint, split) for checkpoint in checkpoints]
        metrics = [f.metrics(f.theta) for f in fs]
        columns.update({f"{split} {key}": [m[key] for m in metrics] for key in metrics[0]})
    columns["gradient norm"] = [norm(f.gradient(f.theta)) for f in trains]
    columns["weight norm"] = [norm(f.theta) for f in trains]
    columns["distance from the first"] = [norm(f.theta - trains[0].theta) for f in trains]
    for name, values in columns.items():
        yield Row(name, "", np.array(values), np.zeros(len(values)))

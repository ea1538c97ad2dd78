"""The numbers of a comparison: one per measure and checkpoint, with the difference to the first.

Probes and draws of the ball are the same for all checkpoints, so that differences of what they tell have the error of
paired draws. The tempered path's ladder depends on the checkpoint: its estimates count as independent. Its bracket
stands beside it, where each bound holds two standard errors of its own.

Which way a measure calls flatter stands beside it. None of these is invariant under the rescaling of ReLU layers
(Dinh et al. 2017): the same function can have any lambda_max, trace or local entropy. ``landscape.sharpness`` holds
some that are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from landscape.objective import ModelObjective
from landscape.results import Eigenpairs, LocalEntropy, Measures, SpectralDensity, paired_errors, standard_error
from landscape.sums import norm

__all__ = ["measure"]

# |lambda| up to this share of the largest |lambda| of all checkpoints counts as near zero
_NEAR_ZERO = 1e-3


def measure(
    objectives: Mapping[str, tuple[ModelObjective, ModelObjective]],
    results: Mapping[str, Any],
    reference_radius: float,
) -> Measures:
    """Tabulate what is known of each checkpoint.

    Args:
        objectives: by checkpoint, its train and test objective; the first is what others are compared with.
        results: the records ``checkpoint/eigenpairs``, ``/spectral_density``, ``/laplace``, ``/monte_carlo`` and
            ``/tempered`` of each, and ``/barrier_from_first`` of all but the first.
        reference_radius: one of the radii of the local entropies.
    """
    names = list(objectives)
    pairs: list[Eigenpairs] = [results[f"{name}/eigenpairs"] for name in names]
    densities: list[SpectralDensity] = [results[f"{name}/spectral_density"] for name in names]
    ends = [abs(d.atoms()[0][[0, -1]]).max() for d in densities]
    near_zero = _NEAR_ZERO * max(ends)

    rows = [_exact(*row) for row in _of_the_weights(objectives)]
    # an eigenvalue is as near to the value as its residual; what has not converged is not known
    residuals = [p.residuals[p.values.argmax()] if p.converged[p.values.argmax()] else np.nan for p in pairs]
    rows.append(_Row("largest eigenvalue", "lower", np.array([p.values.max() for p in pairs]), np.array(residuals)))
    rows.append(_sampled("Hessian trace", "lower", [d.size * d.per_probe(lambda t: t) for d in densities]))
    # No verdict from what follows: a Ritz value only bounds the smallest eigenvalue from above, and the spread over
    # probes leaves out where within the bulk a quadrature puts its nodes.
    lowest = np.array([d.atoms()[0][0] for d in densities])
    rows.append(_Row("most negative Ritz value", "", lowest, np.full(len(names), np.nan)))
    shares = {
        f"share of |eigenvalues| below {near_zero:.2g}": lambda t: abs(t) < near_zero,
        f"share of eigenvalues below {-near_zero:.2g}": lambda t: t <= -near_zero,
    }
    for name, inside in shares.items():
        rows.append(_sampled(name, "", [d.per_probe(inside) for d in densities]))
    for method in ("laplace", "monte_carlo", "tempered"):
        rows += _free_energy([results[f"{name}/{method}"] for name in names], reference_radius)
    if len(names) > 1:
        barriers = [results[f"{name}/barrier_from_first"] for name in names[1:]]
        heights, errors = [0.0, *(b.height for b in barriers)], [0.0, *(b.stderr for b in barriers)]
        rows.append(_Row("train loss barrier from the first", "", np.array(heights), np.array(errors)))
    return Measures(
        names=[row.name for row in rows],
        flatter=[row.flatter for row in rows],
        checkpoints=names,
        values=np.stack([row.values for row in rows]),
        stderr=np.stack([row.errors for row in rows]),
        differences=np.stack([row.values - row.values[0] for row in rows]),
        differences_stderr=np.stack([row.paired() for row in rows]),
    )


@dataclass
class _Row:
    """One measure of all checkpoints; an error of 0 means exact, NaN means not known."""

    name: str
    flatter: str
    values: np.ndarray  # (checkpoints,)
    errors: np.ndarray  # (checkpoints,)
    draws: np.ndarray | None = None  # (checkpoints, draws) where the value is their mean, and they pair up

    def paired(self) -> np.ndarray:
        """The error of each difference from the first: over paired draws, else of both together."""
        return paired_errors(self.errors, self.draws)


def _exact(name: str, values: list[float]) -> _Row:
    return _Row(name, "", np.array(values), np.zeros(len(values)))


def _sampled(name: str, flatter: str, draws: Sequence[np.ndarray]) -> _Row:
    stacked = np.stack(draws)
    return _Row(name, flatter, stacked.mean(axis=1), standard_error(stacked), stacked)


def _free_energy(entropies: Sequence[LocalEntropy], radius: float) -> Iterator[_Row]:
    """Its excess, and from the tempered path what it lies between."""
    first = entropies[0]
    at = int(np.flatnonzero(first.radius == radius)[0])
    name = f"excess free energy at radius {radius:g} ({first.method_name})"
    # what is not reliable is no number to compare: NaN, which no verdict is drawn from
    draws = [np.where(e.reliable[at], -e.contributions[at] / e.beta - e.loss, np.nan) for e in entropies]
    row = _sampled(name, "lower", draws)
    if first.method != "tempered":
        yield row
        return
    yield replace(row, draws=None)
    # told where the estimate is not reliable too, since populations that differ too much leave the bracket alone; where
    # the chains lag behind it does not hold, which the record's note says
    for bound, side in (("at least", 0), ("at most", 1)):
        ends = np.array([e.excess_bracket[side][at] for e in entropies])
        yield _Row(f"{name}, {bound}", "", ends, np.full(len(entropies), np.nan))


def _of_the_weights(
    objectives: Mapping[str, tuple[ModelObjective, ModelObjective]],
) -> Iterator[tuple[str, list[float]]]:
    """What takes no sampling: losses, norms, distances."""
    trains = [f for f, _ in objectives.values()]
    for split, fs in (("train", trains), ("test", [f for _, f in objectives.values()])):
        metrics = [f.metrics(f.theta) for f in fs]
        for key in metrics[0]:
            yield f"{split} {key}", [m[key] for m in metrics]
    moved = [f.theta - trains[0].theta for f in trains]
    yield "gradient norm", [norm(f.gradient(f.theta)) for f in trains]
    yield "weight norm", [norm(f.theta) for f in trains]
    yield "distance from the first", [norm(d) for d in moved]

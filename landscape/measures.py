"""The numbers of a comparison: one per measure and checkpoint, with the paired difference to the first.

Which way a measure calls flatter stands beside it. None of them is invariant under the rescaling of ReLU
layers (Dinh et al. 2017): the same function can have any lambda_max, trace or local entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from landscape.objective import ModelObjective
from landscape.results import Eigenpairs, LocalEntropy, Measures, SpectralDensity, standard_error

__all__ = ["measure"]

# |lambda| up to this share of the largest lambda_max of all checkpoints counts as near zero
_NEAR_ZERO = 1e-3


def measure(
    objectives: Mapping[str, tuple[ModelObjective, ModelObjective]],
    results: Mapping[str, Any],
    reference_radius: float,
) -> Measures:
    """Tabulate what is known of each checkpoint.

    Args:
        objectives: by checkpoint, its train and test objective; the first is what others are compared with.
        results: the records ``checkpoint/eigenpairs``, ``/spectral_density``, ``/laplace`` and
            ``/monte_carlo`` of each.
        reference_radius: one of the radii of the local entropies.
    """
    names = list(objectives)
    pairs: list[Eigenpairs] = [results[f"{name}/eigenpairs"] for name in names]
    densities: list[SpectralDensity] = [results[f"{name}/spectral_density"] for name in names]
    near_zero = _NEAR_ZERO * max(p.values.max() for p in pairs)
    rows = [*_of_the_weights(objectives)]

    def add(name: str, flatter: str, draws: Sequence[Any]) -> None:
        rows.append((name, flatter, np.array(draws, float).reshape(len(names), -1)))

    add("largest eigenvalue", "lower", [p.values.max() for p in pairs])
    # a Ritz value is never below the smallest eigenvalue, and most often near it
    add("most negative Ritz value", "", [d.atoms()[0][0] for d in densities])
    add("Hessian trace", "lower", [d.size * d.per_probe(lambda t: t) for d in densities])
    add(
        f"share of |eigenvalues| below {near_zero:.2g}",
        "higher",
        [d.per_probe(lambda t: abs(t) < near_zero) for d in densities],
    )
    add(
        f"share of eigenvalues below {-near_zero:.2g}",
        "",
        [d.per_probe(lambda t: t <= -near_zero) for d in densities],
    )
    for method in ("laplace", "monte_carlo"):
        entropies: list[LocalEntropy] = [results[f"{name}/{method}"] for name in names]
        at = int(np.flatnonzero(entropies[0].radius == reference_radius)[0])
        add(
            f"excess free energy at radius {reference_radius:g} ({entropies[0].method_name})",
            "lower",
            [-e.contributions[at] / e.beta - e.loss for e in entropies],
        )
    draws = [row[2] for row in rows]
    return Measures(
        names=[row[0] for row in rows],
        flatter=[row[1] for row in rows],
        checkpoints=names,
        values=np.stack([d.mean(axis=1) for d in draws]),
        stderr=np.stack([standard_error(d) for d in draws]),
        differences=np.stack([(d - d[0]).mean(axis=1) for d in draws]),
        differences_stderr=np.stack([standard_error(d - d[0]) for d in draws]),
    )


Row = tuple[str, str, np.ndarray]  # name, which way is flatter, (checkpoints, paired draws)


def _of_the_weights(
    objectives: Mapping[str, tuple[ModelObjective, ModelObjective]],
) -> Iterator[Row]:
    """What takes no sampling: losses, norms, distances."""
    trains = [f for f, _ in objectives.values()]
    for split, fs in (("train", trains), ("test", [f for _, f in objectives.values()])):
        metrics = [f.metrics(f.theta) for f in fs]
        for key in metrics[0]:
            yield f"{split} {key}", "", np.array([[m[key]] for m in metrics])
    gradients = [f.gradient(f.theta) for f in trains]
    moved = [f.theta - trains[0].theta for f in trains]
    for name, vectors in (
        ("gradient norm", gradients),
        ("weight norm", [f.theta for f in trains]),
        ("distance from the first", moved),
    ):
        yield name, "", np.array([[float(v.norm())] for v in vectors])

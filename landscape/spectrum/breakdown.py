"""The spectrum broken down: by layer, and over disjoint parts of the data.

The Hessian over some parameters alone is a diagonal block of the whole, so its largest eigenvalue is at most the
whole's, and the blocks' traces sum to the whole's.

The data are a sample. What another sample of N examples would give differs by about s / sqrt(B), with s the standard
deviation over B disjoint parts of N / B examples each: to first order every such number is a mean over examples. The
largest eigenvalue is also biased upwards on smaller samples (it is convex in H): the parts' mean exceeds it.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray

from landscape.objective import ModelObjective
from landscape.operators import Hessian
from landscape.progress import Progress, silent
from landscape.randomness import generator_or_new
from landscape.results import SpectralDensity, standard_error
from landscape.spectrum.density import spectral_density
from landscape.spectrum.eigenpairs import eigenpairs

__all__ = ["OverData", "spectrum_by_layer", "spectrum_over_data"]


def spectrum_by_layer(
    objective: ModelObjective,
    layers: Mapping[str, Sequence[str]] | None = None,
    *,
    steps: int = 30,
    probes: int = 4,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> xarray.Dataset:
    """One table of the Hessian's diagonal blocks.

    Args:
        objective: the whole network's.
        layers: what to call each layer, and the patterns of its parameters' names, as ``objective.restrict`` takes
            them. Default: each module with parameters of its own.
        steps: Lanczos steps per probe.
        probes: of each block's density.
        generator: of all random vectors. Default: seeded by the operating system.
        progress: called as ``progress(layers, description)``.

    Returns:
        A Dataset over ``layer``: ``size``, ``lambda_max``, ``lambda_min`` (each with its residual), ``trace``,
        ``trace_stderr``, ``negative`` (share of eigenvalues below -1e-3 of the block's largest |lambda|).

    Raises:
        ValueError: a pattern fits no parameter.
    """
    generator = generator_or_new(generator)
    rows: dict[str, list[float]] = {}
    layers = _modules(objective) if layers is None else layers
    for patterns in progress(list(layers.values()), "layers"):
        block = Hessian(objective.restrict(*patterns))
        ends = eigenpairs(block, min(2, block.size), which="both", copies=False, generator=generator)
        density = spectral_density(block, steps=steps, probes=probes, generator=generator)
        trace, error = density.trace()
        row = {
            "size": block.size,
            "lambda_max": ends.values[0],
            "lambda_max_residual": ends.residuals[0],
            "lambda_min": ends.values[-1],
            "lambda_min_residual": ends.residuals[-1],
            "trace": trace,
            "trace_stderr": error,
            "negative": density.summary()["negative"],
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return xarray.Dataset({name: ("layer", np.array(values)) for name, values in rows.items()}, {"layer": list(layers)})


def _modules(objective: ModelObjective) -> dict[str, list[str]]:
    modules: dict[str, list[str]] = {}
    for name in objective.space.names:
        modules.setdefault(name.rpartition(".")[0] or name, []).append(glob.escape(name))
    return modules


@dataclass(frozen=True)
class OverData:
    """The spectrum on each of B disjoint parts of the data."""

    lambda_max: np.ndarray  # (B,)
    trace: np.ndarray  # (B,)
    densities: tuple[SpectralDensity, ...]

    @property
    def lambda_max_stderr(self) -> float:
        """Standard error of the largest eigenvalue on all the data, as a sample."""
        return float(standard_error(self.lambda_max))

    @property
    def trace_stderr(self) -> float:
        """Standard error of the trace on all the data, as a sample; it includes the error of the probes."""
        return float(standard_error(self.trace))

    def density_stderr(self, grid: np.ndarray, width: float) -> np.ndarray:
        """Standard error of the smoothed density on all the data, at each point of ``grid``."""
        return standard_error(np.stack([density.density(grid, width) for density in self.densities]).T)


def spectrum_over_data(
    objective: ModelObjective,
    parts: int = 8,
    *,
    steps: int = 30,
    probes: int = 2,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> OverData:
    """How much the spectrum varies with the sample of the data, from disjoint parts of it.

    Args:
        objective: over all the data.
        parts: B, at least 2.
        steps: Lanczos steps per probe.
        probes: of each density, the same for all parts.
        generator: of all random vectors. Default: seeded by the operating system.
        progress: called as ``progress(parts, description)``.

    Raises:
        ValueError: fewer than 2 parts, or more than there are examples.
    """
    if parts < 2:
        raise ValueError(f"parts={parts}: give at least 2, since their spread is the error")
    seed = int(torch.randint(2**62, (1,), generator=generator_or_new(generator)))
    tops, traces, densities = [], [], []
    for part in progress(objective.parts(parts), "parts of the data"):
        # common random numbers: what differs between parts is the data alone
        same = torch.Generator().manual_seed(seed)
        tops.append(eigenpairs(Hessian(part), 1, which="largest", copies=False, generator=same).values[0])
        densities.append(spectral_density(Hessian(part), steps=steps, probes=probes, generator=same))
        traces.append(densities[-1].trace()[0])
    return OverData(lambda_max=np.array(tops), trace=np.array(traces), densities=tuple(densities))

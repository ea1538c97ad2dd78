"""How closely checkpoints are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["CompareSettings"]


@dataclass(frozen=True)
class CompareSettings:
    """How closely to look. The defaults suit networks of up to about 1e5 weights on two cores."""

    seed: int = 0  # of probes, perturbations, directions and the choice of examples
    examples: int | None = None  # training examples to use; None: all
    weight_decay: float = 0.0  # adds weight_decay/2 ||theta||^2 to the loss looked at
    eigenvalues: int = 10  # largest ones to find, and to take out of the spectral density
    steps: int = 80  # Lanczos steps per probe of the spectral density
    probes: int = 10
    radii: tuple[float, ...] = (0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # of the local entropy
    samples: int = 64  # Monte Carlo draws per radius
    smc_radii: tuple[float, ...] | None = None  # None: the middle one of `radii` and the next
    smc_chains: int = 2  # of each population of sequential Monte Carlo
    smc_moves: int = 8  # of each chain at each temperature that its pilot run finds
    smc_tol: float = 0.2  # width of its bracket asked for, relative to |F~|
    budget: int = 2_500  # gradients at most for each of its radii
    line_points: int = 41
    band_directions: int = 8  # random lines through each checkpoint
    plane_points: int = 25

    def __post_init__(self) -> None:
        """Refuse what would fail only after minutes of work."""
        for name, radii in (("radii", self.radii), ("smc_radii", self.radii_of_smc)):
            if not radii or not all(0 < radius < float("inf") for radius in radii):
                raise ValueError(f"{name}={radii}: give at least one, all positive")
        if self.reference_radius not in self.radii_of_smc:
            raise ValueError(
                f"smc_radii={self.smc_radii}: the middle one of radii, {self.reference_radius:g}, must be "
                "among them, since it is that of the table"
            )
        counts = (
            "eigenvalues",
            "steps",
            "probes",
            "samples",
            "smc_moves",
            "budget",
            "line_points",
            "band_directions",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        for name in ("smc_chains", "plane_points"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 2")
        if not self.smc_tol > 0:
            raise ValueError(f"smc_tol={self.smc_tol}: give a positive number")

    def seeded(self) -> torch.Generator:
        """Begun anew for every analysis of every checkpoint: common random numbers."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def chosen(self) -> dict[str, Any]:
        """Which training examples, as ``Problem.data`` and ``Problem.objective`` take it."""
        return {"examples": self.examples, "seed": self.seed}

    @property
    def reference_radius(self) -> float:
        """The radius in the table of measures: the middle one."""
        return sorted(self.radii)[len(self.radii) // 2]

    @property
    def radii_of_smc(self) -> tuple[float, ...]:
        """At which sequential Monte Carlo is run: about where the other estimates part."""
        if self.smc_radii is not None:
            return self.smc_radii
        middle = len(self.radii) // 2
        return tuple(sorted(self.radii)[middle : middle + 2])

"""The diagnostics of sequential Monte Carlo: what says that its estimate is not reliable, or that there is none."""

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from landscape import local_entropy
from landscape.local_entropy.smc.potential import Potential
from landscape.local_entropy.smc.run import run_smc
from landscape.progress import silent
from tests.problems import DOUBLE, Quadratic, seeded, symmetric


def _sharp(n=30):
    """Three sharp directions among flat and downward ones."""
    values = np.concatenate([[300.0, 80.0, 20.0], np.linspace(-0.3, 0.5, n - 3)])
    return Quadratic(symmetric(values), torch.full((n,), 0.2, dtype=DOUBLE), constant=0.3)


def test_chains_that_are_still_burning_in_are_flagged():
    """Two moves at each temperature are too few here; the bracket is then too low, and is said to be."""
    f = Quadratic(symmetric(np.geomspace(1, 3000, 60)), torch.full((60,), 0.1, dtype=DOUBLE))
    x = torch.zeros(60, dtype=DOUBLE)
    options = {"gamma": 1.0, "beta": 50.0, "method": "smc", "generator": seeded(0), "budget": 200_000}
    hasty = local_entropy(f, x, **options, pairs=0, moves=2, chains=16, tol=1.0)
    assert not hasty.reliable
    assert "give more moves" in hasty.note
    assert hasty.drift < -3 * hasty.drift_stderr
    patient = local_entropy(f, x, **options, pairs=60)
    assert patient.reliable
    assert abs(patient.value - f.local_entropy(x, 1.0, 50.0)) < 4 * patient.stderr + 1e-6


def test_the_diagnostics_of_chains_are_those_of_arviz():
    f, x, options = _sharp(), torch.zeros(30, dtype=DOUBLE), {"populations": 4, "chains": 2, "moves": 8, "tol": 1.0}
    found = local_entropy(f, x, radius=0.1, beta=20.0, method="smc", pairs=0, **options, generator=seeded(0))
    run = run_smc(Potential(f, x, 0.1, 20.0), **options, budget=60_000, generator=seeded(0), progress=silent)
    chains = np.concatenate([population.final_psi for population in run.populations])
    assert chains.shape == (4 * 2, 2 * 8)
    assert found.r_hat == array_stats.rhat(chains, chain_axis=0, draw_axis=1)
    assert found.autocorrelation_time == pytest.approx(chains.size / array_stats.ess(chains, chain_axis=0, draw_axis=1))
    assert found.step_loss[-1] == pytest.approx(np.mean([population.loss[-1] for population in run.populations]))


def test_chains_that_do_not_mix_are_flagged_by_r_hat():
    """Two wells of another depth, between which no chain crosses: each chain samples its own."""

    class Wells(Quadratic):
        def value(self, x):
            return float((x**2 - 1) ** 2 / 4 + 0.002 * x)

        def value_and_gradient(self, x):
            return self.value(x), x * (x**2 - 1) + 0.002

    f, x = Wells(torch.eye(1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)), torch.zeros(1, dtype=DOUBLE)
    options = {"beta": 400.0, "method": "smc", "pairs": 0, "tol": 1.0, "generator": seeded(0)}
    apart, one = (local_entropy(f, x + at, radius=radius, **options) for at, radius in ((0.0, 1.0), (1.0, 0.05)))
    assert apart.r_hat > 1.2
    assert "R-hat is above 1.2" in apart.note
    assert "R-hat" not in one.note


def test_most_particles_are_effective_at_every_temperature():
    f, x = _sharp(), torch.zeros(30, dtype=DOUBLE)
    found = local_entropy(f, x, gamma=[20.0, 2.0], beta=20.0, method="smc", generator=seeded(0))
    effective = found.step_relative_ess[:, 1:]
    assert ((effective[np.isfinite(effective)] > 0.5) & (effective[np.isfinite(effective)] <= 1)).all()


def test_a_radius_for_which_the_budget_does_not_last_is_nan_and_said_to_be():
    f, x = _sharp(), torch.zeros(30, dtype=DOUBLE)
    options = {"beta": 20.0, "method": "smc", "pairs": 0, "moves": 8, "budget": 1_200}
    found = local_entropy(f, x, gamma=[5e4, 2.0], **options, generator=seeded(0))
    assert np.isfinite(found.value).tolist() == [True, False]
    assert found.reliable.tolist() == [True, False]
    assert found.shift.isfinite().all(dim=1).tolist() == [True, False]
    assert "no estimate at radius 0.158: " in found.note
    nothing = local_entropy(f, x, gamma=[2.0, 1.0], **options, generator=seeded(0))
    assert np.isnan(nothing.value).all()
    assert nothing.cost.gradients > 0
    with pytest.raises(ValueError, match="budget"):
        local_entropy(f, x, gamma=2.0, **options, generator=seeded(0))

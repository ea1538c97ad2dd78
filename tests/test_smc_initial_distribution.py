"""The initial distribution of sequential Monte Carlo: the Gaussian of the top eigenpairs."""

import numpy as np
import pytest
import torch

from landscape import Hessian, eigenpairs, local_entropy
from landscape.local_entropy.smc.potential import Potential
from landscape.local_entropy.smc.schedule import find_schedule
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, symmetric


def _sharp(n=30):
    """Three sharp directions among flat and downward ones."""
    values = np.concatenate([[300.0, 80.0, 20.0], np.linspace(-0.3, 0.5, n - 3)])
    return Quadratic(symmetric(values), torch.full((n,), 0.2, dtype=DOUBLE), constant=0.3)


def test_with_all_positive_eigenpairs_of_a_quadratic_psi_is_zero():
    """psi = phi - Q is 0, and the known normaliser is F~."""
    f, gamma, beta = Quadratic(symmetric([3.0, 1.0, 0.5]), torch.ones(3, dtype=DOUBLE), 0.3), 2.0, 5.0
    x = torch.zeros(3, dtype=DOUBLE)
    pairs = eigenpairs(Hessian(f, x), 3, which="largest", tol=1e-10, generator=seeded(0))
    potential = Potential(f, x, (beta * gamma) ** -0.5, beta, pairs)
    # rounding and the eigenpairs' residuals
    assert potential.log_normalizer == pytest.approx(f.local_entropy(x, gamma, beta), abs=1e-8)
    at = potential.sample_initial(50, seeded(1))
    np.testing.assert_allclose(at.psi, 0, atol=1e-8)
    assert at.gradient.norm() < 1e-7


def test_psi_keeps_its_digits_however_large_the_loss_is_in_float32():
    """A constant of beta f adds nothing to psi = phi - Q, and is taken off log Z_b."""

    class Single(Quadratic):
        def __post_init__(self):
            super().__post_init__()
            self.dtype = torch.float32

        def gradient(self, theta):
            return super().gradient(theta.double()).float()

        def value(self, theta):
            offset = theta.double() - self.minimum
            return self.constant + float(offset @ self.hessian @ offset) / 2

        def value_and_gradient(self, theta):
            return self.value(theta), self.gradient(theta)

    hessian, near = symmetric([3.0, 1.0, 0.5]), torch.full((3,), 1e-3, dtype=DOUBLE)
    x, psi, normalisers = torch.zeros(3), [], []
    pairs = eigenpairs(hessian, 2, which="largest", generator=seeded(0))
    for constant in (0.0, 1.0):
        potential = Potential(Single(hessian, near, constant), x, 1e-3, 1.2e6, pairs)
        psi.append(potential.sample_initial(20, seeded(1)).psi)
        normalisers.append(potential.log_normalizer)
    # a few units in the last place of 1.2e6 in float64, 2.3e-10; in float32 one is 0.125
    np.testing.assert_allclose(psi[1], psi[0], rtol=0, atol=1e-9)
    assert normalisers[1] - normalisers[0] == pytest.approx(-1.2e6, abs=1e-9)


def test_the_gradient_is_the_derivative_of_psi():
    f, x = LogisticRegression(), torch.full((8,), 0.3, dtype=DOUBLE)
    pairs = eigenpairs(Hessian(f, x), 3, which="largest", generator=seeded(0))
    potential = Potential(f, x, 0.7, 60.0, pairs)
    y, v, h = (
        torch.randn(1, 8, generator=seeded(1), dtype=DOUBLE),
        torch.randn(1, 8, generator=seeded(2), dtype=DOUBLE),
        1e-6,
    )
    difference = (potential(y + h * v).psi - potential(y - h * v).psi) / (2 * h)
    assert float((potential(y).gradient * v).sum()) == pytest.approx(float(difference[0]), rel=1e-7)  # h^2 and eps / h


def test_both_initial_distributions_give_the_same_entropy_and_the_nearer_one_by_fewer_temperatures():
    f, gamma, beta = _sharp(), 2.0, 20.0
    x = torch.zeros(30, dtype=DOUBLE)
    exact = f.local_entropy(x, gamma, beta)
    far, near = (
        local_entropy(f, x, gamma=gamma, beta=beta, method="smc", pairs=k, generator=seeded(0)) for k in (0, 3)
    )
    for found in (far, near):
        assert found.lower <= exact <= found.upper
        assert abs(found.value - exact) < 4 * found.stderr
    assert near.schedule.size < far.schedule.size / 2
    assert near.stderr < far.stderr
    # a coordinate's spread is at most 1/sqrt(beta (gamma - 0.3)) = 0.17: each of the 32 chains gives at least one draw
    shift = torch.linalg.solve(f.hessian + gamma * torch.eye(30, dtype=DOUBLE), f.hessian @ f.minimum)
    assert (near.shift - shift).square().mean().sqrt() < 0.17 / 32**0.5


def test_eigenpairs_that_are_not_positive_or_not_converged_are_left_out():
    f, x = _sharp(), torch.zeros(30, dtype=DOUBLE)
    found = local_entropy(f, x, gamma=2.0, beta=20.0, method="smc", pairs=30, generator=seeded(0))
    assert abs(found.value - f.local_entropy(x, 2.0, 20.0)) < 4 * found.stderr


def test_away_from_the_minimum_the_start_is_no_farther_than_q_though_sharp_directions_are_left_out():
    f = Quadratic(symmetric(np.geomspace(1, 300, 30)), torch.ones(30, dtype=DOUBLE))
    x, schedules = torch.zeros(30, dtype=DOUBLE), []
    for k in (0, 3, 10):
        pairs = eigenpairs(Hessian(f, x), k, which="largest", generator=seeded(0)) if k else None
        schedules.append(find_schedule(Potential(f, x, 40**-0.5, 20.0, pairs), 8, 8, 10**5, seeded(1)).s)
    assert len(schedules[0]) > len(schedules[1]) > len(schedules[2])

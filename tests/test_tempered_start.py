"""The path begun at the Gaussian of the top eigenpairs, what tells that it lags behind, and its biased sibling."""

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from torch import nn

from landscape import Hessian, ModelObjective, eigenpairs, local_entropy
from landscape.local_entropy.ladder import find_ladder
from landscape.local_entropy.path import follow
from landscape.local_entropy.potential import Potential
from landscape.progress import silent
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, symmetric, tiny_objective


def _sharp(n=30):
    """Three sharp directions among flat and downward ones."""
    values = np.concatenate([[300.0, 80.0, 20.0], np.linspace(-0.3, 0.5, n - 3)])
    return Quadratic(symmetric(values), torch.full((n,), 0.2, dtype=DOUBLE), constant=0.3)


def test_with_all_positive_eigenpairs_of_a_quadratic_nothing_is_left_to_climb():
    """psi = phi - Q is 0, and the known normaliser is F~."""
    f, gamma, beta = Quadratic(symmetric([3.0, 1.0, 0.5]), torch.ones(3, dtype=DOUBLE), 0.3), 2.0, 5.0
    x = torch.zeros(3, dtype=DOUBLE)
    pairs = eigenpairs(Hessian(f, x), 3, which="largest", tol=1e-10, generator=seeded(0))
    potential = Potential(f, x, (beta * gamma) ** -0.5, beta, pairs)
    # rounding and the eigenpairs' residuals
    assert potential.log_normaliser == pytest.approx(f.local_entropy(x, gamma, beta), abs=1e-8)
    at = potential.draw(50, seeded(1))
    np.testing.assert_allclose(at.psi, 0, atol=1e-8)
    assert at.slope.norm() < 1e-7


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
        psi.append(potential.draw(20, seeded(1)).psi)
        normalisers.append(potential.log_normaliser)
    # a few units in the last place of 1.2e6 in float64, 2.3e-10; in float32 one is 0.125
    np.testing.assert_allclose(psi[1], psi[0], rtol=0, atol=1e-9)
    assert normalisers[1] - normalisers[0] == pytest.approx(-1.2e6, abs=1e-9)


def test_the_slope_is_the_derivative_of_psi():
    f, x = LogisticRegression(), torch.full((8,), 0.3, dtype=DOUBLE)
    pairs = eigenpairs(Hessian(f, x), 3, which="largest", generator=seeded(0))
    potential = Potential(f, x, 0.7, 60.0, pairs)
    y, v, h = (
        torch.randn(1, 8, generator=seeded(1), dtype=DOUBLE),
        torch.randn(1, 8, generator=seeded(2), dtype=DOUBLE),
        1e-6,
    )
    difference = (potential(y + h * v).psi - potential(y - h * v).psi) / (2 * h)
    assert float((potential(y).slope * v).sum()) == pytest.approx(float(difference[0]), rel=1e-7)  # h^2 and eps / h


def test_both_beginnings_lead_to_the_same_entropy_and_the_nearer_one_by_fewer_rungs():
    f, gamma, beta = _sharp(), 2.0, 20.0
    x = torch.zeros(30, dtype=DOUBLE)
    exact = f.local_entropy(x, gamma, beta)
    far, near = (
        local_entropy(f, x, gamma=gamma, beta=beta, method="tempered", pairs=k, generator=seeded(0)) for k in (0, 3)
    )
    for found in (far, near):
        assert found.lower <= exact <= found.upper
        assert abs(found.value - exact) < 4 * found.stderr
    assert near.ladder.size < far.ladder.size / 2
    assert near.stderr < far.stderr
    # a coordinate's spread is at most 1/sqrt(beta (gamma - 0.3)) = 0.17: each of the 32 chains gives at least one draw
    shift = torch.linalg.solve(f.hessian + gamma * torch.eye(30, dtype=DOUBLE), f.hessian @ f.minimum)
    assert (near.shift - shift).square().mean().sqrt() < 0.17 / 32**0.5


def test_eigenpairs_that_are_not_positive_or_not_converged_are_left_out():
    f, x = _sharp(), torch.zeros(30, dtype=DOUBLE)
    found = local_entropy(f, x, gamma=2.0, beta=20.0, method="tempered", pairs=30, generator=seeded(0))
    assert abs(found.value - f.local_entropy(x, 2.0, 20.0)) < 4 * found.stderr


def test_chains_that_lag_behind_are_told():
    """One move a rung of a small step cannot follow; the bracket is then too low, and is said to be."""
    f = Quadratic(symmetric(np.geomspace(1, 3000, 60)), torch.full((60,), 0.1, dtype=DOUBLE))
    x = torch.zeros(60, dtype=DOUBLE)
    options = {"gamma": 1.0, "beta": 50.0, "method": "tempered", "generator": seeded(0), "budget": 200_000}
    hasty = local_entropy(f, x, **options, pairs=0, moves=2, chains=16, tol=1.0)
    assert not hasty.reliable
    assert "give more moves" in hasty.note
    assert hasty.drift < -3 * hasty.drift_stderr
    patient = local_entropy(f, x, **options, pairs=60)
    assert patient.reliable
    assert abs(patient.value - f.local_entropy(x, 1.0, 50.0)) < 4 * patient.stderr + 1e-6


def test_all_methods_at_once_are_each_as_if_alone():
    f = tiny_objective()
    options = {"radius": [0.05, 0.1], "moves": 8, "tol": 0.5}
    together = local_entropy(f, f.theta, method="all", **options, generator=seeded(3))
    assert list(together) == ["laplace", "monte_carlo", "tempered"]
    for method, found in together.items():
        alone = local_entropy(f, f.theta, method=method, **options, generator=seeded(3))
        np.testing.assert_array_equal(found.value, alone.value)


def test_a_loss_that_differs_when_asked_again_is_refused():
    class Dice(Quadratic):
        def value(self, theta):
            return float(torch.rand(1))

    with pytest.raises(ValueError, match="the objective is random"):
        local_entropy(
            Dice(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)), torch.zeros(2, dtype=DOUBLE), radius=1
        )


def _linear_regression():
    """f(w) = 1/2 mean (x.w - y)^2, a quadratic whose examples differ."""
    x = torch.randn(64, 3, generator=seeded(0), dtype=DOUBLE)
    y = x @ torch.tensor([[1.0], [-0.5], [0.2]], dtype=DOUBLE) + 0.3 * torch.randn(
        64, 1, generator=seeded(1), dtype=DOUBLE
    )
    model = nn.Linear(3, 1, bias=False).double()
    f = ModelObjective(model, lambda outputs, batch: ((outputs - batch[1]) ** 2).mean() / 2, [(x, y)])
    hessian = x.T @ x / 64
    minimum = torch.linalg.solve(hessian, x.T @ y / 64)[:, 0]
    return f, Quadratic(hessian, minimum, f.value(minimum))


def test_stochastic_gradients_come_near_the_truth_and_tell_their_bias():
    f, exact = _linear_regression()
    x = exact.minimum + 0.1
    found = local_entropy(
        f, x, radius=0.3, beta=64.0, method="sgld", parts=4, moves=30, populations=8, generator=seeded(0)
    )
    truth = exact.local_entropy(x, 1 / (64 * 0.3**2), 64.0)
    assert not found.reliable
    assert "biased" in found.note
    # within four errors and twice the bias that it tells
    assert abs(found.value - truth) < 4 * found.stderr + 2 * abs(found.step_bias)
    assert abs(found.value - truth) < 0.1 * abs(truth)
    assert found.lower < truth < found.upper
    assert 0 < found.step_bias_stderr < abs(found.step_bias)
    # 17 rungs of twice 30 moves, by h and twice as many by h/2, of a fourth of the data each
    assert found.cost.gradients == 8 * 17 * 2 * 30 * 3 // 4


def test_stochastic_moves_to_a_loss_that_is_not_finite_are_undone_and_counted():
    class Walled(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=DOUBLE))

        def forward(self, x):
            return torch.sqrt(self.w + 0.5) * x  # NaN below -0.5

    f = ModelObjective(Walled(), nn.MSELoss(), [(torch.ones(8, 1, dtype=DOUBLE), torch.ones(8, 1, dtype=DOUBLE))])
    found = local_entropy(
        f, f.theta, radius=0.5, beta=8.0, method="sgld", parts=2, moves=20, populations=4, generator=seeded(0)
    )
    assert np.isfinite([found.value, found.lower, found.upper]).all()
    assert "moves led to a loss that is not finite" in found.note


def test_only_data_can_be_parted():
    with pytest.raises(ValueError, match="method='sgld' for a Quadratic"):
        local_entropy(_sharp(), torch.zeros(30, dtype=DOUBLE), radius=1.0, method="sgld")
    f = tiny_objective()
    with pytest.raises(ValueError, match="parts=1000000: give 1 to 50"):
        local_entropy(f, f.theta, radius=1.0, method="sgld", parts=10**6)


def test_the_diagnostics_of_chains_are_those_of_arviz():
    f, x, options = _sharp(), torch.zeros(30, dtype=DOUBLE), {"populations": 4, "chains": 2, "moves": 8, "tol": 1.0}
    found = local_entropy(f, x, radius=0.1, beta=20.0, method="tempered", pairs=0, **options, generator=seeded(0))
    run = follow(Potential(f, x, 0.1, 20.0), **options, budget=60_000, generator=seeded(0), progress=silent)
    chains = np.concatenate([climb.chains for climb in run.climbs])
    assert chains.shape == (4 * 2, 2 * 8)
    assert found.r_hat == array_stats.rhat(chains, chain_axis=0, draw_axis=1)
    assert found.autocorrelation == pytest.approx(chains.size / array_stats.ess(chains, chain_axis=0, draw_axis=1))
    assert found.rung_loss[-1] == pytest.approx(np.mean([climb.loss[-1] for climb in run.climbs]))


def test_chains_that_do_not_cover_the_measure_are_told_by_r_hat():
    """Two wells of another depth, between which no chain crosses: each chain tells of its own."""

    class Wells(Quadratic):
        def value(self, x):
            return float((x**2 - 1) ** 2 / 4 + 0.002 * x)

        def value_and_gradient(self, x):
            return self.value(x), x * (x**2 - 1) + 0.002

    f, x = Wells(torch.eye(1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)), torch.zeros(1, dtype=DOUBLE)
    options = {"beta": 400.0, "method": "tempered", "pairs": 0, "tol": 1.0, "generator": seeded(0)}
    apart, one = (local_entropy(f, x + at, radius=radius, **options) for at, radius in ((0.0, 1.0), (1.0, 0.05)))
    assert apart.r_hat > 1.2
    assert "R-hat is above 1.2" in apart.note
    assert "R-hat" not in one.note


def test_away_from_the_minimum_the_start_is_no_farther_than_q_though_sharp_directions_are_left_out():
    f = Quadratic(symmetric(np.geomspace(1, 300, 30)), torch.ones(30, dtype=DOUBLE))
    x, ladders = torch.zeros(30, dtype=DOUBLE), []
    for k in (0, 3, 10):
        pairs = eigenpairs(Hessian(f, x), k, which="largest", generator=seeded(0)) if k else None
        ladders.append(find_ladder(Potential(f, x, 40**-0.5, 20.0, pairs), 8, 8, 10**5, seeded(1)).s)
    assert len(ladders[0]) > len(ladders[1]) > len(ladders[2])


def test_every_rung_is_carried_by_most_of_its_particles():
    f, x = _sharp(), torch.zeros(30, dtype=DOUBLE)
    found = local_entropy(f, x, gamma=[20.0, 2.0], beta=20.0, method="tempered", generator=seeded(0))
    effective = found.rung_effective[:, 1:]
    assert ((effective[np.isfinite(effective)] > 0.5) & (effective[np.isfinite(effective)] <= 1)).all()


def test_a_radius_for_which_the_budget_does_not_last_is_nan_and_said_to_be():
    f, x = _sharp(), torch.zeros(30, dtype=DOUBLE)
    options = {"beta": 20.0, "method": "tempered", "pairs": 0, "moves": 8, "budget": 1_200}
    found = local_entropy(f, x, gamma=[5e4, 2.0], **options, generator=seeded(0))
    assert np.isfinite(found.value).tolist() == [True, False]
    assert found.reliable.tolist() == [True, False]
    assert found.shift.isfinite().all(dim=1).tolist() == [True, False]
    assert "nothing at radius 0.158: " in found.note
    nothing = local_entropy(f, x, gamma=[2.0, 1.0], **options, generator=seeded(0))
    assert np.isnan(nothing.value).all()
    assert nothing.cost.gradients > 0
    with pytest.raises(ValueError, match="budget"):
        local_entropy(f, x, gamma=2.0, **options, generator=seeded(0))

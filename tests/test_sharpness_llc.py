import numpy as np
import pytest
import torch

from landscape import sharpness
from landscape.results import Sharpness
from tests.problems import DOUBLE, Quadratic, seeded, symmetric, tiny_objective

N = 1000
N_BETA = N / np.log(N)


def _within(found: Sharpness, truth: float) -> bool:
    # the error of 8 chains follows Student's t with 7 degrees of freedom: beyond 4.5 once in 350, and seeds are fixed
    return abs(found.value - truth) < 4.5 * found.stderr


@pytest.mark.parametrize("gamma", [1.0, 100.0, 1000.0])
def test_a_quadratic_has_half_the_weights_that_the_localisation_does_not_hold(gamma):
    h = np.array([4.0, 2.0, 1.0, 0.0])  # the last is free of the loss
    f = Quadratic(symmetric(h), torch.ones(4, dtype=DOUBLE), constant=0.3)
    found = sharpness.local_learning_coefficient(
        f, f.minimum, gamma=gamma, examples=N, chains=8, draws=500, generator=seeded(0)
    )
    assert _within(found, 0.5 * float((N_BETA * h / (N_BETA * h + gamma)).sum()))
    assert found.stderr < 0.1


def test_it_is_half_the_number_of_weights_of_a_regular_model_as_the_localisation_vanishes():
    for n in (2, 10):
        f = Quadratic(symmetric(np.linspace(1, 3, n)), torch.zeros(n, dtype=DOUBLE))
        found = sharpness.local_learning_coefficient(
            f, f.minimum, gamma=1e-3, examples=N, chains=8, burn_in=300, draws=1000, generator=seeded(0)
        )
        assert _within(found, n / 2)
        assert found.stderr < 0.05 * n / 2


def test_it_is_a_quarter_for_a_fourth_power():
    """By the virial theorem N beta <w^4> = 1/4, less than the 1/2 of a regular weight."""

    class FourthPower(Quadratic):
        def value_and_gradient(self, theta):
            return float(theta[0] ** 4), 4 * theta**3

    f = FourthPower(torch.zeros(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE))
    found = sharpness.local_learning_coefficient(
        f, f.minimum, gamma=0.01, examples=N, chains=8, burn_in=300, draws=1500, generator=seeded(0)
    )
    assert _within(found, 0.25)
    assert found.stderr < 0.02


def test_its_error_is_the_spread_of_repeated_runs():
    f = Quadratic(symmetric([4.0, 2.0, 1.0]), torch.zeros(3, dtype=DOUBLE))
    runs = [
        sharpness.local_learning_coefficient(f, f.minimum, examples=N, draws=50, generator=seeded(seed))
        for seed in range(20)
    ]
    spread = np.std([run.value for run in runs], ddof=1)
    told = np.mean([run.stderr for run in runs])
    # both deviations are of few numbers: 20 runs tell theirs to 16 %, each error of 4 chains is known to 40 %
    assert told == pytest.approx(spread, rel=0.5)


def test_what_it_says_of_itself():
    f = tiny_objective()
    found = sharpness.local_learning_coefficient(f, f.theta, chains=3, burn_in=20, draws=10, generator=seeded(0))
    assert found.settings["examples"] == 50  # the objective's own
    assert found.name == "local learning coefficient, gamma 100, N 50"
    assert found.cost.gradients == 1 + 3 * 30
    assert found.contributions.shape == (3,)
    assert 0 < found.diagnostics["acceptance"] <= 1
    again = sharpness.local_learning_coefficient(f, f.theta, chains=3, burn_in=20, draws=10, generator=seeded(0))
    np.testing.assert_array_equal(again.contributions, found.contributions)


def test_weights_with_a_loss_that_is_not_finite_have_no_density():
    class Cliff(Quadratic):
        def value_and_gradient(self, theta):
            value, gradient = super().value_and_gradient(theta)
            return (float("nan") if theta[0] > 0 else value), gradient

    f = Cliff(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    found = sharpness.local_learning_coefficient(f, f.minimum, examples=N, chains=8, draws=300, generator=seeded(0))
    assert found.diagnostics["not_finite"] > 0
    assert _within(found, N_BETA / (N_BETA + 100))  # half a Gaussian has the same mean square


def test_bad_input_is_named():
    f = Quadratic(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    broken = Quadratic(float("nan") * torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    for call, message in (
        (lambda: sharpness.local_learning_coefficient(f, f.minimum), "examples=None: give the number"),
        (lambda: sharpness.local_learning_coefficient(f, f.minimum, examples=1), "examples=1"),
        (lambda: sharpness.local_learning_coefficient(f, f.minimum, examples=N, gamma=0.0), r"gamma=0\.0"),
        (lambda: sharpness.local_learning_coefficient(f, f.minimum, examples=N, draws=1), "draws=1"),
        (lambda: sharpness.local_learning_coefficient(broken, f.minimum, examples=N), "at theta is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

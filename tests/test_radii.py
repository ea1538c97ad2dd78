"""The radii of interest, against the closed form of a quadratic."""

import numpy as np
import pytest
import torch

from landscape import local_entropy
from landscape.local_entropy import radii_of_interest
from tests.problems import DOUBLE, Quadratic, seeded, tiny_objective


def _quadratic(n=2000):
    return Quadratic(torch.eye(n, dtype=DOUBLE), torch.zeros(n, dtype=DOUBLE), constant=0.3)


def test_of_a_quadratic_the_mean_rise_is_that_of_the_trace():
    """E f(x + r z) - f(x) = r^2 tr H / 2."""
    f, x = _quadratic(), torch.zeros(2000, dtype=DOUBLE)
    radii = radii_of_interest(f, x, count=4, low=0.01, high=10.0)
    # 8 draws of 2,000 squares each: their mean is off by (2 / 16,000)^(1/2) = 1.1 %, the radius by half of that
    np.testing.assert_allclose(radii**2 * 2000 / 2, [0.01, 0.1, 1.0, 10.0], rtol=0.04)


def test_radii_are_those_of_interest_where_none_is_given():
    f = tiny_objective()
    found = local_entropy(f, f.theta, generator=seeded(0))
    np.testing.assert_array_equal(found.radius, radii_of_interest(f, f.theta))
    assert found.value.shape == (5,)


def test_a_loss_with_a_ceiling_is_followed_to_ten_times_the_weights():
    class Bounded(Quadratic):
        def value(self, theta):
            return float(np.tanh(super().value(theta)))

    f, x = Bounded(torch.eye(100, dtype=DOUBLE), torch.zeros(100, dtype=DOUBLE)), torch.ones(100, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"rises by no more than low=0\.5"):
        radii_of_interest(f, x, low=0.5, high=2.0)
    x = x / 100
    assert radii_of_interest(f, x, low=0.5, high=2.0)[-1] == pytest.approx(10 * 1 / 10)  # of ||x|| = 0.1 at least 1


class _Walled(Quadratic):
    """NaN where ||x|| is above 1."""

    def value(self, theta):
        return super().value(theta) if theta.norm() <= 1 else float("nan")


def test_a_loss_that_is_not_finite_beyond_a_radius_is_followed_up_to_it():
    """Of 2,000 weights ||r z|| is r 2000^(1/2), to a few hundredths; f rises by 0.5 up to the wall."""
    f, x = _Walled(torch.eye(2000, dtype=DOUBLE), torch.zeros(2000, dtype=DOUBLE)), torch.zeros(2000, dtype=DOUBLE)
    radii = radii_of_interest(f, x, count=2, low=0.01, high=10.0)
    # as in the first test; the wall is met by the longest of 8 draws, whose lengths spread by (2 x 2000)^(-1/2) = 1.6 %
    np.testing.assert_allclose(radii**2 * 2000 / 2, [0.01, 0.5], rtol=0.08)
    largest = local_entropy(f, x, radius=radii[-1], method="monte_carlo", samples=8, generator=seeded(0))
    assert np.isfinite(largest.mean_loss)  # the draws are those of the radii


def test_a_loss_that_jumps_past_both_rises_is_refused():
    class Cliff(Quadratic):
        def value(self, theta):
            return 0.0 if theta.norm() <= 1 else 5.0

    for kind, high in ((Cliff, 1.0), (_Walled, 10.0)):  # up to its wall the second rises by 0.5 alone
        f, x = kind(torch.eye(9, dtype=DOUBLE), torch.zeros(9, dtype=DOUBLE)), torch.zeros(9, dtype=DOUBLE)
        with pytest.raises(ValueError, match=r"jumps .*low=0\.7 .*high=.* give the radii of interest"):
            radii_of_interest(f, x, low=0.7, high=high)


def test_each_loss_that_the_radii_take_is_counted():
    class Counted(Quadratic):
        calls = 0

        def value(self, theta):
            self.calls += 1
            return super().value(theta)

    for method in ("monte_carlo", "laplace"):
        f, x = Counted(torch.eye(5, dtype=DOUBLE), torch.zeros(5, dtype=DOUBLE)), torch.zeros(5, dtype=DOUBLE)
        found = local_entropy(f, x, method=method, samples=3, generator=seeded(0))
        assert found.cost.values == f.calls
    f.calls = 0
    radii_of_interest(f, x, samples=8)
    assert f.calls == 1 + 8 * 41  # as its docstring says


def test_a_theta_of_another_dtype_is_taken_as_that_of_the_objective():
    f = tiny_objective()
    rough = f.theta.float()
    np.testing.assert_array_equal(radii_of_interest(f, rough), radii_of_interest(f, rough.double()))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"count": 1}, "count=1"), ({"low": 0.0}, r"low=0\.0"), ({"low": 2.0}, r"low=2\.0, high=1")],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        radii_of_interest(_quadratic(2), torch.zeros(2, dtype=DOUBLE), **options)


def test_a_bad_theta_is_named():
    with pytest.raises(ValueError, match=r"theta has shape \(3,\)"):
        radii_of_interest(_quadratic(2), torch.zeros(3, dtype=DOUBLE))
    with pytest.raises(ValueError, match="loss at theta is nan"):
        radii_of_interest(_quadratic(2), torch.full((2,), torch.nan, dtype=DOUBLE))

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


@pytest.mark.parametrize(
    ("options", "message"),
    [({"count": 1}, "count=1"), ({"low": 0.0}, r"low=0\.0"), ({"low": 2.0}, r"low=2\.0, high=1")],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        radii_of_interest(_quadratic(2), torch.zeros(2, dtype=DOUBLE), **options)

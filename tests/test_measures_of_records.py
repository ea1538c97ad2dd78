"""The rows of the table of measures from records made up by hand, without any network."""

import numpy as np
import pytest

from landscape import CompareSettings
from landscape.compare.analysis import Row
from landscape.compare.measures import _among, of_the_density
from landscape.results import Cost, SpectralDensity, error_covariance, paired_errors

SETTINGS = CompareSettings()


def _density(nodes, weights, known, size=10):
    return SpectralDensity(np.array(nodes), np.array(weights), np.array(known), np.array([-1.0, 9.0]), size, Cost())


# of ten eigenvalues one is known; the nodes of two probes stand for nine
A = _density([[-0.004, 0.002, 1.0], [-0.5, -0.003, 2.0]], [[0.2, 0.3, 0.5], [0.1, 0.4, 0.5]], [4.0])
B = _density([[-0.001, 0.0, 1.0], [0.001, 0.002, 1.0]], [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], [3.0])


@pytest.fixture
def rows():
    return list(of_the_density({"A": A, "B": B}, SETTINGS))


def test_the_trace_is_that_of_the_known_and_of_nine_more(rows):
    probes = np.array(
        [
            [4 + 9 * (-0.0008 + 0.0006 + 0.5), 4 + 9 * (-0.05 - 0.0012 + 1.0)],
            [3 + 9 * (-0.0005 + 0.25), 3 + 9 * (0.0005 + 0.0005 + 0.25)],
        ]
    )
    trace = rows[0]
    assert (trace.name, trace.flatter) == ("Hessian trace", "lower")
    np.testing.assert_allclose(trace.values, probes.mean(axis=1))
    np.testing.assert_allclose(trace.errors, abs(probes[:, 0] - probes[:, 1]) / 2)
    np.testing.assert_allclose(trace.paired(), [0, abs(np.diff(probes[1] - probes[0])[0]) / 2])


def test_the_lowest_node_bounds_the_smallest_eigenvalue(rows):
    np.testing.assert_array_equal(rows[1].values, [-0.5, -0.001])
    assert np.isnan(rows[1].errors).all()


def test_near_zero_is_a_thousandth_of_the_largest_of_all_checkpoints(rows):
    """4 is the largest, so below 0.004 in size; -0.004 itself is not near zero, and counts as below."""
    near, below = rows[2:]
    assert near.name == "share of |eigenvalues| below 0.004"
    assert below.name == "share of eigenvalues below -0.004"
    np.testing.assert_allclose(near.values, [0.9 * (0.3 + 0.4) / 2, 0.9 * 0.75])
    np.testing.assert_allclose(below.values, [0.9 * (0.2 + 0.1) / 2, 0])
    # all eigenvalues may be negative
    flipped = [_density(-d.nodes[:, ::-1], d.weights[:, ::-1], -d.known) for d in (A, B)]
    assert list(of_the_density(dict(enumerate(flipped)), SETTINGS))[2].name == "share of |eigenvalues| below 0.004"


def test_checkpoints_without_a_record_have_no_value():
    draws = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 5.0]])
    row = Row("m", "lower", draws.mean(axis=1), np.full(2, 0.5), draws)
    found = _among(row, ["A", "C"], ["A", "B", "C"], np.nan)
    np.testing.assert_array_equal(found.values, [3, np.nan, 3])
    np.testing.assert_array_equal(found.errors, [0.5, np.nan, 0.5])
    np.testing.assert_array_equal(found.draws, [draws[0], [np.nan] * 3, draws[1]])
    np.testing.assert_array_equal(_among(row, ["B", "C"], ["A", "B", "C"], 0.0).values, [0, 3, 3])


def test_the_covariance_of_errors_is_that_of_draws_or_of_independent_estimates():
    draws = np.random.default_rng(0).normal(size=(3, 8))
    found = error_covariance(np.zeros(3), draws)
    np.testing.assert_allclose(found, np.cov(draws) / 8)
    differences = np.diag(found) + found[0, 0] - 2 * found[0]
    np.testing.assert_allclose(paired_errors(np.zeros(3), draws) ** 2, differences, atol=1e-16)  # rounding of zero
    np.testing.assert_array_equal(error_covariance(np.array([1.0, np.nan])), [[1, 0], [0, np.nan]])
    assert np.isnan(error_covariance(np.zeros(2), draws[:2, :1])).all()

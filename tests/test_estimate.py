"""Estimates unpack as value and error, and their intervals are SciPy's, or exact in closed form."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.stats
import torch

from landscape import sharpness, spectral_density, trace
from landscape.results import Cost, Estimate, SpectralDensity, student_interval
from tests.problems import DOUBLE, Quadratic, seeded, symmetric


def _rule(nodes, weights, known=(), size=10):
    nodes, weights = np.atleast_2d(np.array(nodes, float)), np.atleast_2d(np.array(weights, float))
    return SpectralDensity(nodes, weights, np.array(known, float), nodes[0][[0, -1]], size, Cost())


def test_the_mean_of_draws_has_students_interval():
    draws = np.array([1.0, 2.0, 4.0, 9.0])
    found = Estimate.of(draws)
    value, stderr = found
    assert (value, stderr) == (found.value, found.stderr) == pytest.approx((4, scipy.stats.sem(draws)))
    expected = scipy.stats.ttest_1samp(draws, 0).confidence_interval(0.9)
    assert found.interval(0.9) == pytest.approx((expected.low, expected.high))


def test_exact_values_and_errors_that_are_not_known():
    assert student_interval(5.0, 0.0, 0, 0.95) == (5, 5)
    assert np.isnan(student_interval(5.0, math.nan, 0, 0.95)).all()
    assert np.isnan(Estimate.of(np.array([3.0])).interval()).all()  # of one draw
    assert student_interval(0.0, 1.0, np.inf, 0.95) == pytest.approx((-1.959964, 1.959964), abs=1e-6)  # normal


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
def test_a_level_out_of_range(level):
    for estimate in (Estimate.of(np.ones(3)), _rule([1.0], [1.0]).trace()):
        with pytest.raises(ValueError, match="give a share between 0 and 1"):
            estimate.interval(level)


def test_one_eigenvalue_among_zeros_is_known_up_to_a_chi_square():
    """v'Av = lambda v_1^2, of which the squared entry is Beta, and close to chi^2_1 / n for large n.

    With the first two moments of Beta(1/2, (n - 1)/2), nu is (n + 2)/(n - 1), which goes to 1.
    """
    n, weight = 10_000, 0.7 / 10_000
    found = _rule([0.0, 5.0], [1 - weight, weight], size=n).trace()
    assert found.value == pytest.approx(0.7 * 5)
    nu = (n + 2) * 0.7**2 / n**2 / (0.7 / n - (0.7 / n) ** 2)
    expected = [3.5 * nu / q for q in scipy.stats.chi2.ppf([0.975, 0.025], nu)]
    assert found.interval() == pytest.approx(expected)


def test_many_alike_eigenvalues_have_a_normal_interval():
    """A half at 1 and a half at 3: variance 2/(n + 2) of one probe, so that two standard errors are 4e-3 of 2."""
    n, probes = 10**6, 4
    found = _rule([[1.0, 3.0]] * probes, [[0.5, 0.5]] * probes, size=n).function_mean(lambda t: t)
    half = scipy.stats.norm.ppf(0.975) * math.sqrt(2 / (n + 2) / probes)
    # chi^2 with 1.6e7 degrees of freedom is skewed by 7e-4 of its standard deviation
    assert found.interval() == pytest.approx((2 - half, 2 + half), abs=2e-3 * half)


def test_parts_of_both_signs_are_combined_at_the_root_of_their_squares():
    plus, minus, both = (
        _rule([-1.0, 2.0], [0.5, 0.5]).function_mean(f)
        for f in (lambda t: np.maximum(t, 0), lambda t: np.maximum(-t, 0), lambda t: t)
    )
    (low, high), (down, up) = plus.interval(), minus.interval()
    assert both.interval() == pytest.approx(
        (0.5 - math.hypot(1 - low, up - 0.5), 0.5 + math.hypot(high - 1, 0.5 - down))
    )
    # as of minus the function
    negative = _rule([-1.0, 2.0], [0.5, 0.5]).function_mean(lambda t: -t)
    assert negative.interval() == pytest.approx((-both.interval()[1], -both.interval()[0]))


def test_eigenvalues_that_are_known_shift_the_interval():
    alone = _rule([1.0, 3.0], [0.5, 0.5], size=8)
    found = _rule([1.0, 3.0], [0.5, 0.5], known=[7.0, 9.0], size=10)
    assert found.trace().interval() == pytest.approx(np.array(alone.trace().interval()) + 16)
    assert found.function_mean(lambda t: t).interval() == pytest.approx(np.array(found.trace().interval()) / 10)
    assert _rule([2.0], [1.0]).trace().interval() == (20, 20)  # the identity, twice
    infinite = _rule([0.0, 1.0], [0.5, 0.5]).function_mean(lambda t: np.where(t, t, np.inf))
    assert infinite.value == np.inf
    assert np.isnan(infinite.interval()).all()
    # a node without weight is padding
    padded = _rule([2.0, 0.0], [1.0, 0.0]).function_mean(lambda t: np.where(t, t, np.inf))
    assert (padded.value, padded.interval()) == (2, (2, 2))


def test_estimates_can_be_copied_and_stored():
    found = _rule([1.0, 3.0], [0.5, 0.5]).trace()
    for other in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (other.value, other.interval()) == (found.value, found.interval())


def test_a_share_is_known_to_what_the_quadrature_can_miss():
    """[1, 2] holds the nodes at 1 and 2, of weights 0.2 and 0.3.

    Bounds on the CDF: below 1 it is 0 to 0.3, up to 2 it is 0.3 to 1. So of the eight eigenvalues of ten that are not
    known the share is 0 to 1, beside what chance does to 0.5.
    """
    rule = _rule([0.0, 1.0, 2.0, 3.0], [0.1, 0.2, 0.3, 0.4], known=[1.5, 7.0])
    found = rule.mass(1.0, 2.0)
    assert found.value == pytest.approx(0.1 + 0.8 * 0.5)
    by_chance = rule.function_mean(lambda t: (t >= 1) & (t <= 2))
    low, high = by_chance.interval()
    assert found.interval() == pytest.approx((low - 0.8 * 0.5, high + 0.8 * 0.5))
    # up to infinity nothing is missed at that end: of 0.9 it is at least 0.7, and at most 1
    low, high = rule.function_mean(lambda t: t >= 1).interval()
    assert rule.mass(1.0, np.inf).interval() == pytest.approx((low - 0.8 * 0.2, high + 0.8 * 0.1))
    assert rule.mass(-np.inf, np.inf).interval() == pytest.approx((1, 1))


@pytest.mark.parametrize(("method", "dof"), [("hutchinson", 11), ("hutch++", 3), ("xtrace", 5)])
def test_a_trace_has_the_interval_of_its_draws(method, dof):
    found = trace(symmetric(range(1, 31)), method=method, products=12, generator=seeded(0))
    assert found.dof == dof
    assert found.interval(0.9) == student_interval(found.value, found.stderr, dof, 0.9)
    assert trace(symmetric(range(1, 5)), products=8).interval() == pytest.approx((10, 10))
    with pytest.raises(ValueError, match="level=2"):
        found.interval(2)


def test_measures_of_sharpness_have_intervals():
    f = Quadratic(torch.eye(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE))
    found = sharpness.low_pass(f, torch.ones(3, dtype=DOUBLE), samples=20, generator=seeded(0))
    expected = scipy.stats.ttest_1samp(found.contributions, 0).confidence_interval()
    assert found.interval() == pytest.approx((expected.low, expected.high))


@pytest.mark.slow
@pytest.mark.parametrize("probes", [1, 4])
def test_the_intervals_hold_the_truth_as_often_as_they_say(probes):
    values = 10 / np.arange(1, 101.0) - 0.3  # of both signs
    matrix = symmetric(values)
    exact = [values.sum(), np.log1p(values / 2).sum(), (values**2).mean()]
    held = np.zeros(3)
    for seed in range(400):
        rule = spectral_density(matrix, steps=20, probes=probes, generator=seeded(seed))
        found = [rule.trace(), rule.log_determinant(2.0), rule.moment(2)]
        held += [low <= truth <= high for truth, (low, high) in zip(exact, (e.interval() for e in found), strict=True)]
    # four binomial standard deviations of 400 seeds
    np.testing.assert_allclose(held / 400, 0.95, atol=4 * math.sqrt(0.95 * 0.05 / 400))

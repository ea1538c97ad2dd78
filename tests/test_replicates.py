"""The difference of two groups of runs: SciPy's t tests, closed forms, and how often intervals and verdicts err."""

import math
from itertools import permutations

import numpy as np
import pytest
import scipy.stats

from landscape.compare import difference_of_means, group_verdicts, holm, permutation_p, runs_to_decide
from landscape.results import Measures, error_covariance

FIRST, SECOND = np.array([3.0, 5.0, 4.0, 7.0]), np.array([1.0, 2.0, 2.5])
EXACT = np.zeros((7, 7))


def test_groups_without_estimation_errors_are_compared_by_welchs_test():
    found = difference_of_means(FIRST, SECOND, EXACT, paired=False)
    welch = scipy.stats.ttest_ind(SECOND, FIRST, equal_var=False)
    assert found.value == pytest.approx(welch.statistic * found.stderr)
    assert (found.p, found.dof) == pytest.approx((welch.pvalue, welch.df))
    interval = welch.confidence_interval(0.9)
    assert found.interval(0.9) == pytest.approx((interval.low, interval.high))
    assert found.spreads == pytest.approx((FIRST.std(ddof=1), SECOND.std(ddof=1)))


def test_runs_from_the_same_weights_are_compared_by_their_differences():
    first, second = FIRST[:3], SECOND
    found = difference_of_means(first, second, EXACT[:6, :6], paired=True)
    student = scipy.stats.ttest_rel(second, first)
    assert (found.p, found.dof) == pytest.approx((student.pvalue, 2))
    assert found.stderr == pytest.approx(scipy.stats.sem(second - first))
    interval = student.confidence_interval()
    assert found.interval() == pytest.approx((interval.low, interval.high))


def test_the_permutation_test_counts_the_exchanges():
    # 35 ways to choose the four; only one has a difference as low as the lowest, and two-sided doubles the tail
    differences = {
        chosen: np.delete(np.r_[FIRST, SECOND], chosen).mean() - np.r_[FIRST, SECOND][list(chosen)].mean()
        for chosen in {tuple(sorted(p[:4])) for p in permutations(range(7))}
    }
    own = SECOND.mean() - FIRST.mean()
    below = sum(d <= own + 1e-12 for d in differences.values())
    assert len(differences) == 35
    assert permutation_p(FIRST, SECOND, paired=False) == pytest.approx(2 * below / 35)
    # eight ways to exchange within three pairs, of which one is the lowest
    assert permutation_p(FIRST[:3], SECOND, paired=True) == pytest.approx(2 / 8)


def test_independent_errors_of_the_estimator_are_part_of_the_spread():
    """Taken from the runs' own spread, and not counted a second time in the interval."""
    found = difference_of_means(FIRST, SECOND, 0.25 * np.eye(7), paired=False)
    assert found.spreads == pytest.approx((math.sqrt(FIRST.var(ddof=1) - 0.25), math.sqrt(SECOND.var(ddof=1) - 0.25)))
    assert found.stderr == pytest.approx(math.sqrt(FIRST.var(ddof=1) / 4 + SECOND.var(ddof=1) / 3))


def test_an_error_of_the_estimator_that_all_runs_share_cancels():
    found = difference_of_means(FIRST, SECOND, np.full((7, 7), 9.0), paired=False)
    assert found.spreads == pytest.approx((FIRST.std(ddof=1), SECOND.std(ddof=1)))
    assert found.stderr == pytest.approx(math.sqrt(FIRST.var(ddof=1) / 4 + SECOND.var(ddof=1) / 3))


def test_an_error_that_one_group_shares_is_added():
    """It moves the mean of that group, and no spread between runs tells of it."""
    covariance = np.zeros((7, 7))
    covariance[:4, :4] = 9.0
    for paired, n, variance in ((False, 4, FIRST.var(ddof=1) / 4 + SECOND.var(ddof=1) / 3), (True, 3, None)):
        first = FIRST[:n]
        keep = np.r_[0:n, 4:7]
        found = difference_of_means(first, SECOND, covariance[np.ix_(keep, keep)], paired=paired)
        variance = scipy.stats.sem(SECOND - first) ** 2 if variance is None else variance
        assert found.stderr == pytest.approx(math.sqrt(variance + 9.0))


def test_runs_without_any_spread():
    for paired in (False, True):
        found = difference_of_means(np.ones(2), np.full(2, 3.0), np.zeros((4, 4)), paired=paired)
        assert (found.value, found.stderr, found.p, found.interval()) == (2, 0, 0, (2, 2))
        assert (found.equivalence_p(1.9), found.equivalence_p(2.1)) == (1, 0)
        assert runs_to_decide(found, margin=0.1, level=0.05) == 2
        assert difference_of_means(np.ones(2), np.ones(2), np.zeros((4, 4)), paired=paired).p == 1


def test_equivalence_is_two_one_sided_tests():
    found = difference_of_means(FIRST, SECOND, EXACT, paired=False)
    for margin in (1.0, 3.5):
        above = scipy.stats.ttest_ind(SECOND - margin, FIRST, equal_var=False, alternative="less").pvalue
        below = scipy.stats.ttest_ind(SECOND + margin, FIRST, equal_var=False, alternative="greater").pvalue
        assert found.equivalence_p(margin) == pytest.approx(max(above, below))


def test_holms_adjustment():
    # 4 x 0.01; 3 x 0.02; 0.04 x 2, of which the next may not be less; 0.05 x 1
    np.testing.assert_allclose(holm([0.05, 0.01, 0.04, 0.02]), [0.08, 0.04, 0.08, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1, 1])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("paired", [False, True])
def test_so_many_runs_decide_in_four_of_five_cases(paired):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 5))
    noise = (noise - noise.mean(axis=1, keepdims=True)) / noise.std(axis=1, ddof=1, keepdims=True)
    noise[1] -= (noise[0] @ noise[1]) / (noise[0] @ noise[0]) * noise[0]  # so that both designs have spread sqrt 2
    noise[1] /= noise[1].std(ddof=1)
    for shift, margin in ((1.0, 0.01), (0.0, 1.0)):
        found = difference_of_means(noise[0], noise[1] + shift, np.zeros((10, 10)), paired=paired)
        n = runs_to_decide(found, margin, level=0.05)
        told = 0
        for _ in range(1000):
            a, b = rng.normal(size=(2, n))
            again = difference_of_means(a, b + shift, np.zeros((2 * n, 2 * n)), paired=paired)
            told += again.p < 0.05 if shift else again.equivalence_p(margin) < 0.05
        assert told / 1000 == pytest.approx(0.8, abs=0.05)  # four binomial standard deviations, and n is whole
    assert runs_to_decide(found, margin=1e-9, level=0.05) is None  # no difference, and a margin of next to nothing


def test_no_number_of_runs_averages_away_an_error_that_they_share():
    """Of standard error 3 in one group: a difference of 2 is never told, one of 20 by few runs."""
    covariance = np.zeros((8, 8))
    covariance[:4, :4] = 9.0
    noise = np.array([0.1, -0.1, 0.1, -0.1])
    for shift, decided in ((2.0, False), (20.0, True)):
        found = difference_of_means(noise, noise + shift, covariance, paired=False)
        assert found.stderr == pytest.approx(math.hypot(3, found.spread / 2))
        assert found.floor == pytest.approx(3)
        assert (runs_to_decide(found, margin=0.1, level=0.05) is not None) == decided


def test_zeros_on_both_sides_are_no_difference_and_no_number_of_runs_tells_more():
    found = difference_of_means(np.zeros(3), np.zeros(3), np.zeros((6, 6)), paired=False)
    assert runs_to_decide(found, margin=0.0, level=0.05) is None


def _measures(rng, effects, seeds, names, estimator_draws=20):
    """Each measure of each run: its group's mean, the run's own deviation of 1, and the mean of noisy draws."""
    rows = []
    for effect in effects:
        truth = np.r_[np.zeros(seeds), np.full(seeds, effect)] + rng.normal(size=2 * seeds) + 20
        shared, own = rng.normal(size=estimator_draws), rng.normal(size=(2 * seeds, estimator_draws))
        rows.append(truth[:, None] + 2 * shared + 2 * own)
    draws = np.array(rows)
    values = draws.mean(axis=2)
    stderr = draws.std(axis=2, ddof=1) / math.sqrt(estimator_draws)
    return Measures(
        names=[f"measure {i}" for i in range(len(rows))],
        flatter=["lower"] * len(rows),
        checkpoints=names,
        values=values,
        stderr=stderr,
        differences=values - values[:, :1],
        differences_stderr=stderr,
        covariance=np.stack([error_covariance(e, d) for e, d in zip(stderr, draws, strict=True)]),
        invariant=[False] * len(rows),
    )


@pytest.mark.slow
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seeds", [3, 8])
def test_verdicts_err_in_at_most_one_case_of_twenty(paired, seeds):
    """Of 500 synthetic comparisons with five measures: any wrong verdict in one counts as an error."""
    names = [f"{group}-seed{k}" for group in "AB" for k in range(seeds)]
    groups = {"A": names[:seeds], "B": names[seeds:]}
    rng = np.random.default_rng(seeds)
    wrong = covered = told = 0
    for _ in range(500):
        effects = np.array([0.0, 0.0, 0.0, 1.0, -4.0])
        found = group_verdicts(_measures(rng, effects, seeds, names), groups, paired=paired, margin=0.1)
        errors = [
            (v.says == "flatter" and (not effect or v.flattest != ("A" if effect > 0 else "B")))
            or (v.says == "equal" and abs(effect) > v.margin)
            for v, effect in zip(found, effects, strict=True)
        ]
        wrong += any(errors)
        told += found[4].flattest == "B"
        low, high = found[3].difference.interval()
        covered += low <= 1.0 <= high
    # three binomial standard deviations of 500 cases beyond 5 %, and 95 %
    assert wrong / 500 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)
    assert covered / 500 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 500)
    assert told / 500 > (0.1 if seeds == 3 else 0.95)  # they do find a difference of four spreads

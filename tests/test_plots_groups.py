"""The picture of groups of runs: where its dots, means and intervals stand."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import t as student

from landscape import plots
from tests.test_groups import GROUPS, HIGH, LOW, _measures


def _dots(ax):
    return [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]


def test_dots_means_and_intervals():
    ax = plots.group_dots(_measures([LOW + HIGH, HIGH + LOW]), GROUPS)
    dots = sorted((round(line.get_ydata()[0]), *np.round(line.get_xdata(), 6)) for line in _dots(ax))
    low, high = np.array(LOW), np.array(HIGH)
    expected = [(0, *low), (0, *high), (1, *(high / 5)), (1, *(low / 5))]
    np.testing.assert_allclose(dots, sorted(np.round(expected, 6).tolist()))
    half = student.ppf(0.975, 2) * 0.1 / 3**0.5
    lengths = [np.ptp(bar.get_segments()[0][:, 0]) for bar in ax.collections]
    np.testing.assert_allclose(sorted(lengths), sorted([2 * half, 2 * half, 2 * half / 5, 2 * half / 5]))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["m0", "m1"]
    assert [label.get_text() for label in ax.get_legend().get_texts()] == ["A (3 runs)", "B (3 runs)"]
    assert "relative to the mean of A (lower is flatter)" in ax.get_xlabel()


def test_a_missing_value_leaves_dots_without_an_interval():
    ax = plots.group_dots(_measures([[1.0, np.nan, 3.0, *HIGH]]), GROUPS)
    bars = [bar.get_segments()[0] for bar in ax.collections]
    assert [len(bar) for bar in bars] == [0, 2]
    first, _ = _dots(ax)
    np.testing.assert_allclose(first.get_xdata(), [0.5, np.nan, 1.5])  # of the mean of those that there are


@pytest.mark.parametrize(("row", "told"), [([0.0] * 3 + HIGH, "mean of A: 0"), ([np.nan] * 3 + HIGH, "not reliable")])
def test_a_mean_that_nothing_can_be_relative_to_is_told(row, told):
    ax = plots.group_dots(_measures([row]), GROUPS)
    assert [text.get_text() for text in ax.texts] == [told]
    assert not _dots(ax)


def test_measures_of_which_more_is_flatter_are_marked_and_others_left_out():
    measures = _measures([LOW + HIGH] * 3)
    ax = plots.group_dots(dataclasses.replace(measures, flatter=["lower", "higher", ""]), GROUPS)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["m0", "m1 ↑"]
    assert "but for ↑" in ax.get_xlabel()

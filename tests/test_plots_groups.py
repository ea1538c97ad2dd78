"""The picture of groups of runs: where its dots, means and intervals stand."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import t as student

from landscape import plots
from landscape.plots.scales import axis_in_common
from landscape.plots.style import set_legend
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


def test_seeds_have_shades_of_the_colour_of_their_group():
    colors = plots.palette(["A-seed0", "B-seed0", "A-seed1", "A-seed2", "B-seed1"])
    a, b = plots.palette(["A", "B"])
    assert (colors[0], colors[1]) == (a, b)
    # evenly to 0.6 of the way to white
    np.testing.assert_allclose(colors[2], 0.7 * np.array(a) + 0.3)
    np.testing.assert_allclose(colors[3], 0.4 * np.array(a) + 0.6)
    np.testing.assert_allclose(colors[4], 0.4 * np.array(b) + 0.6)
    assert plots.palette(["one", "two"]) == [a, b]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["x", "y"], ["x", "y"]),
        ([f"A-seed{k}" for k in range(6)], [f"A-seed{k}" for k in range(6)]),
        ([f"A-seed{k}: median" for k in range(20)] + ["B-seed0", "parabola"], ["A: median (20 runs)", "B", "parabola"]),
    ],
)
def test_a_legend_of_many_runs_tells_their_groups(labels, told):
    ax = plt.figure().subplots()
    for label in labels:
        ax.plot([0, 1], [0, 1], label=label)
    set_legend(ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == told


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (6, (2, 3)), (9, (3, 3)), (30, (8, 4))]
)
def test_planes_stand_in_rows_of_at_most_four(count, expected):
    assert plots.rows_and_columns(count) == expected


def test_many_norms_on_one_axis_are_a_range():
    axes = {
        f"{k}": f"displacement (1 unit = {norm} in parameter norm)" for k, norm in enumerate((9, 10, 2, 3, 4, 5, 6))
    }
    assert axis_in_common(axes) == "displacement (1 unit = 2 to 10, in parameter norm)"

"""Pictures of lines and bands, read back."""

import dataclasses
import io

import numpy as np
import pytest
import torch

from landscape import (
    line,
    line_band,
    plots,
    random_direction,
)
from landscape.plots.scales import wrapped
from tests.pictures import A, E, band, legend, lines_of, paraboloid, words
from tests.problems import DOUBLE, Quadratic, seeded, symmetric, tiny_objective


def test_lines_name_their_units_and_ends():
    lines = lines_of()
    ax = plots.lines(lines)
    assert legend(ax) == ["A", "B"]
    assert ax.get_xlabel() == "multiples of the direction (1 unit = 1 in parameter norm)"
    assert plots.lines(lines, xlabel="displacement").get_xlabel() == "displacement"
    for drawn, found, color in zip(ax.lines, lines.values(), plots.palette(lines), strict=True):
        assert np.array_equal(drawn.get_xydata(), np.stack([found.coordinates, found.loss], axis=1))
        assert drawn.get_color() == color
    ax = plots.line_between(lines["A"], lines["B"], ends=("first", "second"))
    assert legend(ax) == ["first", "second", "train", "test"]
    assert "1 unit = 1 in parameter norm" in ax.get_xlabel()
    assert [drawn.get_xdata()[0] for drawn in ax.lines[:2]] == [0, 1]


def test_the_norms_of_several_directions_are_all_told():
    f = tiny_objective()
    lines = {
        name: line(f, scale * f.theta, random_direction(f, scale * f.theta, generator=seeded(0)), A, unit="filter")
        for name, scale in (("small", 1.0), ("large", 2.0))
    }
    small, large = (found.direction_norm for found in lines.values())
    assert large == pytest.approx(2 * small)
    label = words(plots.lines(lines).get_xlabel())
    assert label.startswith("displacement along the direction relative to each filter's norm")
    assert label.endswith(f"(1 unit = {small:.3g} for small, {large:.3g} for large, in parameter norm)")
    mixed = {**lines, "other": line(f, f.theta, torch.ones_like(f.theta), A, unit="norm")}
    with pytest.raises(ValueError, match="different units"):
        plots.lines(mixed)
    assert plots.lines(mixed, xlabel="what they share").get_xlabel() == "what they share"


def test_long_names_of_axes_are_broken_before_the_unit_and_evenly():
    text = "displacement along direction 1 relative to each filter's norm (1 unit = 12.1 in parameter norm)"
    assert wrapped(text, 100) == text
    assert wrapped(text, 40).split("\n") == [
        "displacement along direction 1",
        "relative to each filter's norm",
        "(1 unit = 12.1 in parameter norm)",
    ]
    assert wrapped("indivisible", 4) == "indivisible"


def test_the_shade_is_one_standard_error_over_the_examples():
    f = tiny_objective()
    found = line(f, f.theta, torch.ones_like(f.theta), A)
    (shade,) = plots.lines({"A": found}).collections
    at, low, high = band(shade)
    assert np.array_equal(at, found.coordinates)
    # 1e-12: a loss plus and minus its error is rounded in the last digits
    assert high == pytest.approx(found.loss + found.loss_stderr, rel=1e-12)
    assert low == pytest.approx(found.loss - found.loss_stderr, rel=1e-12)
    assert not plots.lines(lines_of()).collections  # a function without examples has no error over them


def test_an_error_larger_than_the_loss_stays_on_a_log_axis():
    f = tiny_objective()
    found = line(f, f.theta, torch.ones_like(f.theta), A)
    uncertain = dataclasses.replace(found, loss_stderr=2 * found.loss)
    ax = plots.lines({"A": uncertain})
    _, low, _ = band(ax.collections[0])
    assert ax.get_yscale() == "log"
    assert low == pytest.approx(np.full(5, found.loss.min() / 2))


def test_a_parabola_lies_on_the_line_of_a_quadratic_and_is_not_left():
    f = Quadratic(symmetric(np.arange(1.0, 9)), E[3], 2.0)
    found = line(f, E[0], E[1], A, derivatives=True)
    ax = plots.lines({"A": found})
    # 1e-12: 14 digits of float64 less those that the three terms of the parabola lose
    assert ax.lines[1].get_ydata() == pytest.approx(found.loss, rel=1e-12)
    assert len(ax.lines[2].get_xdata()) == 0
    assert "off it by 10 % of the rise" in legend(ax)


def test_circles_stand_where_the_line_leaves_its_parabola():
    # f = 1 + a^2/2 up to |a| = 1, from where it is higher on one side, and infinite on the other
    a = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    found = line(paraboloid(), torch.zeros(8, dtype=DOUBLE), E[0], a, derivatives=True)
    moved = dataclasses.replace(found, loss=found.loss + np.array([np.inf, 0, 0, 0, 5.0]), not_finite=1)
    ax = plots.lines({"A": moved})
    circles = ax.lines[2]
    assert circles.get_xydata().tolist() == [[-2.0, 3.0], [2.0, 8.0]]  # a loss of inf stands on the parabola
    assert legend(ax)[0] == "A (1 not finite)"
    assert plots.lines({"A": moved}, share=0.9).lines[2].get_xdata().tolist() == [-2.0]


def test_a_steep_parabola_does_not_stretch_the_picture():
    plain, steep = (dataclasses.replace(lines_of()["A"], slope=0.0, curvature=c) for c in (np.nan, 1e9))
    assert plots.lines({"A": steep}).get_ylim() == pytest.approx(plots.lines({"A": plain}).get_ylim())


def test_panels_hold_the_loss_and_the_error_of_train_and_test():
    f, g = tiny_objective(), tiny_objective(weight_decay=0.1)
    d = torch.ones_like(f.theta)
    found = {
        name: line({"train": f, "test": g}, scale * f.theta, d, A, derivatives=True)
        for name, scale in (("one", 1.0), ("two", 2.0))
    }
    figure = plots.line_panels(found)
    loss, error = figure.axes
    curves = [record for of_one in found.values() for record in of_one.values()]
    for drawn, shown, record in zip(loss.lines, error.lines, curves, strict=False):
        assert np.array_equal(drawn.get_ydata(), record.loss)
        assert np.array_equal(shown.get_ydata(), 1 - record.accuracy)
        assert drawn.get_color() == shown.get_color()
        assert drawn.get_linestyle() == shown.get_linestyle()
    assert [drawn.get_linestyle() for drawn in error.lines] == ["-", "--", "-", "--"]
    first, second = plots.palette(found)
    assert [drawn.get_color() for drawn in error.lines] == [first, first, second, second]
    _, low, high = band(error.collections[0])
    # a share of right answers and of wrong ones have the same error
    assert high - low == pytest.approx(2 * curves[0].accuracy_stderr, rel=1e-12)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()[:4]] == [
        "one, train",
        "one, test",
        "two, train",
        "two, test",
    ]
    assert (loss.get_ylabel(), words(error.get_ylabel())) == ("loss (log)", "error (share of wrong answers)")
    assert words(error.get_xlabel()) == words(curves[0].axis)
    assert loss.get_shared_x_axes().joined(loss, error)
    figure.savefig(io.BytesIO())


def test_what_is_no_classifier_has_one_panel():
    found = lines_of()["A"]
    figure = plots.line_panels({"A": {"train": found}})
    assert len(figure.axes) == 1
    assert "parameter norm" in figure.axes[0].get_xlabel()
    with pytest.raises(ValueError, match=r"'A' differ in their axes.*give those of one direction"):
        plots.line_panels({"A": {"train": found, "test": dataclasses.replace(found, direction_norm=2.0)}})


def test_a_band_is_the_median_and_quantiles_of_its_directions():
    f = tiny_objective()
    found = line_band(f, f.theta, A, directions=5, generator=seeded(0))
    ax = plots.line_bands({"A": found})
    ranked = np.sort(found.loss, axis=0)
    assert np.array_equal(ax.lines[0].get_ydata(), ranked[2])
    for collection, lower, upper in zip(ax.collections, (1, 0), (3, 4), strict=False):
        _, low, high = band(collection)
        assert np.array_equal(low, ranked[lower])
        assert np.array_equal(high, ranked[upper])
    assert legend(ax) == ["A: median of 5 directions", "quantiles 0.25 to 0.75", "lowest to highest"]
    assert words(ax.get_xlabel()) == words(found.axis)
    broken = dataclasses.replace(found, loss=np.where(found.loss == found.loss.max(), np.inf, found.loss), not_finite=1)
    assert legend(plots.line_bands({"A": broken}))[0] == "A: median of 5 directions (1 not finite)"

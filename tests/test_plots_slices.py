import dataclasses
import io
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize
from mpl_toolkits.mplot3d import Axes3D

from landscape import (
    bezier_path,
    line,
    line_band,
    path,
    plane,
    plane_through,
    plots,
    project_onto_plane,
    random_direction,
    trajectory_plane,
)
from landscape.plots.scales import wrapped
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, symmetric, tiny_objective

E = torch.eye(8, dtype=DOUBLE)
A = np.linspace(-1, 1, 5)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _points():
    return {"A": torch.zeros(8, dtype=DOUBLE), "B": torch.ones(8, dtype=DOUBLE)}


def _lines(**options):
    return {k: line(LogisticRegression(), x, E[0], A, **options) for k, x in _points().items()}


def _planes(**options):
    return {k: plane(LogisticRegression(), x, E[0], E[1], A, A, **options) for k, x in _points().items()}


def _paraboloid(constant=1.0, minimum=0.0):
    """f(x) = constant + x'x/2, with its minimum at minimum * (1, 1, ...)."""
    return Quadratic(E, torch.full((8,), minimum, dtype=DOUBLE), constant)


def _with_holes(drawn):
    loss = drawn.loss.copy()
    loss[0, 0], loss[1, 1], loss[1, 2] = np.nan, np.inf, -np.inf
    return dataclasses.replace(drawn, loss=loss, not_finite=3)


def _legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _words(text):
    """Without the breaks of its lines."""
    return " ".join(text.split())


def _band(collection):
    """The lower and upper edge of a shaded band, at each of its coordinates."""
    x, y = collection.get_paths()[0].vertices.T
    at = np.unique(x)
    return at, np.array([y[x == a].min() for a in at]), np.array([y[x == a].max() for a in at])


# lines


def test_lines_name_their_units_and_ends():
    lines = _lines()
    ax = plots.lines(lines)
    assert _legend(ax) == ["A", "B"]
    assert ax.get_xlabel() == "multiples of the direction (1 unit = 1 in parameter norm)"
    assert plots.lines(lines, xlabel="displacement").get_xlabel() == "displacement"
    for drawn, found, color in zip(ax.lines, lines.values(), plots.palette(lines), strict=True):
        assert np.array_equal(drawn.get_xydata(), np.stack([found.coordinates, found.loss], axis=1))
        assert drawn.get_color() == color
    ax = plots.line_between(lines["A"], lines["B"], ends=("first", "second"))
    assert _legend(ax) == ["first", "second", "train", "test"]
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
    label = _words(plots.lines(lines).get_xlabel())
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
    at, low, high = _band(shade)
    assert np.array_equal(at, found.coordinates)
    # 1e-12: a loss plus and minus its error is rounded in the last digits
    assert high == pytest.approx(found.loss + found.loss_stderr, rel=1e-12)
    assert low == pytest.approx(found.loss - found.loss_stderr, rel=1e-12)
    assert not plots.lines(_lines()).collections  # a function without examples has no error over them


def test_an_error_larger_than_the_loss_stays_on_a_log_axis():
    f = tiny_objective()
    found = line(f, f.theta, torch.ones_like(f.theta), A)
    uncertain = dataclasses.replace(found, loss_stderr=2 * found.loss)
    ax = plots.lines({"A": uncertain})
    _, low, _ = _band(ax.collections[0])
    assert ax.get_yscale() == "log"
    assert low == pytest.approx(np.full(5, found.loss.min() / 2))


def test_a_parabola_lies_on_the_line_of_a_quadratic_and_is_not_left():
    f = Quadratic(symmetric(np.arange(1.0, 9)), E[3], 2.0)
    found = line(f, E[0], E[1], A, derivatives=True)
    ax = plots.lines({"A": found})
    # 1e-12: 14 digits of float64 less those that the three terms of the parabola lose
    assert ax.lines[1].get_ydata() == pytest.approx(found.loss, rel=1e-12)
    assert len(ax.lines[2].get_xdata()) == 0
    assert "off it by 10 % of the rise" in _legend(ax)


def test_circles_stand_where_the_line_leaves_its_parabola():
    # f = 1 + a^2/2 up to |a| = 1, from where it is higher on one side, and infinite on the other
    a = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    found = line(_paraboloid(), torch.zeros(8, dtype=DOUBLE), E[0], a, derivatives=True)
    moved = dataclasses.replace(found, loss=found.loss + np.array([np.inf, 0, 0, 0, 5.0]), not_finite=1)
    ax = plots.lines({"A": moved})
    circles = ax.lines[2]
    assert circles.get_xydata().tolist() == [[-2.0, 3.0], [2.0, 8.0]]  # a loss of inf stands on the parabola
    assert _legend(ax)[0] == "A (1 not finite)"
    assert plots.lines({"A": moved}, share=0.9).lines[2].get_xdata().tolist() == [-2.0]


def test_the_parabola_touches_the_line_at_zero_between_its_points():
    uneven = dataclasses.replace(
        _lines()["A"],
        coordinates=np.array([-1.0, 3.0]),
        loss=np.array([1.0, 5.0]),
        loss_stderr=np.full(2, np.nan),
    )
    ax = plots.lines({"A": uneven}, xlabel="a", parabolas={"A": 2.0})
    # the loss at 0 is 2, a quarter of the way from 1 to 5; then 2 + a^2
    assert ax.lines[1].get_ydata() == pytest.approx([3.0, 11.0], rel=1e-14)


def test_a_steep_parabola_does_not_stretch_the_picture():
    plain, steep = (dataclasses.replace(_lines()["A"], slope=0.0, curvature=c) for c in (np.nan, 1e9))
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
    _, low, high = _band(error.collections[0])
    # a share of right answers and of wrong ones have the same error
    assert high - low == pytest.approx(2 * curves[0].accuracy_stderr, rel=1e-12)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()[:4]] == [
        "one, train",
        "one, test",
        "two, train",
        "two, test",
    ]
    assert (loss.get_ylabel(), _words(error.get_ylabel())) == ("loss (log)", "error (share of wrong answers)")
    assert _words(error.get_xlabel()) == _words(curves[0].axis)
    assert loss.get_shared_x_axes().joined(loss, error)
    figure.savefig(io.BytesIO())


def test_what_is_no_classifier_has_one_panel():
    found = _lines()["A"]
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
        _, low, high = _band(collection)
        assert np.array_equal(low, ranked[lower])
        assert np.array_equal(high, ranked[upper])
    assert _legend(ax) == ["A: median of 5 directions", "quantiles 0.25 to 0.75", "lowest to highest"]
    assert _words(ax.get_xlabel()) == _words(found.axis)
    broken = dataclasses.replace(found, loss=np.where(found.loss == found.loss.max(), np.inf, found.loss), not_finite=1)
    assert _legend(plots.line_bands({"A": broken}))[0] == "A: median of 5 directions (1 not finite)"


# planes


def _colours(contours):
    """What a picture of the plane says that its norm and levels are."""
    return contours.norm.vmin, contours.norm.vmax, tuple(contours.levels)


def test_surfaces_share_their_colours():
    planes = _planes()
    figure = plots.loss_surfaces(planes)
    contours = [ax.collections[0] for ax in figure.axes[:2]]
    assert _colours(contours[0]) == _colours(contours[1])
    lowest = min(p.loss.min() for p in planes.values())
    highest = max(p.loss.max() for p in planes.values())
    assert contours[0].get_clim() == (lowest, highest)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["A", "B"]
    assert figure.axes[2].get_ylabel() == "loss, log scale"
    assert plots.loss_surfaces(planes, limits=(0.1, 5)).axes[0].collections[0].get_clim() == (0.1, 5)


def test_contours_are_where_the_loss_has_their_level():
    a = np.linspace(-1, 1, 41)
    found = plane(_paraboloid(constant=0.0), torch.zeros(8, dtype=DOUBLE), E[0], E[1], a, 2 * a)
    ax, contours = plots.loss_surface(found, scale="linear")
    white = ax.collections[1]
    x, y = np.concatenate([p.vertices for p in white.get_paths()]).T
    loss = (x**2 + y**2) / 2
    # interpolation on cells of 0.05 x 0.1 is off by at most (0.05^2 + 0.1^2)/8 = 0.0016
    assert np.abs(loss[:, None] - contours.levels[::3]).min(axis=1).max() < 0.0016
    # a runs to the right and b upwards
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-2, 2))


def test_distances_are_those_of_the_parameter_space():
    theta = torch.zeros(8, dtype=DOUBLE)
    for unit, aspect in (("direction", 2.0), ("norm", 1.0)):
        found = plane(_paraboloid(), theta, E[0], 2 * E[1], A, A, unit=unit)
        ax, _ = plots.loss_surface(found)
        assert ax.get_aspect() == aspect
        assert [_words(label) for label in (ax.get_xlabel(), ax.get_ylabel())] == list(found.axes)
    # a sliver would show nothing
    ax, _ = plots.loss_surface(plane(_paraboloid(), theta, E[0], 100 * E[1], A, A))
    assert ax.get_aspect() == "auto"


def test_points_that_are_not_finite_stay_blank_and_are_counted():
    found = _planes()["A"]
    broken = _with_holes(found)
    ax, contours = plots.loss_surface(broken)
    assert ax.get_title() == "3 of 25 points not finite, left blank"
    # no colour covers them
    for i, j in ((0, 0), (1, 1), (1, 2), (2, 3), (3, 3)):
        at = found.a[i] + 0.01, found.b[j] + 0.01  # edges run through the points themselves
        assert any(p.contains_point(at) for p in contours.get_paths()) == np.isfinite(broken.loss[i, j])
    assert contours.get_clim()[0] == found.loss.min()
    figure = plots.loss_surfaces({"A": broken, "B": found})
    assert [ax.get_title() for ax in figure.axes[:2]] == ["A\n3 of 25 points not finite, left blank", "B"]
    nothing = dataclasses.replace(found, loss=np.full_like(found.loss, np.nan))
    with pytest.raises(ValueError, match="no loss is finite"):
        plots.loss_surface(nothing)


def test_the_scale_is_that_asked_for():
    found = _planes()["A"]
    for scale, kind in ((None, LogNorm), ("log", LogNorm), ("linear", Normalize)):
        _, contours = plots.loss_surface(found, scale=scale)
        assert type(contours.norm) is kind
    below = dataclasses.replace(found, loss=found.loss - 10)
    with pytest.raises(ValueError, match=r"scale='log', but the loss goes down to -9"):
        plots.loss_surface(below, scale="log")
    with pytest.raises(ValueError, match="scale='cubic': give 'log', 'linear' or None"):
        plots.loss_surface(found, scale="cubic")
    with pytest.raises(ValueError, match="metric='accuracy': give one of"):
        plots.loss_surface(found, metric="accuracy")
    with pytest.raises(ValueError, match="no error is finite"):  # a function that knows of no right answers
        plots.loss_surface(found, metric="error")
    with pytest.raises(ValueError, match=r"limits=\(2, 1\): give the lower one first"):
        plots.loss_surface(found, limits=(2, 1))
    thin = plane(LogisticRegression(), torch.zeros(8, dtype=DOUBLE), E[0], E[1], A, [0.0])
    with pytest.raises(ValueError, match=r"the plane has \(5, 1\) points: give at least two"):
        plots.loss_surface(thin)


@pytest.mark.parametrize("shift", [-10.0, 0.0])
def test_losses_that_are_not_positive_are_drawn_on_a_linear_scale(shift):
    moved = {k: dataclasses.replace(found, loss=found.loss + shift) for k, found in _lines().items()}
    scale = "linear" if shift else "log"
    assert plots.lines(moved).get_yscale() == scale
    assert plots.line_between(moved["A"], moved["B"], ends=("A", "B")).get_yscale() == scale
    figure = plots.loss_surfaces({k: dataclasses.replace(p, loss=p.loss + shift) for k, p in _planes().items()})
    assert ("log" in figure.axes[-1].get_ylabel()) == (shift == 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_a_flat_surface_is_drawn_alone_and_beside_another(value):
    planes = _planes()
    flat = dataclasses.replace(planes["A"], loss=np.full_like(planes["A"].loss, value))
    nearly = dataclasses.replace(flat, loss=flat.loss * (1 + 1e-15 * np.arange(5)))  # 25 levels do not fit between
    for drawn in ({"flat": flat}, {"nearly": nearly}, {"flat": flat, "B": planes["B"]}):
        plots.loss_surfaces(drawn).savefig(io.BytesIO())
    plots.surface_3d(flat).figure.savefig(io.BytesIO())


def test_one_loss_that_is_not_positive_makes_all_scales_linear():
    planes, lines = _planes(), _lines()
    loss = planes["A"].loss.copy()
    loss[2, 2] = 0.0
    figure = plots.loss_surfaces({"A": dataclasses.replace(planes["A"], loss=loss), "B": planes["B"]})
    norms = [ax.collections[0].norm for ax in figure.axes[:2]]
    assert [type(norm) for norm in norms] == [Normalize, Normalize]
    assert norms[0].vmin == norms[1].vmin == 0
    assert figure.axes[-1].get_ylabel() == "loss"
    zero = dataclasses.replace(lines["A"], loss=0 * lines["A"].loss)
    assert plots.line_between(lines["A"], zero, ends=("A", "B")).get_ylabel() == "loss"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((0.02, 30.0), ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20"]),
        ((1e-6, 1e3), [f"{10.0**k:.4g}" for k in range(-6, 4)]),
        ((0.30, 0.46), ["0.3", "0.33", "0.36", "0.39", "0.42", "0.45"]),
    ],
)
def test_a_colour_bar_has_round_numbers_whatever_its_range(limits, expected):
    ax, contours = plots.loss_surface(_planes()["A"], limits=limits)
    bar = plots.loss_bar(contours, ax)
    assert [text.get_text() for text in bar.ax.get_yticklabels()] == expected
    assert bar.get_ticks() == pytest.approx(list(map(float, expected)))


def test_the_error_of_a_classifier_has_a_picture_of_its_own():
    f = tiny_objective()
    d1, d2 = (random_direction(f, f.theta, generator=seeded(k)) for k in (1, 2))
    found = plane(f, f.theta, d1, d2, A, A, unit="filter")
    figure = plots.loss_surfaces({"A": found}, metric="error")
    assert figure.axes[0].collections[0].get_clim() == (found.error_rate.min(), found.error_rate.max())
    assert figure.axes[1].get_ylabel().startswith("error (share of wrong answers)")


def test_an_adaptive_plane_shows_what_it_evaluated():
    a = np.linspace(-1, 1, 21)
    found = plane(_paraboloid(), E[0] * 0, E[0], E[1], a, a, tol=0.01, generator=seeded(0))
    assert found.saved == 372
    ax, _ = plots.loss_surface(found, evaluated=True)
    dots = ax.lines[-1].get_xydata()
    assert len(dots) == 69
    assert {(round(x, 6), round(y, 6)) for x, y in dots} == {
        (round(a[i], 6), round(a[j], 6)) for i, j in np.argwhere(found.evaluated)
    }
    assert ax.get_title().startswith("69 of 441 points evaluated (dots)\nheld-out error of the others ")
    assert plots.loss_surface(found)[0].get_title() == ""


def test_a_log_scale_shows_no_less_than_interpolation_may_miss():
    a = np.linspace(-1, 1, 21)
    f = _paraboloid(constant=1e-3)
    adaptive = plane(f, E[0] * 0, E[0], E[1], a, a, tol=0.01, generator=seeded(0))
    full = plane(f, E[0] * 0, E[0], E[1], a, a)
    assert plots.loss_surface(full)[1].get_clim() == (1e-3, 1.001)
    low, high = plots.loss_surface(adaptive)[1].get_clim()
    assert (low, high) == (pytest.approx(0.01), 1.001)  # 1 % of the range from 0.001 to 1.001
    # what interpolation overshot is no reason for a linear scale, nor for a hole
    i, j = np.argwhere(~adaptive.evaluated)[0]
    loss = adaptive.loss.copy()
    loss[i, j] = -0.1
    ax, contours = plots.loss_surface(dataclasses.replace(adaptive, loss=loss))
    assert isinstance(contours.norm, LogNorm)
    assert ax.get_title() == ""


# checkpoints and trajectories


def _three():
    points = [torch.zeros(8, dtype=DOUBLE), 2 * E[0], E[0] + E[1]]
    frame = plane_through(*points, names=["one", "two", "three"])
    return points, frame


def _texts(ax):
    return {text.get_text(): text.xy for text in ax.texts}


def test_checkpoints_stand_at_their_coordinates_with_their_names():
    points, frame = _three()
    found = plane(_paraboloid(), points[0], *frame.directions, np.linspace(-1, 3, 9), np.linspace(-1, 3, 9))
    ax, _ = plots.loss_surface(found, checkpoints=frame)
    assert _texts(ax) == {name: tuple(c) for name, c in zip(frame.names, frame.coordinates, strict=True)}
    marks = [drawn for drawn in ax.lines if drawn.get_marker() == "o"]
    assert [drawn.get_xydata()[0].tolist() for drawn in marks] == frame.coordinates.tolist()
    assert [drawn.get_color() for drawn in marks] == plots.palette(frame.names)


def test_a_checkpoint_off_the_plane_says_how_far():
    points, frame = _three()
    found = plane(_paraboloid(), points[0], *frame.directions, np.linspace(-1, 3, 9), np.linspace(-1, 3, 9))
    off = project_onto_plane([E[0], E[1] + 3 * E[5]], points[0], *frame.directions, names=["on", "off"])
    ax, _ = plots.loss_surface(found, checkpoints=off)
    assert _texts(ax) == {"on": (1, 0), "off\n(3 off the plane)": (0, 1)}


def test_frames_and_planes_agree_on_their_units():
    theta = torch.zeros(8, dtype=DOUBLE)
    d1, d2 = 2 * E[0], 4 * E[1]
    frame = project_onto_plane([2 * E[0] + 4 * E[1]], theta, d1, d2, names=["here"])
    for unit, expected in (("direction", (1, 1)), ("norm", (2, 4))):
        found = plane(_paraboloid(), theta, d1, d2, 5 * A, 5 * A, unit=unit)
        ax, _ = plots.loss_surface(found, checkpoints=frame)
        assert _texts(ax) == {"here": expected}
    other = plane(_paraboloid(), theta, E[0], E[1], A, A)
    tilted = plane(_paraboloid(), theta, d1, 4 * (E[0] + E[1]) / 2**0.5, A, A)
    for wrong in (other, tilted):
        with pytest.raises(ValueError, match="give project_onto_plane the plane's own directions"):
            plots.loss_surface(wrong, checkpoints=frame)


def _trajectory():
    """A spiral in the plane of the first two axes, which leaves it by 0, 1, 2, ... along the third."""
    t = np.linspace(0, 3, 7)
    points = [r * np.cos(r) * E[0] + r * np.sin(r) * E[1] + 0.1 * k * E[2] for k, r in enumerate(t[::-1])]
    return project_onto_plane(points, torch.zeros(8, dtype=DOUBLE), E[0], E[1])


def test_a_trajectory_is_drawn_with_its_distance_from_the_plane():
    frame = _trajectory()
    found = plane(_paraboloid(), torch.zeros(8, dtype=DOUBLE), E[0], E[1], 4 * A, 4 * A)
    ax, _ = plots.loss_surface(found, trajectory=frame)
    (way,) = (drawn for drawn in ax.lines if len(drawn.get_xdata()) == 7)
    assert np.array_equal(way.get_xydata(), frame.coordinates)
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    assert np.array_equal(dots.get_offsets(), frame.coordinates)
    assert np.array_equal(dots.get_array(), frame.out_of_plane)
    assert frame.out_of_plane == pytest.approx(0.1 * np.arange(7))
    assert dots.get_clim() == (0, pytest.approx(0.6))
    bar = ax.figure.axes[1]
    assert bar.get_xlabel() == "distance from the plane, in parameter norm"
    for label, share in zip((ax.get_xlabel(), ax.get_ylabel()), frame.explained, strict=True):
        assert "1 unit = 1 in parameter norm" in _words(label)
        assert f"explains {100 * share:.3g} % of the trajectory" in _words(label)


def test_a_trajectory_that_diverged_is_drawn_as_far_as_it_is_finite():
    frame = _trajectory()
    coordinates, off = frame.coordinates.copy(), frame.out_of_plane.copy()
    coordinates[-1] = off[-1] = np.nan
    diverged = dataclasses.replace(frame, coordinates=coordinates, out_of_plane=off)
    found = plane(_paraboloid(), torch.zeros(8, dtype=DOUBLE), E[0], E[1], 4 * A, 4 * A)
    ax, _ = plots.loss_surface(found, trajectory=diverged, checkpoints=diverged)
    ax.figure.savefig(io.BytesIO())
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    assert dots.get_clim() == (0, pytest.approx(0.5))


def test_trajectories_share_one_scale_of_distances():
    frame = _trajectory()
    nearer = dataclasses.replace(frame, out_of_plane=frame.out_of_plane / 3)
    found = plane(_paraboloid(), torch.zeros(8, dtype=DOUBLE), E[0], E[1], 4 * A, 4 * A)
    figure = plots.loss_surfaces({"A": found, "B": found}, trajectories={"A": frame, "B": nearer})
    dots = [c for ax in figure.axes for c in ax.collections if isinstance(c, PathCollection)]
    assert [c.get_clim() for c in dots] == [(0, pytest.approx(0.6))] * 2
    assert len(figure.axes) == 4  # two planes, the loss, the distance
    figure.savefig(io.BytesIO())
    within = dataclasses.replace(frame, out_of_plane=0 * frame.out_of_plane)
    ax, _ = plots.loss_surface(found, trajectory=within)
    ax.figure.savefig(io.BytesIO())


def test_a_trajectorys_own_plane_goes_with_its_frame():
    points = [(3 - k) * E[0] + (k % 2) * E[1] + 0.1 * k * E[2] for k in range(4)]
    frame = trajectory_plane(points)
    found = plane(_paraboloid(), points[-1], *frame.directions, 4 * A, 4 * A)
    ax, _ = plots.loss_surface(
        found, trajectory=frame, checkpoints=dataclasses.replace(frame, names=["start", "", "", "end"])
    )
    assert _texts(ax)["end"] == (0, 0)


# curves


def _curve():
    """Between two ends of a line on which f = (|x|^2 - 1)^2 is 1 in the middle, and 0 on the circle around it."""

    class Ring(Quadratic):
        def value_and_gradient(self, theta):
            excess = float(theta @ theta) - 1
            return excess**2, 4 * excess * theta

    f = Ring(E, 0 * E[0])
    curve = bezier_path(f, E[0], -E[0], steps=300, generator=seeded(0))
    return f, curve, path(f, E[0], -E[0], np.linspace(-0.5, 1.5, 21))


def test_the_line_and_the_curve_are_drawn_against_the_way_walked():
    _, curve, straight = _curve()
    ax = plots.path_and_curve(straight, curve, ends=("a", "b"))
    line_drawn, bent = ax.lines[0], ax.lines[2]
    # beyond the ends there is nothing to compare
    assert line_drawn.get_xdata() == pytest.approx(np.linspace(0, 2, 11))
    assert np.array_equal(line_drawn.get_ydata(), straight.loss[5:16])
    assert np.array_equal(bent.get_xdata(), curve.arc_length)
    assert np.array_equal(bent.get_ydata(), curve.loss)
    assert _legend(ax) == [
        "straight line: length 2, barrier 1",
        f"Bézier curve: length {curve.arc_length[-1]:.3g}, barrier {curve.height:.3g}",
    ]
    assert ax.get_xlabel() == "way walked from a to b, in parameter norm"


def test_the_line_must_be_that_between_the_ends_of_the_curve():
    f, curve, _ = _curve()
    with pytest.raises(ValueError, match=r"unit 'direction'.*give landscape.path"):
        plots.path_and_curve(line(f, E[0], -2 * E[0], A), curve, ends=("a", "b"))
    with pytest.raises(ValueError, match=r"from 0 to 0\.5"):
        plots.path_and_curve(path(f, E[0], -E[0], [0, 0.5]), curve, ends=("a", "b"))
    with pytest.raises(ValueError, match=r"points 1\.414 apart, the curve's ends are 2 apart"):
        plots.path_and_curve(path(f, E[0], E[1], [0, 1]), curve, ends=("a", "b"))


def test_the_curve_lies_in_its_plane():
    f, curve, _ = _curve()
    ends = curve.theta_a, curve.theta_b, curve.control
    frame = plane_through(*ends, names=["a", "b", "control"])
    found = plane(f, curve.theta_a, *frame.directions, np.linspace(-0.5, 2.5, 7), np.linspace(-0.5, 2.5, 7))
    ax, _ = plots.curve_in_plane(found, frame, curve)
    assert set(_texts(ax)) == {"a", "b", "control"}
    bent, straight = ax.lines[-2:]
    x, y = bent.get_xydata()[::25].T
    there = torch.stack([frame.at(*at) for at in zip(x, y, strict=True)])
    # 1e-12: rounding, of coordinates of size 2
    assert torch.allclose(there, curve.points([0, 0.25, 0.5, 0.75, 1]), rtol=0, atol=1e-12)
    assert straight.get_xydata() == pytest.approx(frame.coordinates[:2])
    swapped = plane_through(curve.theta_b, curve.theta_a, curve.control)
    other = plane(f, curve.theta_b, *swapped.directions, A, A)
    with pytest.raises(ValueError, match="are not the curve's ends and control point, in this order: theta_a"):
        plots.curve_in_plane(other, swapped, curve)


# surfaces


@pytest.fixture
def drawn(monkeypatch):
    """The x, y, z and options of every surface that matplotlib draws, which keeps none of them where we may look."""
    calls, original = [], Axes3D.plot_surface

    def plot_surface(self, *xyz, **options):
        calls.append((*xyz, options))
        return original(self, *xyz, **options)

    monkeypatch.setattr(Axes3D, "plot_surface", plot_surface)
    return calls


def test_a_surface_is_as_high_as_the_loss(drawn):
    theta = torch.ones(8, dtype=DOUBLE)
    found = plane(LogisticRegression(), theta, E[0], E[1], A, np.linspace(0, 1, 3))
    ax = plots.surface_3d(found, scale="linear")
    ((x, y, z, options),) = drawn
    for (i, j), loss in np.ndenumerate(found.loss):
        assert (x[i, j], y[i, j], z[i, j]) == (found.a[i], found.b[j], loss)
    norm = options["norm"]
    assert ax.get_zlim() == (norm.vmin, norm.vmax) == (found.loss.min(), found.loss.max())
    assert ax.get_zlabel() == "loss"
    assert [_words(label) for label in (ax.get_xlabel(), ax.get_ylabel())] == list(found.axes)


def test_a_logarithmic_surface_names_the_losses_themselves(drawn):
    found = plane(_paraboloid(constant=0.01), E[0] * 0, E[0], E[1], 10 * A, 10 * A)
    ax = plots.surface_3d(found)
    assert drawn[0][2] == pytest.approx(np.log10(found.loss))
    assert ax.get_zticks() == pytest.approx([-2, -1, 0, 1, 2])
    assert [text.get_text() for text in ax.get_zticklabels()] == ["0.01", "0.1", "1", "10", "100"]
    assert ax.get_zlabel() == "loss, log scale"
    plots.surface_3d(found, limits=(1.0, 10.0))
    assert drawn[1][2] == pytest.approx(np.log10(np.clip(found.loss, 1, 10)))  # no further than the axis


def test_a_surface_has_holes_where_nothing_is_finite(drawn):
    found = _planes()["A"]
    ax = plots.surface_3d(_with_holes(found))
    holes = np.argwhere(np.isnan(drawn[0][2]))
    assert holes.tolist() == [[0, 0], [1, 1], [1, 2]]
    assert ax.get_title() == "3 of 25 points not finite, left blank"
    ax.figure.savefig(io.BytesIO())
    flat = plt.figure().subplots()
    with pytest.raises(ValueError, match=r'give figure\.add_subplot\(projection="3d"\)'):
        plots.surface_3d(found, ax=flat)


def test_coordinates_need_not_increase(drawn):
    found = _planes()["B"]
    order = np.array([3, 0, 4, 1, 2])
    shuffled = dataclasses.replace(found, a=found.a[order], b=found.b[::-1], loss=found.loss[order, ::-1])
    (_, one), (_, other) = (plots.loss_surface(p) for p in (found, shuffled))
    for first, second in zip(one.get_paths(), other.get_paths(), strict=True):
        assert np.array_equal(first.vertices, second.vertices)
    plots.surface_3d(found)
    plots.surface_3d(shuffled)
    assert all(np.array_equal(first, second) for first, second in zip(drawn[0][:3], drawn[1][:3], strict=True))
    (one,), (other,) = (plots.interactive_surface({"": p}).data for p in (found, shuffled))
    assert np.array_equal(one.z, other.z)


def test_an_interactive_surface_has_a_button_for_each_plane_and_one_scale():
    planes = _planes()
    holed = {"A": planes["A"], "B": _with_holes(planes["B"])}
    figure = plots.interactive_surface(holed, scale="linear")
    lowest = min(p.loss[np.isfinite(p.loss)].min() for p in holed.values())
    highest = max(p.loss[np.isfinite(p.loss)].max() for p in holed.values())
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (lowest, highest)
    assert figure.layout.scene.zaxis.range[1] == highest
    for trace, found in zip(figure.data, holed.values(), strict=True):
        assert trace.coloraxis == "coloraxis"
        shown = np.where(np.isfinite(found.loss), found.loss, np.nan)
        assert np.array_equal(np.asarray(trace.z).T, shown, equal_nan=True)  # z has a row for each y
        assert np.array_equal(trace.x, found.a)
        assert np.array_equal(trace.y, found.b)
    assert [trace.visible for trace in figure.data] == [True, False]
    (menu,) = figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["A", "B"]
    assert [button.args[0]["visible"] for button in menu.buttons] == [[True, False], [False, True]]
    for button, found, blank in zip(menu.buttons, holed.values(), (False, True), strict=True):
        title = button.args[1]["title.text"]
        assert all(axis in title for axis in found.axes)
        assert ("3 of 25 points not finite" in title) == blank
    assert figure.layout.title.text == menu.buttons[0].args[1]["title.text"]


def test_an_interactive_surface_tells_losses_on_a_log_scale():
    found = plane(_paraboloid(constant=0.01), E[0] * 0, E[0], E[1], 10 * A, 10 * A)
    figure = plots.interactive_surface({"A": found})
    (trace,) = figure.data
    assert np.asarray(trace.z) == pytest.approx(np.log10(found.loss.T))
    assert np.array_equal(trace.customdata, found.loss.T)
    assert "loss = %{customdata" in trace.hovertemplate
    zaxis = figure.layout.scene.zaxis
    assert zaxis.tickvals == pytest.approx([-2, -1, 0, 1, 2])
    assert zaxis.ticktext == figure.layout.coloraxis.colorbar.ticktext == ("0.01", "0.1", "1", "10", "100")
    assert not figure.layout.updatemenus  # nothing to choose from
    page = figure.to_html()
    assert "<script src=" not in page  # it holds all that it needs
    assert len(page) > 1e6


def test_without_plotly_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ValueError, match="pip install plotly"):
        plots.interactive_surface(_planes())


def test_a_given_axes_is_drawn_into_and_returned():
    lines, planes = _lines(), _planes()
    _, curve, straight = _curve()
    f = tiny_objective()
    band = line_band(f, f.theta, A, directions=2, generator=seeded(0))
    for draw in (
        lambda ax: plots.lines(lines, ax=ax),
        lambda ax: plots.line_between(lines["A"], lines["B"], ends=("A", "B"), ax=ax),
        lambda ax: plots.line_bands({"A": band}, ax=ax),
        lambda ax: plots.loss_surface(planes["A"], ax=ax)[0],
        lambda ax: plots.path_and_curve(straight, curve, ends=("a", "b"), ax=ax),
    ):
        ax = plt.figure().subplots()
        assert draw(ax) is ax
        assert ax.get_xlabel() != ""
        assert ax.get_ylabel() != ""
    ax = plt.figure().add_subplot(projection="3d")
    assert plots.surface_3d(planes["A"], ax=ax) is ax
    for draw in (
        lambda figure: plots.loss_surfaces(planes, figure=figure),
        lambda figure: plots.line_panels({"A": {"train": lines["A"]}}, figure=figure),
    ):
        figure = plt.figure()
        assert draw(figure) is figure

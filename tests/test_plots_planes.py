"""Pictures of planes, with checkpoints and trajectories on them, read back."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize

from landscape import (
    plane,
    plane_through,
    plots,
    project_onto_plane,
    random_direction,
    trajectory_plane,
)
from landscape.results import from_dataset, to_dataset
from tests.pictures import A, E, lines_of, paraboloid, planes_of, texts, with_holes, words
from tests.problems import DOUBLE, LogisticRegression, seeded, tiny_objective


def _colours(contours):
    """What a picture of the plane says that its norm and levels are."""
    return contours.norm.vmin, contours.norm.vmax, tuple(contours.levels)


def test_surfaces_share_their_colours():
    planes = planes_of()
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
    found = plane(paraboloid(constant=0.0), torch.zeros(8, dtype=DOUBLE), E[0], E[1], a, 2 * a)
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
        found = plane(paraboloid(), theta, E[0], 2 * E[1], A, A, unit=unit)
        ax, _ = plots.loss_surface(found)
        assert ax.get_aspect() == aspect
        assert [words(label) for label in (ax.get_xlabel(), ax.get_ylabel())] == list(found.axes)
    # a sliver would show nothing
    ax, _ = plots.loss_surface(plane(paraboloid(), theta, E[0], 100 * E[1], A, A))
    assert ax.get_aspect() == "auto"


def test_points_that_are_not_finite_stay_blank_and_are_counted():
    found = planes_of()["A"]
    broken = with_holes(found)
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
    found = planes_of()["A"]
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
    moved = {k: dataclasses.replace(found, loss=found.loss + shift) for k, found in lines_of().items()}
    scale = "linear" if shift else "log"
    assert plots.lines(moved).get_yscale() == scale
    assert plots.line_between(moved["A"], moved["B"], ends=("A", "B")).get_yscale() == scale
    figure = plots.loss_surfaces({k: dataclasses.replace(p, loss=p.loss + shift) for k, p in planes_of().items()})
    assert ("log" in figure.axes[-1].get_ylabel()) == (shift == 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_a_flat_surface_is_drawn_alone_and_beside_another(value):
    planes = planes_of()
    flat = dataclasses.replace(planes["A"], loss=np.full_like(planes["A"].loss, value))
    nearly = dataclasses.replace(flat, loss=flat.loss * (1 + 1e-15 * np.arange(5)))  # 25 levels do not fit between
    for drawn in ({"flat": flat}, {"nearly": nearly}, {"flat": flat, "B": planes["B"]}):
        plots.loss_surfaces(drawn).savefig(io.BytesIO())
    plots.surface_3d(flat).figure.savefig(io.BytesIO())


def test_one_loss_that_is_not_positive_makes_all_scales_linear():
    planes, lines = planes_of(), lines_of()
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
    ax, contours = plots.loss_surface(planes_of()["A"], limits=limits)
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
    found = plane(paraboloid(), E[0] * 0, E[0], E[1], a, a, tol=0.01, generator=seeded(0))
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
    f = paraboloid(constant=1e-3)
    adaptive = plane(f, E[0] * 0, E[0], E[1], a, a, tol=0.01, generator=seeded(0))
    full = plane(f, E[0] * 0, E[0], E[1], a, a)
    assert plots.loss_surface(full)[1].get_clim() == (1e-3, 1.001)
    low, high = plots.loss_surface(adaptive)[1].get_clim()
    assert (low, high) == (pytest.approx(0.01), 1.001)  # 1 % of the range from 0.001 to 1.001
    # the miss is a share of the plane's own range, and is one of the loss
    wide = plane(paraboloid(constant=1e-3), E[0] * 0, E[0], E[1], 10 * a, 10 * a)
    for drawn in ({"full": wide, "adaptive": adaptive}, {"adaptive": adaptive, "full": wide}):
        limits = plots.loss_surfaces(drawn).axes[0].collections[0].get_clim()
        assert limits == (pytest.approx(0.01), pytest.approx(100.001))
    wrong = dataclasses.replace(adaptive, accuracy=1 - adaptive.loss / 2)
    assert plots.loss_surface(wrong, metric="error")[1].get_clim() == (pytest.approx(5e-4), pytest.approx(0.5005))
    # what interpolation overshot is no reason for a linear scale, nor for a hole
    i, j = np.argwhere(~adaptive.evaluated)[0]
    loss = adaptive.loss.copy()
    loss[i, j] = -0.1
    ax, contours = plots.loss_surface(dataclasses.replace(adaptive, loss=loss))
    assert isinstance(contours.norm, LogNorm)
    assert ax.get_title() == ""


def _three():
    points = [torch.zeros(8, dtype=DOUBLE), 2 * E[0], E[0] + E[1]]
    frame = plane_through(*points, names=["one", "two", "three"])
    return points, frame


def test_checkpoints_stand_at_their_coordinates_with_their_names():
    points, frame = _three()
    found = plane(paraboloid(), points[0], *frame.directions, np.linspace(-1, 3, 9), np.linspace(-1, 3, 9))
    ax, _ = plots.loss_surface(found, checkpoints=frame)
    assert texts(ax) == {name: tuple(c) for name, c in zip(frame.names, frame.coordinates, strict=True)}
    marks = [drawn for drawn in ax.lines if drawn.get_marker() == "o"]
    assert [drawn.get_xydata()[0].tolist() for drawn in marks] == frame.coordinates.tolist()
    assert [drawn.get_color() for drawn in marks] == plots.palette(frame.names)


def test_a_checkpoint_off_the_plane_says_how_far():
    points, frame = _three()
    found = plane(paraboloid(), points[0], *frame.directions, np.linspace(-1, 3, 9), np.linspace(-1, 3, 9))
    off = project_onto_plane([E[0], E[1] + 3 * E[5]], points[0], *frame.directions, names=["on", "off"])
    ax, _ = plots.loss_surface(found, checkpoints=off)
    assert texts(ax) == {"on": (1, 0), "off\n(3 off the plane)": (0, 1)}


def test_frames_and_planes_agree_on_their_units():
    theta = torch.zeros(8, dtype=DOUBLE)
    d1, d2 = 2 * E[0], 4 * E[1]
    frame = project_onto_plane([2 * E[0] + 4 * E[1]], theta, d1, d2, names=["here"])
    for unit, expected in (("direction", (1, 1)), ("norm", (2, 4))):
        found = plane(paraboloid(), theta, d1, d2, 5 * A, 5 * A, unit=unit)
        ax, _ = plots.loss_surface(found, checkpoints=frame)
        assert texts(ax) == {"here": expected}
    other = plane(paraboloid(), theta, E[0], E[1], A, A)
    tilted = plane(paraboloid(), theta, d1, 4 * (E[0] + E[1]) / 2**0.5, A, A)
    for wrong in (other, tilted):
        with pytest.raises(ValueError, match=r"another direction \d than the plane's: give both the same"):
            plots.loss_surface(wrong, checkpoints=frame)


def test_a_frame_of_another_orthonormal_plane_or_origin_is_refused():
    frame = project_onto_plane([E[2] + E[0]], E[2], E[0], E[1], names=["here"])
    for origin, d1, d2, message in (
        (E[2], E[0], E[3], "direction 2"),
        (E[2], E[1], E[0], "direction 1"),
        (E[2], E[0], -E[1], "direction 2"),
        (E[2] + 1e-3 * E[0], E[0], E[1], "origin"),
        (0 * E[2], E[0], E[1], "origin"),
    ):
        with pytest.raises(ValueError, match=f"the frame has another {message} than the plane's: give both the same"):
            plots.loss_surface(plane(paraboloid(), origin, d1, d2, A, A), checkpoints=frame)
    own = plane(paraboloid(), E[2], E[0], E[1], A, A)
    for again in (own, from_dataset(to_dataset(own))):
        assert texts(plots.loss_surface(again, checkpoints=from_dataset(to_dataset(frame)))[0]) == {"here": (1, 0)}


def test_a_plane_of_rounded_directions_goes_with_the_frame_of_exact_ones():
    points = torch.randn(3, 8, generator=seeded(0), dtype=DOUBLE)
    frame = plane_through(*points)
    single = [vector.float() for vector in (frame.origin, *frame.directions)]
    assert not torch.equal(single[1].double(), frame.directions[0])
    plots.loss_surface(plane(paraboloid(), *single, A, A), checkpoints=frame)


def test_oblique_directions_say_their_angle_and_are_not_drawn_to_scale():
    theta = torch.zeros(8, dtype=DOUBLE)
    oblique = (E[0] + 3**0.5 * E[1]) / 2
    ax, _ = plots.loss_surface(plane(paraboloid(), theta, E[0], oblique, A, A))
    assert ax.get_aspect() == "auto"
    assert ax.get_title() == "directions at 60° to each other: not to scale"
    ax, _ = plots.loss_surface(plane(paraboloid(), theta, E[0], E[1] + 0.04 * E[0], A, A))
    assert ax.get_aspect() != "auto"  # 2 degrees
    assert ax.get_title() == ""


def _trajectory():
    """A spiral in the plane of the first two axes, which leaves it by 0, 1, 2, ... along the third."""
    t = np.linspace(0, 3, 7)
    points = [r * np.cos(r) * E[0] + r * np.sin(r) * E[1] + 0.1 * k * E[2] for k, r in enumerate(t[::-1])]
    return project_onto_plane(points, torch.zeros(8, dtype=DOUBLE), E[0], E[1])


def test_a_trajectory_is_drawn_with_its_distance_from_the_plane():
    frame = _trajectory()
    found = plane(paraboloid(), torch.zeros(8, dtype=DOUBLE), E[0], E[1], 4 * A, 4 * A)
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
        assert "1 unit = 1 in parameter norm" in words(label)
        assert f"explains {100 * share:.3g} % of the trajectory" in words(label)


def test_a_trajectory_that_diverged_is_drawn_as_far_as_it_is_finite():
    frame = _trajectory()
    coordinates, off = frame.coordinates.copy(), frame.out_of_plane.copy()
    coordinates[-1] = off[-1] = np.nan
    diverged = dataclasses.replace(frame, coordinates=coordinates, out_of_plane=off)
    found = plane(paraboloid(), torch.zeros(8, dtype=DOUBLE), E[0], E[1], 4 * A, 4 * A)
    ax, _ = plots.loss_surface(found, trajectory=diverged, checkpoints=diverged)
    ax.figure.savefig(io.BytesIO())
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    assert dots.get_clim() == (0, pytest.approx(0.5))


def test_trajectories_share_one_scale_of_distances():
    frame = _trajectory()
    nearer = dataclasses.replace(frame, out_of_plane=frame.out_of_plane / 3)
    found = plane(paraboloid(), torch.zeros(8, dtype=DOUBLE), E[0], E[1], 4 * A, 4 * A)
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
    found = plane(paraboloid(), points[-1], *frame.directions, 4 * A, 4 * A)
    ax, _ = plots.loss_surface(
        found, trajectory=frame, checkpoints=dataclasses.replace(frame, names=["start", "", "", "end"])
    )
    assert texts(ax)["end"] == (0, 0)

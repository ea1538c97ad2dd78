"""Pictures of curves between minima and of surfaces, read back."""

import dataclasses
import io
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from mpl_toolkits.mplot3d import Axes3D

from landscape import (
    bezier_path,
    line,
    line_band,
    path,
    plane,
    plane_through,
    plots,
)
from tests.pictures import A, E, legend, lines_of, paraboloid, planes_of, texts, with_holes, words
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, tiny_objective


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
    assert legend(ax) == [
        "straight line: length 2, barrier 1",
        f"Bézier curve: length {curve.arc_length[-1]:.3g}, barrier {curve.height:.3g}",
    ]
    assert ax.get_xlabel() == "arc length from a to b, in parameter norm"


def test_the_line_must_be_that_between_the_ends_of_the_curve():
    f, curve, straight = _curve()
    with pytest.raises(ValueError, match=r"unit 'direction'.*give landscape.path"):
        plots.path_and_curve(line(f, E[0], -2 * E[0], A), curve, ends=("a", "b"))
    with pytest.raises(ValueError, match=r"from 0 to 0\.5"):
        plots.path_and_curve(path(f, E[0], -E[0], [0, 0.5]), curve, ends=("a", "b"))
    with pytest.raises(ValueError, match=r"points 1\.414 apart, the curve's ends are 2 apart"):
        plots.path_and_curve(path(f, E[0], E[1], [0, 1]), curve, ends=("a", "b"))
    with pytest.raises(ValueError, match=r"straight has batch_norm='frozen', the curve '': give landscape\.path"):
        plots.path_and_curve(dataclasses.replace(straight, batch_norm="frozen"), curve, ends=("a", "b"))


def test_the_curve_lies_in_its_plane():
    f, curve, _ = _curve()
    ends = curve.theta_a, curve.theta_b, curve.control
    frame = plane_through(*ends, names=["a", "b", "control"])
    found = plane(f, curve.theta_a, *frame.directions, np.linspace(-0.5, 2.5, 7), np.linspace(-0.5, 2.5, 7))
    ax, _ = plots.curve_in_plane(found, frame, curve)
    assert set(texts(ax)) == {"a", "b", "control"}
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
    assert [words(label) for label in (ax.get_xlabel(), ax.get_ylabel())] == list(found.axes)


def test_a_logarithmic_surface_names_the_losses_themselves(drawn):
    found = plane(paraboloid(constant=0.01), E[0] * 0, E[0], E[1], 10 * A, 10 * A)
    ax = plots.surface_3d(found)
    assert drawn[0][2] == pytest.approx(np.log10(found.loss))
    assert ax.get_zticks() == pytest.approx([-2, -1, 0, 1, 2])
    assert [text.get_text() for text in ax.get_zticklabels()] == ["0.01", "0.1", "1", "10", "100"]
    assert ax.get_zlabel() == "loss, log scale"
    plots.surface_3d(found, limits=(1.0, 10.0))
    assert drawn[1][2] == pytest.approx(np.log10(np.clip(found.loss, 1, 10)))  # no further than the axis


def test_a_surface_has_holes_where_nothing_is_finite(drawn):
    found = planes_of()["A"]
    ax = plots.surface_3d(with_holes(found))
    holes = np.argwhere(np.isnan(drawn[0][2]))
    assert holes.tolist() == [[0, 0], [1, 1], [1, 2]]
    assert ax.get_title() == "3 of 25 points not finite, left blank"
    ax.figure.savefig(io.BytesIO())
    flat = plt.figure().subplots()
    with pytest.raises(ValueError, match=r'give figure\.add_subplot\(projection="3d"\)'):
        plots.surface_3d(found, ax=flat)


def test_coordinates_need_not_increase(drawn):
    found = planes_of()["B"]
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
    planes = planes_of()
    holed = {"A": planes["A"], "B": with_holes(planes["B"])}
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
    found = plane(paraboloid(constant=0.01), E[0] * 0, E[0], E[1], 10 * A, 10 * A)
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
        plots.interactive_surface(planes_of())


def test_a_given_axes_is_drawn_into_and_returned():
    lines, planes = lines_of(), planes_of()
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

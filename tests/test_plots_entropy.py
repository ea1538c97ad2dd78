"""Pictures of local entropy: what is drawn is what was measured."""

import dataclasses
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patches import StepPatch

from landscape import local_entropy, plots
from landscape.local_entropy import local_entropy_trajectory
from landscape.plots.entropy import smc_diagnostics
from tests.problems import DOUBLE, LogisticRegression, seeded, tiny_objective

F = LogisticRegression()
SMALL = {"populations": 4, "chains": 2, "moves": 8, "tol": 0.5}


def _at(x, method, radius=(0.1, 0.3), **options):
    point = torch.full((8,), float(x), dtype=DOUBLE)
    return local_entropy(F, point, radius=list(radius), method=method, generator=seeded(0), **options)


def _legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _heights(polygons):
    return polygons.get_paths()[0].vertices[:, 1]


def _markers(ax):
    return [line for line in ax.lines if line.get_marker() not in ("None", "", "_", "|") and len(line.get_xdata())]


def test_a_label_is_a_colour_and_a_method_a_line():
    entropies = {label: [_at(x, m) for m in ("laplace", "monte_carlo")] for label, x in (("A", 0), ("B", 1))}
    ax = plots.local_entropy_curve(entropies)
    assert _legend(ax) == ["A", "B", "Laplace", "Monte Carlo", "not reliable"]
    drawn = [line for line in ax.lines if line.get_linestyle() in ("--", ":") and len(line.get_xdata())]
    assert [line.get_linestyle() for line in drawn] == ["--", ":", "--", ":"]
    colors = [line.get_color() for line in drawn]
    assert colors[0] == colors[1] != colors[2] == colors[3]
    for line, sweep in zip(drawn, [*entropies["A"], *entropies["B"]], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), sweep.excess)
    assert "60" in ax.get_ylabel()  # beta


def test_the_excess_is_on_a_log_axis_unless_it_is_negative_somewhere():
    ax = plots.local_entropy_curve({"A": [_at(0, "monte_carlo", (0.01, 0.02))]})
    away = _at(3, "laplace")  # far from the minimum the ball finds lower losses
    assert (away.excess < 0).any()
    other = plots.local_entropy_curve({"A": [away]})
    assert ax.get_xscale() == other.get_xscale() == "log"
    assert other.get_yscale() == "symlog"


def test_points_that_are_not_reliable_are_hollow_and_have_no_bars():
    sweep = _at(0, "monte_carlo", (0.01, 3.0), samples=30)
    assert sweep.reliable.tolist() == [True, False]
    ax = plots.local_entropy_curve({"A": [sweep]})
    (bars,) = (c for c in ax.collections if isinstance(c, LineCollection))
    ((start, end),) = bars.get_segments()
    assert start[0] == end[0] == 0.01
    assert end[1] - start[1] == pytest.approx(2 * sweep.excess_stderr[0])
    hollow = [line for line in _markers(ax) if line.get_markerfacecolor() == "white"]
    assert [line.get_xdata().tolist() for line in hollow] == [[3.0]]


def test_the_bracket_of_smc_is_shaded():
    sweep = _at(0, "smc", (0.3, 0.5), **SMALL)
    ax = plots.local_entropy_curve({"A": [sweep]})
    assert _legend(ax) == ["A", "annealed SMC", "its bracket", "not reliable"]
    bracket = next(c for c in ax.collections if isinstance(c, PolyCollection))
    low, high = sweep.excess_bracket
    assert _heights(bracket).min() == pytest.approx(low.min())
    assert _heights(bracket).max() == pytest.approx(high.max())


def test_sgld_leads_to_where_a_step_of_zero_would_put_it():
    f = tiny_objective()
    sweep = local_entropy(
        f, f.theta, radius=[0.5, 1.0], method="sgld", populations=2, moves=2, parts=2, generator=seeded(0)
    )
    ax = plots.local_entropy_curve({"A": [sweep]})
    broad = next(c for c in ax.collections if isinstance(c, LineCollection) and c.get_linewidth()[0] == 5)
    ends = np.array([segment[:, 1] for segment in broad.get_segments()])
    # twice the step gave excess + bias / beta, this step gives excess, none gives as much less again
    np.testing.assert_allclose(ends, np.stack([sweep.excess, sweep.excess - sweep.step_size_bias / sweep.beta], axis=1))


@pytest.mark.parametrize("radius", [0.3, [0.1, 0.3]])
def test_along_training_has_the_loss_and_a_panel_for_each_radius(radius):
    points = [torch.full((8,), t, dtype=DOUBLE) for t in (3.0, 1.0, 0.5, 0.1)]
    along = local_entropy_trajectory(F, points, radius=radius, method="monte_carlo", samples=16, generator=seeded(0))
    when = [0, 10, 20, 30]
    figure = plots.entropy_along_training({"A": along, "B": along[:2]}, {"A": when, "B": when[:2]}, xlabel="epoch")
    loss, *excesses = figure.axes
    assert len(excesses) == np.size(radius)
    assert _legend(loss) == ["A", "B", "not reliable"]  # 16 draws tell little of a ball of radius 0.3
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [F.value(point) for point in points])
    for i, ax in enumerate(excesses):
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), [found.excess[i] for found in along])
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), when)
        assert ax.get_xlabel() == "epoch"
        assert ax.get_ylabel() != ""
        assert f"{np.atleast_1d(radius)[i]:g}" in ax.get_title()
    figure.savefig(io.BytesIO())


def test_what_does_not_fit_along_training_is_named():
    along = [_at(0, "monte_carlo"), _at(1, "monte_carlo")]
    with pytest.raises(ValueError, match=r"when\['A'\] has 1 numbers for 2 points"):
        plots.entropy_along_training({"A": along}, {"A": [0]})
    with pytest.raises(ValueError, match=r"when\['A'\] has 0 numbers"):
        plots.entropy_along_training({"A": along}, {"B": [0, 1]})
    with pytest.raises(ValueError, match="different radii"):
        plots.entropy_along_training({"A": [along[0], _at(1, "monte_carlo", (0.2,))]}, {"A": [0, 1]})


@pytest.mark.parametrize("pairs", [0, 8])
def test_the_area_between_the_steps_is_the_bracket_before_its_error(pairs):
    f = _at(0, "smc", (0.3, 0.6), pairs=pairs, **SMALL)
    for i, radius in enumerate((0.3, 0.6)):
        figure = smc_diagnostics(f, radius=radius)
        losses, psis = figure.axes[:2]
        (steps,) = (patch for patch in psis.patches if isinstance(patch, StepPatch))
        upper, edges, lower = steps.get_data()
        area = ((upper - lower) * np.diff(edges)).sum()
        there = np.isfinite(f.schedule[i])
        ds, psi = np.diff(f.schedule[i][there]), f.step_potential[i][there]
        low, high = -(ds * psi[:-1]).sum(), -(ds * psi[1:]).sum()  # the Riemann sums of minus the integral
        assert area == pytest.approx(high - low, rel=1e-10)  # rounding
        # both sums add two standard errors, so the bracket is wider
        assert 0 < area < f.upper[i] - f.lower[i]
        np.testing.assert_array_equal(edges, f.schedule[i][there])
        np.testing.assert_array_equal(losses.lines[0].get_ydata(), f.step_loss[i][there])
        np.testing.assert_array_equal(psis.lines[0].get_ydata(), f.step_potential[i][there])
    assert len(smc_diagnostics(f).axes[0].lines[0].get_xdata()) == there.sum()  # by default the largest radius
    figure.savefig(io.BytesIO())


def test_rates_by_temperature_and_the_diagnostics_at_the_end_are_shown():
    f = _at(0, "smc", (0.6,), pairs=0, **SMALL)
    *_, acceptance, effective = (figure := smc_diagnostics(f)).axes
    np.testing.assert_array_equal(acceptance.lines[0].get_ydata(), f.step_acceptance[0])
    np.testing.assert_array_equal(effective.lines[0].get_ydata(), f.step_relative_ess[0])
    text = figure.get_suptitle()
    for told in (f.value[0], f.lower[0], f.r_hat[0], f.drift[0]):
        assert f"{told:.2f}" in text
    assert f"{f.virial[0]:.3f}" in text
    assert f"autocorrelation time {f.autocorrelation_time[0]:.1f}," in text


def test_the_middle_temperature_is_in_the_middle_of_the_axis():
    f = _at(0, "smc", (0.6,), pairs=0, **SMALL)
    ax = smc_diagnostics(f).axes[-1]
    to_axes = ax.transData + ax.transAxes.inverted()
    places = [to_axes.transform((s, 0.5))[0] for s in f.schedule[0]]
    assert places[len(places) // 2] == pytest.approx(0.5)
    ticks = np.sort([to_axes.transform((s, 0.5))[0] for s in ax.get_xticks()])
    assert ticks[0] == pytest.approx(0)
    assert ticks[-1] == pytest.approx(1)
    assert np.diff(ticks).min() > 0.05  # their labels stand apart


def test_a_single_radius_and_sgld_have_a_schedule_and_others_say_that_they_have_none():
    x = torch.zeros(8, dtype=DOUBLE)
    single = local_entropy(F, x, radius=0.3, method="smc", pairs=0, **SMALL, generator=seeded(0))
    assert len(smc_diagnostics(single).axes) == 4
    f = tiny_objective()
    sgld = local_entropy(f, f.theta, radius=1.0, method="sgld", populations=2, moves=2, parts=2, generator=seeded(0))
    assert len(smc_diagnostics(sgld).axes) == 2  # no acceptance rate and no weights
    with pytest.raises(ValueError, match=r"Laplace result has no schedule.*'smc'"):
        smc_diagnostics(_at(0, "laplace"))
    with pytest.raises(ValueError, match=r"radius=0.2: give one of those with a schedule, 0.3"):
        smc_diagnostics(single, radius=0.2)


def test_a_given_axes_or_figure_is_drawn_into_and_returned():
    entropies = [_at(0, "smc", (0.3,), pairs=0, **SMALL)]
    ax = plt.figure().subplots()
    assert plots.local_entropy_curve({"A": entropies}, ax=ax) is ax
    for draw in (
        lambda figure: plots.entropy_along_training({"A": entropies}, {"A": [0]}, figure=figure),
        lambda figure: smc_diagnostics(entropies[0], figure=figure),
    ):
        figure = plt.figure()
        assert draw(figure) is figure


def test_nan_is_left_blank_and_does_not_set_the_axis():
    sweep = _at(0, "laplace", (0.1, 0.3))
    broken = dataclasses.replace(sweep, value=np.array([sweep.value[0], np.nan]), reliable=np.array([True, False]))
    ax = plots.local_entropy_curve({"A": [broken]})
    ax.figure.savefig(io.BytesIO())
    assert ax.get_yscale() in ("log", "symlog")

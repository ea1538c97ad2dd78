import dataclasses
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize

from landscape import eigenpairs, line, local_entropy, plane, plots, spectral_density
from tests.problems import DOUBLE, LogisticRegression, seeded, symmetric


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _spectra():
    matrices = {"A": symmetric(np.arange(20.0)), "B": symmetric(np.arange(-2.0, 18))}
    pairs = {k: eigenpairs(m, 2, which="largest", generator=seeded(0)) for k, m in matrices.items()}
    densities = {
        k: spectral_density(m, steps=10, probes=3, deflate=pairs[k], generator=seeded(0)) for k, m in matrices.items()
    }
    return densities, pairs


def _slices():
    f, e = LogisticRegression(), torch.eye(8, dtype=DOUBLE)
    points = {"A": torch.zeros(8, dtype=DOUBLE), "B": torch.ones(8, dtype=DOUBLE)}
    a = np.linspace(-1, 1, 5)
    lines = {k: line(f, x, e[0], a) for k, x in points.items()}
    planes = {k: plane(f, x, e[0], e[1], a, a) for k, x in points.items()}
    entropies = {
        k: [local_entropy(f, x, radius=[0.01, 0.1], method=m, generator=seeded(0)) for m in ("laplace", "monte_carlo")]
        for k, x in points.items()
    }
    return lines, planes, entropies


def _legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _labelled(ax):
    return ax.get_xlabel() != "" and ax.get_ylabel() != ""


def test_histogram_and_density_hold_all_checkpoints_on_log_axes():
    densities, pairs = _spectra()
    ax = plots.eigenvalue_histogram(densities, eigenpairs=pairs)
    assert ax.get_yscale() == "log"
    assert _legend(ax) == ["A", "B"]
    assert _labelled(ax)
    low, high = ax.get_xlim()
    assert low <= -2  # every eigenvalue is inside
    assert high >= 19
    ax = plots.density_curve(densities, width=0.5)
    assert _legend(ax) == ["A", "B"]
    assert _labelled(ax)
    assert "0.5" in ax.get_ylabel()


def test_the_legend_sets_outliers_beside_classes():
    matrix = symmetric([30.0, 20, 25, *np.linspace(0, 1, 30)])
    pairs = eigenpairs(matrix, 5, which="largest", generator=seeded(0))
    density = spectral_density(matrix, steps=30, probes=2, deflate=pairs, generator=seeded(0))
    ax = plots.eigenvalue_histogram({"A": density}, classes=4)
    assert _legend(ax) == ["A: 3 outliers, 4 classes"]


def test_three_panels_show_the_whole_zero_and_the_negative_tail():
    densities, pairs = _spectra()
    figure = plots.spectrum_panels(densities, eigenpairs=pairs)
    whole, zero, tail = figure.axes
    assert whole.get_xlim()[1] >= 19
    assert zero.get_xlim()[1] < 1
    assert tail.get_xlim()[0] <= -2
    assert all(ax.get_yscale() == "log" for ax in figure.axes)
    assert whole.get_shared_y_axes().joined(whole, tail)
    figure.savefig(io.BytesIO())  # a layout that collapses warns, and warnings are errors


def test_the_density_has_a_band_and_one_probe_has_none():
    matrix = symmetric(np.arange(20.0))
    for probes, banded in ((1, False), (4, True)):
        density = spectral_density(matrix, steps=5, probes=probes, generator=seeded(0))
        ax = plots.density_curve({"A": density}, width=0.5)
        (band,) = ax.collections
        heights = band.get_paths()[0].vertices[:, 1] if band.get_paths() else np.zeros(0)
        assert (np.ptp(heights[np.isfinite(heights)]) > 0 if len(heights) else False) == banded


def test_gauss_newton_is_drawn_beside_the_hessian():
    densities, _ = _spectra()
    ax = plots.hessian_and_gauss_newton({"A": densities["A"]}, {"A": densities["B"]})
    assert _legend(ax) == ["A, H", "A, G"]
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]
    assert _labelled(ax)


def test_layers_are_a_heat_map_on_one_scale():
    table = xarray.Dataset({"lambda_max": ("layer", np.array([1.0, 2.0]))}, {"layer": ["0", "2"]})
    ax = plots.layer_heatmap({"A": table, "B": 3 * table})
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "2"]
    assert ax.collections[0].get_clim() == (1, 6)
    with pytest.raises(ValueError, match=r"quantity='size'.*lambda_max"):
        plots.layer_heatmap({"A": table}, quantity="size")
    with pytest.raises(ValueError, match="different layers"):
        plots.layer_heatmap({"A": table, "B": table.isel(layer=[0])})


def test_lines_name_their_units_and_ends():
    lines, _, _ = _slices()
    ax = plots.lines(lines, xlabel="displacement", parabolas={"A": 0.1, "B": 0.2})
    assert _legend(ax)[:2] == ["A", "B"]
    assert ax.get_xlabel() == "displacement"
    ax = plots.line_between(lines["A"], lines["B"], ends=("first", "second"))
    assert _legend(ax) == ["train", "test", "first", "second"]
    assert "weight norm" in ax.get_xlabel()


def test_surfaces_share_their_colours():
    _, planes, _ = _slices()
    figure = plots.loss_surfaces(planes)
    contours = [ax.collections[0].get_clim() for ax in figure.axes[:2]]
    assert contours[0] == contours[1]
    lowest = min(p.loss.min() for p in planes.values())
    assert contours[0][0] == pytest.approx(lowest)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["A", "B"]


def test_points_that_are_not_finite_stay_blank():
    _, planes, _ = _slices()
    broken = planes["A"].loss.copy()
    broken[0, 0] = np.nan
    broken[1, 1] = np.inf
    object.__setattr__(planes["A"], "loss", broken)
    ax, _ = plots.loss_surface(planes["A"])
    assert _labelled(ax)
    object.__setattr__(planes["A"], "loss", np.full_like(broken, np.nan))
    with pytest.raises(ValueError, match="no loss is finite"):
        plots.loss_surface(planes["A"])


@pytest.mark.parametrize("shift", [-10.0, 0.0])
def test_losses_that_are_not_positive_are_drawn_on_a_linear_scale(shift):
    lines, planes, _ = _slices()
    moved = {k: dataclasses.replace(line, loss=line.loss + shift) for k, line in lines.items()}
    scale = "linear" if shift else "log"
    assert plots.lines(moved, xlabel="a").get_yscale() == scale
    assert plots.line_between(moved["A"], moved["B"], ends=("A", "B")).get_yscale() == scale
    figure = plots.loss_surfaces({k: dataclasses.replace(p, loss=p.loss + shift) for k, p in planes.items()})
    assert ("log" in figure.axes[-1].get_ylabel()) == (shift == 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_a_flat_surface_is_drawn_alone_and_beside_another(value):
    _, planes, _ = _slices()
    flat = dataclasses.replace(planes["A"], loss=np.full_like(planes["A"].loss, value))
    nearly = dataclasses.replace(flat, loss=flat.loss * (1 + 1e-15 * np.arange(5)))  # 25 levels do not fit between
    for drawn in ({"flat": flat}, {"nearly": nearly}, {"flat": flat, "B": planes["B"]}):
        plots.loss_surfaces(drawn).savefig(io.BytesIO())


def test_one_loss_that_is_not_positive_makes_all_scales_linear():
    lines, planes, _ = _slices()
    loss = planes["A"].loss.copy()
    loss[2, 2] = 0.0
    figure = plots.loss_surfaces({"A": dataclasses.replace(planes["A"], loss=loss), "B": planes["B"]})
    norms = [ax.collections[0].norm for ax in figure.axes[:2]]
    assert [type(norm) for norm in norms] == [Normalize, Normalize]
    assert norms[0].vmin == norms[1].vmin == 0
    assert figure.axes[-1].get_ylabel() == "train loss"
    zero = dataclasses.replace(lines["A"], loss=0 * lines["A"].loss)
    assert plots.line_between(lines["A"], zero, ends=("A", "B")).get_ylabel() == "loss"


def test_the_parabola_touches_the_line_at_zero_between_its_points():
    lines, _, _ = _slices()
    uneven = dataclasses.replace(lines["A"], coordinates=np.array([-1.0, 3.0]), loss=np.array([1.0, 5.0]))
    ax = plots.lines({"A": uneven}, xlabel="a", parabolas={"A": 2.0})
    # the loss at 0 is 2, a quarter of the way from 1 to 5; then 2 + a^2
    assert ax.lines[1].get_ydata() == pytest.approx([3.0, 11.0], rel=1e-14)


def test_local_entropy_shows_methods_and_what_is_not_reliable():
    _, _, entropies = _slices()
    ax = plots.local_entropy_curve(entropies)
    assert _legend(ax)[:4] == ["A, Laplace", "A, Monte Carlo", "B, Laplace", "B, Monte Carlo"]
    assert "not reliable" in _legend(ax)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_training_curves_are_drawn_against_gradients():
    logs = {
        "SGD": [{"gradients": g, "loss": 1 / g, "test_accuracy": 0.5} for g in (1, 2, 3)],
        "Entropy-SGD": [
            {"gradients": g, "loss": 1 / g, "gamma": 1e-4, "distance": 0.1, "mean_distance": 0.2, "cosine": None}
            for g in (20, 40)
        ],
    }
    figure = plots.training_curves(logs)
    loss, accuracy, distance, gamma = figure.axes
    assert [line.get_xdata().tolist() for line in loss.lines] == [[1, 2, 3], [20, 40]]
    assert [len(ax.lines) for ax in (accuracy, distance, gamma)] == [1, 2, 1]
    assert gamma.get_xlabel() == "gradients spent"
    assert _legend(loss) == ["SGD", "Entropy-SGD"]
    assert (loss.get_yscale(), loss.get_ylabel()) == ("log", "mini-batch loss (log)")


def test_losses_that_are_not_all_positive_are_drawn_on_a_linear_axis():
    logs = {"SGD": [{"gradients": g, "loss": 1.0 - g} for g in (1, 2, 3)]}
    loss = plots.training_curves(logs).axes[0]
    assert (loss.get_yscale(), loss.get_ylabel()) == ("linear", "mini-batch loss")


def test_the_tempered_bracket_is_shaded():
    f, x = LogisticRegression(), torch.zeros(8, dtype=DOUBLE)
    sweep = local_entropy(f, x, radius=[0.3, 0.5], method="tempered", tol=0.5, generator=seeded(0))
    ax = plots.local_entropy_curve({"A": [sweep]})
    assert _legend(ax)[0] == "A, tempered"
    (bracket,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    heights = bracket.get_paths()[0].vertices[:, 1]
    low, high = sweep.excess_bracket
    assert heights.min() == pytest.approx(low.min())
    assert heights.max() == pytest.approx(high.max())


def test_a_given_axes_is_drawn_into_and_returned():
    densities, pairs = _spectra()
    lines, planes, entropies = _slices()
    for draw in (
        lambda ax: plots.eigenvalue_histogram(densities, eigenpairs=pairs, ax=ax),
        lambda ax: plots.density_curve(densities, ax=ax),
        lambda ax: plots.lines(lines, xlabel="a", ax=ax),
        lambda ax: plots.line_between(lines["A"], lines["B"], ends=("A", "B"), ax=ax),
        lambda ax: plots.loss_surface(planes["A"], ax=ax)[0],
        lambda ax: plots.local_entropy_curve(entropies, ax=ax),
    ):
        ax = plt.figure().subplots()
        assert draw(ax) is ax

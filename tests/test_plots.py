import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

from landscape import eigenpairs, plots, spectral_density
from tests.problems import seeded, symmetric


def _spectra():
    matrices = {"A": symmetric(np.arange(20.0)), "B": symmetric(np.arange(-2.0, 18))}
    pairs = {k: eigenpairs(m, 2, which="largest", generator=seeded(0)) for k, m in matrices.items()}
    densities = {
        k: spectral_density(m, steps=10, probes=3, deflate=pairs[k], generator=seeded(0)) for k, m in matrices.items()
    }
    return densities, pairs


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
    plain = spectral_density(matrix, steps=30, probes=2, generator=seeded(0))
    assert _legend(plots.eigenvalue_histogram({"A": plain}, classes=4)) == ["A"]  # where no outlier was looked for


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


def test_a_given_axes_is_drawn_into_and_returned():
    densities, pairs = _spectra()
    for draw in (
        lambda ax: plots.eigenvalue_histogram(densities, eigenpairs=pairs, ax=ax),
        lambda ax: plots.density_curve(densities, ax=ax),
    ):
        ax = plt.figure().subplots()
        assert draw(ax) is ax

"""Lines, bands and planes through functions whose slices are known."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Checkpoint, ModelObjective, estimate_seconds, line, line_band, path, plane, random_direction
from landscape.results import standard_error
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, symmetric, tiny_mlp, tiny_objective


class Along:
    """f(theta) = u(theta_0), for a function u of one variable with u'(0) = slope and u''(0) = curvature."""

    size, dtype, device = 2, DOUBLE, torch.device("cpu")

    def __init__(self, u, slope=0.0, curvature=1.0):
        self.value = lambda theta: float(u(float(theta[0])))
        self._slope, self._curvature = slope, curvature

    def gradient(self, theta):
        return torch.tensor([self._slope, 0.0], dtype=DOUBLE)

    def value_and_gradient(self, theta):
        return self.value(theta), self.gradient(theta)

    def hvp(self, theta, v):
        return torch.tensor([self._curvature, 0.0], dtype=DOUBLE) * v


E0, E1 = torch.eye(2, dtype=DOUBLE)
ZERO = torch.zeros(2, dtype=DOUBLE)


def _quadratic() -> tuple[Quadratic, torch.Tensor, torch.Tensor, torch.Tensor]:
    f = Quadratic(symmetric([3.0, 1.0, -0.5, 0.0]), torch.ones(4, dtype=DOUBLE), constant=0.2)
    x, d1, d2 = torch.randn(3, 4, generator=seeded(0), dtype=DOUBLE)
    return f, x, d1, d2


def test_a_line_through_a_quadratic_is_its_parabola():
    f, x, d, _ = _quadratic()
    a = np.linspace(-2, 3, 11)
    found = line(f, x, d, a)
    slope, curvature = float(f.gradient(x) @ d), float(d @ f.hessian @ d)
    np.testing.assert_allclose(found.loss, f.value(x) + slope * a + curvature / 2 * a**2, rtol=1e-12)
    np.testing.assert_array_equal(found.coordinates, a)
    assert found.direction_norm == pytest.approx(float(d.norm()))
    assert found.cost.values == 11


def test_a_plane_is_evaluated_where_its_axes_say():
    f, x, d1, d2 = _quadratic()
    a, b = np.array([-1.0, 0.0, 2.0]), np.array([0.0, 0.5])
    found = plane(f, x, d1, d2, a, b)
    direct = [[f.value(x + ai * d1 + bj * d2) for bj in b] for ai in a]
    np.testing.assert_allclose(found.loss, direct, rtol=1e-12)
    assert found.loss.shape == (3, 2)
    np.testing.assert_allclose(found.direction_norms, [float(d1.norm()), float(d2.norm())])
    assert found.cosine == pytest.approx(float(d1 @ d2 / (d1.norm() * d2.norm())))


def test_slices_of_a_network_are_direct_evaluations_with_its_accuracy():
    f = tiny_objective()
    d1, d2 = torch.randn(2, f.size, generator=seeded(0), dtype=DOUBLE)
    found = line(f, f.theta, d1, [0.0, 0.7])
    assert found.loss.tolist() == [f.value(f.theta), f.value(f.theta + 0.7 * d1)]
    assert found.accuracy[1] == f.metrics(f.theta + 0.7 * d1)["accuracy"]
    surface = plane(f, f.theta, d1, d2, [0.0, 0.7], [0.0, 0.3])
    assert surface.loss[:, 0].tolist() == found.loss.tolist()


def test_the_middle_of_a_line_between_two_points_is_their_mean():
    f, x, y, _ = _quadratic()
    assert line(f, x, y - x, [0.5]).loss[0] == pytest.approx(f.value((x + y) / 2), rel=1e-12)


def test_losses_that_are_not_finite_are_kept_and_counted():
    class Cliff(Quadratic):
        def value(self, theta: torch.Tensor) -> float:
            value = super().value(theta)
            return float("nan") if value > 5 else float("inf") if value > 2 else value

    f = Cliff(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    x, e = torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)
    found = line(f, x, e[0], [0.0, 2.5, 4.0])
    assert found.loss[0] == 0
    assert np.isinf(found.loss[1])
    assert np.isnan(found.loss[2])
    assert found.not_finite == 2
    assert plane(f, x, e[0], e[1], [0.0, 2.5], [0.0, 4.0]).not_finite == 3


def test_progress_is_asked_to_show_every_point():
    f, x, d, _ = _quadratic()
    seen = []

    def progress(iterable, description):
        seen.append((description, len(list(iterable))))
        return iterable

    line(f, x, d, [0.0, 1.0, 2.0], progress=progress)
    plane(f, x, d, x, [0.0, 1.0, 2.0], [0.0, 1.0], progress=progress)
    assert seen == [("line", 3), ("plane", 6)]


def test_a_line_in_float64_goes_through_networks_in_float32_exactly():
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(model.float(), nn.CrossEntropyLoss(), (inputs.float(), targets))
    other = torch.randn(f.size, generator=seeded(0))
    assert not torch.equal(f.theta + (other - f.theta), other)  # in float32 it misses
    towards = other.double() - f.theta.double()
    assert line(f, f.theta, towards, [1.0]).loss[0] == f.value(other)
    assert plane(f, f.theta.double(), towards, f.theta, [1.0], [0.0]).loss[0, 0] == f.value(other)


def test_directions_that_carry_a_gradient_are_walked_like_others():
    f, x, d, _ = _quadratic()
    np.testing.assert_array_equal(line(f, x, d.clone().requires_grad_(), [1.0]).loss, line(f, x, d, [1.0]).loss)


# --- several objectives and metrics ------------------------------------------------------------------


def test_several_objectives_are_sliced_at_the_same_points_each_as_if_alone():
    model, data = tiny_mlp()
    _, other = tiny_mlp(examples=30, seed=1)
    both = {
        "train": ModelObjective(model, nn.CrossEntropyLoss(), data),
        "decayed": ModelObjective(model, nn.CrossEntropyLoss(), data, weight_decay=0.1),
        "test": ModelObjective(model, nn.CrossEntropyLoss(), other),
    }
    theta = both["train"].theta
    d1, d2 = torch.randn(2, len(theta), generator=seeded(0), dtype=DOUBLE)
    a = [-0.5, 0.0, 1.0]
    lines, planes = line(both, theta, d1, a, derivatives=True), plane(both, theta, d1, d2, a, a)
    for name, f in both.items():
        alone, surface = line(f, theta, d1, a, derivatives=True), plane(f, theta, d1, d2, a, a)
        for quantity in ("loss", "rise_stderr", "accuracy", "class_accuracy", "parabola"):
            np.testing.assert_array_equal(getattr(lines[name], quantity), getattr(alone, quantity))
        np.testing.assert_array_equal(planes[name].loss, surface.loss)
    walked = np.array([float((theta + ai * d1).square().sum()) for ai in a])
    np.testing.assert_allclose(lines["decayed"].loss - lines["train"].loss, 0.05 * walked, rtol=1e-12)


def test_error_rate_and_accuracy_by_class_are_those_of_direct_evaluation():
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, targets))
    d = torch.randn(f.size, generator=seeded(0), dtype=DOUBLE)
    found = line(f, f.theta, d, [0.0, 1.0])
    for a, wrong, by_class in zip((0.0, 1.0), found.error_rate, found.class_accuracy, strict=True):
        nn.utils.vector_to_parameters(torch.add(f.theta, d, alpha=a), model.parameters())
        right = (model(inputs).argmax(1) == targets).double().numpy()
        assert wrong == pytest.approx(1 - right.mean(), abs=1e-12)
        np.testing.assert_allclose(by_class, [right[targets == c].mean() for c in range(3)], rtol=1e-12)


def test_a_slice_says_what_batch_norm_did_and_how_much_weight_decay_there_was():
    f, g = tiny_objective(batch_norm="recalibrated", weight_decay=0.1), tiny_objective()
    x = f.theta
    for kind in (
        line({"f": f, "g": g}, x, x, [0.0]),
        plane({"f": f, "g": g}, x, x, torch.randn(f.size, generator=seeded(0), dtype=DOUBLE), [0.0], [0.0]),
        line_band({"f": f, "g": g}, x, [0.0], directions=1),
        path({"f": f, "g": g}, x, 2 * x, [0.0]),
    ):
        assert (kind["f"].batch_norm, kind["f"].weight_decay) == ("recalibrated", 0.1)
        assert (kind["g"].batch_norm, kind["g"].weight_decay) == ("frozen", 0.0)
    quadratic, x, d, _ = _quadratic()
    assert line(quadratic, x, d, [0.0]).batch_norm == ""


def test_a_function_that_is_no_network_has_a_loss_alone():
    f, x, d, _ = _quadratic()
    found = line(f, x, d, [0.0, 1.0])
    for unknown in (found.accuracy, found.error_rate, found.loss_stderr, found.rise_stderr, found.parabola):
        assert np.isnan(unknown).all()
    assert found.class_accuracy.shape == (2, 0)


# --- error bars over data ----------------------------------------------------------------------------


def test_error_bars_are_those_of_the_examples_and_paired_for_the_rise():
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=11)
    d = torch.randn(f.size, generator=seeded(0), dtype=DOUBLE)

    def losses(a: float) -> np.ndarray:
        nn.utils.vector_to_parameters(torch.add(f.theta, d, alpha=a), model.parameters())
        return nn.functional.cross_entropy(model(inputs), targets, reduction="none").detach().numpy()

    found = line(f, f.theta, d, [0.0, 0.1])
    surface = plane(f, f.theta, d, f.theta, [0.1], [0.0])
    there, rise = losses(0.1), losses(0.1) - losses(0.0)
    np.testing.assert_allclose(found.loss_stderr[1], standard_error(there), rtol=1e-12)
    np.testing.assert_allclose(found.rise_stderr, [0.0, standard_error(rise)], rtol=1e-10)  # differences cancel digits
    np.testing.assert_allclose(found.rise, [0.0, rise.mean()], rtol=1e-10)
    np.testing.assert_allclose(surface.rise_stderr[0, 0], found.rise_stderr[1], rtol=1e-12)
    np.testing.assert_allclose(surface.rise[0, 0], found.rise[1], rtol=1e-12)


# --- units -------------------------------------------------------------------------------------------


def test_in_units_of_the_norm_a_coordinate_is_the_displacement():
    f = Quadratic(torch.eye(2, dtype=DOUBLE), ZERO)
    found = line(f, ZERO, 7 * E0, [-2.0, 3.0], unit="norm", derivatives=True)
    np.testing.assert_allclose(found.loss, [2.0, 4.5], rtol=1e-15)  # |a|^2 / 2
    assert found.curvature == pytest.approx(1.0, rel=1e-15)
    assert found.axis == "displacement along the direction, in parameter norm"
    surface = plane(f, ZERO, 7 * E0, 3 * E1, [3.0], [4.0], unit="norm")
    np.testing.assert_allclose(surface.loss, [[12.5]], rtol=1e-15)


@pytest.mark.parametrize("unit", ["filter", "layer"])
def test_a_normalised_direction_may_name_its_axis_by_it(unit):
    f = tiny_objective()
    d1, d2 = (random_direction(f, f.theta, normalization=unit, generator=seeded(s)) for s in range(2))
    found = line(f, f.theta, d1, [0.0, 1.0], unit=unit)
    assert f"relative to each {unit}'s norm (1 unit = {float(d1.norm()):.3g} in parameter norm)" in found.axis
    np.testing.assert_array_equal(found.loss, line(f, f.theta, d1, [0.0, 1.0]).loss)
    first, second = plane(f, f.theta, d1, d2, [0.0], [0.0], unit=unit).axes
    assert "along direction 1 relative" in first
    assert "along direction 2 relative" in second
    where = "in a filter of" if unit == "filter" else "in"
    with pytest.raises(ValueError, match=rf"{where} '0.weight', where theta has .*: unit='{unit}' is for"):
        line(f, f.theta, 2 * d1, [0.0], unit=unit)


def test_a_layer_normalised_direction_is_not_relative_to_filters_but_the_other_way_round():
    f = tiny_objective()
    by_filter, by_layer = (
        random_direction(f, f.theta, normalization=n, generator=seeded(0)) for n in ("filter", "layer")
    )
    with pytest.raises(ValueError, match=r"in a filter of '0\.weight'"):
        line(f, f.theta, by_layer, [0.0], unit="filter")
    assert line(f, f.theta, by_filter, [0.0], unit="layer").unit == "layer"  # then each tensor has its norm too


def test_a_direction_rounded_to_the_networks_dtype_is_still_relative_to_its_filters():
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(model.bfloat16(), nn.CrossEntropyLoss(), (inputs.bfloat16(), targets))
    d = random_direction(f, f.theta, one_dimensional="normalize", generator=seeded(0))
    assert line(f, f.theta, d, [0.0], unit="filter").unit == "filter"


# --- the parabola ------------------------------------------------------------------------------------


def test_a_quadratic_is_its_parabola_and_never_leaves_it():
    f, x, d, _ = _quadratic()
    found = line(f, x, d, np.linspace(-2, 3, 11), derivatives=True)
    np.testing.assert_allclose(found.parabola, found.loss, rtol=1e-12)
    assert found.slope == pytest.approx(float(f.gradient(x) @ d), rel=1e-12)
    assert found.curvature == pytest.approx(float(d @ f.hessian @ d), rel=1e-12)
    assert found.leaves_parabola(share=1e-9) == (np.inf, np.inf)
    assert (found.cost.gradients, found.cost.products) == (1, 1)


def test_where_a_line_leaves_its_parabola_is_told_for_each_side():
    # a^2/2 to the left, a^2/2 + a^3 to the right: the cubic is a tenth of the larger rise, its own, where
    # a^3 = 0.1 (a^2/2 + a^3), that is at a = 0.05/0.9 = 0.0556
    one_sided = Along(lambda a: a**2 / 2 + max(a, 0.0) ** 3)
    a = np.linspace(-1, 1, 201)
    found = line(one_sided, ZERO, E0, a, derivatives=True)
    below, above = found.leaves_parabola()
    assert below == np.inf
    assert above == pytest.approx(0.06)
    # 1 - cos a leaves a^2/2 by a^4/24 - a^6/720, a tenth of a^2/2 at a = 1.118
    wave = line(Along(lambda a: 1 - np.cos(a)), ZERO, E0, np.linspace(-2, 2, 401), derivatives=True)
    assert wave.leaves_parabola() == pytest.approx((1.12, 1.12))
    # coordinates need no order
    shuffled = line(one_sided, ZERO, E0, np.random.default_rng(0).permutation(a), derivatives=True)
    assert shuffled.leaves_parabola() == pytest.approx((np.inf, 0.06))


def test_a_parabola_that_crosses_its_level_is_not_left_there():
    # a - a^2: the rise is zero at a = 1, where any rounding would be more than a share of it
    f = Along(lambda a: a - a**2 + 1e-6 * a**3, slope=1.0, curvature=-2.0)
    found = line(f, ZERO, E0, np.linspace(0, 1, 11), derivatives=True)
    assert found.leaves_parabola() == (np.inf, np.inf)


def test_a_loss_that_is_not_finite_has_left_and_rounding_has_not():
    cliff = Along(lambda a: a**2 / 2 if a < 0.5 else np.inf)
    found = line(cliff, ZERO, E0, [-1.0, 0.0, 0.25, 0.5, 1.0], derivatives=True)
    assert found.leaves_parabola() == (np.inf, 0.5)
    flat = Along(lambda a: 1 + (1e-15 if a else 0.0), curvature=0.0)
    assert line(flat, ZERO, E0, [-1.0, 0.0, 1.0], derivatives=True).leaves_parabola() == (np.inf, np.inf)


def test_where_batch_norm_is_recalibrated_the_derivatives_are_of_another_function():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    _, data = tiny_mlp()
    of = {p: ModelObjective(model, nn.CrossEntropyLoss(), data, batch_norm=p) for p in ("recalibrated", "batch")}
    f = of["recalibrated"]
    d = torch.randn(f.size, generator=seeded(0), dtype=DOUBLE)
    h = 1e-4
    near = [-2 * h, -h, h, 2 * h]

    def slope_of(loss: np.ndarray) -> tuple[float, float]:
        """The difference quotient, and thrice its error, which is in proportion to h^2."""
        narrow, wide = (loss[2] - loss[1]) / (2 * h), (loss[3] - loss[0]) / (4 * h)
        return narrow, abs(wide - narrow)

    walked, error = slope_of(line(f, f.theta, d, near).loss)
    assert abs(walked - float(f.gradient(f.theta) @ d)) > 100 * error
    with pytest.raises(
        ValueError, match=r"derivatives=True with batch_norm='recalibrated'.*give derivatives=False, or"
    ):
        line(of, f.theta, d, [0.0], derivatives=True)
    found = line(of["batch"], f.theta, d, near, derivatives=True)
    walked, error = slope_of(found.loss)
    assert found.slope == pytest.approx(walked, rel=0, abs=error)
    # without such layers there is nothing to gather
    plain = tiny_objective(batch_norm="recalibrated")
    assert np.isfinite(line(plain, plain.theta, plain.theta, [0.0], derivatives=True).slope)


def test_without_derivatives_there_is_no_parabola_to_leave():
    f, x, d, _ = _quadratic()
    with pytest.raises(ValueError, match="derivatives=True"):
        line(f, x, d, [0.0, 1.0]).leaves_parabola()
    with pytest.raises(ValueError, match="share=0"):
        line(f, x, d, [0.0, 1.0], derivatives=True).leaves_parabola(share=0)


# --- bands -------------------------------------------------------------------------------------------


def test_every_line_of_a_band_is_a_random_line_and_all_differ():
    f = tiny_objective()
    a = [-0.5, 0.0, 0.5]
    band = line_band(f, f.theta, a, directions=5, generator=seeded(0))
    assert band.loss.shape == band.accuracy.shape == (5, 3)
    seeds = torch.randint(2**62, (5,), generator=seeded(0)).tolist()
    for k, seed in enumerate(seeds):
        alone = line(f, f.theta, random_direction(f, f.theta, generator=seeded(seed)), a, unit="filter")
        np.testing.assert_array_equal(band.loss[k], alone.loss)
        np.testing.assert_array_equal(band.accuracy[k], alone.accuracy)
        assert band.direction_norms[k] == alone.direction_norm
    assert (band.loss[:, 1] == f.value(f.theta)).all()
    assert len(set(band.loss[:, 0])) == 5
    assert band.unit == "filter"
    assert "random directions relative to each filter's norm" in band.axis
    np.testing.assert_array_equal(line_band(f, f.theta, a, directions=5, generator=seeded(0)).loss, band.loss)
    assert band.cost.values == 1 + 5 * 2  # at theta once, not once for each line


def test_along_gaussian_directions_an_isotropic_quadratic_rises_by_chi_squared():
    f = Quadratic(torch.eye(50, dtype=DOUBLE), torch.zeros(50, dtype=DOUBLE))
    band = line_band(f, torch.zeros(50, dtype=DOUBLE), [1.0], directions=400, normalization="none", generator=seeded(0))
    # ||d||^2 / 2 with 50 degrees of freedom: mean 25, standard deviation 5; mean of 400 known to 0.25, three of these
    assert band.loss.mean() == pytest.approx(25, abs=0.75)
    np.testing.assert_allclose(band.loss[:, 0], band.direction_norms**2 / 2, rtol=1e-12)
    assert band.unit == "direction"


@pytest.mark.parametrize("directions", [1, 2, 5, 16])
def test_quantiles_are_over_directions(directions):
    f = LogisticRegression()
    band = line_band(f, torch.zeros(8, dtype=DOUBLE), [0.0, 1.0], directions=directions, normalization="none")
    assert (band.quantile(0) == band.loss.min(axis=0)).all()
    assert (band.quantile(1) == band.loss.max(axis=0)).all()
    for q in (0.25, 0.5, 0.9):  # rounding of a mean of two
        np.testing.assert_allclose(band.quantile(q), np.quantile(band.loss, q, axis=0), rtol=1e-15)
    np.testing.assert_array_equal(band.median, band.quantile(0.5))
    for q in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"q={q}: give a number from 0 to 1"):
            band.quantile(q)


def test_inf_is_above_all_losses_and_nan_above_inf():
    f = LogisticRegression()
    band = line_band(f, torch.zeros(8, dtype=DOUBLE), [0.0, 1.0], directions=4, normalization="none")
    broken = dataclasses.replace(band, loss=np.array([[1.0, 1.0], [np.inf, 2.0], [np.nan, np.inf], [0.0, np.inf]]))
    np.testing.assert_array_equal(broken.median, [np.inf, np.inf])  # between 1 and inf, and between 2 and inf
    np.testing.assert_array_equal(broken.quantile(1), [np.nan, np.inf])
    np.testing.assert_array_equal(broken.quantile(1 / 3), [1.0, 2.0])
    cliff = Along(lambda a: np.inf if a > 0 else a**2)
    half = line_band(cliff, ZERO, [1.0], directions=64, normalization="none", generator=seeded(0))
    assert half.quantile(0.9)[0] == np.inf
    assert np.isfinite(half.quantile(0.1)).all()
    assert half.not_finite == np.isinf(half.loss).sum() > 0


# --- the walk ----------------------------------------------------------------------------------------


def test_an_objective_may_keep_the_theta_it_was_given():
    class Remembers(Quadratic):
        seen: torch.Tensor | None = None

        def value(self, theta: torch.Tensor) -> float:
            if self.seen is None or not torch.equal(theta, self.seen):
                self.seen, self.known = theta, super().value(theta)
            return self.known

    f = Remembers(torch.eye(2, dtype=DOUBLE), ZERO)
    np.testing.assert_allclose(line(f, ZERO, E0, [0.0, 1.0, 2.0]).loss, [0.0, 0.5, 2.0])


@pytest.mark.parametrize("batch_norm", ["frozen", "recalibrated"])
def test_slices_leave_the_network_theta_and_directions_as_they_were(batch_norm):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    _, data = tiny_mlp()
    ends = Checkpoint.of(model, "a"), Checkpoint.of(model, "b")
    ends[1].tensors["1.running_mean"].add_(1)
    f = ModelObjective(model, nn.CrossEntropyLoss(), data, batch_norm=batch_norm)
    d1, d2 = torch.randn(2, f.size, generator=seeded(0), dtype=DOUBLE)
    theirs = [*model.state_dict().values(), f.theta, d1, d2, *ends[0].tensors.values(), *ends[1].tensors.values()]
    before = [tensor.clone() for tensor in theirs]
    metrics = f.metrics(f.theta)
    line(f, f.theta, d1, [0.0, 1.0], derivatives=batch_norm == "frozen")
    line_band(f, f.theta, [0.0, 1.0], directions=2)
    plane(f, f.theta, d1, d2, np.linspace(-1, 1, 6), np.linspace(-1, 1, 6), tol=0.1)
    path(f, *ends, [0.0, 0.5])
    assert all(torch.equal(now, then) for now, then in zip(theirs, before, strict=True))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert f.metrics(f.theta) == metrics


def test_the_time_is_estimated_from_evaluations():
    calls = []

    class Counts(Quadratic):
        def value(self, theta: torch.Tensor) -> float:
            calls.append(1)
            return super().value(theta)

    f = Counts(torch.eye(2, dtype=DOUBLE), ZERO)
    assert estimate_seconds({"one": f, "two": f}, ZERO, points=1000) > 0
    assert len(calls) == 4
    assert estimate_seconds(f, ZERO, points=0) == 0
    with pytest.raises(ValueError, match="points=-1: give a number of points, 0 or more"):
        estimate_seconds(f, ZERO, points=-1)
    with pytest.raises(ValueError, match=r"theta has shape \(3,\)"):
        estimate_seconds(f, torch.zeros(3), points=1)


# --- bad input ---------------------------------------------------------------------------------------


def test_bad_input_is_named():
    f, x, d1, _ = _quadratic()
    for direction, message in (
        (torch.zeros(4, dtype=DOUBLE), r"direction has norm 0\.0"),
        (torch.ones(3), r"direction has shape \(3,\)"),
        (d1 * float("nan"), "direction has norm nan"),
    ):
        with pytest.raises(ValueError, match=message):
            line(f, x, direction, [0.0])
    with pytest.raises(ValueError, match="coordinates has shape"):
        line(f, x, d1, [])
    with pytest.raises(ValueError, match=r"theta has shape \(2,\)"):
        line(f, x[:2], d1, [0.0])
    with pytest.raises(ValueError, match=r"parallel \(cosine -1\.0"):
        plane(f, x, d1, -2 * d1, [0.0], [0.0])
    with pytest.raises(ValueError, match="b has shape"):
        plane(f, x, d1, x, [0.0], [[0.0]])
    with pytest.raises(ValueError, match="coordinates holds nan"):
        line(f, x, d1, [0.0, float("nan")])
    with pytest.raises(ValueError, match=r"direction_b has norm 0\.0"):
        plane(f, x, d1, 0 * d1, [0.0], [0.0])
    with pytest.raises(ValueError, match="unit='metre'"):
        line(f, x, d1, [0.0], unit="metre")
    with pytest.raises(ValueError, match="for a Quadratic, which has no filters"):
        line(f, x, d1, [0.0], unit="filter")
    with pytest.raises(ValueError, match=r"sizes \{'f': 4, 'g': 8\}"):
        line({"f": f, "g": LogisticRegression()}, x, d1, [0.0])
    with pytest.raises(ValueError, match=r"sizes \{\}"):
        line({}, x, d1, [0.0])
    with pytest.raises(ValueError, match="directions=0"):
        line_band(f, x, [0.0], directions=0)

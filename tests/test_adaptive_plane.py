"""Planes that are evaluated only where interpolation misses."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import ModelObjective, plane, random_direction
from landscape.problems import digits_mlp
from tests.problems import DOUBLE, Quadratic, seeded, symmetric

T = np.linspace(-1, 1, 21)


class Surface:
    """f(theta) = u(theta_0, theta_1)."""

    size, dtype, device = 2, DOUBLE, torch.device("cpu")

    def __init__(self, u):
        self._u = u

    def value(self, theta):
        return float(self._u(*theta.tolist()))


def _plane(u, **options):
    options = {"a": T, "b": T, "tol": 0.01, "generator": seeded(0), **options}
    a, b = options.pop("a"), options.pop("b")
    return plane(Surface(u), torch.zeros(2, dtype=DOUBLE), *torch.eye(2, dtype=DOUBLE), a, b, **options)


def _full(u, a=T, b=T):
    return np.array([[u(x, y) for y in b] for x in a])


def test_a_quadratic_takes_the_coarse_grid_the_middles_and_the_held_out_points():
    f = Quadratic(symmetric([3.0, 1.0, -0.5, 0.0]), torch.ones(4, dtype=DOUBLE), constant=0.2)
    x, d1, d2 = torch.randn(3, 4, generator=seeded(0), dtype=DOUBLE)
    found, full = plane(f, x, d1, d2, T, T, tol=0.01, held_out=8, generator=seeded(0)), plane(f, x, d1, d2, T, T)
    assert found.evaluated.sum() == 6 * 6 + 5 * 5 + 8
    assert found.saved == 21 * 21 - 69
    assert (found.held_out, full.held_out, full.saved) == (8, 0, 0)
    assert np.isnan(full.held_out_error)
    # a polynomial of degree 2 is in the space of interpolants; its system has condition 1e6 or so
    np.testing.assert_allclose(found.loss, full.loss, atol=1e-8 * np.ptp(full.loss))
    assert found.held_out_error <= 1e-8 * np.ptp(full.loss)
    np.testing.assert_array_equal(found.loss[found.evaluated], full.loss[found.evaluated])


def test_the_cost_is_what_was_evaluated():
    calls = []
    found = _plane(lambda x, y: calls.append(1) or x * y)
    assert len(calls) == found.cost.values
    # theta is on the grid, and may be among the points evaluated
    assert found.evaluated.sum() <= found.cost.values <= found.evaluated.sum() + 1


def test_a_narrow_bump_is_found_and_evaluated_where_it_is():
    def bump(x, y):
        return x + np.exp(-50 * ((x - 0.5) ** 2 + (y - 0.3) ** 2))

    found, full = _plane(bump), _full(bump)
    assert np.abs(found.loss - full).max() <= 0.02 * np.ptp(full)  # tol, and what lies beside the points looked at
    near = (T[:, None] - 0.5) ** 2 + (T - 0.3) ** 2 < 0.2**2
    assert found.evaluated[near].mean() > 2 * found.evaluated[~near].mean()


def test_noise_is_evaluated_nearly_everywhere_and_the_held_out_points_tell_it():
    noise = dict(zip([(x, y) for x in T for y in T], torch.randn(441, generator=seeded(0)).tolist(), strict=True))
    found = _plane(lambda x, y: noise[min(noise, key=lambda p: (p[0] - x) ** 2 + (p[1] - y) ** 2)])
    assert found.evaluated.mean() > 0.8
    assert found.held_out_error > 0.1 * np.ptp(found.loss)


@pytest.mark.parametrize("edge", (T[:-1] + T[1:]) / 2)
def test_losses_that_are_not_finite_are_evaluated_kept_and_counted(edge):
    def cliff(x, y):
        return np.inf if x > edge else np.nan if y > 0.75 else x**2 + y**2

    found = _plane(cliff)
    _assert_the_same_points_are_finite(found, _full(cliff))
    assert (found.saved > 0) == (edge > T[4])  # up to there no coarse cell has finite corners


def test_a_cell_is_looked_at_again_when_its_neighbour_finds_that_its_edge_is_not_finite():
    # of the cells of columns 8 to 12 and 12 to 16 the first is flat where it is looked at, in its corners and middle
    def u(x, y):
        i, j = round(10 * x + 10), round(10 * y + 10)
        return np.inf if i == 10 and 11 <= j <= 13 else float((i, j) == (10, 14))

    _assert_the_same_points_are_finite(_plane(u), _full(u))


def _assert_the_same_points_are_finite(found, full):
    np.testing.assert_array_equal(np.isinf(found.loss), np.isinf(full))
    np.testing.assert_array_equal(np.isnan(found.loss), np.isnan(full))
    assert found.not_finite == (~np.isfinite(full)).sum()
    assert found.evaluated[~np.isfinite(full)].all()


def test_nowhere_finite_is_evaluated_everywhere():
    found = _plane(lambda x, y: np.nan)
    assert found.evaluated.all()
    assert found.not_finite == 441


def test_a_flat_plane_is_not_split_by_rounding():
    assert _plane(lambda x, y: 0.1).saved == 372


@pytest.mark.parametrize("shape", [(1, 21), (2, 21), (3, 21), (5, 21), (21, 6), (9, 33), (25, 14), (4, 4)])
def test_planes_of_any_shape(shape):
    def u(x, y):
        return np.cosh(x + y / 2)

    a, b = (np.linspace(-1, 1, n) for n in shape)
    found, full = _plane(u, a=a, b=b), _full(u, a, b)
    assert np.abs(found.loss - full).max() <= 0.01 * np.ptp(full)
    assert found.loss.shape == shape


def test_the_saving_grows_with_the_grid_for_the_same_function():
    def u(x, y):
        return np.cosh(x + y / 2)

    saved = [_plane(u, a=np.linspace(-1, 1, n), b=np.linspace(-1, 1, n)).evaluated.mean() for n in (11, 21, 41, 81)]
    assert saved == sorted(saved, reverse=True)
    assert saved[-1] < 0.015  # 69 of 6,561


def test_coordinates_need_no_equal_steps():
    a = np.sort(np.sign(T) * T**2)
    found, full = _plane(lambda x, y: np.exp(x - y), a=a), _full(lambda x, y: np.exp(x - y), a=a)
    assert np.abs(found.loss - full).max() <= 0.01 * np.ptp(full)


def test_every_objective_asks_for_its_points():
    def bump(x, y):
        return np.exp(-50 * ((x - 0.5) ** 2 + (y - 0.3) ** 2))

    flat, bumpy = Surface(lambda x, y: x), Surface(bump)
    arguments = torch.zeros(2, dtype=DOUBLE), *torch.eye(2, dtype=DOUBLE), T, T
    both = plane({"flat": flat, "bumpy": bumpy}, *arguments, tol=0.01, generator=seeded(0))
    assert np.abs(both["bumpy"].loss - _full(bump)).max() <= 0.02
    np.testing.assert_array_equal(both["flat"].evaluated, both["bumpy"].evaluated)
    assert both["flat"].held_out_error < 1e-8


def test_the_held_out_points_come_from_the_generator():
    one, same, other = (_plane(lambda x, y: np.exp(x * y), generator=seeded(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.evaluated, same.evaluated)
    assert (one.evaluated != other.evaluated).any()


def _trained() -> ModelObjective:
    problem = digits_mlp()
    model = problem.build(seed=0)
    inputs, targets = problem.train
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for batch in torch.randperm(len(inputs), generator=seeded(0)).repeat(8).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    return ModelObjective(model, problem.loss, (inputs[:256], targets[:256]))


def test_a_networks_plane_takes_a_fourth_of_the_evaluations_to_a_hundredth_of_its_range():
    f = _trained()
    d1, d2 = (random_direction(f, f.theta, generator=seeded(s)) for s in (1, 2))
    full = plane(f, f.theta, d1, d2, T, T, unit="filter")
    found = plane(f, f.theta, d1, d2, T, T, unit="filter", tol=0.01, generator=seeded(0))
    assert 4 * found.evaluated.sum() <= 441
    off = np.abs(found.loss - full.loss)
    assert off.max() <= 0.01 * np.ptp(full.loss)
    assert found.held_out_error <= 0.01 * np.ptp(full.loss)
    np.testing.assert_array_equal(found.accuracy[found.evaluated], full.accuracy[found.evaluated])
    assert np.isfinite(found.accuracy).all()
    assert np.isfinite(found.class_accuracy).all()


def test_shares_and_errors_are_not_interpolated_beyond_what_they_can_be():
    # a classifier whose accuracy falls from 1 to 0 over a step, where a spline overshoots on both sides
    model = nn.Linear(1, 2, bias=False).double()
    inputs = torch.ones(50, 1, dtype=DOUBLE)
    f = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, torch.zeros(50, dtype=torch.int64)))
    found = plane(f, torch.zeros(2, dtype=DOUBLE), *torch.eye(2, dtype=DOUBLE), T, T, tol=0.1, generator=seeded(0))
    assert found.saved > 0
    for share in (found.accuracy, found.class_accuracy[..., 0]):
        assert (share.min(), share.max()) == (0, 1)
    for error in (found.loss_stderr, found.rise_stderr, found.accuracy_stderr):
        assert error.min() >= 0


def test_bad_options_are_named():
    for options, message in (
        ({"tol": 0.0}, r"tol=0\.0"),
        ({"tol": 1.5}, r"tol=1\.5"),
        ({"held_out": -1}, "held_out=-1"),
        ({"a": T[::-1]}, r"a does not increase \(1 is followed by 0\.9\)"),
        ({"b": np.array([0.0, 0.5, 0.5])}, r"b does not increase \(0\.5 is followed by 0\.5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            _plane(lambda x, y: x, **options)

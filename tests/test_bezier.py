import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Checkpoint, ModelObjective, barrier, bezier_path, plane_through, project_onto_plane
from landscape.connectivity.bezier import _value_and_gradient
from landscape.results import from_dataset, standard_error, to_dataset
from landscape.results.bezier import bezier_length
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, tiny_mlp, tiny_objective


class Ring:
    """f = (|x|^2 - 1)^2 in two dimensions, zero on the unit circle and 1 in its centre."""

    size, dtype, device = 2, DOUBLE, torch.device("cpu")

    def value(self, x: torch.Tensor) -> float:
        return float((x @ x - 1) ** 2)

    def value_and_gradient(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        return self.value(x), 4 * (x @ x - 1) * x


WEST, EAST = torch.tensor([-1.0, 0.0], dtype=DOUBLE), torch.tensor([1.0, 0.0], dtype=DOUBLE)


def _ring_path(seed: int = 0, **options):
    return bezier_path(Ring(), WEST, EAST, **{"steps": 600, "generator": seeded(seed), **options})


def test_the_curve_goes_round_the_hill_that_the_line_crosses():
    f, found = Ring(), _ring_path()
    assert f.value((WEST + EAST) / 2) == 1  # the line's barrier
    # c = (0, h): with s = t (1 - t), f(phi_t) = 16 s^2 (s h^2 - 1)^2, so that E_t f is least at
    # h^2 = E s^3 / E s^4 = (3! 3!/7!) / (4! 4!/9!) = 9/2, where f is highest at s = 1/9: 16 (1/18)^2 = 4/81
    # (0.0001 was left after 600 steps)
    assert abs(float(found.control[1])) == pytest.approx(4.5**0.5, abs=1e-3)
    assert float(found.control[0]) == pytest.approx(0, abs=1e-3)
    # the nearest of 31 points misses s = 1/9 by 0.002, and f is flat there
    assert found.height == pytest.approx(4 / 81, abs=2e-4)


def test_the_ends_stay_and_the_points_are_the_formula_s():
    found = _ring_path(steps=20)
    assert torch.equal(found.points([0.0, 1.0]), torch.stack([WEST, EAST]))
    a, c, b, t = WEST, found.control, EAST, 0.3
    torch.testing.assert_close(found.points([t])[0], 0.49 * a + 0.42 * c + 0.09 * b, rtol=1e-15, atol=1e-16)
    np.testing.assert_allclose(found.loss, [Ring().value(x) for x in found.points(found.t)], rtol=1e-13, atol=1e-16)
    assert found.loss[0] == found.loss[-1] == 0


def test_the_gradient_is_that_with_respect_to_the_control_point():
    f = LogisticRegression()
    a, c, b = torch.randn(3, 8, generator=seeded(0), dtype=DOUBLE)
    h = 1e-5  # a central difference is right to h^2, and to 1e-16/h of rounding
    for t in (0.0, 0.2, 0.7, 1.0):
        value, gradient = _value_and_gradient(f, a, c, b, t)
        assert value == f.value((1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b)
        differences = [
            (_value_and_gradient(f, a, c + h * e, b, t)[0] - _value_and_gradient(f, a, c - h * e, b, t)[0]) / (2 * h)
            for e in torch.eye(8, dtype=DOUBLE)
        ]
        np.testing.assert_allclose(gradient, differences, atol=1e-9)


def test_the_best_curve_over_a_convex_bowl_is_known():
    # E_t f(phi_t) of f = |x|^2/2 is least where E[s phi_t] = 0 with s = 2 t (1 - t): E s^2 = 2/15 and
    # E[s (1-t)^2] = E[s t^2] = 1/10, so that c = -3/4 (a + b)
    f = Quadratic(torch.eye(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE))
    a, b = torch.randn(2, 3, generator=seeded(0), dtype=DOUBLE)
    found = bezier_path(f, a, b, steps=2000, generator=seeded(0))
    # 0.0012 was left over six seeds
    torch.testing.assert_close(found.control, -0.75 * (a + b), rtol=0, atol=3e-3)


def test_arc_length_is_walked_evenly_on_a_line_and_known_on_a_parabola():
    t = np.linspace(0, 1, 7)
    np.testing.assert_allclose(bezier_length(WEST, (WEST + EAST) / 2, EAST, t), 2 * t, rtol=1e-14)
    # control point (0, 2): y = 1 - x^2 from x = -1 to x = 2t - 1
    x = 2 * t - 1

    def primitive(x):
        return x * np.sqrt(1 + 4 * x**2) / 2 + np.arcsinh(2 * x) / 4

    expected = primitive(x) - primitive(-1.0)
    length = bezier_length(WEST, torch.tensor([0.0, 2.0], dtype=DOUBLE), EAST, t)
    np.testing.assert_allclose(length, expected, rtol=1e-13)
    # control point (3, 0): x = -1 + 8t - 6t^2 turns back at t = 2/3, x = 5/3
    length = bezier_length(WEST, torch.tensor([3.0, 0.0], dtype=DOUBLE), EAST, np.array([0.5, 2 / 3, 1.0]))
    np.testing.assert_allclose(length, [2.5, 8 / 3, 8 / 3 + 2 / 3], rtol=1e-14)


def test_the_curve_lies_in_the_plane_of_its_three_points():
    f = tiny_objective()
    b = f.theta + 0.5 * torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    found = bezier_path(f, f.theta, b, steps=20, generator=seeded(0))
    frame = plane_through(found.theta_a, found.theta_b, found.control)
    on_it = project_onto_plane(found.points(found.t), frame.origin, *frame.directions)
    np.testing.assert_allclose(on_it.out_of_plane, 0, atol=1e-13)


def _mirrored() -> tuple[ModelObjective, torch.Tensor, torch.Tensor]:
    """Two trained networks that compute the same: b has the signs of all tanh units of a turned."""
    model, data = tiny_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    b = f.theta.clone()
    for name in ("0.weight", "0.bias", "2.weight"):
        f.space.views(b)[name].neg_()
    return f, f.theta, b


@pytest.mark.parametrize("count", [None, 5])
def test_mirrored_networks_are_joined_below_their_line(count):
    f, a, b = _mirrored()
    assert f.value(b) == pytest.approx(f.value(a), rel=1e-12)
    t = np.linspace(0, 1, 31)
    line = np.array([f.value((1 - s) * a + s * b) for s in t])
    batches = None if count is None else f.parts(count)
    found = bezier_path(f, a, b, batches=batches, steps=600, generator=seeded(0))
    # the mean loss is what the training lowers: 0.79 on the line, 0.58 to 0.65 on the curves of four seeds; the line
    # rises by 1.23, the curves by 0.66 to 0.72
    assert found.loss.mean() < 0.9 * line.mean()
    assert found.height < 0.7 * (line.max() - line[0])
    assert found.training_loss[:100].mean() > found.training_loss[-100:].mean()


def test_batch_norm_is_recalibrated_along_the_curve_and_trained_by_the_batch():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = tiny_mlp()[1]
    f, g = (
        ModelObjective(model, nn.CrossEntropyLoss(), data, batch_norm=policy) for policy in ("recalibrated", "batch")
    )
    b = f.theta + torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    found = bezier_path(f, f.theta, b, batches=g.parts(3), steps=100, points=5, generator=seeded(0))
    np.testing.assert_allclose(found.loss, [f.value(x) for x in found.points(found.t)], rtol=1e-14)
    assert found.loss.mean() < np.mean([f.value((1 - t) * f.theta + t * b) for t in found.t.tolist()])  # the line's


def test_the_seed_decides_and_none_is_another_each_time():
    a, b, other = _ring_path(3, steps=30), _ring_path(3, steps=30), _ring_path(4, steps=30)
    assert torch.equal(a.control, b.control)
    np.testing.assert_array_equal(a.training_loss, b.training_loss)
    assert not torch.equal(a.control, other.control)
    assert not torch.equal(*(bezier_path(Ring(), WEST, EAST, steps=3).control for _ in range(2)))


def test_t_is_uniform_and_each_step_costs_a_gradient():
    class Counted(Ring):
        spent = 0

        def value_and_gradient(self, x):
            self.spent += 1
            return super().value_and_gradient(x)

    f = Counted()
    found = bezier_path(f, WEST, EAST, steps=400, points=5, generator=seeded(0))
    assert (found.cost.gradients, found.cost.values) == (400, 5) == (f.spent, len(found.loss))
    # the discrepancy of a golden-ratio sequence is of order log N / N, that of independent draws N^(-1/2) = 0.05
    for stretch in (found.training_t[:100], found.training_t[150:400]):
        count = len(stretch)
        assert np.abs(np.sort(stretch) - np.arange(0.5, count) / count).max() < math.log(count) / count
    firsts = [bezier_path(f, WEST, EAST, steps=1, generator=seeded(s)).training_t[0] for s in range(20)]
    assert np.histogram(firsts, bins=4, range=(0, 1))[0].min() > 0  # and the first is drawn


def test_every_batch_is_drawn_alike():
    f = tiny_objective()
    spent = []

    class Counted:
        def __init__(self, part, name):
            self.part, self.size, self.name = part, part.size, name

        def value_and_gradient(self, theta):
            spent.append(self.name)
            return self.part.value_and_gradient(theta)

    batches = [Counted(part, name) for name, part in enumerate(f.parts(4))]
    bezier_path(f, f.theta, 2 * f.theta, batches=batches, steps=200, generator=seeded(0))
    # 50 each, give or take 5 standard deviations of a binomial
    assert np.abs(np.bincount(spent) - 50).max() < 5 * math.sqrt(200 * 0.25 * 0.75)


def test_frozen_statistics_are_gathered_anew_as_by_a_barrier():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = tiny_mlp()[1]
    f, g = (
        ModelObjective(model, nn.CrossEntropyLoss(), data, batch_norm=policy) for policy in ("frozen", "recalibrated")
    )
    b = f.theta + torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    ends = barrier(f, f.theta, b, points=3)
    for parts in (None, 3):
        kept, anew = (
            bezier_path(
                each,
                f.theta,
                b,
                steps=10,
                points=5,
                batches=None if parts is None else each.parts(parts),
                generator=seeded(0),
            )
            for each in (f, g)
        )
        assert (kept.batch_norm, ends.batch_norm) == ("recalibrated", "recalibrated")
        assert (kept.loss[0], kept.loss[-1]) == (ends.values[0], ends.values[-1])
        np.testing.assert_array_equal(kept.loss, anew.loss)
        np.testing.assert_array_equal(kept.training_loss, anew.training_loss)
    assert f.batch_norm == "frozen"
    assert bezier_path(tiny_objective(), torch.zeros(43), torch.ones(43), steps=1).batch_norm == "frozen"
    assert _ring_path(steps=1).batch_norm == ""


def test_the_height_has_the_error_of_the_examples_own_rises():
    f = tiny_objective()
    b = f.theta + torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    found = bezier_path(f, f.theta, b, steps=5, points=5, generator=seeded(0))
    losses = np.array([f.per_example(x).loss for x in found.points(found.t)])
    rises = losses - (losses[0] + losses[-1]) / 2
    np.testing.assert_allclose(found.rise_stderr, standard_error(rises), rtol=1e-12)
    top = rises.mean(axis=1).argmax()
    assert found.height == pytest.approx(rises.mean(axis=1)[top], rel=1e-12)
    assert found.stderr == found.rise_stderr[top]
    assert np.isnan(_ring_path(steps=1).stderr)


def test_neither_the_ends_nor_the_network_change_and_single_precision_stays():
    model = nn.Linear(3, 2)
    f = ModelObjective(model, nn.MSELoss(), (torch.ones(4, 3), torch.zeros(4, 2)))
    a, b, digest = f.theta.clone(), f.theta + 1, Checkpoint.of(model).digest()
    found = bezier_path(f, a, b, steps=5, generator=seeded(0))
    assert Checkpoint.of(model).digest() == digest
    assert torch.equal(a, f.theta)
    assert torch.equal(b, f.theta + 1)
    assert found.control.dtype == torch.float32
    assert not found.control.requires_grad


def test_a_path_survives_its_dataset():
    found = _ring_path(steps=10)
    dataset = to_dataset(found)
    assert dataset.loss.dims == ("t",)
    again = from_dataset(dataset)
    assert torch.equal(again.points([0.25]), found.points([0.25]))
    assert again.cost == found.cost
    np.testing.assert_array_equal(again.arc_length, found.arc_length)


def test_bad_input_is_named():
    f = Ring()
    with pytest.raises(ValueError, match=r"theta_b has shape \(3,\)"):
        bezier_path(f, WEST, torch.zeros(3))
    with pytest.raises(ValueError, match="same point"):
        bezier_path(f, WEST, WEST.clone())
    for options, message in (
        ({"steps": 0}, "steps=0"),
        ({"points": 2}, "points=2"),
        ({"learning_rate": -1.0}, r"learning_rate=-1\.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"batches": []}, "batches is empty"),
        ({"batches": [f, LogisticRegression()]}, r"sizes \[2, 8\]: give objectives of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            bezier_path(f, WEST, EAST, **options)
    for name, ends in (("theta_b", (WEST, EAST * float("nan"))), ("theta_a", (WEST / 0, EAST))):
        with pytest.raises(ValueError, match=f"{name} is not finite: give finite weights"):
            bezier_path(f, *ends)


def test_a_loss_that_overflows_stops_the_training():
    with pytest.raises(FloatingPointError, match=r"in step \d+: give a learning_rate below"):
        _ring_path(learning_rate=1e200, steps=50)

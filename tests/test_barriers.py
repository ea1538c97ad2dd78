"""How high the loss rises between two minima: closed forms, error bars, BatchNorm, matched units.

Tolerances of 1e-12 and below allow float64 rounding alone.
"""

import copy
import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape import Checkpoint, ModelObjective, barrier, barrier_matrix, match_weights, plots
from landscape.problems import digits_mlp
from landscape.results import from_dataset, to_dataset
from tests.problems import DOUBLE, Quadratic, seeded, symmetric, tiny_mlp, tiny_objective


class DoubleWell:
    """f(x) = (x^2 - 1)^2, minima at -1 and 1, barrier 1 between them."""

    size, dtype, device = 1, DOUBLE, torch.device("cpu")

    def value(self, x: Tensor) -> float:
        return float((x.square() - 1).square().sum())

    def gradient(self, x: Tensor) -> Tensor:
        return 4 * x * (x.square() - 1)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        return self.value(x), self.gradient(x)

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        return (12 * x.square() - 4) * v


def _point(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=DOUBLE)


def _product_of_weights(inputs: Tensor, **options: object) -> ModelObjective:
    """The mean of (v w x - x)^2: zero at (1, 1) and (-1, -1), x^2 half-way."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    return ModelObjective(model, nn.MSELoss(), (inputs[:, None], inputs[:, None]), **options)


def _in_train_mode(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).train()


def test_the_double_well_has_barrier_one():
    found = barrier(DoubleWell(), _point(-1), _point(1), points=31)
    assert found.height == pytest.approx(1, rel=1e-12)
    assert found.at == 0.5
    np.testing.assert_allclose(found.values, (np.linspace(-1, 1, 31) ** 2 - 1) ** 2, atol=1e-14)
    assert found.values[0] == found.values[-1] == 0
    assert (found.distance, found.not_finite, found.cost.values) == (2, 0, 31)
    assert np.isnan(found.stderr)  # a function without examples has no error over them
    # 30 points leave out the middle: the nearest x is 1/29
    assert barrier(DoubleWell(), _point(-1), _point(1)).height == pytest.approx((1 - 1 / 29**2) ** 2, rel=1e-12)


def test_on_a_quadratic_the_rise_above_the_line_is_that_of_a_parabola():
    f = Quadratic(symmetric([2.0, 1.0, -3.0]), torch.ones(3, dtype=DOUBLE), constant=0.5)
    a, b = torch.randn(2, 3, generator=seeded(1), dtype=DOUBLE)
    curvature = float((b - a) @ f.hessian @ (b - a))
    alpha = np.linspace(0, 1, 11)
    linear = barrier(f, a, b, points=11, baseline="linear")
    # f is of order 1 to 10: rounding
    np.testing.assert_allclose(linear.rise, -curvature / 2 * alpha * (1 - alpha), atol=1e-13)
    mean = barrier(f, a, b, points=11)
    ends = (f.value(a), f.value(b))
    np.testing.assert_allclose(mean.rise, linear.rise + (alpha - 0.5) * (ends[1] - ends[0]), atol=1e-13)
    assert linear.height >= 0
    assert mean.height >= abs(ends[1] - ends[0]) / 2 - 1e-13


def test_two_ends_on_a_slope_have_half_their_difference_or_nothing():
    f = Quadratic(torch.zeros(2, 2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    f.value = lambda theta: float(theta[0])
    a, b = _point(0, 0), _point(3, 1)
    assert barrier(f, a, b).height == pytest.approx(1.5)
    assert barrier(f, a, b).at == 1
    assert barrier(f, a, b, baseline="linear").height == pytest.approx(0, abs=1e-15)


def test_the_error_bar_is_that_of_the_examples_own_rises():
    x = torch.randn(40, generator=seeded(0), dtype=DOUBLE)
    f = _product_of_weights(x, batch_size=7)
    found = barrier(f, _point(1, 1), _point(-1, -1), points=5)
    squares = x.numpy() ** 2
    assert found.at == 0.5
    assert found.height == pytest.approx(squares.mean(), rel=1e-12)
    assert found.stderr == pytest.approx(squares.std(ddof=1) / np.sqrt(40), rel=1e-12)
    assert found.rise_stderr[0] == found.rise_stderr[-1] == 0  # both ends fit every example


def test_what_is_common_to_the_line_leaves_the_error_bar():
    x, noise = torch.randn(2, 40, generator=seeded(0), dtype=DOUBLE)
    model = _product_of_weights(x)._network.model
    f = ModelObjective(model, nn.MSELoss(), (x[:, None], (x + 30 * noise)[:, None]))
    found = barrier(f, _point(1, 1), _point(1, 0.9), points=3)
    # (v x - y)^2 at v = 0.95 minus its mean at 1 and 0.9 is -0.05^2 x^2, whatever y is
    squares = 0.05**2 * x.numpy() ** 2
    assert found.rise[1] == pytest.approx(-squares.mean(), rel=1e-8)  # losses of 1000: twelve digits less five
    assert found.rise_stderr[1] == pytest.approx(squares.std(ddof=1) / np.sqrt(40), rel=1e-8)
    assert f.per_example(f.theta).stderr() > 1e4 * found.rise_stderr[1]


def test_the_error_bar_is_the_spread_over_data_sets():
    heights, errors = [], []
    for seed in range(300):
        f = _product_of_weights(torch.randn(50, generator=seeded(seed), dtype=DOUBLE))
        found = barrier(f, _point(1, 1), _point(-1, -1), points=3)
        heights.append(found.height)
        errors.append(found.stderr)
    # the spread of 300 draws is itself known to 1/sqrt(600) = 4 %, more for squares of Gaussians; three of these
    assert np.std(heights) == pytest.approx(np.mean(errors), rel=0.2)
    assert np.mean(heights) == pytest.approx(1, abs=3 * np.sqrt(2 / 50 / 300))  # E x^2, of variance 2


def test_weight_decay_is_part_of_the_loss_and_has_no_error():
    x = torch.randn(20, generator=seeded(0), dtype=DOUBLE)
    plain, decayed = (
        barrier(_product_of_weights(x, weight_decay=d), _point(1, 1), _point(-1, -1), points=5) for d in (0, 0.1)
    )
    # 0.1/2 ||theta||^2 is 0.1 at the ends and 0 between
    assert decayed.height == pytest.approx(plain.height - 0.1, rel=1e-12)
    assert decayed.stderr == plain.stderr


def test_the_error_rises_by_the_share_of_examples_that_turn_wrong():
    model = nn.Linear(1, 2, bias=False).double()
    inputs, targets = torch.tensor([[1.0], [1.0], [1.0], [-1.0]], dtype=DOUBLE), torch.tensor([0, 0, 1, 1])
    f = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, targets))
    # outputs (u x, w x): class 0 is right for x > 0 where u > w. Errors 1/4 for u > w, 3/4 for u < w.
    found = barrier(f, _point(1, 0), _point(0, 1), points=4, metric="error", baseline="mean")
    np.testing.assert_allclose(found.values, [0.25, 0.25, 0.75, 0.75])
    assert found.height == pytest.approx(0.25)
    # one example turns right and three turn wrong, against the mean of both ends: rises of 1/2, 1/2, -1/2, 1/2
    assert found.stderr == pytest.approx(np.std([0.5, 0.5, -0.5, 0.5], ddof=1) / 2)
    assert not found.stable
    assert barrier(f, _point(1, 0), _point(2, 0), metric="error").stable


def test_batchnorm_is_gathered_again_at_every_point():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    data = (torch.randn(40, 4, generator=seeded(0), dtype=DOUBLE), torch.arange(40) % 3)
    a = Checkpoint.of(model, "a")
    scaled = {k: t * (3 if k == "0.weight" else -1 if k == "3.weight" else 1) for k, t in a.tensors.items()}
    b = Checkpoint("b", {**scaled, "1.running_mean": a.tensors["1.running_mean"] + 50})  # frozen, it would be absurd
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    found = barrier(f, a, b, points=5)
    assert found.batch_norm == "recalibrated"
    for alpha, value in zip(found.alpha, found.values, strict=True):
        there = _in_train_mode(model)
        there[1].momentum = 1.0  # the statistics of the one batch
        weights = {k: (1 - alpha) * t + alpha * b.tensors[k] for k, t in a.tensors.items() if t.is_floating_point()}
        there.load_state_dict({**weights, "1.num_batches_tracked": torch.tensor(0)})
        there(data[0])
        direct = nn.functional.cross_entropy(there.eval()(data[0]), data[1])
        assert value == pytest.approx(direct.item(), rel=1e-12)
    again = barrier(ModelObjective(model, nn.CrossEntropyLoss(), data, batch_norm="recalibrated"), a, b, points=5)
    np.testing.assert_array_equal(again.values, found.values)
    each = ModelObjective(model, nn.CrossEntropyLoss(), data, batch_norm="batch")
    assert barrier(each, a, b, points=5).batch_norm == "batch"
    # the statistics come from the calibration data, as for the test loss those of the training data
    apart = ModelObjective(model, nn.CrossEntropyLoss(), data, calibration=(2 * data[0] + 1, data[1]))
    assert barrier(apart, a, b, points=5).values[1] != found.values[1]


def _trained_mlp() -> tuple[ModelObjective, ModelObjective, Checkpoint]:
    """64-32-10 on the digits, in float64: train and test objectives, and a checkpoint that fits the training data."""
    problem = digits_mlp()
    model = problem.build(0).double()
    (x, y), (test_x, test_y) = ((inputs.double(), targets) for inputs, targets in (problem.train, problem.test))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    train, test = (ModelObjective(model, nn.CrossEntropyLoss(), data) for data in ((x, y), (test_x, test_y)))
    return train, test, Checkpoint.of(model, "a")


@pytest.fixture(scope="module")
def digits():
    train, test, a = _trained_mlp()
    order = torch.randperm(32, generator=seeded(1))
    t = a.tensors
    shuffled = {"1.weight": t["1.weight"][order], "1.bias": t["1.bias"][order], "3.weight": t["3.weight"][:, order]}
    return train, test, a, Checkpoint("b", {**t, **shuffled})


def test_between_a_network_and_its_shuffle_there_is_a_barrier_before_matching_and_none_after(digits):
    train, test, a, b = digits
    matched = match_weights(train, a, b, generator=seeded(0)).checkpoint
    for f in (train, test):
        before = barrier(f, a, b)
        assert before.values[0] == pytest.approx(before.values[-1], rel=1e-12)  # one function
        assert before.height > 0.1
        assert 5 * before.stderr < before.height
        assert not barrier(f, a, b, metric="error").stable
        after = barrier(f, a, matched)
        # (1 - alpha) a + alpha a is a to rounding
        assert after.height == pytest.approx(0, abs=1e-14)
        assert after.distance == 0
        assert barrier(f, a, matched, metric="error").height == 0


def test_a_network_with_batchnorm_has_no_barrier_to_its_matched_shuffle():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    inputs = torch.randn(30, 4, generator=seeded(0), dtype=DOUBLE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=seeded(1), dtype=DOUBLE))
        targets = model(inputs).argmax(1)  # what it says itself, so that it is near a minimum
    f = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, targets))
    a, order = Checkpoint.of(model, "a"), torch.arange(8).flip(0)
    moved = {
        k: t if t.dim() == 0 or k == "3.bias" else t[:, order] if k == "3.weight" else t[order]
        for k, t in a.tensors.items()
    }
    b = Checkpoint("b", moved)
    assert barrier(f, a, b).height > 0.1
    assert barrier(f, a, match_weights(f, a, b).checkpoint).height == pytest.approx(0, abs=1e-14)


def test_the_matrix_is_symmetric_with_an_exactly_zero_diagonal(digits):
    _, test, a, b = digits
    shift = Checkpoint("c", {k: t + 0.1 for k, t in a.tensors.items()})
    found = barrier_matrix(test, [a, b, shift], points=5)
    assert found.names == ["a", "b", "c"]
    for matrix in (found.height, found.stderr, found.distance):
        assert matrix.shape == (3, 3)
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_array_equal(np.diag(matrix), 0)
    for i, j, ends in ((0, 1, (a, b)), (0, 2, (a, shift)), (1, 2, (b, shift))):
        pair = barrier(test, *ends, points=5)
        assert (found.height[i, j], found.stderr[i, j]) == (pair.height, pair.stderr)
        assert found.distance[i, j] == pair.distance
    assert found.cost.values == 15
    matched = barrier_matrix(test, [a, b, shift], points=5, matched=True, generator=seeded(0))
    assert matched.height[0, 1] == pytest.approx(0, abs=1e-14)
    assert matched.height[1, 2] == pytest.approx(matched.height[0, 2], rel=1e-9)  # b is a: only sums in another order
    assert (matched.distance <= found.distance).all()
    np.testing.assert_array_equal(np.diag(matched.height), 0)


def test_the_matrix_works_on_points_of_any_function():
    found = barrier_matrix(DoubleWell(), [_point(-1), _point(1), _point(-1)], points=3)
    np.testing.assert_array_equal(found.height, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    assert found.names == ["point 0", "point 1", "point 2"]


def test_values_that_are_not_finite_are_kept_and_counted():
    class Cliff(DoubleWell):
        def __init__(self, beyond: float) -> None:
            self.beyond = beyond

        def value(self, x: Tensor) -> float:
            value = super().value(x)
            return self.beyond if value > 0.9 else value

    infinite = barrier(Cliff(float("inf")), _point(-1), _point(1), points=5)
    assert (infinite.not_finite, infinite.height) == (1, np.inf)
    unknown = barrier(Cliff(float("nan")), _point(-1), _point(1), points=5)
    assert unknown.not_finite == 1
    assert np.isnan(unknown.height)
    assert unknown.at == 0.5  # where it is not known
    assert barrier_matrix(Cliff(float("nan")), [_point(-1), _point(1)], points=5).not_finite == 1
    from_nowhere = barrier(Cliff(float("inf")), _point(0), _point(1), points=5)
    assert np.isnan(from_nowhere.height)


def test_records_survive_their_datasets_and_are_frozen():
    f = DoubleWell()
    for record in (barrier(f, _point(-1), _point(1), points=3), barrier_matrix(f, [_point(-1), _point(1)], points=3)):
        again = from_dataset(to_dataset(record))
        assert type(again) is type(record)
        for field in dataclasses.fields(record):
            before, after = getattr(record, field.name), getattr(again, field.name)
            np.testing.assert_array_equal(np.asarray(before), np.asarray(after), err_msg=field.name)
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.metric = "error"


def test_the_users_network_stays_as_it_is():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    digest = Checkpoint.of(model).digest()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (torch.randn(9, 4), torch.arange(9) % 3))
    a, b = Checkpoint.of(model, "a"), Checkpoint("b", {k: 2 * t for k, t in Checkpoint.of(model).tensors.items()})
    barrier_matrix(f, [a, b], points=3, matched=True)
    assert Checkpoint.of(model).digest() == digest
    assert all(module.training for module in model.modules())
    assert f.batch_norm == "frozen"


def test_progress_shows_points_and_pairs():
    seen = []

    def progress(iterable, description):
        seen.append((description, len(iterable)))
        return iterable

    barrier(DoubleWell(), _point(-1), _point(1), points=7, progress=progress)
    barrier_matrix(DoubleWell(), [_point(-1), _point(1), _point(0)], points=7, progress=progress)
    assert seen == [("barrier", 7), ("barriers", 3)]


def test_bad_input_is_named():
    f, (model, _) = tiny_objective(), tiny_mlp()
    a = Checkpoint.of(model, "a")
    wide = Checkpoint("wide", {**a.tensors, "0.weight": torch.zeros(9, 4)})
    with pytest.raises(ValueError, match=r"checkpoint 'wide' does not fit .* 0.weight is \(9, 4\)"):
        barrier(f, a, wide)
    for call, message in (
        (lambda: barrier(f, a, a, points=2), "points=2: give at least 3"),
        (lambda: barrier(f, a, a, metric="accuracy"), "metric='accuracy'"),
        (lambda: barrier(f, a, a, baseline="max"), "baseline='max'"),
        (lambda: barrier(f, a, f.theta[:5]), r"checkpoint_b has shape \(5,\)"),
        (lambda: barrier(DoubleWell(), a, a), "a checkpoint for a DoubleWell"),
        (lambda: barrier(DoubleWell(), _point(1), _point(1), metric="error"), "metric='error' of a DoubleWell"),
        (
            lambda: barrier(
                _product_of_weights(torch.ones(3, dtype=DOUBLE)), _point(1, 1), _point(1, 1), metric="error"
            ),
            "metric='error' of a ModelObjective: it knows of no right answers",
        ),
        (lambda: barrier(f, a, a).stable, "metric='loss': stability"),
        (lambda: barrier_matrix(f, [a]), "checkpoints has 1: give at least two"),
        (lambda: barrier_matrix(DoubleWell(), [_point(1), _point(0)], matched=True), "matched=True"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_what_differs_off_the_line_is_refused():
    model, data = tiny_mlp()
    model[2].bias.requires_grad_(False)
    a = Checkpoint.of(model, "a")
    b = Checkpoint("b", {k: t + 1 for k, t in a.tensors.items()})
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    with pytest.raises(ValueError, match=r"differ in 2\.bias, which the line does not move"):
        barrier(f, a, b)
    assert barrier(f, a, Checkpoint("c", {**b.tensors, "2.bias": a.tensors["2.bias"]}), points=3).height >= 0


def test_pictures_mark_the_height_and_share_their_colours(digits):
    train, test, a, b = digits
    matched = match_weights(train, a, b, generator=seeded(0)).checkpoint
    before, after = (
        {"train": barrier(train, a, end, points=5), "test": barrier(test, a, end, points=5)} for end in (b, matched)
    )
    ax = plots.barrier_line(before, after=after)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [text.split(":")[0] for text in legend] == ["train", "test", "train, matched", "test, matched"]
    height, error = map(float, legend[0].split("barrier ")[1].split(" ± "))
    train_barrier = before["train"]
    # the error has two digits, the height as many decimals
    assert error == pytest.approx(train_barrier.stderr, rel=0.05)
    assert height == pytest.approx(train_barrier.height, abs=0.05 * train_barrier.stderr)
    assert "a (0)" in ax.get_xlabel()
    assert ax.get_ylabel() == "loss"
    bar = ax.lines[2]  # of train: the line, its baseline, its height
    np.testing.assert_allclose(np.diff(bar.get_ydata())[0], train_barrier.height)
    np.testing.assert_allclose(bar.get_xdata(), train_barrier.at)
    colors = [line.get_color() for line in ax.lines]
    assert colors[0] == colors[6] != colors[3] == colors[9]  # train, matched train; test, matched test

    ax = plots.barrier_matrix(barrier_matrix(test, [a, b], points=5), limits=(0, 3))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    assert [text.get_rotation() for text in ax.get_yticklabels()] == [0, 0]  # long names would lie on one another
    assert "±" in ax.texts[1].get_text()
    assert ax.texts[0].get_text() == ""  # the diagonal
    assert ax.collections[0].get_clim() == (0, 3)
    assert "above the mean of the ends" in ax.collections[0].colorbar.ax.get_ylabel()
    ax.figure.canvas.draw()
    lost = dataclasses.replace(
        barrier_matrix(test, [a, b], points=5), height=np.array([[0, np.nan], [np.inf, 0]]), not_finite=3
    )
    ax = plots.barrier_matrix(lost)
    assert ax.get_title() == "units as they are (3 points not finite)"
    hatched = [patch for patch in ax.patches if patch.get_hatch()]
    assert [patch.get_xy() for patch in hatched] == [(1, 0), (0, 1)]  # column and row
    assert [text.get_text() for text in ax.texts] == ["", "", "not known", "inf"]
    ax.figure.canvas.draw()
    flat = barrier_matrix(DoubleWell(), [_point(1), _point(1)], points=3)
    assert plots.barrier_matrix(flat).collections[0].get_clim() == (0, 1)
    plt.close("all")

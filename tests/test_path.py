"""The straight way between two ends, which are themselves at 0 and at 1."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Checkpoint, ModelObjective, path
from landscape.objective.tensors import move_to
from tests.problems import DOUBLE, Quadratic, seeded, symmetric, tiny_mlp, tiny_objective


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    nn.init.normal_(model[1].weight, mean=1.0, std=0.3)
    return model


def _trained_statistics(model: nn.Module, inputs: torch.Tensor) -> None:
    """Those of all inputs, gathered in batches of 10 by BatchNorm itself."""
    model[1].reset_running_stats()
    model[1].momentum = None  # the mean over batches
    model.train()
    with torch.no_grad():
        for batch in inputs.split(10):
            model(batch)
    model.eval()


def _ends() -> tuple[Checkpoint, Checkpoint, tuple[torch.Tensor, torch.Tensor]]:
    _, data = tiny_mlp()
    checkpoints = []
    for seed in (0, 1):
        model = _network(seed)
        _trained_statistics(model, data[0])
        checkpoints.append(Checkpoint.of(model, f"seed {seed}"))
    return checkpoints[0], checkpoints[1], data


def test_the_ends_are_the_ends_bit_for_bit_and_the_middle_is_their_mean():
    seen = []

    class Watched(Quadratic):
        def value(self, theta: torch.Tensor) -> float:
            seen.append(theta)
            return super().value(theta)

    f = Watched(torch.eye(100, dtype=DOUBLE), torch.zeros(100, dtype=DOUBLE))
    # of very different sizes, where a + (b - a) is not b
    a, b = torch.randn(2, 100, generator=seeded(0), dtype=DOUBLE) * torch.tensor([[1e9], [1e-3]])
    assert not torch.equal(a + (b - a), b)
    found = path(f, a, b, [0.0, 0.5, 1.0])
    at_a, middle, at_b = seen
    assert torch.equal(at_a, a)
    assert torch.equal(at_b, b)
    assert torch.equal(middle, (a + b) / 2)
    assert found.loss.tolist() == [Quadratic.value(f, x) for x in (a, middle, b)]
    assert found.origin == found.loss[0]
    assert found.direction_norm == pytest.approx(float((b - a).norm()))
    assert found.axis.startswith("position between the ends (1 unit = ")


def test_a_path_through_a_quadratic_is_its_parabola_beyond_the_ends_too():
    f = Quadratic(symmetric([3.0, 1.0, -0.5, 0.0]), torch.ones(4, dtype=DOUBLE), constant=0.2)
    a, b = torch.randn(2, 4, generator=seeded(0), dtype=DOUBLE)
    t = np.linspace(-0.5, 1.5, 9)
    slope, curvature = float(f.gradient(a) @ (b - a)), float((b - a) @ f.hessian @ (b - a))
    np.testing.assert_allclose(path(f, a, b, t).loss, f.value(a) + slope * t + curvature / 2 * t**2, rtol=1e-12)


def test_a_path_of_no_length_is_constant():
    f = tiny_objective()
    found = path(f, f.theta, f.theta, [0.0, 0.5, 1.0])
    assert found.loss.tolist() == [f.value(f.theta)] * 3
    assert found.rise_stderr.tolist() == [0.0] * 3


def test_several_objectives_share_the_way():
    f, g = tiny_objective(), tiny_objective(weight_decay=1.0)
    b = f.theta + 1
    found = path({"plain": f, "decayed": g}, f.theta, b, [0.0, 1.0])
    assert found["plain"].loss.tolist() == [f.value(f.theta), f.value(b)]
    assert found["decayed"].loss.tolist() == [g.value(f.theta), g.value(b)]


# --- BatchNorm between two networks ------------------------------------------------------------------


def test_between_checkpoints_the_statistics_are_interpolated_and_the_ends_are_the_networks_saved():
    a, b, (inputs, targets) = _ends()
    f = ModelObjective(_network(2), nn.CrossEntropyLoss(), (inputs, targets), batch_size=10)
    found = path(f, a, b, [0.0, 0.25, 1.0])
    for i, end in ((0, a), (2, b)):
        own = f.at(end)
        assert {"loss": found.loss[i], "accuracy": found.accuracy[i]} == own.metrics(own.theta)
    between = _network(3)
    for name, tensor in between.state_dict().items():
        if tensor.is_floating_point():  # parameters and statistics, into views of the network's own
            tensor.copy_(0.75 * a.tensors[name] + 0.25 * b.tensors[name])
    with torch.no_grad():
        direct = nn.functional.cross_entropy(between.eval()(inputs), targets)
    assert found.loss[1] == pytest.approx(float(direct), rel=1e-12)
    assert found.batch_norm == "interpolated"
    assert path(f, a, a, [0.5]).batch_norm == "frozen"  # nothing to interpolate


def test_beyond_the_ends_no_variance_falls_below_zero():
    a, b, (inputs, targets) = _ends()
    a.tensors["1.running_var"].fill_(1.0)
    b.tensors["1.running_var"].fill_(0.25)  # 1 - 0.75 t is -0.5 at t = 2
    f = ModelObjective(_network(2), nn.CrossEntropyLoss(), (inputs, targets))
    beyond = {k: 2 * b.tensors[k] - t for k, t in a.tensors.items()}
    at_zero = f.at(Checkpoint("beyond", {**beyond, "1.running_var": torch.zeros(5, dtype=DOUBLE)}))
    found = path(f, a, b, [2.0])
    assert found.loss[0] == pytest.approx(at_zero.value(at_zero.theta), rel=1e-12)
    assert found.not_finite == 0


def test_recalibrated_statistics_reproduce_the_ends_own_metrics():
    a, b, data = _ends()
    f = ModelObjective(_network(2), nn.CrossEntropyLoss(), data, batch_size=10, batch_norm="recalibrated")
    frozen = ModelObjective(_network(2), nn.CrossEntropyLoss(), data, batch_size=10)
    own = [frozen.at(end).metrics(frozen.at(end).theta) for end in (a, b)]
    for ends in ((a, b), (f.at(a).theta, f.at(b).theta)):
        found = path(f, *ends, [0.0, 0.5, 1.0])
        # the same means over batches, in another order of rounding
        np.testing.assert_allclose(found.loss[[0, 2]], [m["loss"] for m in own], rtol=1e-12)
        np.testing.assert_allclose(found.accuracy[[0, 2]], [m["accuracy"] for m in own], rtol=1e-12)


@pytest.mark.parametrize("batch_norm", ["frozen", "recalibrated", "batch"])
def test_an_objective_moved_in_place_is_the_one_built_anew(batch_norm):
    a, b, data = _ends()
    f = ModelObjective(_network(2), nn.CrossEntropyLoss(), data, batch_size=10, batch_norm=batch_norm)
    there, anew = f.at(a), f.at(b)
    v = torch.randn(f.size, generator=seeded(0), dtype=DOUBLE)
    there.hvp(there.theta, v)  # graphs of a's, which must not serve b
    move_to(there, b)
    assert torch.equal(there.theta, anew.theta)
    assert there.metrics(there.theta) == anew.metrics(anew.theta)
    assert torch.equal(there.gradient(there.theta), anew.gradient(anew.theta))
    assert torch.equal(there.hvp(there.theta, v), anew.hvp(anew.theta, v))


def test_what_batch_norm_does_between_two_networks_is_another_loss_for_each_policy():
    a, b, data = _ends()
    frozen = ModelObjective(_network(2), nn.CrossEntropyLoss(), data, batch_size=10)
    recalibrated = ModelObjective(_network(2), nn.CrossEntropyLoss(), data, batch_size=10, batch_norm="recalibrated")
    ends = frozen.at(a).theta, frozen.at(b).theta
    middle = [
        path(frozen.at(a), *ends, [0.5]).loss[0],  # frozen: a's statistics all the way
        path(frozen, a, b, [0.5]).loss[0],  # interpolated
        path(recalibrated, a, b, [0.5]).loss[0],
    ]
    assert len(set(np.round(middle, 6))) == 3


def test_checkpoints_without_buffers_are_their_weights():
    model, data = tiny_mlp()
    other, _ = tiny_mlp(seed=1)
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    a, b = Checkpoint.of(model), Checkpoint.of(other)
    t = [0.0, 0.3, 1.0]
    np.testing.assert_array_equal(path(f, a, b, t).loss, path(f, f.at(a).theta, f.at(b).theta, t).loss)


# --- bad input ---------------------------------------------------------------------------------------


def test_bad_ends_are_named():
    f = tiny_objective()
    with pytest.raises(ValueError, match=r"b has shape \(3,\)"):
        path(f, f.theta, torch.zeros(3), [0.5])
    with pytest.raises(ValueError, match="a is a Checkpoint and b a Tensor"):
        path(f, Checkpoint("a", {}), f.theta, [0.5])
    wide = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))
    with pytest.raises(ValueError, match=r"checkpoint 'wide' does not fit Sequential: .*0\.weight is"):
        path(f, Checkpoint.of(tiny_mlp()[0]), Checkpoint.of(wide, "wide"), [0.5])
    with pytest.raises(ValueError, match="coordinates has shape"):
        path(f, f.theta, f.theta, [])
    quadratic = Quadratic(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"\['objective'\] of the objectives are no networks"):
        path(quadratic, Checkpoint("a", {}), Checkpoint("b", {}), [0.5])

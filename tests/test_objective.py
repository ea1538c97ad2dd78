import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from landscape import Checkpoint, ModelObjective, Objective
from landscape.objective.tensors import checkpoint_of
from tests.problems import (
    DOUBLE,
    LogisticRegression,
    Quadratic,
    dense_hessian,
    seeded,
    symmetric,
    tiny_mlp,
    tiny_objective,
)

# float64 against float64: rounding only
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def test_closed_form_functions_and_networks_are_objectives():
    assert isinstance(tiny_objective(), Objective)
    assert isinstance(LogisticRegression(), Objective)
    assert isinstance(Quadratic(symmetric([1.0]), torch.zeros(1, dtype=DOUBLE)), Objective)


def test_value_gradient_and_product_against_autograd():
    model, data = tiny_mlp()
    f = tiny_objective()
    loss = nn.functional.cross_entropy(model(data[0]), data[1])
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, model.parameters())])
    value, found = f.value_and_gradient(f.theta)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    assert f.value(f.theta) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(found, gradient, **EXACT)
    v = torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    torch.testing.assert_close(f.hvp(f.theta, v), dense_hessian(model, data) @ v, **EXACT)


@pytest.mark.parametrize("sizes", [[50], [48, 2], [1] * 50, [17, 16, 17]])
def test_every_example_weighs_the_same_whatever_the_batches(sizes):
    model, (inputs, targets) = tiny_mlp()
    whole = tiny_objective()
    batches = list(zip(inputs.split(sizes), targets.split(sizes), strict=True))
    f = ModelObjective(model, nn.CrossEntropyLoss(), batches)
    theta = whole.theta + 0.3
    v = torch.ones(f.size, dtype=DOUBLE)
    assert f.examples == 50
    assert f.metrics(theta) == pytest.approx(whole.metrics(theta), rel=1e-12)
    torch.testing.assert_close(f.gradient(theta), whole.gradient(theta), **EXACT)
    torch.testing.assert_close(f.hvp(theta, v), whole.hvp(theta, v), **EXACT)


def test_a_data_loader_serves():
    model, data = tiny_mlp()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=7)
    f = ModelObjective(model, nn.CrossEntropyLoss(), loader)
    assert f.value(f.theta) == pytest.approx(tiny_objective().value(f.theta), rel=1e-12)


def test_gradient_and_product_are_derivatives_of_value():
    f = tiny_objective(weight_decay=0.3)
    theta = f.theta + torch.randn(f.size, generator=seeded(2), dtype=DOUBLE)
    v = torch.randn(f.size, generator=seeded(3), dtype=DOUBLE)
    h = 1e-6  # central differences in float64: error about h^2 + eps/h = 1e-10 relative to 1
    slope = (f.value(theta + h * v) - f.value(theta - h * v)) / (2 * h)
    assert slope == pytest.approx(float(f.gradient(theta) @ v), abs=1e-8)
    curve = (f.gradient(theta + h * v) - f.gradient(theta - h * v)) / (2 * h)
    torch.testing.assert_close(curve, f.hvp(theta, v), rtol=1e-7, atol=1e-8)


def test_weight_decay_is_in_f_only_if_asked_for():
    plain, decayed = tiny_objective(), tiny_objective(weight_decay=0.2)
    theta = plain.theta
    v = torch.ones(plain.size, dtype=DOUBLE)
    assert decayed.value(theta) - plain.value(theta) == pytest.approx(0.1 * float(theta @ theta))
    torch.testing.assert_close(decayed.gradient(theta) - plain.gradient(theta), 0.2 * theta, **EXACT)
    torch.testing.assert_close(decayed.hvp(theta, v) - plain.hvp(theta, v), 0.2 * v, **EXACT)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.functional.cross_entropy,
        lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1]),
    ],
)
def test_criteria_take_targets_and_other_callables_the_batch(loss):
    model, data = tiny_mlp()
    f = ModelObjective(model, loss, data)
    assert f.value(f.theta) == pytest.approx(tiny_objective().value(f.theta), rel=1e-12)


class _OutputsWithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, _ = tiny_mlp()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=nn.functional.cross_entropy(self.inner(x), labels))


def test_dictionary_batches_whose_outputs_carry_the_loss():
    _, (inputs, targets) = tiny_mlp()
    f = ModelObjective(_OutputsWithLoss(), None, [{"x": inputs, "labels": targets}])
    assert f.value(f.theta) == pytest.approx(tiny_objective().value(f.theta), rel=1e-12)
    assert "accuracy" not in f.metrics(f.theta)


def test_a_forward_of_the_users_own():
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(
        model,
        nn.CrossEntropyLoss(),
        [(inputs, targets)],
        forward=lambda model, batch: 2 * model(batch[0]),
    )
    twice = nn.functional.cross_entropy(2 * model(inputs), targets).item()
    assert f.value(f.theta) == pytest.approx(twice, rel=1e-12)


def test_accuracy_is_the_share_of_right_answers():
    model, (inputs, targets) = tiny_mlp()
    right = (model(inputs).argmax(1) == targets).double().mean().item()
    assert tiny_objective(batch_size=7).metrics(tiny_objective().theta)["accuracy"] == right


def test_regression_and_one_logit_outputs_have_no_accuracy():
    x = torch.ones(4, 2)
    for loss, targets in ((nn.MSELoss(), torch.ones(4, 1)), (lambda o, b: o.mean(), torch.ones(4).long())):
        f = ModelObjective(nn.Linear(2, 1), loss, (x, targets))
        assert set(f.metrics(f.theta)) == {"loss"}


def test_the_last_batch_is_never_one_example_alone():
    model, (x, y) = _normed()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (x[:9], y[:9]), batch_size=4, batch_norm="recalibrated")
    assert [count for _, count in f._batches] == [3, 3, 3]


@pytest.mark.filterwarnings("ignore:no gradient reaches")
def test_unused_parameters_have_no_gradient_and_zero_rows():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    f = ModelObjective(Unused(), nn.CrossEntropyLoss(), (torch.ones(3, 2), torch.tensor([0, 1, 1])))
    assert f.hvp(f.theta, torch.ones(f.size))[6:].abs().max() == 0
    assert f.gradient(f.theta)[6:].abs().max() == 0


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_derivatives_are_the_same_where_autograd_is_off(off):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)).double()
    data = torch.randn(6, 1, 4, dtype=torch.float64), torch.arange(6) % 2

    def derivatives(f):
        v = torch.ones_like(f.theta)
        return [f.gradient(f.theta), f.hvp(f.theta, v), f.gnvp(f.theta, v), f.hvp(f.theta + 0.1, v)]

    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    expected = derivatives(f)
    with off():
        theirs = copy.deepcopy(model), nn.CrossEntropyLoss(), tuple(t.clone() for t in data)
        made_there = ModelObjective(*theirs)
        found = derivatives(made_there)
    assert made_there._evaluation.folds  # what is found out by gradients is found there too
    for mine in (found, derivatives(made_there)):  # and what was kept there serves later
        for a, b in zip(mine, expected, strict=True):
            assert b.abs().max() > 1e-3
            assert torch.equal(a, b)


def test_an_interrupted_recalibration_is_begun_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    batches = [(torch.randn(5, 2), torch.arange(5) % 2) for _ in range(2)]
    calls = 0

    def forward(network, batch):
        nonlocal calls
        calls += 1
        if calls == interrupt:
            raise KeyboardInterrupt
        return network(batch[0])

    interrupt = None
    f = ModelObjective(model, nn.CrossEntropyLoss(), batches, forward=forward, batch_norm="recalibrated")
    elsewhere = f.theta + 0.5
    expected = f.value(elsewhere)
    f.value(f.theta)
    interrupt = calls + 2  # the second batch of the recalibration
    with pytest.raises(KeyboardInterrupt):
        f.value(elsewhere)
    assert f.value(elsewhere) == expected


def test_a_function_linear_in_theta_has_a_zero_hessian():
    model = nn.Linear(2, 1)
    f = ModelObjective(model, lambda outputs, batch: outputs.mean(), [(torch.ones(3, 2),)])
    assert f.hvp(f.theta, torch.ones(f.size)).abs().max() == 0


def test_attention_has_second_derivatives():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.attend(x, x, x, need_weights=False)[0].mean(1))

    x = torch.randn(6, 3, 4, generator=seeded(0), dtype=DOUBLE)
    f = ModelObjective(Attention().double(), nn.CrossEntropyLoss(), (x, torch.arange(6) % 2))
    v = torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    h = 1e-6  # central differences of gradients in float64: error about h^2 + eps/h
    curve = (f.gradient(f.theta + h * v) - f.gradient(f.theta - h * v)) / (2 * h)
    torch.testing.assert_close(curve, f.hvp(f.theta, v), rtol=1e-6, atol=1e-8)


# --- BatchNorm and dropout -------------------------------------------------------------------------


def _normed() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x = torch.randn(40, 4, generator=seeded(0), dtype=DOUBLE)
    return model, (x, torch.arange(40) % 3)


def test_frozen_batch_norm_is_evaluation_mode():
    model, (x, y) = _normed()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y))
    expected = nn.functional.cross_entropy(copy.deepcopy(model).eval()(x), y).item()
    assert f.value(f.theta) == pytest.approx(expected, rel=1e-12)


def test_recalibrated_batch_norm_has_the_statistics_of_the_data_at_every_theta():
    model, (x, y) = _normed()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y), batch_size=40, batch_norm="recalibrated")
    theta = 2 * f.theta
    views = f.space.views(theta)
    hidden = x @ views["0.weight"].T + views["0.bias"]
    norm = (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-5).sqrt()  # running variances are unbiased
    norm = norm * views["1.weight"] + views["1.bias"]
    outputs = norm.relu() @ views["4.weight"].T + views["4.bias"]
    expected = nn.functional.cross_entropy(outputs, y).item()
    assert f.value(theta) == pytest.approx(expected, rel=1e-12)


def test_recalibration_weighs_examples_alike_over_unequal_batches():
    model, (x, y) = _normed()
    batches = list(zip(x.split([36, 4]), y.split([36, 4]), strict=True))
    f = ModelObjective(model, nn.CrossEntropyLoss(), batches, batch_norm="recalibrated")
    mean = checkpoint_of(f).tensors["1.running_mean"]
    torch.testing.assert_close(mean, model[0](x).mean(0).detach(), **EXACT)


def test_calibration_data_may_be_other_than_the_data():
    model, (x, y) = _normed()
    f = ModelObjective(
        model,
        nn.CrossEntropyLoss(),
        (x[:5], y[:5]),
        batch_norm="recalibrated",
        calibration=(x, y),
    )
    torch.testing.assert_close(checkpoint_of(f).tensors["1.running_mean"], model[0](x).mean(0).detach(), **EXACT)


def test_batch_statistics_are_those_of_training_mode():
    model, (x, y) = _normed()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y), batch_size=40, batch_norm="batch")
    training = copy.deepcopy(model).train()
    training[3].eval()
    expected = nn.functional.cross_entropy(training(x), y).item()
    assert f.value(f.theta) == pytest.approx(expected, rel=1e-12)


# --- checkpoints -----------------------------------------------------------------------------------


def test_at_takes_the_checkpoints_weights_and_buffers():
    model, data = _normed()
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        other[4].weight.mul_(3)
        other(data[0])  # moves the running statistics
    there = f.at(Checkpoint.of(other))
    expected = ModelObjective(other, nn.CrossEntropyLoss(), data)
    torch.testing.assert_close(there.theta, expected.theta, rtol=0, atol=0)
    assert there.value(there.theta) == expected.value(expected.theta)
    assert f.value(f.theta) == ModelObjective(model, nn.CrossEntropyLoss(), data).value(f.theta)


# --- memory ----------------------------------------------------------------------------------------


PRODUCTS = """
import torch
from torch import nn
from landscape import ModelObjective
torch.set_num_threads(1)  # two would wait for each other wherever the machine is busy
model = nn.Sequential(nn.Linear(100, 200), nn.Tanh(), nn.Linear(200, 2))
f = ModelObjective(model, nn.CrossEntropyLoss(), (torch.randn(500, 100), torch.arange(500) % 2))
for products in (20, 200):
    for _ in range(products):
        f.hvp(f.theta, torch.ones(f.size))
    # KiB; ru_maxrss would not do, since a process inherits its parent's
    print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


def test_memory_is_flat_over_200_products():
    # in a process of its own: the peak of this one may be another test's. Linux alone tells it
    done = subprocess.run([sys.executable, "-c", PRODUCTS], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    # a kept graph holds at least 500 x 200 floats, 400 kB, so 200 of them would be 80 MB
    assert after - before < 10_000


# --- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_named():
    model, (x, y) = tiny_mlp()
    loss = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="data is empty"):
        ModelObjective(model, loss, (x[:0], y[:0]))
    with pytest.raises(ValueError, match="data is empty"):
        ModelObjective(model, loss, [])
    with pytest.raises(ValueError, match="50 inputs and 49 targets"):
        ModelObjective(model, loss, (x, y[1:]))
    with pytest.raises(ValueError, match="reduction='none'"):
        ModelObjective(model, nn.CrossEntropyLoss(reduction="none"), (x, y))
    with pytest.raises(ValueError, match=r"batch_norm='train'.*frozen"):
        ModelObjective(model, loss, (x, y), batch_norm="train")
    with pytest.raises(ValueError, match="class weights"):
        ModelObjective(model, nn.CrossEntropyLoss(weight=torch.ones(3)), (x, y))
    with pytest.raises(ValueError, match="ignore_index=0"):
        ModelObjective(model, nn.CrossEntropyLoss(ignore_index=0), (x, y))
    with pytest.raises(ValueError, match="A Dataset goes into a DataLoader"):
        ModelObjective(model, loss, torch.utils.data.TensorDataset(x, y))
    with pytest.raises(ValueError, match="without a tensor"):
        ModelObjective(model, loss, ["text"])
    mixed = copy.deepcopy(model)
    mixed[0].float()
    with pytest.raises(ValueError, match="several dtypes"):
        ModelObjective(mixed, loss, (x, y))
    f = tiny_objective()
    with pytest.raises(ValueError, match=r"theta has shape \(2,\).*\(43,\)"):
        f.value(torch.zeros(2))
    with pytest.raises(ValueError, match=r"v has shape \(2,\)"):
        f.hvp(f.theta, torch.zeros(2))

import pytest
import torch
from torch import nn

from optim import EntropySGD, train
from optim.training import constant, cosine, evaluate, refresh_batch_norm
from tests.problems import seeded, tiny_mlp

LOSS = nn.CrossEntropyLoss()


def _train(make, model=None, **options):
    net, data = tiny_mlp()
    net = model or net
    options = {"gradients": 60, "batch_size": 20, "generator": seeded(0), **options}
    return net, train(net, make(net.parameters()), LOSS, data, data, **options)


def _sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def _entropy_sgd(params):
    return EntropySGD(params, lr=1.0, L=5, generator=seeded(1))


@pytest.mark.parametrize(("make", "steps"), [(_sgd, 60), (_entropy_sgd, 12)])
def test_optimizers_spend_the_same_gradients(make, steps):
    _, record = _train(make)
    assert (record.gradients, record.steps) == (60, steps)


def test_a_budget_that_l_does_not_divide_is_never_overspent():
    _, record = _train(_entropy_sgd, gradients=63)
    assert (record.gradients, record.steps) == (60, 12)


def test_every_epoch_sees_every_example_once_in_a_new_order():
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.seen: list[float] = []

        def forward(self, x):
            if self.training:
                self.seen += x[:, 0].tolist()
            return x[:, :1] * self.weight

    model = Recorder()
    inputs, targets = torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.long)
    train(
        model,
        _sgd(model.parameters()),
        LOSS,
        (inputs, targets),
        (inputs, targets),
        gradients=8,  # 2 epochs of 4, 4 and 2
        batch_size=4,
        generator=seeded(0),
    )
    first, second = model.seen[:10], model.seen[10:20]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_same_seed_trains_the_same_network_with_dropout():
    def run(seed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        state = torch.get_rng_state()
        _train(_entropy_sgd, model, generator=seeded(seed))
        assert torch.equal(state, torch.get_rng_state())
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_the_schedule_is_in_units_of_the_budget_and_the_rate_is_put_back():
    fractions = []

    def schedule(fraction):
        fractions.append(fraction)
        return 1 - fraction

    model, data = tiny_mlp()
    optimizer = _entropy_sgd(model.parameters())
    train(model, optimizer, LOSS, data, data, gradients=20, generator=seeded(0), schedule=schedule)
    assert fractions == [0, 0.25, 0.5, 0.75]
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert (cosine(0), cosine(0.5), cosine(1)) == pytest.approx((1, 0.5, 0))
    assert constant(0.3) == 1


def test_the_record_says_what_was_reached():
    model, record = _train(_sgd)
    _, (x, y) = tiny_mlp()
    outputs = model(x)
    assert record.train["loss"] == pytest.approx(LOSS(outputs, y).item())
    assert record.train["accuracy"] == pytest.approx((outputs.argmax(1) == y).double().mean().item())
    assert record.optimizer == "SGD"
    assert record.settings["lr"] == 0.1
    assert record.metadata()["gradients"] == 60


def test_evaluation_weighs_examples_and_puts_the_mode_back():
    model, (x, y) = tiny_mlp()
    model.train()
    batches = list(zip(x.split([48, 2]), y.split([48, 2]), strict=True))
    assert evaluate(model, LOSS, batches)["loss"] == pytest.approx(LOSS(model(x), y).item())
    assert model.training


def test_batch_norm_statistics_are_refreshed_with_dropout_off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 6), nn.BatchNorm1d(6)).double()
    _, (x, y) = tiny_mlp()
    refresh_batch_norm(model, (x, y))
    hidden = model[1](x)  # without dropout
    torch.testing.assert_close(model[2].running_mean, hidden.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[2].running_var, hidden.var(0), rtol=1e-12, atol=1e-12)
    assert model.training
    assert model[2].momentum == 0.1


def test_data_loaders_are_read_again_and_again():
    model, data = tiny_mlp()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=25)
    record = train(model, _sgd(model.parameters()), LOSS, loader, loader, gradients=5, generator=seeded(0))
    assert record.gradients == 5


def test_a_diverging_run_is_said():
    model, data = nn.Linear(4, 3).double(), tiny_mlp()[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e308)
    with pytest.raises(FloatingPointError, match=r"after \d gradients of SGD with lr=1e\+308: lower"):
        train(model, optimizer, LOSS, data, data, gradients=50, generator=seeded(0))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"gradients=4.*EntropySGD spends 5"):
        _train(_entropy_sgd, gradients=4)
    model, (x, y) = tiny_mlp()
    with pytest.raises(ValueError, match="train_data is empty"):
        train(
            model,
            _sgd(model.parameters()),
            LOSS,
            (x[:0], y[:0]),
            (x, y),
            gradients=1,
            generator=seeded(0),
        )

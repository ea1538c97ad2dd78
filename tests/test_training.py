import json
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from optim import EntropySGD, train
from optim.evaluation import evaluate
from optim.training import constant, cosine
from tests.problems import seeded, tiny_mlp

LOSS = nn.CrossEntropyLoss()


def _train(make, model=None, **options):
    net, data = tiny_mlp()
    net = model or net
    options = {"gradients": 60, "batch_size": 20, "generator": seeded(0), **options}
    test_data = options.pop("test_data", data)
    return net, train(net, make(net.parameters()), LOSS, data, test_data, **options)


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


def test_regression_has_a_loss_and_no_accuracy():
    model = nn.Linear(4, 1).double()
    x = tiny_mlp()[1][0]
    found = evaluate(model, nn.MSELoss(), (x, torch.ones(50, 1, dtype=x.dtype)))
    assert set(found) == {"loss"}


def test_the_rate_is_put_back_when_a_step_fails():
    model, data = tiny_mlp()
    optimizer = _sgd(model.parameters())

    def failing(outputs, targets):
        raise MemoryError

    with pytest.raises(MemoryError):
        train(model, optimizer, failing, data, data, gradients=5, generator=seeded(0), schedule=lambda _: 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.1


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
    with pytest.raises(ValueError, match="test_data is empty"):
        _train(_sgd, test_data=(torch.ones(0, 4), torch.ones(0)))
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


# --- other optimizers --------------------------------------------------------------------------------


class _TwoCalls(torch.optim.SGD):
    """Like SAM: two gradients a step, which must be of one mini-batch."""

    gradients_per_step = 2
    same_batch = True

    def step(self, closure):
        with torch.enable_grad():
            first, second = closure(), closure()
        super().step()
        assert first == second
        return first


def test_optimizers_may_ask_for_one_batch_in_all_calls_of_a_step():
    _, record = _train(lambda p: _TwoCalls(p, lr=0.1))
    assert (record.gradients, record.steps) == (60, 30)


def test_optimizers_that_do_not_say_what_a_step_costs_are_counted():
    def lbfgs(params):
        return torch.optim.LBFGS(params, max_iter=4, max_eval=4)

    _, record = _train(lbfgs)
    assert 50 < record.gradients <= 60
    assert record.steps < 60


# --- what a run keeps --------------------------------------------------------------------------------


def _recorded(folder, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    options = {"save_every": 15, "evaluate_every": 20, "trajectory_every": 25, **options}
    _train(
        lambda p: EntropySGD(p, 1.0, L=5, momentum=0.9, diagnostics=True, generator=seeded(1)),
        model,
        run=folder,
        gradients=100,
        schedule=cosine,
        **options,
    )
    return torch.cat([v.double().reshape(-1) for v in model.state_dict().values()])


def _log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_has_a_line_per_step_with_diagnostics_and_evaluations(tmp_path):
    _recorded(tmp_path)
    lines = _log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["gradients"] for line in lines] == list(range(5, 101, 5))
    for key in ("loss", "lr", "gamma", "distance", "mean_distance", "cosine", "first_loss", "last_loss"):
        assert all(key in line for line in lines), key
    assert [line["step"] for line in lines if "test_accuracy" in line] == [4, 8, 12, 16, 20]


def test_the_trajectory_has_every_kth_point(tmp_path):
    _recorded(tmp_path)
    names = sorted(p.name for p in (tmp_path / "trajectory").iterdir())
    assert names == [f"{g:08}.safetensors" for g in (0, 25, 50, 75, 100)]


def test_running_statistics_follow_the_steps_only_if_asked(tmp_path):
    held, followed = (_recorded(tmp_path / name, hold_batch_norm=hold) for name, hold in (("a", True), ("b", False)))
    # in training mode they do not enter the loss, and the end refreshes them: all the same
    assert torch.equal(held[:-1], followed[:-1])


SCRIPT = """
import sys
from pathlib import Path
from tests.test_training import _recorded
torch_out, folder, slow = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
import time, torch
def progress(steps, description):
    for step in steps:
        print(step, flush=True)
        time.sleep(slow)
        yield step
torch.save(_recorded(folder, progress=progress), torch_out)
"""


@pytest.mark.slow
def test_a_run_killed_at_any_point_goes_on_bit_for_bit(tmp_path):
    whole = _recorded(tmp_path / "whole")
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "end.pt"), str(tmp_path / "killed"), "0.01"]
    for kill_at in (2, 7, 13):  # before the first state, between two, and after one
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if int(line) >= kill_at:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "end.pt").exists()
    subprocess.run(arguments, check=True, stdout=subprocess.PIPE)
    assert torch.equal(torch.load(tmp_path / "end.pt", weights_only=True), whole)
    assert _log(tmp_path / "killed") == _log(tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "trajectory").iterdir()):
        assert (tmp_path / "killed" / "trajectory" / path.name).read_bytes() == path.read_bytes()


def test_a_finished_run_is_not_run_again(tmp_path):
    first = _recorded(tmp_path)
    assert torch.equal(first, _recorded(tmp_path))
    assert len(_log(tmp_path)) == 20


def test_runs_of_other_settings_are_not_gone_on_with(tmp_path):
    _train(_sgd, run=tmp_path)
    with pytest.raises(ValueError, match=r"begun with another lr: go on with the same"):
        _train(lambda p: torch.optim.SGD(p, lr=0.2), run=tmp_path)
    model, (x, y) = tiny_mlp()
    with pytest.raises(ValueError, match="begun with another train_data"):
        train(
            model, _sgd(model.parameters()), LOSS, (x + 1, y), (x, y), gradients=60, batch_size=20,
            generator=seeded(0), run=tmp_path,
        )  # fmt: skip


def test_the_position_in_a_data_loader_cannot_be_returned_to(tmp_path):
    def with_loader():
        model, data = tiny_mlp()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=25)
        train(model, _sgd(model.parameters()), LOSS, loader, loader, gradients=5, generator=seeded(0), run=tmp_path)

    with_loader()
    with pytest.raises(ValueError, match="position cannot be returned to"):
        with_loader()


def test_a_progress_bar_is_shown_loss_accuracy_and_gamma():
    shown = []

    class Bar:
        def __init__(self, steps, description):
            self.steps = steps

        def __iter__(self):
            return iter(self.steps)

        def set_postfix(self, values, refresh):
            shown.append(values)

    _train(_entropy_sgd, progress=Bar)
    assert len(shown) == 12
    assert set(shown[0]) == {"loss", "accuracy", "gamma"}

import copy

import numpy as np
import pyhessian
import pytest
import torch
from torch import nn

from landscape import ModelObjective
from landscape.spectrum.cross_check import Agreement, cross_check
from tests.problems import LogisticRegression, dense_hessian, seeded, tiny_mlp, tiny_objective


def _exact(k: int) -> tuple[list[float], float]:
    """The k eigenvalues of largest magnitude of the tiny network's Hessian, and its trace."""
    values = torch.linalg.eigvalsh(dense_hessian(*tiny_mlp()))
    return sorted(values.tolist(), key=abs, reverse=True)[:k], float(values.sum())


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_both_find_the_dense_eigenvalues_and_trace(weight_decay):
    model, data = tiny_mlp()
    batches = list(zip(*(t.split(30) for t in data), strict=True))  # of 30 and 20: PyHessian gets them as one
    f = ModelObjective(model, nn.CrossEntropyLoss(), batches, weight_decay=weight_decay)
    check = cross_check(f, k=3, generator=seeded(0))
    assert check.agree, str(check)
    values, trace = _exact(3)
    *eigenvalues, last = check.rows
    assert [row.quantity for row in check.rows] == ["eigenvalue 1", "eigenvalue 2", "eigenvalue 3", "trace"]
    for row, value in zip(eigenvalues, values, strict=True):
        # Lanczos to a residual of 1e-4 of the largest, so to about its square; power iteration to a change of 1e-6
        assert row.ours == pytest.approx(value + weight_decay, rel=1e-5)
        assert row.theirs == pytest.approx(value + weight_decay, rel=1e-3)
        assert row.relative <= 1e-3
    # 4 standard errors: a right trace is further off once in 16000 times
    exact = trace + 43 * weight_decay
    assert abs(last.ours - exact) <= 4 * check.trace_errors[0]
    assert abs(last.theirs - exact) <= 4 * check.trace_errors[1]
    assert min(*check.trace_errors, *check.trace_seconds, *check.eigenvalue_seconds) > 0


def test_the_table_can_be_read():
    check = cross_check(tiny_objective(), k=2, trace_products=20, generator=seeded(0))
    lines = str(check).splitlines()
    assert lines[0].split() == ["ours", "PyHessian", "difference", "allowed", "relative", "agree"]
    assert lines[1].startswith("eigenvalue 1")
    assert lines[1].endswith("yes")
    assert lines[-2].split()[-2:] == ["20", "20"]
    assert lines[-1].startswith("density: not compared, as PyHessian's calls torch.eig")
    assert len({len(line) for line in lines[1:4]}) == 1  # columns line up


def test_the_network_its_gradients_and_the_random_state_stay():
    model, data = tiny_mlp()
    model.train()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    theta, slope = f.theta.clone(), f.gradient(f.theta)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  # the global one
    cross_check(f, k=1, trace_products=4)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(f.theta, theta)
    assert torch.equal(f.gradient(f.theta), slope)


def test_the_same_generator_gives_the_same_numbers():
    one, other = (cross_check(tiny_objective(), k=2, trace_products=5, generator=seeded(3)).rows for _ in range(2))
    assert one == other


def test_it_is_theta_that_counts_and_not_where_the_objective_was_last():
    f = tiny_objective()
    f.value(f.theta + 1)
    assert cross_check(f, k=1, trace_products=5, generator=seeded(0)).rows[0].theirs == pytest.approx(
        _exact(1)[0][0],
        rel=1e-3,  # what the check allows
    )


def test_a_wrong_eigenvalue_does_not_agree(monkeypatch):
    right = pyhessian.hessian.eigenvalues

    def one_percent_off(self, **options):
        values, vectors = right(self, **options)
        return [values[0], 1.01 * values[1]], vectors

    monkeypatch.setattr(pyhessian.hessian, "eigenvalues", one_percent_off)
    check = cross_check(tiny_objective(), k=2, generator=seeded(0))
    assert [row.agree for row in check.rows] == [True, False, True]
    assert not check.agree
    assert check.rows[1].relative == pytest.approx(0.0099, abs=0.001)  # up to what the two differ by anyway
    assert str(check).splitlines()[2].endswith("NO")


def test_a_wrong_trace_does_not_agree(monkeypatch):
    right = pyhessian.hessian.trace
    monkeypatch.setattr(pyhessian.hessian, "trace", lambda self, **options: [2 * t for t in right(self, **options)])
    check = cross_check(tiny_objective(), k=1, generator=seeded(0))
    assert [row.agree for row in check.rows] == [True, False]


def test_a_negative_trace_is_sampled_to_the_end():
    # f(w) = mean of -|w x|^2 / 2 over x = 1, as far as PyHessian knows a criterion: H = -1 for each of 3 weights
    class Negative(nn.Module):
        def forward(self, outputs, targets):
            return -(outputs - targets).square().sum(dim=1).mean() / 2

    f = ModelObjective(nn.Linear(1, 3, bias=False), Negative(), (torch.ones(4, 1), torch.zeros(4, 3)))
    check = cross_check(f, k=1, trace_products=7, generator=seeded(0))
    assert check.agree
    assert check.rows[-1].theirs == pytest.approx(-3, rel=1e-5)  # float32
    assert check.trace_errors[1] < 1e-5  # each sample is exact but for that


class _LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.lstm(x.view(-1, 2, 2))[0][:, -1])


def _weight_normed() -> nn.Module:
    model, _ = tiny_mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


@pytest.mark.parametrize("build", [_weight_normed, _LastState])
def test_networks_whose_kernels_have_no_right_second_derivative_agree(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().double()
    _, data = tiny_mlp()
    check = cross_check(ModelObjective(model, nn.CrossEntropyLoss(), data), k=2, trace_products=20, generator=seeded(0))
    assert check.agree, str(check)


def test_a_forward_of_ones_own_is_used():
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(
        model, nn.functional.cross_entropy, (inputs.unsqueeze(1), targets), forward=lambda m, b: m(b[0][:, 0])
    )
    check = cross_check(f, k=1, trace_products=5, generator=seeded(0))
    assert check.rows[0].theirs == pytest.approx(_exact(1)[0][0], rel=1e-3)  # what the check allows


def test_the_relative_difference_of_zeros_is_zero():
    assert Agreement("trace", 0.0, 0.0, 0.0, True).relative == 0
    assert Agreement("trace", 1.0, -1.0, 0.0, False).relative == 2


# --- what PyHessian cannot do ----------------------------------------------------------------------


def test_objectives_beyond_pyhessian_are_named():
    model, (inputs, targets) = tiny_mlp()
    data, loss = (inputs, targets), nn.CrossEntropyLoss()
    with pytest.raises(TypeError, match="LogisticRegression"):
        cross_check(LogisticRegression())
    with pytest.raises(ValueError, match="trace_products=1"):
        cross_check(tiny_objective(), trace_products=1)
    with pytest.raises(ValueError, match="batch_norm='batch'"):
        cross_check(tiny_objective(batch_norm="batch"))
    own = ModelObjective(model, lambda outputs, batch: loss(outputs, batch[1]), data)
    with pytest.raises(ValueError, match=r"loss=<function .*torch\.nn\.functional"):
        cross_check(own)
    alone = ModelObjective(nn.Linear(4, 4).double(), nn.MSELoss(), [inputs])
    with pytest.raises(ValueError, match=r"no \(inputs, targets\)"):
        cross_check(alone)
    dense = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten()).append(nn.Linear(4, 3)).double()
    ragged = [(inputs[:4].unsqueeze(1), targets[:4]), (inputs[:4].repeat(1, 2).unsqueeze(1), targets[:4])]
    with pytest.raises(ValueError, match=r"several shapes, \[\(\(1, 4\), \(\)\), \(\(1, 8\), \(\)\)\]"):
        cross_check(ModelObjective(dense, loss, ragged))


@pytest.mark.filterwarnings("ignore:no gradient reaches")
def test_parameters_without_second_derivatives_are_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x):
            return self.used(x)

    data = torch.ones(4, 1), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"constant or linear in idle\.weight, idle\.bias, .*requires_grad_"):
        cross_check(ModelObjective(Idle(), nn.MSELoss(), data), k=1, trace_products=2)
    # weight decay gives them second derivatives
    assert cross_check(ModelObjective(Idle(), nn.MSELoss(), data, weight_decay=0.1), k=1, generator=seeded(0)).agree


def test_a_mean_that_depends_on_the_batches_is_named():
    class Largest(nn.Module):
        def forward(self, outputs, targets):
            return (outputs - targets).square().max()

    batches = [(torch.ones(2, 1), torch.zeros(2, 1)), (torch.ones(2, 1), torch.full((2, 1), 5.0))]
    with pytest.raises(ValueError, match="on all its data as one batch"):
        cross_check(ModelObjective(nn.Linear(1, 1), Largest(), batches, whole_batches=True), k=1, trace_products=2)

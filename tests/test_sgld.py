"""The biased estimate by stochastic gradient Langevin dynamics."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import ModelObjective, local_entropy
from tests.problems import DOUBLE, Quadratic, seeded, tiny_objective


def _linear_regression():
    """f(w) = 1/2 mean (x.w - y)^2, a quadratic whose examples differ."""
    x = torch.randn(64, 3, generator=seeded(0), dtype=DOUBLE)
    y = x @ torch.tensor([[1.0], [-0.5], [0.2]], dtype=DOUBLE) + 0.3 * torch.randn(
        64, 1, generator=seeded(1), dtype=DOUBLE
    )
    model = nn.Linear(3, 1, bias=False).double()
    f = ModelObjective(model, lambda outputs, batch: ((outputs - batch[1]) ** 2).mean() / 2, [(x, y)])
    hessian = x.T @ x / 64
    minimum = torch.linalg.solve(hessian, x.T @ y / 64)[:, 0]
    return f, Quadratic(hessian, minimum, f.value(minimum))


def test_sgld_comes_near_the_truth_and_estimates_its_bias():
    f, exact = _linear_regression()
    x = exact.minimum + 0.1
    found = local_entropy(
        f, x, radius=0.3, beta=64.0, method="sgld", parts=4, moves=30, populations=8, generator=seeded(0)
    )
    truth = exact.local_entropy(x, 1 / (64 * 0.3**2), 64.0)
    assert not found.reliable
    assert "biased" in found.note
    # within four errors and twice the estimated bias
    assert abs(found.value - truth) < 4 * found.stderr + 2 * abs(found.step_size_bias)
    assert abs(found.value - truth) < 0.1 * abs(truth)
    assert found.lower < truth < found.upper
    assert 0 < found.step_size_bias_stderr < abs(found.step_size_bias)
    # at 17 temperatures twice 30 moves by h and twice as many by h/2, of a fourth of the data each
    assert found.cost.gradients == 8 * 17 * 2 * 30 * 3 // 4


def test_moves_to_a_loss_that_is_not_finite_are_undone_and_counted():
    class Walled(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=DOUBLE))

        def forward(self, x):
            return torch.sqrt(self.w + 0.5) * x  # NaN below -0.5

    f = ModelObjective(Walled(), nn.MSELoss(), [(torch.ones(8, 1, dtype=DOUBLE), torch.ones(8, 1, dtype=DOUBLE))])
    found = local_entropy(
        f, f.theta, radius=0.5, beta=8.0, method="sgld", parts=2, moves=20, populations=4, generator=seeded(0)
    )
    assert np.isfinite([found.value, found.lower, found.upper]).all()
    assert "moves led to a loss that is not finite" in found.note


def test_only_data_can_be_divided():
    with pytest.raises(ValueError, match="method='sgld' for a Quadratic"):
        local_entropy(_linear_regression()[1], torch.zeros(3, dtype=DOUBLE), radius=1.0, method="sgld")
    f = tiny_objective()
    with pytest.raises(ValueError, match="parts=1000000: give 1 to 50"):
        local_entropy(f, f.theta, radius=1.0, method="sgld", parts=10**6)

import pytest
import torch
from torch import nn

from landscape import Dense, GaussNewton, Hessian, LinearOperator, ModelObjective
from landscape.operators import Residual
from tests.problems import (
    DOUBLE,
    LogisticRegression,
    dense_hessian,
    seeded,
    symmetric,
    tiny_mlp,
    tiny_objective,
)


def _columns(operator: LinearOperator) -> torch.Tensor:
    identity = torch.eye(operator.size, dtype=operator.dtype)
    return torch.stack([operator.matvec(e) for e in identity], dim=1)


def test_the_hessian_of_a_network_column_by_column():
    f = tiny_objective()
    model, data = tiny_mlp()
    expected = dense_hessian(model, data)
    # float64 rounding only
    torch.testing.assert_close(_columns(Hessian(f)), expected, rtol=1e-10, atol=1e-12)


def test_hessian_gauss_newton_and_what_is_between_them():
    """For least squares of a network z(x), G = 2/(N m) sum J'J over N examples of m outputs."""
    model, (x, _) = tiny_mlp()
    y = torch.randn(len(x), 3, generator=seeded(1), dtype=DOUBLE)
    f = ModelObjective(model, nn.MSELoss(), (x, y))

    def outputs(theta: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, f.space.views(theta), (x,)).flatten()

    jacobian = torch.autograd.functional.jacobian(outputs, f.theta)
    g = 2 * jacobian.T @ jacobian / y.numel()
    h = torch.autograd.functional.hessian(lambda theta: (outputs(theta) - y.flatten()).square().mean(), f.theta)
    # float64 rounding only
    torch.testing.assert_close(_columns(Hessian(f)), h, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(_columns(GaussNewton(f)), g, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(_columns(Residual(f)), h - g, rtol=1e-10, atol=1e-12)


def test_the_hessian_of_any_objective():
    f = LogisticRegression()
    w = torch.ones(8, dtype=DOUBLE)
    torch.testing.assert_close(_columns(Hessian(f, w)), f.dense_hessian(w))


def test_the_hessian_stays_where_it_was_made():
    f = tiny_objective()
    theta = f.theta.clone()
    operator = Hessian(f, theta)
    before = operator.matvec(torch.ones(f.size, dtype=DOUBLE))
    theta.zero_()
    f.value(f.theta + 5)
    torch.testing.assert_close(operator.matvec(torch.ones(f.size, dtype=DOUBLE)), before)


def test_bad_operators_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        Dense(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"theta has shape \(1,\)"):
        Hessian(tiny_objective(), torch.zeros(1))
    with pytest.raises(ValueError, match=r"dtype torch\.int64"):
        Dense(torch.diag(torch.tensor([1, 2, 3])))
    with pytest.raises(ValueError, match="not symmetric"):
        Dense(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"\(0, 0\)"):
        Dense(torch.zeros(0, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_asymmetry(dtype):
    matrix = symmetric(range(1, 101)).to(dtype)
    # each entry and its mirror image off by some hundred roundings of the largest eigenvalue, as long sums are
    rounded = matrix + 100 * torch.finfo(dtype).eps * torch.randn(100, 100, generator=seeded(1), dtype=dtype)
    assert not torch.equal(rounded, rounded.T)
    assert Dense(rounded).size == 100
    with pytest.raises(ValueError, match=r"differs from its transpose by up to 1\b"):
        Dense(torch.tensor([[1.0, 2.0], [3.0, 1.0]], dtype=dtype))

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from pyhessian import hessian as pyhessian_hessian
from torch import nn

from landscape import Dense, Hessian, LinearOperator, as_operator, eigenpairs, spectral_density
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


def test_matrices_arrays_and_scipy_operators_serve():
    matrix = symmetric([3.0, 1.0, -2.0])
    v = torch.randn(3, generator=seeded(0), dtype=DOUBLE)
    for source in (matrix, matrix.numpy(), scipy.sparse.linalg.aslinearoperator(matrix.numpy())):
        operator = as_operator(source)
        assert isinstance(operator, LinearOperator)
        torch.testing.assert_close(operator.matvec(v), matrix @ v)
    ours = Dense(matrix)
    assert as_operator(ours) is ours


def test_bad_operators_are_named():
    with pytest.raises(TypeError, match=r"'text'.*str.*matvec"):
        as_operator("text")
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        as_operator(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"theta has shape \(1,\)"):
        Hessian(tiny_objective(), torch.zeros(1))
    with pytest.raises(ValueError, match=r"dtype torch\.int64"):
        as_operator(np.diag([1, 2, 3]))
    with pytest.raises(ValueError, match="not symmetric"):
        as_operator(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"\(0, 0\)"):
        as_operator(np.zeros((0, 0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_asymmetry(dtype):
    matrix = symmetric(range(1, 101)).to(dtype)
    # each entry and its mirror image off by some hundred roundings of the largest eigenvalue, as long sums are
    rounded = matrix + 100 * torch.finfo(dtype).eps * torch.randn(100, 100, generator=seeded(1), dtype=dtype)
    assert not torch.equal(rounded, rounded.T)
    assert Dense(rounded).size == 100
    with pytest.raises(ValueError, match=r"differs from its transpose by up to 1\b"):
        Dense(torch.tensor([[1.0, 2.0], [3.0, 1.0]], dtype=dtype))


# --- PyHessian -------------------------------------------------------------------------------------

# PyHessian calls loss.backward(create_graph=True), of which PyTorch warns
pytestmark = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")


def _classifier() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, (torch.randn(64, 5, generator=seeded(0)), torch.arange(64) % 3)


@pytest.mark.parametrize("loader", [False, True])
def test_the_product_of_a_pyhessian_object_is_ours(loader):
    model, data = _classifier()
    expected = dense_hessian(model, data)
    if loader:  # of unequal batches
        batches = list(zip(*(t.split(40) for t in data), strict=True))
        theirs = pyhessian_hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
    else:
        theirs = pyhessian_hessian(model, nn.CrossEntropyLoss(), data=data, cuda=False)
    # float32 sums over 64 examples
    torch.testing.assert_close(_columns(as_operator(theirs)), expected, rtol=1e-4, atol=1e-6)


def test_top_eigenvalues_and_trace_agree_with_pyhessians():
    model, data = _classifier()
    theirs = pyhessian_hessian(model, nn.CrossEntropyLoss(), data=data, cuda=False)
    ours = eigenpairs(theirs, 2, tol=1e-5, generator=seeded(0))
    # their power iteration is random; it stops when two iterates agree to tol, which is no bound on
    # the error, hence a tol far below the agreement asked for
    torch.manual_seed(0)
    values, _ = theirs.eigenvalues(maxIter=2000, tol=1e-7, top_n=2)
    np.testing.assert_allclose(ours.values, sorted(values, key=abs, reverse=True), rtol=1e-3)

    exact = float(torch.trace(dense_hessian(model, data)))
    mean, error = spectral_density(theirs, steps=20, probes=30, generator=seeded(0)).trace()
    assert abs(mean - exact) < 4 * error
    hutchinson = np.array(theirs.trace(maxIter=200, tol=0.0))
    assert abs(hutchinson.mean() - mean) < 4 * np.hypot(error, hutchinson.std() / len(hutchinson) ** 0.5)

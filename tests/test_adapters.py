import importlib
from types import ModuleType

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from pyhessian import hessian as pyhessian_hessian
from torch import nn

from landscape import Dense, Hessian, LinearOperator, as_operator, eigenpairs, local_entropy, spectral_density
from landscape.operators import check_symmetric, to_scipy
from landscape.spectrum import trace
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

pytestmark = [
    # PyHessian calls loss.backward(create_graph=True), of which PyTorch warns
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True"),
    # a dependency of curvlinops and PyTorch's own forward-mode derivatives call torch.jit.script
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning"),
]


def _columns(operator: LinearOperator) -> torch.Tensor:
    identity = torch.eye(operator.size, dtype=operator.dtype)
    return torch.stack([operator.matvec(e) for e in identity], dim=1)


def test_matrices_arrays_and_scipy_operators_serve():
    matrix = symmetric([3.0, 1.0, -2.0])
    v = torch.randn(3, generator=seeded(0), dtype=DOUBLE)
    for source in (matrix, matrix.numpy(), scipy.sparse.linalg.aslinearoperator(matrix.numpy())):
        operator = as_operator(source)
        assert isinstance(operator, LinearOperator)
        torch.testing.assert_close(operator.matvec(v), matrix @ v)
    ours = Dense(matrix)
    assert as_operator(ours) is ours


def test_what_is_no_operator_is_named():
    with pytest.raises(TypeError, match=r"'text'.*str.*matvec"):
        as_operator("text")
    for source in (np.zeros((2, 3)), scipy.sparse.linalg.aslinearoperator(np.zeros((2, 3)))):
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            as_operator(source)


# --- to SciPy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scipy_finds_the_eigenvalues_of_ours(dtype):
    # small integers, which both dtypes hold exactly
    matrix = torch.randint(-4, 5, (30, 30), generator=seeded(0)).to(dtype)
    matrix = matrix + matrix.T
    operator = to_scipy(Dense(matrix))
    assert operator.dtype == (np.float64 if dtype == DOUBLE else np.float32)
    start = np.ones(30, dtype=operator.dtype)
    found = scipy.sparse.linalg.eigsh(operator, k=3, which="LA", v0=start, return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(matrix.double())[-3:].numpy()
    # ARPACK converges to rounding: sums of 30 terms, each off by eps times at most the norm, of about 40
    np.testing.assert_allclose(found, expected, rtol=0, atol=30 * 40 * torch.finfo(dtype).eps)


def test_scipy_may_multiply_columns_matrices_and_from_the_left():
    matrix = symmetric([3.0, 1.0, -2.0])
    operator = to_scipy(matrix)
    x = np.arange(6.0).reshape(3, 2)
    expected = matrix.numpy() @ x
    x.flags.writeable = False  # torch.as_tensor would warn
    # products of 3 terms in float64
    np.testing.assert_allclose(operator @ x, expected, rtol=1e-12)
    np.testing.assert_allclose(operator.matvec(x[:, :1]), expected[:, :1], rtol=1e-12)
    np.testing.assert_allclose(operator.rmatvec(x[:, 1]), expected[:, 1], rtol=1e-12)
    np.testing.assert_allclose(operator.T @ x, expected, rtol=1e-12)


def test_what_numpy_has_no_dtype_for_is_float32_there():
    operator = to_scipy(Dense(torch.eye(2, dtype=torch.bfloat16)))
    assert operator.dtype == np.float32
    np.testing.assert_array_equal(operator.matvec(np.array([1.0, 2.0])), [1.0, 2.0])  # exact in bfloat16


def test_there_and_back_again():
    ours = Hessian(tiny_objective())
    assert as_operator(to_scipy(ours)) is ours
    v = torch.randn(ours.size, generator=seeded(0), dtype=DOUBLE)
    # what SciPy made of it is SciPy's, and goes over NumPy
    torch.testing.assert_close(as_operator(2 * to_scipy(ours)).matvec(v), 2 * ours.matvec(v))


# --- symmetry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 10, 1000])
def test_rounding_is_no_asymmetry(dtype, size):
    generator = seeded(0)
    a = torch.randn(size, size, generator=generator, dtype=dtype)
    matrix = a @ a.T  # symmetric but for its products' rounding
    for _ in range(20):
        check_symmetric(_Asymmetric(matrix), generator)


@pytest.mark.parametrize("size", [10, 1000])
def test_asymmetry_is_found_whatever_the_size(size):
    generator = seeded(0)
    a = torch.randn(size, size, generator=generator)
    with pytest.raises(ValueError, match=r"not symmetric.*u'Av = -?\d.*v'Au = -?\d.*\(A \+ A'\) / 2"):
        check_symmetric(_Asymmetric(a), generator)
    # 1 percent of it: 30 times the tolerance, so it would pass one draw in 40. This seed's draw is no such one
    slightly = _Asymmetric(a + a.T + 0.01 * (a - a.T))
    with pytest.raises(ValueError, match="not symmetric"):
        check_symmetric(slightly, generator)
    check_symmetric(slightly, generator, tol=0.1)


def test_a_hessian_is_symmetric_at_two_products():
    operator = _Asymmetric(None)
    hessian = Hessian(tiny_objective())
    operator.size, operator.dtype, operator.device = hessian.size, hessian.dtype, hessian.device
    operator.product = hessian.matvec
    check_symmetric(operator, seeded(0))
    assert operator.products == 2


class _ByDifferences(LogisticRegression):
    """H v is right to some h^2, which is far more than the rounding of float64: it is not quite symmetric."""

    def hvp(self, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        h = 0.01
        return (self.gradient(w + h * v) - self.gradient(w - h * v)) / (2 * h)


def test_products_that_are_known_to_few_digits_pass_by_a_tolerance_of_the_users():
    f, w = _ByDifferences(), torch.zeros(8, dtype=DOUBLE)
    coarse = Hessian(f, w)
    for analysis in (lambda: eigenpairs(coarse, 1), lambda: spectral_density(coarse), lambda: trace(coarse)):
        with pytest.raises(ValueError, match=r"not symmetric.*as_operator\(operator, tol=1e-3\)"):
            analysis()
    operator = as_operator(coarse, tol=1e-3)
    exact = torch.linalg.eigvalsh(f.dense_hessian(w)).flip(0).numpy()
    top = eigenpairs(operator, 2, generator=seeded(0))
    # tol, and residuals of 1e-3
    np.testing.assert_allclose(top.values, exact[:2], rtol=2e-3)
    assert trace(operator, products=8).value == pytest.approx(exact.sum(), rel=2e-3)
    density = spectral_density(operator, probes=8, deflate=top, generator=seeded(0))
    value, stderr = density.trace()
    assert abs(value - exact.sum()) < 4 * stderr
    # local entropy takes what was found through it
    found = local_entropy(f, w, radius=0.1, beta=1.0, method="laplace", pairs=top, density=density)
    assert np.isfinite(found.value).all()
    with pytest.raises(ValueError, match="not symmetric"):
        as_operator(coarse, tol=1e-9)
    with pytest.raises(ValueError, match="tol=0"):
        as_operator(coarse, tol=0)


def test_what_cannot_be_checked_is_named():
    with pytest.raises(ValueError, match="tol=0"):
        check_symmetric(torch.eye(3), tol=0)
    with pytest.raises(FloatingPointError, match="not finite"):
        check_symmetric(_Asymmetric(torch.full((3, 3), float("inf"))), seeded(0))


class _Asymmetric:
    """Any matrix as an operator, unchecked and counted."""

    def __init__(self, matrix: torch.Tensor | None) -> None:
        self.products = 0
        if matrix is not None:
            self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
            self.product = matrix.mv

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self.product(v)


# --- curvlinops ------------------------------------------------------------------------------------


@pytest.fixture
def curvlinops() -> ModuleType:
    # not above, since it warns, which only a test's filters hide
    return importlib.import_module("curvlinops")


def test_the_product_of_a_curvlinops_hessian_is_ours(curvlinops):
    model, data = tiny_mlp()
    batches = list(zip(*(t.split(20) for t in data), strict=True))
    theirs = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), batches)
    operator = as_operator(theirs)
    assert (operator.size, operator.dtype, operator.device) == (43, DOUBLE, torch.device("cpu"))
    v = torch.ones(43, dtype=DOUBLE)
    expected = operator.matvec(v)
    assert not expected.requires_grad
    # float64 rounding only
    torch.testing.assert_close(_columns(operator), dense_hessian(model, data), rtol=1e-10, atol=1e-12)
    check_symmetric(theirs, seeded(0))
    # of a class of its own
    torch.testing.assert_close(_columns(as_operator(2 * theirs)), 2 * _columns(operator))
    with torch.no_grad():
        assert torch.equal(operator.matvec(v), expected)


def test_eigenvalues_of_a_curvlinops_operator_are_ours(curvlinops):
    model, data = tiny_mlp()
    theirs = curvlinops.GGNLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [data])
    pairs = eigenpairs(theirs, 3, tol=1e-6, generator=seeded(0))
    dense = torch.linalg.eigvalsh(theirs @ torch.eye(43, dtype=DOUBLE)).flip(0)[:3]
    # an eigenvalue is as near as its residual, which is 1e-6 of the largest
    np.testing.assert_allclose(pairs.values, dense, atol=1e-6 * float(dense[0]))


def test_a_curvlinops_operator_that_is_not_square_is_named(curvlinops):
    model, data = tiny_mlp()
    jacobian = curvlinops.JacobianLinearOperator(model, list(model.parameters()), [data])
    with pytest.raises(ValueError, match=r"\(150, 43\)"):
        as_operator(jacobian)


# --- PyHessian -------------------------------------------------------------------------------------


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
    for columns in (_columns, torch.no_grad()(_columns)):
        # float32 sums over 64 examples
        torch.testing.assert_close(columns(as_operator(theirs)), expected, rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("analysis", [lambda op: eigenpairs(op, 1), spectral_density, trace])
def test_every_spectrum_checks_the_hessian_of_a_function_of_ones_own(analysis):
    f = Quadratic(symmetric(range(1, 9)), torch.zeros(8, dtype=DOUBLE))
    analysis(Hessian(f, f.minimum))
    f.hessian[0, 1] += 1
    with pytest.raises(ValueError, match="operator is not symmetric"):
        analysis(Hessian(f, f.minimum))


@pytest.mark.parametrize("analysis", [lambda op: eigenpairs(op, 1), spectral_density, trace])
def test_every_spectrum_refuses_an_operator_that_is_not_symmetric(analysis):
    matrix = symmetric(range(1, 9))
    matrix[0, 1] += 1
    with pytest.raises(ValueError, match=r"operator is not symmetric: .*u'Av = .*v'Au"):
        analysis(scipy.sparse.linalg.aslinearoperator(matrix.numpy()))

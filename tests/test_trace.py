import numpy as np
import pytest
import torch

from landscape import Dense, Hessian
from landscape.spectrum import TraceEstimate, trace
from tests.problems import DOUBLE, dense_hessian, seeded, symmetric, tiny_mlp, tiny_objective

METHODS = ["hutchinson", "hutch++", "xtrace"]
INDEFINITE = np.linspace(-1, 3, 60)  # flat: what is to be deflated is nowhere near all
DECAYING = 1 / np.arange(1, 301) ** 2.0
ROUNDING = 1e-12  # some hundred sums of terms of size 1 to 10, each with an error of 2e-16 of its size


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Thousands of tiny factorisations: further threads only make them wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recording(Dense):
    """Keeps the vectors that it is multiplied by."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.seen = []

    def matvec(self, v):
        self.seen.append(v.clone())
        return super().matvec(v)


def over_seeds(eigenvalues, method, products, seeds):
    """The errors of the estimates, and the standard errors they report."""
    matrix = symmetric(eigenvalues)
    estimates = [trace(matrix, method=method, products=products, generator=seeded(seed)) for seed in range(seeds)]
    return np.array([e.value for e in estimates]) - np.sum(eigenvalues), np.array([e.stderr for e in estimates])


def rms(errors):
    return np.sqrt(np.mean(errors**2))


# --- the estimators are what they are defined to be ---------------------------------------------------


def xtrace_by_definition(matrix, w):
    """Leave out each test vector, factorise anew, and average: O(m) factorisations, dense projectors."""
    n, m = w.shape
    estimates = []
    for i in range(m):
        others = [j for j in range(m) if j != i]
        q, _ = np.linalg.qr((matrix @ w)[:, others])
        r = (np.eye(n) - q @ q.T) @ w[:, i]
        r *= np.sqrt(n - m + 1) / np.linalg.norm(r)
        estimates.append(np.trace(q.T @ matrix @ q) + r @ matrix @ r)
    return np.mean(estimates), np.std(estimates, ddof=1) / np.sqrt(m)


@pytest.mark.parametrize("eigenvalues", [INDEFINITE, DECAYING[:40], np.exp(-np.arange(30.0))])
@pytest.mark.parametrize("m", [2, 5, 12])
def test_xtrace_is_the_mean_over_test_vectors_left_out(eigenvalues, m):
    operator = Recording(symmetric(eigenvalues))
    estimate = trace(operator, method="xtrace", products=2 * m, generator=seeded(0))
    w = torch.stack(operator.seen[:m], dim=1)
    n = len(eigenvalues)
    torch.testing.assert_close(w.norm(dim=0), torch.full((m,), n**0.5, dtype=DOUBLE))
    expected = xtrace_by_definition(operator.matrix.numpy(), w.numpy())
    # the condition number of A W, up to 1e5 here, times 2e-16
    np.testing.assert_allclose((estimate.value, estimate.stderr), expected, rtol=1e-8)


def test_xtrace_that_has_grown_is_that_of_all_its_test_vectors():
    operator = Recording(symmetric(DECAYING[:100]))
    estimate = trace(operator, method="xtrace", products=40, tol=1e-300, generator=seeded(0))
    # batches of test vectors and of Q, up to 16, 32 and 40 products
    batches = operator.seen[0:8], operator.seen[16:24], operator.seen[32:36]
    w = torch.stack([v for batch in batches for v in batch], dim=1)
    assert len(operator.seen) == estimate.cost.products == 40
    expected = xtrace_by_definition(operator.matrix.numpy(), w.numpy())
    np.testing.assert_allclose((estimate.value, estimate.stderr), expected, rtol=1e-8)  # as above


@pytest.mark.parametrize("tol", [None, 1e-300])
def test_hutch_plus_plus_is_exact_on_its_sketch_and_samples_the_rest(tol):
    operator = Recording(symmetric(DECAYING[:100]))
    estimate = trace(operator, method="hutch++", products=30, tol=tol, generator=seeded(0))
    v = torch.stack(operator.seen, dim=1)
    signs = (v.abs() == 1).all(dim=0)
    basis = torch.isclose(v.norm(dim=0), torch.ones(30, dtype=DOUBLE))
    q, g = v[:, basis], v[:, signs]
    assert (q.shape[1], g.shape[1]) == (10, 10)
    torch.testing.assert_close(q.T @ q, torch.eye(10, dtype=DOUBLE), rtol=0, atol=ROUNDING)
    sketch = operator.matrix @ v[:, ~signs & ~basis]
    torch.testing.assert_close(q @ (q.T @ sketch), sketch, rtol=0, atol=ROUNDING)

    r = g - q @ (q.T @ g)
    draws = (q.T @ operator.matrix @ q).trace() + (r * (operator.matrix @ r)).sum(dim=0)
    assert estimate.value == pytest.approx(float(draws.mean()), abs=ROUNDING)
    assert estimate.stderr == pytest.approx(float(draws.std()) / 10**0.5, abs=ROUNDING)


def test_hutchinson_is_the_mean_over_vectors_of_signs():
    operator = Recording(symmetric(INDEFINITE))
    estimate = trace(operator, method="hutchinson", products=20, generator=seeded(0))
    v = torch.stack(operator.seen)
    assert (v.abs() == 1).all()
    draws = ((v @ operator.matrix) * v).sum(dim=1)
    assert estimate.value == pytest.approx(float(draws.mean()), abs=ROUNDING)
    assert estimate.stderr == pytest.approx(float(draws.std()) / 20**0.5, abs=ROUNDING)


# --- where the answer is exact ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eigenvalues", [[3.0], [2.0, -5.0], [0.0] * 3, INDEFINITE])
@pytest.mark.parametrize("tol", [None, 1e-300])
def test_n_products_give_the_trace_itself(method, eigenvalues, tol):
    n = len(eigenvalues)
    for products in (n, n + 1, 3 * n):
        estimate = trace(symmetric(eigenvalues), method=method, products=products, tol=tol, generator=seeded(0))
        assert estimate.value == pytest.approx(np.sum(eigenvalues), abs=ROUNDING)
        assert estimate.stderr == 0
        assert estimate.converged
        assert estimate.cost.products == n if tol is None else estimate.cost.products <= products


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("eigenvalues", [[0.0] * 80, [7.0] + [0.0] * 79, [5.0, -3.0, 2.0] + [0.0] * 77])
@pytest.mark.parametrize("rotated", [True, False])  # unrotated, A W has rows of exact zeros
@pytest.mark.parametrize("tol", [None, 1e-300])
def test_a_rank_below_the_sketchs_is_found_exactly(method, eigenvalues, rotated, tol):
    matrix = symmetric(eigenvalues) if rotated else torch.diag(torch.tensor(eigenvalues, dtype=DOUBLE))
    estimate = trace(matrix, method=method, products=40, tol=tol, generator=seeded(0))
    assert estimate.value == pytest.approx(sum(eigenvalues), abs=ROUNDING)
    assert estimate.stderr < ROUNDING


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_a_multiple_of_the_identity_has_vectors_of_one_length_only(method):
    estimate = trace(2 * torch.eye(80, dtype=DOUBLE), method=method, products=12, generator=seeded(0))
    assert estimate.value == pytest.approx(160, abs=ROUNDING)
    assert estimate.stderr < ROUNDING


# --- statistics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("products", [6, 24])
def test_estimates_are_unbiased(method, products):
    errors, _ = over_seeds(INDEFINITE, method, products, seeds=300)
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(300)


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        # Independent draws: the root of an unbiased variance is 1/(4 (k - 1)) too small on average, 0.01 to 0.03 for k
        # = 30 and 10 draws, more where they are not Gaussian. The RMS over 400 seeds is known to 1/sqrt(800) = 0.035
        # of itself: three times that
        ("hutchinson", 0.87, 1.1),
        ("hutch++", 0.87, 1.1),
        # Draws that share their test vectors: measured 0.72 to 0.90 on four spectra, with the same three times 0.035
        ("xtrace", 0.64, 1.1),
    ],
)
@pytest.mark.parametrize("eigenvalues", [INDEFINITE, DECAYING[:60]])
def test_the_reported_error_is_the_true_one(method, low, high, eigenvalues):
    errors, reported = over_seeds(eigenvalues, method, 30, seeds=400)
    assert low < reported.mean() / rms(errors) < high


def test_where_the_spectrum_decays_a_sketch_is_worth_far_more_than_samples():
    hutchinson, hutch_plus_plus, xtrace = (rms(over_seeds(DECAYING, method, 60, seeds=50)[0]) for method in METHODS)
    # measured over 400 seeds: 0.193, 0.0028 and 0.0016, for a trace of 1.64. An RMS over 50 is known to a tenth
    assert hutchinson > 30 * hutch_plus_plus
    assert hutch_plus_plus > xtrace


# --- what is asked for and what is spent --------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("products", [4, 7, 16, 33, 50])
@pytest.mark.parametrize("tol", [None, 1e-300])
def test_products_are_counted_and_all_are_spent(method, products, tol):
    operator = Recording(symmetric(INDEFINITE))
    estimate = trace(operator, method=method, products=products, tol=tol, generator=seeded(0))
    in_pairs = products // 2 * 2
    assert estimate.cost.products == len(operator.seen) == (in_pairs if method == "xtrace" else products)
    assert estimate.converged == (tol is None)
    assert estimate.method == method


@pytest.mark.parametrize("method", METHODS)
def test_products_double_until_the_error_is_small_enough(method):
    eigenvalues = np.linspace(0.5, 1, 600)  # products = 512 < n: none of it by unit vectors
    tol = {"hutchinson": 0.001, "hutch++": 0.004, "xtrace": 0.001}[method]
    estimate = trace(symmetric(eigenvalues), method=method, products=512, tol=tol, generator=seeded(0))
    assert estimate.converged
    assert estimate.stderr <= tol * abs(estimate.value)
    assert estimate.cost.products in (32, 64, 128, 256)
    # up to half as many, the same generator draws the same vectors, which did not do
    before = trace(
        symmetric(eigenvalues), method=method, products=estimate.cost.products // 2, tol=tol, generator=seeded(0)
    )
    assert not before.converged
    assert before.stderr > tol * abs(before.value)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_estimate(method):
    matrix = symmetric(INDEFINITE)
    first, again, other = (trace(matrix, method=method, generator=seeded(seed), products=12) for seed in (0, 0, 1))
    assert (first.value, first.stderr) == (again.value, again.stderr)
    assert first.value != other.value
    assert isinstance(first, TraceEstimate)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_sees_the_same_vectors(method):
    matrix = symmetric(DECAYING)
    double, single = (trace(m, method=method, products=30, generator=seeded(0)) for m in (matrix, matrix.float()))
    assert single.value == pytest.approx(double.value, abs=1e-5)  # sums of 300 terms of size 1, eps = 1.2e-7


def test_the_trace_of_a_networks_hessian():
    exact = float(dense_hessian(*tiny_mlp()).trace())
    estimate = trace(Hessian(tiny_objective()), products=30, generator=seeded(0))
    assert abs(estimate.value - exact) < 4 * estimate.stderr
    assert estimate.stderr < 0.1 * exact  # the 43 eigenvalues decay, so that 30 products leave some per cent


def test_progress_runs_over_all_products():
    seen = []

    def progress(iterable, description):
        for i in iterable:
            seen.append(description)
            yield i

    for method in METHODS:
        trace(symmetric(INDEFINITE), method=method, products=30, generator=seeded(0), progress=progress)
    assert seen == ["trace"] * 90


def test_bad_input_is_named():
    for options, message in (
        ({"method": "xtrance"}, "method='xtrance'.*xtrace"),
        ({"products": 3}, "products=3: give at least 4 for method='xtrace'"),
        ({"products": 3, "method": "hutch++"}, "products=3: give at least 4"),
        ({"products": 1, "method": "hutchinson"}, "products=1: give at least 2"),
        ({"tol": 0.0}, "tol=0.0: give a positive"),
        ({"tol": float("nan")}, "tol=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            trace(torch.eye(90), **options)
    with pytest.raises(ValueError, match="products=0: give at least 1"):
        trace(torch.eye(1), products=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("products", [6, 9])  # by random vectors and by unit vectors
def test_a_product_that_is_not_finite_stops_it(method, products):
    with pytest.raises(FloatingPointError, match="product 1 is not finite"):
        trace(torch.full((9, 9), float("inf"), dtype=DOUBLE), method=method, products=products, generator=seeded(0))

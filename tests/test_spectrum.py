import numpy as np
import pytest
import torch
from scipy.stats import norm

from landscape import Dense, Hessian, ModelObjective, eigenpairs, spectral_density
from landscape.experiment import train_at_equal_budget
from landscape.problems import digits_mlp
from tests.problems import DOUBLE, dense_hessian, seeded, symmetric

SPECTRUM = np.concatenate([[100.0, 40.0, 9.0, -5.0], np.linspace(-0.1, 1, 46)])


# --- eigenpairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("magnitude", [100, 40, 9, -5]),
        ("largest", [100, 40, 9, 1]),
        ("smallest", [-5, -0.1, -0.1 + 1.1 / 45, -0.1 + 2.2 / 45]),
        ("both", [100, 40, -5, -0.1]),
    ],
)
def test_the_wanted_pairs_with_their_true_residuals(which, expected):
    matrix = symmetric(SPECTRUM)
    pairs = eigenpairs(Dense(matrix), 4, which=which, tol=1e-8, generator=seeded(0))
    np.testing.assert_allclose(pairs.values, expected, rtol=1e-9, atol=1e-9)
    residuals = (matrix @ pairs.vectors - pairs.vectors * torch.from_numpy(pairs.values)).norm(dim=0)
    # a residual near rounding differs by rounding: ||H|| eps = 2e-14
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-12)
    assert pairs.converged.all()
    assert (pairs.residuals <= 1e-8 * 100).all()
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(4, dtype=DOUBLE), rtol=0, atol=1e-8)


def test_products_are_counted():
    class Counting(Dense):
        count = 0

        def matvec(self, v):
            self.count += 1
            return super().matvec(v)

    operator = Counting(symmetric(SPECTRUM))
    pairs = eigenpairs(operator, 3, generator=seeded(0))
    assert pairs.products == operator.count < 50


@pytest.mark.parametrize(
    ("diagonal", "k"),
    [
        ([2.0] * 9, 1),
        ([2.0] * 9, 9),
        ([0.0] * 5, 3),
        ([2, 2, 2, 1], 2),
        ([5, 5, 5, 1, 1, -2, -2, -2], 8),
        ([7.0] + [0.0] * 19, 3),
        ([3.0], 1),
    ],
)
def test_multiple_eigenvalues_and_degenerate_operators(diagonal, k):
    pairs = eigenpairs(Dense(symmetric(diagonal)), k, which="magnitude", generator=seeded(0))
    expected = sorted(diagonal, key=abs, reverse=True)[:k]
    np.testing.assert_allclose(pairs.values, expected, atol=1e-12)
    assert pairs.converged.all()


def test_pairs_that_do_not_converge_say_so():
    flat = Dense(symmetric(np.linspace(0, 1, 200)))  # no gaps: hard for Lanczos
    pairs = eigenpairs(flat, 5, tol=1e-10, max_products=20, generator=seeded(0))
    assert len(pairs.values) == 5
    assert not pairs.converged.all()
    assert pairs.products == 25
    assert (pairs.residuals[~pairs.converged] > 1e-10).all()


def test_the_same_seed_gives_the_same_pairs_with_a_fixed_sign():
    operator = Dense(symmetric(SPECTRUM))
    a, b = (eigenpairs(operator, 3, generator=seeded(0)) for _ in range(2))
    assert torch.equal(a.vectors, b.vectors)
    c = eigenpairs(operator, 3, tol=1e-10, generator=seeded(1))
    assert torch.allclose(a.vectors, c.vectors, atol=1e-2)  # their residuals are below 1e-3 relative
    assert (c.vectors.gather(0, c.vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_more_pairs_than_the_default_budget_need_no_further_argument():
    pairs = eigenpairs(Dense(symmetric(np.arange(400.0))), 350, generator=seeded(0))
    assert len(pairs.values) == 350


def test_bad_input_to_eigenpairs_is_named():
    operator = Dense(torch.eye(3))
    for options, message in (
        ({"k": 0}, "k=0.*1 to the operator's 3"),
        ({"k": 4}, "k=4"),
        ({"k": 1, "tol": 0.0}, "tol=0.0"),
        ({"k": 1, "which": "top"}, "which='top'.*magnitude"),
        ({"k": 2, "max_products": 1}, "max_products=1"),
    ):
        with pytest.raises(ValueError, match=message):
            eigenpairs(operator, **options)


# --- density ---------------------------------------------------------------------------------------


def test_full_depth_quadrature_is_exact_in_every_probes_moments():
    matrix = symmetric(np.linspace(-1, 3, 12))
    density = spectral_density(Dense(matrix), steps=50, probes=3, generator=seeded(0))
    assert density.nodes.shape == density.weights.shape == (3, 12)
    np.testing.assert_allclose(density.nodes, np.tile(np.linspace(-1, 3, 12), (3, 1)), atol=1e-10)
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, atol=1e-12)


def test_trace_and_functions_are_unbiased_within_their_errors():
    matrix = symmetric(SPECTRUM)
    density = spectral_density(Dense(matrix), steps=30, probes=200, generator=seeded(0))
    for function in (lambda t: t, np.square, np.exp, lambda t: np.log1p(t / 10)):
        mean, error = density.function_mean(function)
        assert abs(mean - function(SPECTRUM).mean()) < 4 * error
    mean, error = density.trace()
    assert abs(mean - SPECTRUM.sum()) < 4 * error


def test_deflation_counts_the_known_exactly_and_shrinks_the_error():
    operator = Dense(symmetric(SPECTRUM))
    pairs = eigenpairs(operator, 4, tol=1e-10, generator=seeded(0))
    plain = spectral_density(operator, steps=30, probes=20, generator=seeded(1))
    deflated = spectral_density(operator, steps=30, probes=20, deflate=pairs, generator=seeded(1))
    np.testing.assert_allclose(sorted(deflated.known), [-5, 9, 40, 100], atol=1e-8)
    assert deflated.nodes.max() < 1 + 1e-8  # the outliers are gone from the rules
    for function in (lambda t: t, np.square):
        mean, error = deflated.function_mean(function)
        assert abs(mean - function(SPECTRUM).mean()) < 4 * error
        assert error < plain.function_mean(function)[1] / 20
    assert deflated.histogram(np.array([-6.0, -1, 2, 10, 50, 101])) == pytest.approx([1, 46, 1, 1, 1])


def test_only_converged_pairs_are_deflated():
    operator = Dense(symmetric(np.linspace(0, 1, 100)))
    pairs = eigenpairs(operator, 3, tol=1e-12, max_products=10, generator=seeded(0))
    density = spectral_density(operator, steps=10, probes=1, deflate=pairs, generator=seeded(0))
    assert len(density.known) == pairs.converged.sum() == 0


def test_views_of_the_measure_agree_with_each_other():
    density = spectral_density(Dense(symmetric(SPECTRUM)), steps=20, probes=5, generator=seeded(0))
    edges = np.linspace(-6, 101, 30)
    counts = density.histogram(edges)
    assert counts.sum() == pytest.approx(50)
    np.testing.assert_allclose(np.diff(density.cdf(edges)) * 50, counts, atol=1e-10)
    assert density.mass(-6, 101)[0] == pytest.approx(1)
    assert density.mass(0.5, 50)[0] == pytest.approx(density.cdf(np.array(50)) - density.cdf(np.array(0.5)))


def test_the_smoothed_density_keeps_all_mass_on_its_own_grid():
    density = spectral_density(Dense(symmetric(SPECTRUM)), steps=20, probes=5, generator=seeded(0))
    grid = density.grid(width=0.5, points=4001)
    smoothed = density.density(grid, width=0.5)
    # five widths beyond the last node leave less than 1e-6 outside
    assert np.trapezoid(smoothed, grid) == pytest.approx(1, abs=1e-5)
    assert np.trapezoid(smoothed * grid, grid) == pytest.approx(density.function_mean(lambda t: t)[0], rel=1e-4)


def test_one_probe_has_no_error_to_tell():
    density = spectral_density(torch.eye(4), steps=2, probes=1, generator=seeded(0))
    mean, error = density.trace()
    assert mean == pytest.approx(4)
    assert np.isnan(error)


def test_rules_with_fewer_nodes_are_padded_without_weight():
    density = spectral_density(2 * torch.eye(4), steps=3, probes=2, generator=seeded(0))
    np.testing.assert_allclose(density.nodes, 2, rtol=1e-6)  # float32
    np.testing.assert_allclose(density.weights, [[1, 0, 0], [1, 0, 0]], rtol=1e-6)
    assert density.cost.products == 2


def test_bad_input_to_the_density_is_named():
    for options, message in (({"steps": 0}, "steps=0"), ({"probes": 0}, "probes=0")):
        with pytest.raises(ValueError, match=message):
            spectral_density(torch.eye(3), **options)
    everything = eigenpairs(torch.eye(3), 3, generator=seeded(0))
    with pytest.raises(ValueError, match="every eigenpair"):
        spectral_density(torch.eye(3), deflate=everything)


# --- the digits MLP against its dense Hessian --------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The trained digits MLP on 500 examples: an operator in float32, and its exact spectrum in float64."""
    problem = digits_mlp()
    folder = tmp_path_factory.mktemp("digits")
    (checkpoint,) = train_at_equal_budget(problem, folder, optimizers=["SGD"], epochs=50)
    model = problem.build(seed=0)
    checkpoint.load_into(model)
    inputs, targets = (part[:500] for part in problem.train)
    operator = Hessian(ModelObjective(model, problem.loss, (inputs, targets)))
    exact = torch.linalg.eigvalsh(dense_hessian(model.double(), (inputs.double(), targets))).numpy()
    return operator, exact


@pytest.mark.slow
def test_top_eigenvalues_of_the_digits_mlp_agree_with_dense_eigh(digits):
    operator, exact = digits
    pairs = eigenpairs(operator, 5, which="largest", generator=seeded(0))
    np.testing.assert_allclose(pairs.values, exact[::-1][:5], rtol=1e-4)
    assert pairs.converged.all()


def _kolmogorov_smirnov(density, exact: np.ndarray, width: float) -> float:
    """Between the two measures, each smoothed by a Gaussian of standard deviation ``width``."""
    places, masses = density.atoms()
    near_zero = np.linspace(-5 * width, 5 * width, 1000)
    t = np.concatenate([np.linspace(exact[0], exact[-1], 3000), near_zero])[:, None]
    estimate = (norm.cdf((t - places) / width) * masses).sum(axis=1)
    return abs(estimate - norm.cdf((t - exact) / width).mean(axis=1)).max()


@pytest.mark.slow
def test_the_density_of_the_digits_mlp_agrees_with_dense_eigh(digits):
    operator, exact = digits
    density = spectral_density(operator, steps=80, probes=10, generator=seeded(0))
    # Over four in ten eigenvalues lie within 1e-4 of zero (the largest is 1.5), and 80 steps put one node
    # there. Unsmoothed, KS only says on which side of them that node fell (0.39, within the a posteriori
    # bound max_j w_j = 0.59); at any width that a picture could show it says how the mass is spread.
    # 1e-3 of the range is ten times finer than our plots.
    assert _kolmogorov_smirnov(density, exact, width=1e-3 * np.ptp(exact)) < 0.05
    assert _kolmogorov_smirnov(density, exact, width=1e-2 * np.ptp(exact)) < 0.005

    t = np.sort(np.concatenate([density.atoms()[0], exact]))
    gap = abs(density.cdf(t[:-1]) - np.searchsorted(exact, t[:-1], side="right") / len(exact))
    wasserstein = (gap * np.diff(t)).sum()
    # an a-priori bound for 80 steps is 0.13 of the range; what remains here is the spread over 10 probes
    assert wasserstein < 1e-3 * exact[-1]

import numpy as np
import pytest
import torch
from scipy.stats import norm

from landscape import Dense, Hessian, ModelObjective, eigenpairs, local_entropy, spectral_density
from landscape.experiment import train_at_equal_budget
from landscape.problems import digits_mlp
from landscape.randomness import unit
from landscape.results import Cost, SpectralDensity
from tests.problems import DOUBLE, Quadratic, dense_hessian, seeded, symmetric, tiny_objective

SPECTRUM = np.concatenate([[100.0, 40.0, 9.0, -5.0], np.linspace(-0.1, 1, 46)])


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


def _measures(operator: Dense, probes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each probe's own spectral measure: the eigenvalues (n,), and the squared coordinates (probes, n)."""
    values, vectors = torch.linalg.eigh(operator.matrix)
    generator = seeded(seed)
    v = torch.stack([unit(operator.size, generator, DOUBLE, operator.device) for _ in range(probes)])
    return values.numpy(), (v @ vectors).square().numpy()


PROBLEMS = {
    "outliers": SPECTRUM,
    "even": np.linspace(-1, 3, 80),
    "half zero": np.concatenate([np.zeros(40), np.geomspace(1e-4, 10, 40)]),
    "two": np.repeat([-1.0, 2.0], [30, 10]),
    "heavy tail": 1 / np.arange(1, 101) ** 2 - 1e-3,
}


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 9, 30])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_a_posteriori_bounds_hold_the_true_distance(name, steps, low_memory):
    operator = Dense(symmetric(PROBLEMS[name]))
    rule = spectral_density(operator, steps=steps, probes=3, low_memory=low_memory, generator=seeded(0))
    values, masses = _measures(operator, 3, seed=0)
    margin = 1e-9  # of nodes that are the eigenvalues to rounding, the CDFs jump on either side
    t = np.sort(
        np.concatenate([values - margin, values + margin, rule.nodes.ravel() - margin, rule.nodes.ravel() + margin])
    )
    exact = np.stack([(mass[:, None] * (values[:, None] <= t)).sum(0) for mass in masses])
    found = np.stack([(w[:, None] * (x[:, None] <= t)).sum(0) for x, w in zip(rule.nodes, rule.weights, strict=True)])
    away = (abs(t[:, None] - np.concatenate([values, rule.nodes.ravel()])) > 0.5 * margin).all(axis=1)
    assert (abs(exact - found).max(axis=1) <= rule.weights.max(axis=1) + 1e-9).all()
    if not low_memory:  # ghosts move nodes by more than the margin
        low, high = rule.cdf_band(t[away], errors=0)
        assert (low - 1e-9 <= exact.mean(0)[away]).all()
        assert (exact.mean(0)[away] <= high + 1e-9).all()
    inside = rule.support[0] <= values[0] + margin and values[-1] <= rule.support[1] + margin
    assert inside or steps < 9  # fewer steps cannot know how far the spectrum reaches
    if not inside:
        return
    width = 0.05 * np.ptp(values)
    wasserstein = (abs(exact - found)[:, :-1] * np.diff(t)).sum(axis=1).mean()
    assert wasserstein <= rule.wasserstein_bound() + 1e-8
    grid = np.linspace(values[0] - 3 * width, values[-1] + 3 * width, 301)
    bumps = np.exp(-(((grid - values[:, None]) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    low, high = rule.density_band(grid, width, errors=0)
    truth = masses.mean(0) @ bumps
    assert (low - 1e-8 <= truth).all()
    assert (truth <= high + 1e-8).all()


def test_the_band_with_sampling_errors_holds_the_spectrum():
    operator = Dense(symmetric(PROBLEMS["heavy tail"]))
    pairs = eigenpairs(operator, 5, tol=1e-8, generator=seeded(0))
    rule = spectral_density(operator, steps=20, probes=10, deflate=pairs, generator=seeded(1))
    t = np.linspace(-0.1, 1.1, 500)
    low, high = rule.cdf_band(t, errors=3)
    exact = np.searchsorted(np.sort(PROBLEMS["heavy tail"]), t, side="right") / 100
    assert (low <= exact).all()
    assert (exact <= high).all()
    assert (high - low).mean() < 0.1  # and says something


def test_the_basis_free_rule_agrees_on_the_density():
    operator = Dense(symmetric(PROBLEMS["heavy tail"]))
    full, bare = (
        spectral_density(operator, steps=40, probes=3, low_memory=low, generator=seeded(0)) for low in (False, True)
    )
    grid = full.grid(0.05)
    # the rules are the same to what ghosts split among near nodes
    np.testing.assert_allclose(bare.density(grid, 0.05), full.density(grid, 0.05), atol=1e-6)
    assert bare.trace()[0] == pytest.approx(full.trace()[0], rel=1e-9)


def test_function_traces_moments_and_log_determinants():
    operator = Dense(symmetric(SPECTRUM))
    rule = spectral_density(operator, steps=50, probes=3, generator=seeded(0))
    exact = spectral_density(
        operator, probes=1, steps=50, deflate=eigenpairs(operator, 49, tol=1e-12, generator=seeded(0))
    )
    # with 49 of 50 eigenvalues known, the probe finds the last one
    assert exact.log_determinant(6.0)[0] == pytest.approx(np.log1p(SPECTRUM / 6).sum(), rel=1e-9)
    assert exact.moment(3)[0] == pytest.approx((SPECTRUM**3).mean(), rel=1e-9)
    assert exact.function_trace(np.exp)[0] == pytest.approx(np.exp(SPECTRUM).sum(), rel=1e-9)
    with pytest.raises(ValueError, match=r"reach down to -5 <= -gamma: give at least gamma=5\.05"):
        rule.log_determinant(4.0)
    for gamma in (0.0, np.nan):
        with pytest.raises(ValueError, match=f"gamma={gamma}"):
            rule.log_determinant(gamma)


def _by_hand(nodes: list[float], support: list[float], known: list[float] | None = None) -> SpectralDensity:
    """One probe's rule of even weights, of 10 eigenvalues."""
    weights = np.full((1, len(nodes)), 1 / len(nodes))
    return SpectralDensity(np.array([nodes]), weights, np.array(known or []), np.array(support), 10, Cost())


def test_a_log_determinant_exists_above_the_lowest_node_or_known_eigenvalue():
    """Nodes lie inside the spectrum; how far beyond them it reaches, they do not know."""
    rule = _by_hand([-4.99, 1.0], [-5.0049, 1.0])
    with pytest.raises(ValueError, match=r"-4\.99 <= -gamma: give at least gamma=5\.04"):
        rule.log_determinant(4.99)
    # what is advised is not refused
    assert rule.log_determinant(5.04)[0] == pytest.approx(5 * np.log1p(np.array([-4.99, 1]) / 5.04).sum())
    assert np.isfinite(_by_hand([0.0, 1.0], [-0.5, 1.5]).log_determinant(1e-3)[0])
    with pytest.raises(ValueError, match=r"-7 <= -gamma: give at least gamma=7\.07"):
        _by_hand([0.0, 1.0], [-0.5, 1.5], known=[-7.0]).log_determinant(3.0)


def test_where_a_log_determinant_exists_it_does_at_every_larger_gamma_and_laplace_too():
    """Laplace at x = 0 of a parabola that is level there asks for the same determinant."""
    f, x = Quadratic(symmetric(np.linspace(-1, 1, 10)), torch.zeros(10, dtype=DOUBLE)), torch.zeros(10, dtype=DOUBLE)
    gammas = np.linspace(0.15, 3.05, 30)
    for rule in (_by_hand([-1.0, 1.0], [-2.2, 1.5]), _by_hand([0.0, 1.0], [-0.5, 1.5], known=[-2.0])):
        exists = []
        for gamma in gammas:
            try:
                exists.append(bool(np.isfinite(rule.log_determinant(gamma)[0])))
            except ValueError:
                exists.append(False)
        assert exists == sorted(exists)
        assert {False, True} == set(exists)
        assert exists == local_entropy(f, x, gamma=gammas, beta=1.0, density=rule).reliable.tolist()


def test_outliers_are_counted_among_what_is_known():
    assert _by_hand([0.0, 1.0], [0.0, 1.0]).outliers() == (None, 1.0)
    assert np.isnan(_by_hand([0.0, 1.0], [0.0, 1.0]).summary()["outliers"])
    assert _by_hand([0.0, 1.0], [0.0, 1.0], known=[30.0, 20.0, 1.5]).outliers() == (2, 1.5)
    assert _by_hand([0.0, 1.0], [0.0, 1.0], known=[-30.0]).outliers() == (0, 1.0)
    assert _by_hand([-2.0, -1.0], [-2.0, -1.0], known=[30.0, 20.0]).outliers() == (2, -1.0)


def test_the_summary_of_a_spectrum_with_ten_outliers():
    outliers = np.linspace(20, 40, 10)
    bulk = np.concatenate([np.zeros(50), np.linspace(0.1, 2, 30), np.full(10, -1.0)])
    operator = Dense(symmetric(np.concatenate([outliers, bulk])))
    pairs = eigenpairs(operator, 15, which="largest", tol=1e-8, generator=seeded(0))
    summary = spectral_density(operator, steps=60, probes=30, deflate=pairs, generator=seeded(1)).summary()
    assert summary["outliers"] == 10
    assert summary["bulk_edge"] == pytest.approx(2, abs=1e-6)
    assert (summary["lowest"], summary["highest"]) == (pytest.approx(-1), pytest.approx(40))
    for share, exact in (("near_zero", 0.5), ("negative", 0.1), ("trace", outliers.sum() + bulk.sum())):
        assert abs(summary[share] - exact) < 4 * summary[f"{share}_stderr"]


def test_more_probes_are_merged_and_more_steps_go_on(tmp_path):
    operator = Dense(symmetric(PROBLEMS["heavy tail"]))
    generator = seeded(0)
    parts = [spectral_density(operator, steps=20, probes=probes, generator=generator) for probes in (2, 3)]
    whole = spectral_density(operator, steps=20, probes=5, generator=seeded(0))
    merged = parts[0].merged(parts[1])
    np.testing.assert_array_equal(merged.nodes, whole.nodes)
    np.testing.assert_array_equal(merged.weights, whole.weights)
    assert merged.cost.products == 100
    shorter = spectral_density(operator, steps=5, probes=1, generator=seeded(9))
    with pytest.raises(ValueError, match="other has 5 steps, this 20"):  # nor has its rule the same bounds
        merged.merged(shorter)
    with pytest.raises(ValueError, match="of size 3"):
        merged.merged(spectral_density(torch.eye(3), steps=1))

    for low_memory in (False, True):
        options = {"low_memory": low_memory, "runs": tmp_path / str(low_memory)}
        spectral_density(operator, steps=12, probes=2, **options, generator=seeded(0))
        longer = spectral_density(operator, steps=20, probes=5, **options, generator=seeded(0))
        assert longer.cost.products == 100 - 24
        at_once = spectral_density(operator, steps=20, probes=5, low_memory=low_memory, generator=seeded(0))
        np.testing.assert_array_equal(longer.weights, at_once.weights)
        with pytest.raises(ValueError, match="another generator"):
            spectral_density(operator, steps=20, probes=5, **options, generator=seeded(1))
        with pytest.raises(ValueError, match=r"steps=10.*has 20 already"):
            spectral_density(operator, steps=10, probes=5, **options, generator=seeded(0))


@pytest.mark.parametrize("low_memory", [False, True])
def test_runs_of_another_operator_are_refused(tmp_path, low_memory):
    f = tiny_objective()
    options = {"steps": 5, "probes": 2, "low_memory": low_memory, "runs": tmp_path}
    spectral_density(Hessian(f), **options, generator=seeded(0))
    with pytest.raises(ValueError, match=r"runs=.*holds a run of another operator"):
        spectral_density(Hessian(f, f.theta + 1e-6), **options, generator=seeded(0))
    # sums in another order are the same operator
    batches = tiny_objective(batch_size=7)
    again = spectral_density(Hessian(batches), **options, generator=seeded(0))
    assert again.cost.products == 0


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

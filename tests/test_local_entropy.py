import numpy as np
import pytest
import torch

from landscape import Hessian, eigenpairs, local_entropy, spectral_density
from tests.problems import (
    DOUBLE,
    LogisticRegression,
    Quadratic,
    seeded,
    symmetric,
    tiny_objective,
)


def _quadratic(eigenvalues: list[float], offset: float = 0.3) -> tuple[Quadratic, torch.Tensor]:
    n = len(eigenvalues)
    minimum = torch.randn(n, generator=seeded(1), dtype=DOUBLE)
    x = minimum + offset * torch.randn(n, generator=seeded(2), dtype=DOUBLE)
    return Quadratic(symmetric(eigenvalues), minimum, constant=0.7), x


# --- Laplace is exact on quadratics -----------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 50.0])
@pytest.mark.parametrize("eigenvalues", [[4.0, 1.0, 0.1, 0.0], [4.0, 1.0, -0.2, -0.05], list(np.linspace(-0.2, 9, 12))])
def test_laplace_is_the_closed_form_on_quadratics_even_indefinite_ones(eigenvalues, beta):
    f, x = _quadratic(eigenvalues)
    gammas = [0.5, 3.0, 100.0]
    found = local_entropy(f, x, gamma=gammas, beta=beta, method="laplace", probes=400, generator=seeded(0))
    expected = [f.local_entropy(x, gamma, beta) for gamma in gammas]
    assert (abs(found.value - expected) < 4 * found.stderr + 1e-9).all()
    assert found.reliable.all()
    np.testing.assert_allclose(found.radius, 1 / np.sqrt(beta * np.array(gammas)))


def test_with_the_exact_density_laplace_has_no_error_at_all():
    f, x = _quadratic([2.0, 2.0, 2.0, 2.0])  # every probe sees the whole spectrum
    found = local_entropy(f, x, gamma=0.5, beta=3.0, generator=seeded(0))
    assert found.value == pytest.approx(f.local_entropy(x, 0.5, 3.0), rel=1e-10)
    assert found.stderr < 1e-10


def test_a_density_at_hand_is_used():
    f, x = _quadratic([4.0, 1.0, 0.1])
    density = spectral_density(f.hessian, steps=3, probes=5, generator=seeded(0))
    found = local_entropy(f, x, gamma=1.0, density=density)
    again = local_entropy(f, x, gamma=1.0, pairs=0, steps=3, probes=5, generator=seeded(0))
    assert found.value == pytest.approx(again.value, rel=1e-12)
    assert again.cost.products - found.cost.products == density.cost.products


def test_laplace_counts_the_top_eigenpairs_exactly():
    """Of 3 sharp directions among 37 flat ones, nearly all of log det's spread over probes is that of the sharp."""
    f = Quadratic(symmetric(np.r_[300.0, 80.0, 20.0, np.linspace(0.1, 0.2, 37)]), torch.ones(40, dtype=DOUBLE))
    x = torch.zeros(40, dtype=DOUBLE)
    bare, deflated, exact = (
        local_entropy(f, x, gamma=1.0, beta=2.0, pairs=pairs, generator=seeded(0)) for pairs in (0, 3, 40)
    )
    truth = f.local_entropy(x, 1.0, 2.0)
    assert deflated.stderr < bare.stderr / 20
    for found in (bare, deflated):
        assert abs(found.value - truth) < 4 * found.stderr
    assert exact.value == pytest.approx(truth, rel=1e-6)  # the eigenpairs' tolerance, squared
    assert deflated.cost.products > 0


def test_laplace_is_refused_where_the_gaussian_does_not_exist():
    f, x = _quadratic([4.0, 1.0, -0.5])
    found = local_entropy(f, x, gamma=[0.4, 0.6], beta=1.0, generator=seeded(0))
    assert found.reliable.tolist() == [False, True]
    assert np.isnan(found.value[0])
    assert np.isfinite(found.value[1])
    assert "refused" in found.note
    assert "gamma <= 0.5" in found.note


# --- Monte Carlo ------------------------------------------------------------------------------------


def test_monte_carlo_agrees_with_the_closed_form_where_its_samples_are_effective():
    f, x = _quadratic([4.0, 1.0, -0.2, 0.0])
    radii = [0.03, 0.1, 0.2]
    found = local_entropy(f, x, radius=radii, beta=5.0, method="monte_carlo", samples=2000, generator=seeded(0))
    expected = [f.local_entropy(x, 1 / (5.0 * r**2), 5.0) for r in radii]
    assert found.reliable.all()
    assert (abs(found.value - expected) < 4 * found.stderr).all()


def test_the_standard_error_is_the_spread_over_seeds():
    f, x = _quadratic([4.0, 1.0, -0.2, 0.0])
    runs = [
        local_entropy(f, x, radius=0.2, beta=5.0, method="monte_carlo", samples=100, generator=seeded(seed))
        for seed in range(100)
    ]
    spread = np.std([r.value for r in runs])
    # the standard deviation of 100 values is known to 7 %; 25 % leaves room for the linearisation
    assert np.mean([r.stderr for r in runs]) == pytest.approx(spread, rel=0.25)


def test_few_effective_samples_are_flagged():
    f = Quadratic(symmetric(np.linspace(1, 10, 200)), torch.zeros(200, dtype=DOUBLE))
    x = torch.zeros(200, dtype=DOUBLE)
    found = local_entropy(f, x, radius=[0.01, 1.0], beta=10.0, method="monte_carlo", samples=50, generator=seeded(0))
    assert found.reliable.tolist() == [True, False]
    assert found.effective_samples[1] < 3
    assert "effective samples at radius >= 1" in found.note
    truth = f.local_entropy(x, 0.1, 10.0)
    assert found.value[1] < truth - 10  # too low, as the note says


def test_jensen_bounds_the_excess_from_above():
    f = LogisticRegression()
    w = torch.ones(8, dtype=DOUBLE)
    found = local_entropy(f, w, radius=[0.05, 0.3, 1.0], method="monte_carlo", samples=500, generator=seeded(0))
    assert found.beta == 60.0  # the number of examples
    assert (found.excess <= found.jensen_excess).all()


def test_both_methods_agree_on_a_network_at_a_small_radius():
    f = tiny_objective()
    sweep = {"radius": [0.01, 0.02], "beta": 50.0}
    laplace = local_entropy(f, f.theta, **sweep, probes=50, generator=seeded(0))
    plain = local_entropy(f, f.theta, **sweep, method="monte_carlo", samples=2000, generator=seeded(1))
    error = np.hypot(laplace.stderr, plain.stderr)
    assert (abs(laplace.value - plain.value) < 4 * error).all()


def test_the_same_seed_pairs_two_points_draw_by_draw():
    f, x = _quadratic([4.0, 1.0, 0.5, 0.2])
    a, b = (
        local_entropy(f, point, radius=0.1, method="monte_carlo", samples=200, generator=seeded(3))
        for point in (x, x + 1e-3)
    )
    paired = np.std(a.contributions - b.contributions) / np.sqrt(200)
    assert paired < 0.05 * np.hypot(a.stderr, b.stderr)
    assert a.contributions.mean() == pytest.approx(a.value)


def test_losses_that_are_not_finite_have_no_density_and_are_counted():
    class Wall(Quadratic):
        def value(self, theta: torch.Tensor) -> float:
            return float("nan") if theta[0] > 0 else super().value(theta)

    f = Wall(symmetric([1.0, 1.0]), torch.zeros(2, dtype=DOUBLE))
    x = torch.tensor([-1e-9, 0.0], dtype=DOUBLE)
    found = local_entropy(f, x, radius=0.1, beta=1.0, method="monte_carlo", samples=1000, generator=seeded(0))
    whole = Quadratic(f.hessian, f.minimum).local_entropy(x, 100.0)
    assert found.value == pytest.approx(whole - np.log(2), abs=4 * found.stderr)  # half the ball
    assert "loss that is not finite" in found.note
    assert np.isnan(found.mean_loss)  # kept, not filled


def test_a_ball_without_a_finite_loss_has_no_entropy_and_says_so():
    class Nothing(Quadratic):
        def value(self, theta: torch.Tensor) -> float:
            return 0.0 if bool((theta == 0).all()) else float("inf")

    f = Nothing(symmetric([1.0, 1.0]), torch.zeros(2, dtype=DOUBLE))
    found = local_entropy(f, f.minimum, radius=0.1, method="monte_carlo", samples=5, generator=seeded(0))
    assert found.value == -np.inf
    assert not found.reliable
    assert "5 draws had a loss that is not finite" in found.note


# --- units and shapes --------------------------------------------------------------------------------


def test_free_energy_and_excess_are_in_units_of_the_loss():
    f, x = _quadratic([1.0, 1.0])
    found = local_entropy(f, x, gamma=2.0, beta=4.0, generator=seeded(0))
    assert found.free_energy == pytest.approx(-found.value / 4)
    assert found.excess == pytest.approx(found.free_energy - f.value(x))
    assert found.radius == pytest.approx(1 / np.sqrt(8))


@pytest.mark.parametrize("method", ["laplace", "monte_carlo"])
def test_one_radius_gives_scalars_and_several_an_axis(method):
    f, x = _quadratic([1.0, 2.0])
    one = local_entropy(f, x, radius=0.1, method=method, samples=9, probes=9, generator=seeded(0))
    assert np.ndim(one.value) == np.ndim(one.stderr) == np.ndim(one.radius) == 0
    assert one.contributions.shape == (9,)
    two = local_entropy(f, x, radius=[0.1, 0.2], method=method, samples=9, probes=9, generator=seeded(0))
    assert two.value.shape == two.gamma.shape == (2,)
    assert two.value[0] == pytest.approx(one.value)


@pytest.mark.parametrize("method", ["laplace", "monte_carlo", "smc", "sgld"])
def test_a_theta_of_another_dtype_is_taken_as_that_of_the_objective(method):
    f = tiny_objective()
    rough = f.theta.float()
    options = {"radius": 0.05, "method": method, "moves": 2, "samples": 9, "tol": 1.0}
    found, exact = (local_entropy(f, theta, **options, generator=seeded(0)) for theta in (rough, rough.double()))
    np.testing.assert_array_equal(found.contributions, exact.contributions)


def test_a_number_of_pairs_is_any_whole_number():
    f, x = _quadratic([4.0, 1.0, 0.1])
    found, other = (local_entropy(f, x, gamma=1.0, pairs=pairs, generator=seeded(0)) for pairs in (np.int64(2), 2))
    assert found.cost.products == other.cost.products
    np.testing.assert_array_equal(found.contributions, other.contributions)
    for pairs in (2.0, "2", None):
        with pytest.raises(TypeError, match=f"pairs={pairs!r}: give eigenpairs, or how many to find"):
            local_entropy(f, x, gamma=1.0, pairs=pairs)


def test_pairs_and_densities_of_another_theta_are_refused_by_laplace():
    """SMC may start from any Gaussian, and remains exact."""
    f = LogisticRegression()
    here, there = torch.zeros(8, dtype=DOUBLE), torch.ones(8, dtype=DOUBLE)
    pairs = eigenpairs(Hessian(f, here), 3, which="largest", generator=seeded(0))
    options = {"radius": 0.1, "pairs": pairs, "generator": seeded(0)}
    assert local_entropy(f, here, **options).reliable
    with pytest.raises(ValueError, match=r"pairs .* another operator"):
        local_entropy(f, there, **options)
    smc = {"method": "smc", "moves": 8, "tol": 1.0}
    near, far = (local_entropy(f, there, **{**options, **smc, "pairs": p, "generator": seeded(1)}) for p in (pairs, 0))
    assert abs(near.value - far.value) < 4 * np.hypot(near.stderr, far.stderr)
    small, x = _quadratic([4.0, 1.0, 0.1])
    with pytest.raises(ValueError, match=r"pairs has vectors of size 8: .* of size 3"):
        local_entropy(small, x, **options)
    density = spectral_density(Hessian(f, here), steps=5, probes=2, generator=seeded(0))
    with pytest.raises(ValueError, match=r"density is of size 8: .* of size 3"):
        local_entropy(small, x, radius=0.1, density=density)


def test_all_methods_at_once_are_each_as_if_alone():
    f = tiny_objective()
    options = {"radius": [0.05, 0.1], "moves": 8, "tol": 0.5}
    together = local_entropy(f, f.theta, method="all", **options, generator=seeded(3))
    assert list(together) == ["laplace", "monte_carlo", "smc"]
    for method, found in together.items():
        alone = local_entropy(f, f.theta, method=method, **options, generator=seeded(3))
        np.testing.assert_array_equal(found.value, alone.value)


def test_a_loss_that_differs_when_asked_again_is_refused():
    class Dice(Quadratic):
        def value(self, theta):
            return float(torch.rand(1))

    with pytest.raises(ValueError, match="the objective is random"):
        local_entropy(
            Dice(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)), torch.zeros(2, dtype=DOUBLE), radius=1
        )


def test_an_interval_has_a_level_between_0_and_1():
    f, x = _quadratic([4.0, 1.0])
    found = local_entropy(f, x, radius=0.1, method="monte_carlo", generator=seeded(0))
    low, high = found.interval(0.95)
    assert low < found.value < high
    for level in (95, 1.0, 0.0, np.nan):
        with pytest.raises(ValueError, match=f"level={level}: give a share between 0 and 1, such as 0.95"):
            found.interval(level)


def test_bad_input_is_named():
    f, x = _quadratic([1.0, 2.0])
    for options, message in (
        ({"radius": 0.1, "gamma": 1.0}, "one of them, or none"),
        ({"radius": np.inf}, r"radius=inf"),
        ({"radius": 0.0}, r"radius=0\.0"),
        ({"gamma": [1.0, -1.0]}, r"gamma=\[1\.0, -1\.0\]"),
        ({"radius": 0.1, "beta": 0.0}, r"beta=0\.0"),
        ({"radius": 0.1, "samples": 0}, "samples=0"),
        ({"radius": 0.1, "method": "guess"}, r"method='guess'.*laplace.*'smc'$"),
        ({"radius": 0.1, "method": "tempered"}, r"method='tempered'.*'smc', as 'tempered' is now called"),
    ):
        with pytest.raises(ValueError, match=message):
            local_entropy(f, x, **options)
    with pytest.raises(ValueError, match="loss at theta is nan"):
        local_entropy(f, x * float("nan"), radius=0.1)
    with pytest.raises(ValueError, match=r"theta has shape \(5,\)"):
        local_entropy(f, torch.zeros(5), radius=0.1)

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from landscape import ModelObjective, sharpness
from landscape.results import Sharpness
from tests.problems import DOUBLE, Quadratic, seeded, symmetric

X = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=DOUBLE)


def _bowl(constant: float = 0.3) -> Quadratic:
    """With its minimum at X."""
    return Quadratic(symmetric([4.0, 2.0, 1.0, 0.5]), X, constant)


def _draws(samples: int) -> torch.Tensor:
    """The z of seed 0, (samples, 4)."""
    g = seeded(0)
    return torch.stack([torch.randn(4, generator=g, dtype=DOUBLE) for _ in range(samples)])


def _classifier() -> ModelObjective:
    """One example, answered right while the first of the weights (1, 0) is above the second."""
    model = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [0.0]]))
    return ModelObjective(model, nn.CrossEntropyLoss(), (torch.ones(1, 1, dtype=DOUBLE), torch.tensor([0])))


def _within(found: Sharpness, truth: float) -> bool:
    return abs(found.value - truth) < 4 * found.stderr  # once in 16,000 seeds, and these are fixed


def test_the_low_pass_loss_of_a_quadratic_is_half_sigma_squared_trace():
    f, sigma = _bowl(), 0.2
    found = sharpness.low_pass(f, X, sigma=sigma, samples=400, generator=seeded(0))
    z = _draws(400)
    np.testing.assert_allclose(
        found.contributions, 0.3 + sigma**2 / 2 * ((z @ f.hessian) * z).sum(dim=1).numpy(), rtol=1e-12
    )
    assert _within(found, 0.3 + sigma**2 / 2 * float(f.hessian.trace()))
    # var z'Hz = 2 tr H^2; the deviation of 400 draws is known to 5 %, heavier tails to some more
    assert found.stderr == pytest.approx(sigma**2 / 2 * (2 * float(f.hessian.square().sum()) / 400) ** 0.5, rel=0.2)


@pytest.mark.parametrize("adaptive", [True, False])
def test_average_case_sharpness_of_a_quadratic_is_half_rho_squared_times_the_scaled_trace(adaptive):
    f, rho = _bowl(), 0.3
    found = sharpness.average_case(f, X, rho=rho, adaptive=adaptive, samples=400, generator=seeded(0))
    c = X.abs() if adaptive else torch.ones(4, dtype=DOUBLE)
    assert _within(found, rho**2 / 2 * float((c**2 * f.hessian.diagonal()).sum()))


def test_off_the_minimum_the_slope_has_no_mean():
    f, theta = _bowl(), X + 0.1
    found = sharpness.average_case(f, theta, rho=0.3, adaptive=False, samples=2000, generator=seeded(0))
    assert _within(found, 0.3**2 / 2 * float(f.hessian.trace()))


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_local_energy_is_the_probability_of_a_wrong_answer(sigma):
    f = _classifier()  # noise in proportion leaves the weight 0 alone: wrong where 1 + sigma z < 0
    found = sharpness.local_energy(f, f.theta, sigma=sigma, samples=2000, generator=seeded(0))
    assert _within(found, norm.cdf(-1 / sigma))
    assert found.unit == "share of the examples"


def test_pac_bayes_sigma_is_the_deviation_not_the_variance_at_which_answers_are_wrong():
    f, z = _classifier(), norm.ppf(0.9)
    plain = sharpness.pac_bayes_sigma(f, f.theta, target=0.1, samples=300, generator=seeded(0))
    # wrong where 1 + s (z1 - z2) < 0: Phi(-1 / (s sqrt 2)) = 0.1. The square of that s is another number
    assert _within(plain, 1 / (z * 2**0.5))
    assert not _within(plain, 1 / (z * 2**0.5) ** 2)
    in_proportion = sharpness.pac_bayes_sigma(f, f.theta, magnitude=True, epsilon=0, samples=300, generator=seeded(0))
    assert _within(in_proportion, 1 / z)
    assert plain.flatter == in_proportion.flatter == "higher"


def test_magnitude_noise_has_the_variance_of_both_its_parts():
    f, z = _classifier(), norm.ppf(0.9)
    found = sharpness.pac_bayes_sigma(f, f.theta, magnitude=True, epsilon=0.3, samples=300, generator=seeded(0))
    # z1 has variance s^2 + epsilon^2, z2 that of a weight of zero, epsilon^2
    assert _within(found, (1 / z**2 - 2 * 0.3**2) ** 0.5)


def test_pac_bayes_sigma_of_a_quadratic_and_what_each_draw_adds():
    f, target = _bowl(), 0.7
    found = sharpness.pac_bayes_sigma(f, X, target=target, metric="loss", samples=300, generator=seeded(0))
    z = _draws(300)
    q = ((z @ f.hessian) * z).sum(dim=1).numpy()  # D(s) = s^2/2 mean q
    sigma = (2 * target / q.mean()) ** 0.5
    # bisection stops at 2^-11 = 5e-4 of sigma; D' then is as near
    assert found.value == pytest.approx(sigma, rel=5e-4)
    assert found.diagnostics["rise"] == pytest.approx(target, rel=1e-3)
    np.testing.assert_allclose(
        found.contributions, sigma - sigma / 2 * (q / q.mean() - 1), rtol=1e-3, atol=1e-3 * sigma
    )
    assert _within(found, (2 * target / float(f.hessian.trace())) ** 0.5)


def test_pac_bayes_sigma_tells_its_target_and_the_noise_of_weights_of_zero():
    f = _classifier()
    for settings, name, formula in (
        (
            {"target": 0.2},
            "PAC-Bayes sigma, target 0.2",
            "max s: E m(theta + s c z) - m(theta) <= 0.2, c = 1, m = error",
        ),
        (
            {"metric": "loss"},
            "PAC-Bayes sigma of the loss, target 0.1",
            "max s: E m(theta + s c z) - m(theta) <= 0.1, c = 1, m = loss",
        ),
        (
            {"magnitude": True},
            "PAC-Bayes sigma by magnitude, target 0.1, epsilon 0.001",
            "max s: E m(theta + s c z) - m(theta) <= 0.1, c = sqrt(theta^2 + (0.001 / s)^2), m = error",
        ),
        (
            {"magnitude": True, "epsilon": 0.0},
            "PAC-Bayes sigma by magnitude, target 0.1, epsilon 0",
            "max s: E m(theta + s c z) - m(theta) <= 0.1, c = |theta|, m = error",
        ),
    ):
        found = sharpness.pac_bayes_sigma(f, f.theta, samples=2, generator=seeded(0), **settings)
        assert (found.name, found.formula) == (name, formula)


def test_a_network_that_only_guesses_bears_any_noise():
    flat = Quadratic(torch.zeros(4, 4, dtype=DOUBLE), X)
    found = sharpness.pac_bayes_sigma(flat, X, metric="loss", samples=2, generator=seeded(0))
    assert found.value == np.inf
    assert np.isnan(found.stderr)


def test_draws_that_are_not_finite_are_kept_and_counted():
    class Cliff(Quadratic):
        def value(self, theta: torch.Tensor) -> float:
            return float("nan") if theta[0] > X[0] else super().value(theta)

    f = Cliff(torch.eye(4, dtype=DOUBLE), X)
    found = sharpness.low_pass(f, X, samples=20, generator=seeded(0))
    assert np.isnan(found.value)
    assert np.isnan(found.stderr)
    assert found.diagnostics["not_finite"] == int((_draws(20)[:, 0] > 0).sum())
    # half of all draws are not finite at any noise: that is too much of it
    assert sharpness.pac_bayes_sigma(f, X, metric="loss", samples=20, generator=seeded(0)).value == 0


def test_bad_input_is_named():
    f = _bowl()
    for call, message in (
        (lambda: sharpness.low_pass(f, X, sigma=0.0), r"sigma=0\.0: give a positive"),
        (lambda: sharpness.low_pass(f, X[:2]), r"theta has shape \(2,\)"),
        (lambda: sharpness.average_case(f, X, rho=-1.0), r"rho=-1\.0"),
        (lambda: sharpness.average_case(f, X, samples=0), "samples=0"),
        (lambda: sharpness.local_energy(f, X), "Quadratic that knows no accuracy: give a ModelObjective"),
        (lambda: sharpness.pac_bayes_sigma(f, X), "Quadratic that knows no accuracy: give a ModelObjective"),
        (lambda: sharpness.pac_bayes_sigma(f, X, metric="f1"), "metric='f1'"),
        (lambda: sharpness.pac_bayes_sigma(f, X, target=0.0), r"target=0\.0"),
        (lambda: sharpness.pac_bayes_sigma(f, X, epsilon=-1.0), r"epsilon=-1\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

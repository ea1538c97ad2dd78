import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from landscape import sharpness
from tests.problems import DOUBLE, Quadratic, seeded, symmetric, tiny_objective

X = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=DOUBLE)
OFF = torch.tensor([0.2, 0.1, -0.3, 0.4], dtype=DOUBLE)
INF = float("inf")


def _highest_in_a_ball(gradient: torch.Tensor, hessian: torch.Tensor, rho: float) -> float:
    """max over ||d|| <= rho of g'd + d'Hd/2, where it is on the boundary: (mu I - H) d = g with mu >= lambda_max."""
    values, vectors = torch.linalg.eigh(hessian)
    h, g = values.numpy(), (vectors.T @ gradient).numpy()
    mu = brentq(lambda mu: np.linalg.norm(g / (mu - h)) - rho, max(h[-1], 0) + 1e-9, h[-1] + 1e6, xtol=1e-14)
    d = g / (mu - h)
    return float(g @ d + h @ d**2 / 2)


def test_sam_sharpness_of_a_quadratic():
    f, theta, rho = Quadratic(symmetric([3.0, 1.0, -0.5, 0.0]), X), X + OFF, 0.4
    g = f.gradient(theta)
    unit = g / g.norm()
    truth = rho * float(g.norm()) + rho**2 / 2 * float(unit @ f.hessian @ unit)
    assert sharpness.sam(f, theta, rho=rho).value == pytest.approx(truth, rel=1e-12)
    d = rho * theta**2 * g / (theta * g).norm()  # ASAM
    truth = float(g @ d + d @ f.hessian @ d / 2)
    assert sharpness.sam(f, theta, rho=rho, adaptive=True).value == pytest.approx(truth, rel=1e-12)


def test_sam_sees_nothing_where_there_is_no_slope():
    f = Quadratic(symmetric([3.0, 1.0, -0.5, 0.0]), X, constant=0.1)
    assert sharpness.sam(f, X).value == 0
    assert sharpness.sam(f, X).stderr == 0


@pytest.mark.parametrize(("eigenvalues", "steps"), [([5.0, 3.0, 1.0, 0.0], 20), ([2.0, 1.5, -1.0, -6.0], 150)])
def test_at_a_stationary_point_the_worst_case_is_half_rho_squared_lambda_max(eigenvalues, steps):
    f = Quadratic(symmetric(eigenvalues), X)
    found = sharpness.worst_case(f, X, rho=0.3, adaptive=False, steps=steps, generator=seeded(0))
    # Where f is convex, the ascent is a power method: its error falls by (3/5)^2 a step once steps are long. Where f
    # falls steeply along other directions, steps stay short: ((8 - 0.5) / (8 + 0.5))^2 in place of that.
    assert found.value == pytest.approx(0.3**2 / 2 * eigenvalues[0], rel=1e-5)
    assert np.isnan(found.stderr)  # how far below the maximum it is cannot be known
    scaled = torch.linalg.eigvalsh(f.hessian * X.abs() * X.abs()[:, None])
    found = sharpness.worst_case(f, X, rho=0.3, steps=150, generator=seeded(0))
    assert found.value == pytest.approx(0.3**2 / 2 * float(scaled[-1]), rel=1e-6)


@pytest.mark.parametrize("eigenvalues", [[5.0, 3.0, 1.0, 0.0], [2.0, 1.5, -1.0, -6.0]])
@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_off_it_the_worst_case_is_that_of_the_trust_region_problem(eigenvalues, rho):
    f, theta = Quadratic(symmetric(eigenvalues), X), X + OFF
    found = sharpness.worst_case(f, theta, rho=rho, adaptive=False, steps=100, generator=seeded(0))
    truth = _highest_in_a_ball(f.gradient(theta), f.hessian, rho)
    assert found.value == pytest.approx(truth, rel=1e-6)  # near a maximum on a sphere, steps of 1e-3 do
    assert found.value <= truth * (1 + 1e-12)  # it is found from below
    assert found.value >= sharpness.sam(f, theta, rho=rho).value


def test_steps_do_not_grow_without_bound():
    f = Quadratic(symmetric([5.0, 3.0, 1.0, 0.0]), X)
    found = sharpness.worst_case(f, X, rho=0.3, adaptive=False, steps=700, generator=seeded(0))  # 4^700 is no number
    assert found.value == pytest.approx(0.3**2 / 2 * 5, rel=1e-12)
    assert found.diagnostics["not_finite"] == 0


def test_in_a_box_each_weight_goes_to_its_own_side():
    h = torch.tensor([3.0, 1.0, 0.5, 0.0], dtype=DOUBLE)
    f, theta = Quadratic(torch.diag(h), X, constant=0.2), X + OFF
    g = f.gradient(theta)
    for adaptive, c in ((False, torch.ones(4, dtype=DOUBLE)), (True, theta.abs())):
        found = sharpness.worst_case(f, theta, rho=0.3, adaptive=adaptive, norm=INF, generator=seeded(0))
        b = 0.3 * c
        assert found.value == pytest.approx(float((g.abs() * b + h / 2 * b**2).sum()), rel=1e-12)
    b = 0.01 * (theta.abs() + 1)
    rise = float((g.abs() * b + h / 2 * b**2).sum())
    found = sharpness.epsilon_sharpness(f, theta, epsilon=0.01, generator=seeded(0))
    assert found.value == pytest.approx(100 * rise / (1 + f.value(theta)), rel=1e-12)
    # at the minimum the slope says nothing, and the random corners are as high as any
    b = 0.01 * (X.abs() + 1)
    at_minimum = sharpness.epsilon_sharpness(f, X, epsilon=0.01, generator=seeded(0))
    assert at_minimum.value == pytest.approx(100 * float((h / 2 * b**2).sum()) / 1.2, rel=1e-12)


def test_adaptive_ascent_leaves_weights_of_zero_where_they_are():
    f = Quadratic(torch.diag(torch.tensor([100.0, 1.0], dtype=DOUBLE)), torch.zeros(2, dtype=DOUBLE))
    theta = torch.tensor([0.0, 2.0], dtype=DOUBLE)
    found = sharpness.worst_case(f, theta, rho=0.5, generator=seeded(0))
    assert found.value == pytest.approx(3.0**2 / 2 - 2.0**2 / 2, rel=1e-12)  # from 2 to 2 (1 + 0.5)


def test_the_worst_of_a_network_is_worse_than_random_points_and_the_gradients_guess():
    f = tiny_objective()
    found = sharpness.worst_case(f, f.theta, rho=0.5, adaptive=False, generator=seeded(0))
    assert found.value > sharpness.sam(f, f.theta, rho=0.5).value
    directions = torch.randn(200, f.size, generator=seeded(1), dtype=DOUBLE)
    random = [f.value(f.theta + 0.5 * d / d.norm()) - f.value(f.theta) for d in directions]
    assert found.value > max(random)
    assert found.cost.gradients == 40


def test_m_sharpness_is_the_mean_over_parts_of_the_data():
    f = tiny_objective()
    settings = {"rho": 0.1, "restarts": 1}
    found = sharpness.worst_case(f, f.theta, parts=5, **settings)
    parts = [sharpness.worst_case(part, f.theta, **settings).value for part in f.parts(5)]
    np.testing.assert_allclose(found.contributions, parts, rtol=1e-12)
    assert found.stderr == pytest.approx(np.std(parts, ddof=1) / 5**0.5)
    assert found.value > sharpness.worst_case(f, f.theta, **settings).value  # each part has its own worst direction
    assert found.cost.gradients == 20  # passes over all the data
    # a maximum over each part is another measure than one over all the data, and says so
    assert found.name == "adaptive worst-case sharpness, rho 0.1, over 5 parts"
    assert sharpness.worst_case(f, f.theta, **settings).name == "adaptive worst-case sharpness, rho 0.1"


def test_points_that_are_not_finite_are_passed_over_and_counted():
    class Cliff(Quadratic):
        def value_and_gradient(self, theta: torch.Tensor) -> tuple[float, torch.Tensor]:
            value, gradient = super().value_and_gradient(theta)
            return (float("nan") if value > 0.1 else value), gradient

    f = Cliff(torch.eye(4, dtype=DOUBLE), X)
    found = sharpness.worst_case(f, X + 0.1, rho=1.0, adaptive=False, restarts=1)
    assert found.diagnostics["not_finite"] > 0
    assert 0 < found.value <= 0.1


def test_bad_input_is_named():
    f, network = Quadratic(torch.eye(4, dtype=DOUBLE), X), tiny_objective()
    for call, message in (
        (lambda: sharpness.sam(f, X, rho=0.0), r"rho=0\.0"),
        (lambda: sharpness.worst_case(f, X, norm=1), "norm=1: give 2 or"),
        (lambda: sharpness.worst_case(f, X, parts=2), "parts=2 for a Quadratic"),
        (lambda: sharpness.worst_case(network, network.theta, parts=51), "^parts=51: give 1 to 50"),
        (lambda: sharpness.worst_case(f, X, restarts=0), "restarts=0"),
        (lambda: sharpness.epsilon_sharpness(f, X, epsilon=-1.0), r"epsilon=-1\.0"),
        (lambda: sharpness.epsilon_sharpness(f, X[:1]), r"theta has shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

"""What the numerics do step by step, against the same computation written down anew.

Tolerances of 1e-12 and below allow float64 rounding alone.
"""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn

from landscape import (
    Dense,
    ModelObjective,
    bezier_path,
    eigenpairs,
    local_entropy,
    plane_through,
    sharpness,
    spectral_density,
    trace,
    trajectory_plane,
)
from landscape.local_entropy.smc.resampling import systematic_resampling
from landscape.results import Cost, SpectralDensity
from landscape.spectrum.lanczos import Lanczos
from tests.problems import DOUBLE, Quadratic, seeded, symmetric

# Spectra


@pytest.mark.parametrize("options", [{}, {"max_basis": 12}, {"which": "both", "relative_to": "own"}])
@pytest.mark.parametrize("power", [-30, 30])
def test_a_matrix_of_another_unit_has_the_same_spectrum_in_that_unit(options, power):
    """A power of two rounds nothing: not a bit may differ, nor a product more be spent."""
    matrix, scale = symmetric([4.0, 4.0, 4.0, -3.0, *np.linspace(-1, 1, 40)]), 2.0**power
    one, other = (
        eigenpairs(Dense(factor * matrix), 5, tol=1e-6, generator=seeded(0), **options) for factor in (1, scale)
    )
    assert one.products == other.products
    np.testing.assert_array_equal(other.values, scale * one.values)
    np.testing.assert_array_equal(other.residuals, scale * one.residuals)
    assert torch.equal(one.vectors, other.vectors)


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_density_and_a_trace_scale_as_the_matrix(low_memory):
    matrix = symmetric([5.0, *np.linspace(-1, 1, 11)])
    settings = {"steps": 12, "probes": 2, "low_memory": low_memory}
    one, other = (spectral_density(Dense(c * matrix), generator=seeded(0), **settings) for c in (1, 2**-20))
    np.testing.assert_array_equal(other.nodes, 2**-20 * one.nodes)
    np.testing.assert_array_equal(other.weights, one.weights)
    for method in ("hutchinson", "hutch++", "xtrace"):
        small, large = (
            trace(Dense(c * matrix), method=method, products=8, generator=seeded(0)) for c in (2**-20, 2**20)
        )
        assert (large.value, large.stderr) == (2**40 * small.value, 2**40 * small.stderr)


def test_a_density_has_no_more_steps_than_there_are_eigenvalues_left():
    matrix = symmetric([1, 2, 3, 4, 5])
    known = eigenpairs(matrix, 2, generator=seeded(0))
    rule = spectral_density(matrix, steps=9, probes=3, deflate=known, generator=seeded(1))
    assert rule.nodes.shape == rule.weights.shape == (3, 3)
    assert rule.cost.products == 9


def test_the_band_of_a_cdf_reaches_one_weight_to_either_side():
    """At t between node_j and node_{j+1} it is [C_{j-1}, C_{j+1}], at the ends what there is."""
    nodes, weights = np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[0.1, 0.2, 0.3, 0.4]])
    rule = SpectralDensity(nodes, weights, np.zeros(0), np.array([-1.0, 4.0]), 7, Cost())
    low, high = rule.cdf_band(np.array([-1.0, 0.5, 1.5, 2.5, 9.0]), errors=0)
    np.testing.assert_allclose(low, [0, 0, 0.1, 0.3, 0.6])
    np.testing.assert_allclose(high, [0.1, 0.3, 0.6, 1, 1])


def test_all_known_eigenvalues_stand_apart_from_a_bulk_at_zero():
    rule = SpectralDensity(np.array([[-1.0, 0.0]]), np.full((1, 2), 0.5), np.array([3.0, 1.0]), np.zeros(2), 9, Cost())
    assert rule.outliers() == (2, 0.0)


def test_the_trace_of_two_million_zeros():
    """Every direction of the sketch is a sum of the others, and is replaced, however many weights there are."""

    class Zero:
        size, dtype, device = 2_000_000, torch.float32, torch.device("cpu")

        def matvec(self, v):
            return torch.zeros_like(v)

    found = trace(Zero(), method="hutch++", products=6, generator=seeded(0))
    assert (found.value, found.stderr) == (0, 0)


def test_resampling_chooses_an_existing_particle_where_the_weights_sum_to_less_than_one(monkeypatch):
    """Ten times 0.1 adds up to less than one, and the last place may lie above."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1 - 2.0**-53, dtype=DOUBLE))
    assert np.cumsum(np.full(10, 0.1))[-1] < 1
    assert systematic_resampling(np.zeros(10), 10, seeded(0)).max() == 9


def test_a_residual_is_never_told_to_be_below_rounding():
    """After nine steps of nine, all residuals are zero but for rounding: eps sqrt(9) times the largest eigenvalue."""
    pairs = eigenpairs(Dense(torch.diag(torch.arange(9.0, dtype=DOUBLE))), 2, tol=1e-20, generator=seeded(0))
    np.testing.assert_allclose(pairs.residuals, torch.finfo(DOUBLE).eps * 3 * 8, rtol=1e-12)
    assert not pairs.converged.any()


def test_the_basis_holds_no_more_vectors_than_it_may(monkeypatch):
    held = []
    extend = Lanczos.extend

    def watched(self, steps):
        extend(self, steps)
        held.append(self.steps)

    monkeypatch.setattr(Lanczos, "extend", watched)
    # steps are made by three once there are forty: these would overshoot
    eigenpairs(
        Dense(symmetric(np.linspace(0, 1, 200))), 3, tol=1e-8, max_basis=44, max_products=131, generator=seeded(0)
    )
    assert max(held) == 44


# Local entropy


def test_monte_carlo_is_the_mean_over_the_draws_of_its_seed():
    """Of an f without symmetry, whose draws at several radii are the same normal vectors."""
    f, x, beta, radii = (
        Quadratic(symmetric([3.0, 1.0, -1.0]), torch.ones(3, dtype=DOUBLE), 0.2),
        torch.zeros(3),
        2,
        [0.1, 1],
    )
    found = local_entropy(f, x, radius=radii, beta=beta, method="monte_carlo", samples=9, generator=seeded(0))
    g = seeded(0)
    z = torch.stack([torch.randn(3, generator=g, dtype=DOUBLE) for _ in range(9)])
    for i, radius in enumerate(radii):
        losses = np.array([f.value(radius * each) for each in z])
        weights = np.exp(-beta * losses)
        value = logsumexp(-beta * losses) - math.log(9)
        assert found.value[i] == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(found.contributions[i], value + weights / weights.mean() - 1, rtol=1e-12)
        assert found.stderr[i] == pytest.approx(weights.std(ddof=1) / weights.mean() / 3, rel=1e-12)
        assert found.effective_samples[i] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-12)
        assert found.mean_loss[i] == pytest.approx(losses.mean(), rel=1e-12)
        assert found.mean_loss_stderr[i] == pytest.approx(losses.std(ddof=1) / 3, rel=1e-12)


# Sharpness


def test_a_network_that_guesses_whatever_its_weights_has_no_local_energy():
    """Of two examples with the same input and other classes, one is wrong at every theta: no rise."""
    x = torch.ones(2, 1, dtype=DOUBLE)
    f = ModelObjective(nn.Linear(1, 2, bias=False).double(), nn.CrossEntropyLoss(), (x, torch.tensor([0, 1])))
    found = sharpness.local_energy(f, torch.tensor([1.0, 0.5], dtype=DOUBLE), samples=5, generator=seeded(0))
    assert found.contributions.tolist() == [0.0] * 5
    assert (found.value, found.stderr) == (0, 0)


def test_relative_flatness_is_exact_with_as_many_products_as_there_are_units():
    """f = sum_ij (W x_i)_j^2 / (N d): every block H_st is 2/(N d) X'X for s = t and 0 else, so that with w_s

    the rows of W, the sum is ||W||^2 2/(N d) tr X'X.
    """
    x = torch.randn(7, 3, generator=seeded(0), dtype=DOUBLE)
    f = ModelObjective(nn.Linear(3, 2, bias=False).double(), nn.MSELoss(), (x, torch.zeros(7, 2, dtype=DOUBLE)))
    found = sharpness.relative_flatness(f, f.theta, products=9)
    assert found.value == pytest.approx(float(f.theta.square().sum() * x.square().sum()) * 2 / 14, rel=1e-12)
    assert found.stderr == 0
    assert len(found.contributions) == 0
    drawn = sharpness.relative_flatness(f, f.theta, products=8, generator=seeded(0))
    assert len(drawn.contributions) == 8


# Bezier curves


def _adam(f, a, b, c, times, rate):
    """Kingma & Ba's algorithm 1, at a rate that falls along half a cosine."""
    m = v = torch.zeros_like(c)
    for k, t in enumerate(times):
        gradient = 2 * t * (1 - t) * f.gradient((1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = m / (1 - 0.9 ** (k + 1)) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
        c = c - rate * (1 + math.cos(math.pi * k / len(times))) / 2 * step
    return c


@pytest.mark.parametrize("rate", [None, 0.3])
def test_the_control_point_takes_the_steps_of_adam_along_half_a_cosine(rate):
    f = Quadratic(symmetric([3.0, 1.0]), torch.ones(2, dtype=DOUBLE))
    a, b = torch.tensor([0.0, 0.0], dtype=DOUBLE), torch.tensor([3.0, 4.0], dtype=DOUBLE)
    found = bezier_path(f, a, b, steps=6, points=3, learning_rate=rate, generator=seeded(0))
    assert found.learning_rate == (pytest.approx(0.02 * 5 / 2**0.5) if rate is None else rate)
    g = seeded(0)
    kick = torch.randn(2, generator=g, dtype=DOUBLE)
    c = (a + b) / 2 + 1e-3 * 5 * kick / kick.norm()
    offset = float(torch.rand((), generator=g, dtype=DOUBLE))
    times = [(offset + k * (5**0.5 - 1) / 2) % 1 for k in range(6)]
    np.testing.assert_allclose(found.training_t, times, atol=1e-14)
    np.testing.assert_allclose(found.control, _adam(f, a, b, c, times, found.learning_rate), rtol=1e-12)
    assert found.t.tolist() == [0, 0.5, 1]  # the fewest there may be


def test_a_rate_of_zero_trains_nothing_and_is_refused():
    f = Quadratic(torch.eye(1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE))
    a, b = torch.zeros(1, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"learning_rate=0\.0: give a positive number"):
        bezier_path(f, a, b, steps=1, learning_rate=0.0)


@pytest.mark.parametrize("measure", [sharpness.average_case, sharpness.worst_case, sharpness.sam])
def test_only_relative_noise_on_a_loss_without_decay_is_the_same_after_a_rescaling(measure):
    """f(w, v) = mean (v w x - y)^2 is that of (2 w, v / 2); its decay is not, nor is noise of a fixed size."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    data = (torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE))
    plain, decayed = (ModelObjective(model, nn.MSELoss(), data, weight_decay=decay) for decay in (0.0, 0.1))
    one, other = torch.tensor([1.0, 3.0], dtype=DOUBLE), torch.tensor([2.0, 1.5], dtype=DOUBLE)
    for f in (plain, decayed):
        for adaptive in (True, False):
            here, there = (
                measure(f, theta, adaptive=adaptive)
                if measure is sharpness.sam
                else measure(f, theta, adaptive=adaptive, generator=seeded(0))
                for theta in (one, other)
            )
            same = f is plain and adaptive
            assert here.reparametrisation_invariant == same
            assert (here.value == pytest.approx(there.value, rel=1e-12)) == same


# Planes


def test_two_points_and_an_origin_span_the_plane_of_a_trajectory():
    """Orthogonal displacements of lengths 3 and 1: they are the principal axes, and explain 9/10 and 1/10."""
    origin = torch.ones(5, dtype=DOUBLE)
    x, y = torch.eye(5, dtype=DOUBLE)[:2]
    found = trajectory_plane([origin + 3 * x, origin + y], origin=origin)
    np.testing.assert_allclose(found.coordinates, [[3, 0], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(found.explained, [0.9, 0.1], rtol=1e-12)
    with pytest.raises(ValueError, match="points has 1: give at least two"):
        trajectory_plane([origin + x], origin=origin)


def test_three_times_zero_is_the_same_point():
    with pytest.raises(ValueError, match="theta_a and theta_b are the same point"):
        plane_through(*torch.zeros(3, 4))

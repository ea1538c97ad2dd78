"""The inner chain against what is known of it: on a quadratic it is a linear recursion.

Each coordinate of a vector with Hessian a I is a chain of its own, so one step of L inner steps on n coordinates gives
n independent draws of the chain after L steps.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from landscape import local_entropy, spectral_density
from optim import EntropySGD
from optim.langevin import _draw_normal
from tests.problems import DOUBLE, Quadratic, seeded, symmetric

N, A, M, GAMMA, ETA, EPS = 40_000, 1.5, 0.8, 0.5, 0.1, 0.3


def _stationary_draws(convention: str, momentum: float = 0.0, eta: float = ETA) -> torch.Tensor:
    """x' after a long inner loop from x = 0 on f = a/2 (x' - m)^2, in every coordinate."""
    x = torch.zeros(N, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD(
        [x],
        lr=1.0,  # x <- mu
        L=150,  # the slowest rate is eta (a + gamma) = 0.2: e^-30 of the start is left
        gamma=GAMMA,
        scoping=0.0,
        langevin_lr=eta,
        langevin_momentum=momentum,
        noise=EPS,
        averaging=1.0 if convention == "paper" else 0.0,  # mu <- x', the last
        convention=convention,
        generator=seeded(0),
    )

    def closure():
        optimizer.zero_grad()
        loss = A / 2 * ((x - M) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return x.detach()


@pytest.mark.parametrize(("convention", "temperature"), [("paper", EPS**2 / 2), ("reference", EPS**2)])
def test_the_stationary_mean_and_variance_are_those_of_the_gibbs_measure(convention, temperature):
    draws = _stationary_draws(convention)
    curvature = A + GAMMA
    mean, variance = A * M / curvature, temperature / curvature
    discretised = variance / (1 - ETA * curvature / 2)  # exact for steps of length eta
    # four standard errors of the mean and the variance of N Gaussian draws
    assert float(draws.mean()) == pytest.approx(mean, abs=4 * math.sqrt(discretised / N))
    assert float(draws.var()) == pytest.approx(discretised, rel=4 * math.sqrt(2 / N))
    assert abs(discretised / variance - 1) < 0.12  # a tenth off the continuous chain at eta = 0.1


@pytest.mark.parametrize("convention", ["paper", "reference"])
def test_what_momentum_does_to_the_temperature(convention):
    m = 0.9
    draws = _stationary_draws(convention, momentum=m)
    # (x', b) is a linear recursion z <- T z + noise; its stationary covariance S = T S T' + Q
    curved = A + GAMMA if convention == "paper" else A
    pull = 0.0 if convention == "paper" else GAMMA
    transition = np.array([[1 - ETA * (curved * (1 + m) + pull), -ETA * m * m], [curved, m]])
    noise = EPS**2 * ETA * (1 if convention == "paper" else 2)
    covariance = scipy.linalg.solve_discrete_lyapunov(transition, np.diag([noise, 0.0]))
    assert float(draws.var()) == pytest.approx(covariance[0, 0], rel=4 * math.sqrt(2 / N))
    # the reference does not speed up the pull of gamma, which amounts to a weaker one
    gamma = GAMMA if convention == "paper" else (1 - m) * GAMMA
    assert float(draws.mean()) == pytest.approx(A * M / (A + gamma), abs=4 * math.sqrt(covariance[0, 0] / N))


@pytest.mark.parametrize(("convention", "temperature"), [("paper", EPS**2 / 2), ("reference", EPS**2)])
def test_momentum_cools_the_chain_to_one_minus_m_of_its_temperature(convention, temperature):
    """For small eta, by the same recursion: no sampling."""
    m, eta = 0.9, 1e-5
    curved, pull = (A + GAMMA, 0.0) if convention == "paper" else (A, GAMMA)
    transition = np.array([[1 - eta * (curved * (1 + m) + pull), -eta * m * m], [curved, m]])
    noise = 2 * temperature * eta
    covariance = scipy.linalg.solve_discrete_lyapunov(transition, np.diag([noise, 0.0]))
    curvature = A + GAMMA if convention == "paper" else A + (1 - m) * GAMMA
    # the correction is of order eta curved / (1 - m)^2 = 2e-3
    assert covariance[0, 0] * curvature == pytest.approx((1 - m) * temperature, rel=5e-3)


def test_what_the_optimizer_follows_is_the_gradient_of_what_landscape_measures():
    """-gamma (x - <x'>), with <x'> from a long noiseless inner loop, against differences of local_entropy."""
    hessian, gamma = symmetric([2.0, 1.0, -0.3]), 0.9
    f = Quadratic(hessian, torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE))
    x = torch.tensor([0.3, 0.1, -0.4], dtype=DOUBLE)
    density = spectral_density(hessian, steps=3, probes=2, generator=seeded(0))

    def entropy(at):
        return float(local_entropy(f, at, gamma=gamma, beta=1.0, density=density).value)

    h, identity = 0.5, torch.eye(3, dtype=DOUBLE)  # F is quadratic too, so that central differences are exact
    measured = torch.tensor([(entropy(x + h * e) - entropy(x - h * e)) / (2 * h) for e in identity], dtype=DOUBLE)

    p = x.clone().requires_grad_()
    optimizer = EntropySGD(
        [p], 1.0, L=300, gamma=gamma, scoping=0.0, langevin_lr=0.2, noise=0.0, averaging=1.0, langevin_momentum=0.0
    )

    def closure():
        optimizer.zero_grad()
        d = p - f.minimum
        loss = d @ hessian @ d / 2
        loss.backward()
        return loss

    optimizer.step(closure)  # with lr = 1, p is now <x'>
    followed = -gamma * (x - p.detach())
    # rounding, eps |F| / h = 1e-15, times the condition 3 / 0.6 of H + gamma; the inner loop's start is down to
    # (1 - 0.2 * 0.6)^300 = 2e-17, and three Lanczos steps are exact in three dimensions
    torch.testing.assert_close(measured, followed, rtol=1e-12, atol=1e-13)


def test_diagnostics_are_those_of_the_step():
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], 1.0, L=2, gamma=0.0, langevin_lr=0.5, noise=0.0, averaging=1.0, diagnostics=True)

    def closure():
        optimizer.zero_grad()
        loss = (x**2).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)  # x' goes from 1 to 1/2 to 1/4 in each coordinate
    found = optimizer.diagnostics
    assert found["distance"] == pytest.approx(0.75 * 3**0.5)
    assert found["mean_distance"] == pytest.approx((0.5 + 0.75) / 2 * 3**0.5)
    assert found["cosine"] == pytest.approx(1.0)
    assert (found["first_loss"], found["last_loss"]) == pytest.approx((1.5, 0.375))
    assert found["gradients"] == 2
    optimizer.step(closure)
    assert optimizer.diagnostics["gradients"] == 4


def test_the_noise_of_a_tensor_is_in_the_order_of_its_indices_whatever_its_strides():
    a, b = torch.zeros(3, 5), torch.zeros(5, 3).T
    for tensor in (a, b):
        _draw_normal([tensor], seeded(0))
    assert not b.is_contiguous()
    torch.testing.assert_close(a, b, rtol=0, atol=0)

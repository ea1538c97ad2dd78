"""Annealed sequential Monte Carlo beside annealed importance sampling, which shares no line of code with it.

Chains go along a fixed schedule between s = 0 and s = 1, are weighted, and are moved by random-walk Metropolis (Neal
2001). In whitened coordinates z, phi(z) = beta f(x + r z) and pi_s ~ exp(-|z|^2 / 2 - s phi(z)). Forward, from draws of
q = pi_0, the weights w have E w = exp F~, so that the mean of log w lies below F~. In reverse, from draws of pi_1, they
have E w = exp(-F~), so that the mean of -log w lies above it (Grosse, Ghahramani & Adams 2015).
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from landscape import ModelObjective, local_entropy
from tests.problems import DOUBLE, seeded

CHAINS = 300  # whose means have errors below 0.1 where log w spreads by 1


def _move(phi, z, values, s, generator):
    """Random-walk Metropolis on pi_s, by steps of all sizes that s = 0 or s = 1 may need."""
    step = torch.exp(np.log(0.03) * torch.rand(len(z), 1, generator=generator, dtype=DOUBLE))
    there = z + step * torch.randn(z.shape, generator=generator, dtype=DOUBLE)
    proposed = phi(there)
    log_ratio = ((z**2).sum(1) - (there**2).sum(1)) / 2 + s * (values - proposed)
    accepted = torch.rand(len(z), generator=generator, dtype=DOUBLE).log() < log_ratio
    return torch.where(accepted[:, None], there, z), torch.where(accepted, proposed, values)


def _annealed(phi, z, schedule, moves, generator):
    """log w of each chain: along s_0, s_1, ... the sum of -(s_{k+1} - s_k) phi(z_k), z_k leaving pi_{s_k} invariant."""
    log_w, values = torch.zeros(len(z), dtype=DOUBLE), phi(z)
    for before, s in itertools.pairwise(schedule):
        log_w -= (s - before) * values
        for _ in range(moves):
            z, values = _move(phi, z, values, s, generator)
    return log_w


def _both_ways(phi, n, steps, moves, generator):
    """log w of chains of both directions, each an estimate of F~: on average too low, and too high."""
    schedule = np.linspace(0, 1, steps + 1) ** 4  # phi falls fastest near s = 0
    draws = torch.randn(CHAINS, n, generator=generator, dtype=DOUBLE)
    forward = _annealed(phi, draws, schedule, moves, generator)
    # draws of pi_1: other chains, from q, which then stay at s = 1 for long
    z = torch.randn(CHAINS, n, generator=generator, dtype=DOUBLE)
    values = phi(z)
    for _ in range(1500):
        z, values = _move(phi, z, values, 1.0, generator)
    return forward, -_annealed(phi, z, schedule[::-1], moves, generator)


def _mean(x):
    """With its standard error."""
    return float(x.mean()), float(x.std()) / len(x) ** 0.5


def _log_mean_exp(x):
    """With its standard error, linearised."""
    value = float(x.logsumexp(0) - np.log(len(x)))
    return value, float((x - value).exp().std()) / len(x) ** 0.5


class _Bent:
    """f(x) = (x_1^2 - 1)^2 / 4 + (x_2 - x_1^2)^2 / 2, two minima in a bent valley, and a ball that holds both."""

    size, dtype, device = 2, DOUBLE, torch.device("cpu")
    x, radius, beta = torch.tensor([0.3, 0.5], dtype=DOUBLE), 0.8, 20.0

    def losses(self, x):
        return (x[..., 0] ** 2 - 1) ** 2 / 4 + (x[..., 1] - x[..., 0] ** 2) ** 2 / 2

    def phi(self, z):
        return self.beta * self.losses(self.x + self.radius * z)

    def value(self, x):
        return float(self.losses(x))

    def value_and_gradient(self, x):
        u, v = x
        return self.value(x), torch.stack([u * (u**2 - 1) - 2 * u * (v - u**2), v - u**2])


BENT = _Bent()


class _Network:
    """3-3-2 with tanh, 20 weights, on 24 examples, after some steps downhill; the losses by hand for many weights."""

    def __init__(self):
        g = seeded(0)
        self.inputs = torch.randn(24, 3, generator=g, dtype=DOUBLE)
        noise = torch.randn(24, generator=g, dtype=DOUBLE)
        self.labels = (self.inputs[:, 0] * self.inputs[:, 1] + 0.3 * noise > 0).long()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        self.objective = ModelObjective(model, nn.CrossEntropyLoss(), (self.inputs, self.labels))
        self.theta = self.objective.theta
        for _ in range(100):
            self.theta = self.theta - 0.5 * self.objective.gradient(self.theta)

    def losses(self, theta):
        w1, b1, w2, b2 = theta.split([9, 3, 6, 2], dim=1)
        hidden = torch.tanh(w1.view(-1, 3, 3) @ self.inputs.T + b1[:, :, None])
        for_one, for_other = (w2.view(-1, 2, 3) @ hidden + b2[:, :, None]).unbind(1)
        # cross-entropy of two classes
        return nn.functional.softplus((for_one - for_other) * (2 * self.labels - 1)).mean(1)


def _agree(found, forward, reverse):
    """The estimate of SMC, within four standard errors, with what lies below F~, above it and beside it."""
    low, high = _mean(forward), _mean(reverse)
    assert low[0] < found.value + 4 * np.hypot(low[1], found.stderr)
    assert found.value < high[0] + 4 * np.hypot(high[1], found.stderr)
    # a bracket of two errors of its own
    assert found.lower < high[0] + 4 * high[1]
    assert low[0] - 4 * low[1] < found.upper
    for x, sign in ((forward, 1), (reverse, -1)):
        # weights of such spread, on so many chains, tell F~ itself: the bias is their variance over twice the chains
        assert x.std() < 1
        value, stderr = _log_mean_exp(sign * x)
        assert abs(sign * value - found.value) < 4 * np.hypot(stderr, found.stderr)


@pytest.mark.parametrize("steps", [5, 100])
def test_the_truth_lies_between_the_means_of_both_directions(steps):
    """However short the schedule; by a sum over a grid, whose error for smooth densities is that of rounding."""
    z = torch.linspace(-7, 7, 701, dtype=DOUBLE)
    density = -torch.cartesian_prod(z, z).square().sum(1) / 2 - BENT.phi(torch.cartesian_prod(z, z))
    exact = float(density.logsumexp(0)) + np.log(0.02**2 / (2 * np.pi))
    low, high = (_mean(x) for x in _both_ways(BENT.phi, 2, steps, 1, seeded(1)))
    assert low[0] - 4 * low[1] < exact < high[0] + 4 * high[1]
    assert high[0] - low[0] > 4 * np.hypot(low[1], high[1])  # the gap is seen at either length


def test_annealing_both_ways_agrees_with_smc_in_two_dimensions():
    found = local_entropy(
        BENT, BENT.x, radius=BENT.radius, beta=BENT.beta, method="smc", pairs=0, moves=16, generator=seeded(0)
    )
    _agree(found, *_both_ways(BENT.phi, 2, 200, 2, seeded(1)))


def test_annealing_both_ways_agrees_with_smc_of_a_network():
    network = _Network()
    theta, beta = network.theta, network.objective.examples
    assert float(network.losses(theta[None])) == pytest.approx(network.objective.value(theta), rel=1e-12)  # rounding
    found = local_entropy(network.objective, theta, radius=0.5, method="smc", pairs=5, moves=16, generator=seeded(0))
    _agree(found, *_both_ways(lambda z: beta * network.losses(theta + 0.5 * z), 20, 400, 2, seeded(1)))

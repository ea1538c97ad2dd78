"""Error bars, brackets and diagnostics in closed form, where an estimate alone does not tell whether they are right.

Tolerances of 1e-12 and below allow float64 rounding alone.
"""

import dataclasses
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from landscape import ModelObjective, barrier, barrier_matrix, local_entropy, sharpness
from landscape.local_entropy.smc.resampling import relative_ess, systematic_resampling
from tests.problems import DOUBLE, Quadratic, seeded

_ZERO = torch.zeros(1, dtype=DOUBLE)


# Annealed SMC: effective sample sizes


def _isotropic(n: int, curvature: float) -> Quadratic:
    return Quadratic(curvature * torch.eye(n, dtype=DOUBLE), torch.zeros(n, dtype=DOUBLE))


def test_populations_of_weights_one_and_three_are_worth_sixteen_tenths(monkeypatch):
    """(1 + 3)^2 / (1^2 + 3^2) = 1.6, whatever log F~ they have in common."""
    module = import_module("landscape.local_entropy.smc.estimate")
    run_smc = module.run_smc

    def weighted(*args, **options):
        run = run_smc(*args, **options)
        first, second = run.populations
        both = [dataclasses.replace(first, log_evidence=-7.0), dataclasses.replace(second, log_evidence=-7 + np.log(3))]
        return dataclasses.replace(run, populations=both)

    monkeypatch.setattr(module, "run_smc", weighted)
    options = {"method": "smc", "pairs": 0, "populations": 2, "chains": 2, "moves": 4, "tol": 1.0}
    found = local_entropy(_isotropic(2, 1.0), torch.zeros(2, dtype=DOUBLE), gamma=1.0, **options, generator=seeded(0))
    assert found.effective_samples == pytest.approx(1.6, rel=1e-12)
    assert found.value == pytest.approx(-7 + np.log(2), rel=1e-12)  # the mean of 1 and 3
    # linearised about the mean of 2: 1/2 - 1 and 3/2 - 1
    np.testing.assert_allclose(found.contributions, found.value + np.array([-0.5, 0.5]), rtol=1e-12)
    assert found.stderr == pytest.approx(0.5, rel=1e-12)


def test_the_share_of_effective_particles_at_each_temperature_is_that_of_gaussians():
    """At s the particles are N(0, 1/(1 + s a)) in n dimensions; a step ds weights them by exp(-ds a |y|^2 / 2).

    With b = ds a / (1 + s a), (E w)^2 / E w^2 = ((1 + 2 b) / (1 + b)^2)^(n/2).
    """
    n, a = 4, 6.0
    options = {"method": "smc", "pairs": 0, "populations": 6, "chains": 16, "moves": 12, "tol": 10.0}
    found = local_entropy(_isotropic(n, a), torch.zeros(n, dtype=DOUBLE), gamma=1.0, **options, generator=seeded(0))
    s = found.schedule
    assert (s[0], s[-1]) == (0, 1)
    assert len(s) > 3
    b = np.diff(s) * a / (1 + s[:-1] * a)
    assert np.isnan(found.step_relative_ess[0])
    # 6 populations of 192 particles: a share near 0.8 has a deviation of about 0.3/sqrt(1000)
    np.testing.assert_allclose(found.step_relative_ess[1:], ((1 + 2 * b) / (1 + b) ** 2) ** (n / 2), atol=0.04)
    # <psi>_s = n a / (2 (1 + s a)): here with errors of about 10 % of 1/sqrt(1000) chains' moves
    np.testing.assert_allclose(found.step_potential, n * a / 2 / (1 + s * a), rtol=0.12)


def test_each_particle_is_chosen_as_often_as_its_weight_says():
    """Up to one, in their order, and on average exactly."""
    weights = np.array([0.03, 0.0, 0.5, 0.07, 0.4])
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights) - 1000
    assert relative_ess(log_weights) == pytest.approx(1 / (weights**2).sum() / 5, rel=1e-12)
    total, draws = np.zeros(5), 2_000
    g = seeded(0)
    for _ in range(draws):
        chosen = systematic_resampling(log_weights, 8, g)
        assert (np.diff(chosen) >= 0).all()
        counts = np.bincount(chosen, minlength=5)
        assert (np.abs(counts - 8 * weights) < 1).all()
        total += counts
    # a count has a deviation of at most 1/2, and there are 2000
    np.testing.assert_allclose(total / draws, 8 * weights, atol=4 * 0.5 / draws**0.5)


def test_the_last_particle_is_chosen_where_the_weights_sum_to_less_than_one_by_rounding(monkeypatch):
    short = min(range(2, 200), key=lambda n: np.cumsum(np.full(n, 1 / n))[-1])  # particles of one weight
    assert np.cumsum(np.full(short, 1 / short))[-1] < 1 - 2**-53
    monkeypatch.setattr(torch, "rand", lambda *args, **options: torch.tensor([1 - 2**-53], dtype=DOUBLE))
    assert systematic_resampling(np.zeros(short), 1, seeded(0)).tolist() == [short - 1]


# SGLD: the bracket, and the bias of the step size


def test_the_bracket_of_sgld_is_that_of_its_riemann_sums_widened_by_errors_and_bias(monkeypatch):
    """Chains that found <f>_s = c + 1 - s by h / 2, and 0.3 more and 0.01 d more by h."""
    module = import_module("landscape.local_entropy.sgld")
    c, d, beta, moves = np.array([0.0, 0.2, 0.1, -0.4]), np.array([1.0, -1.0, 2.0, -2.0]), 5.0, 3
    offsets = iter(np.stack([c + 0.3 + 0.01 * d, c], axis=1).ravel())  # of each chain by h, then by h / 2

    def chain(pieces, theta, radius, beta, s, step_sizes, moves_of_chain, generator):
        np.testing.assert_allclose(step_sizes, 1 / (1 + s * beta * radius**2 * 2) * moves / moves_of_chain)
        return module._Chain(next(offsets) + 1 - s, theta + moves_of_chain, 0)

    monkeypatch.setattr(module, "_anneal_chain", chain)
    model = nn.Linear(1, 1, bias=False).double()
    f = ModelObjective(model, nn.MSELoss(), (torch.ones(4, 1, dtype=DOUBLE), _ZERO.expand(4, 1)))  # w^2: lambda is 2
    options = {"method": "sgld", "populations": 4, "moves": moves, "parts": 2}
    found = local_entropy(f, _ZERO, radius=0.5, beta=beta, **options, generator=seeded(0))
    s = (np.arange(17) / 16) ** 4
    np.testing.assert_allclose(found.schedule, s)
    # the trapezoidal rule is exact for what is linear in s
    np.testing.assert_allclose(found.contributions, -beta * (c + 0.5), rtol=1e-12)
    assert found.value == pytest.approx(-beta * (c.mean() + 0.5), rel=1e-12)
    error = beta * c.std(ddof=1) / 2
    assert found.stderr == pytest.approx(error, rel=1e-12)
    assert found.step_size_bias == pytest.approx(beta * 0.3, rel=1e-12)  # that by h / 2 minus that by h
    assert found.step_size_bias_stderr == pytest.approx(beta * 0.01 * d.std(ddof=1) / 2, rel=1e-10)
    # the left sum exceeds the integral of 1 - s by half the sum of ds^2, and the right one falls as far below
    half = beta * (np.diff(s) ** 2).sum() / 2
    assert found.lower == pytest.approx(found.value - half - 2 * error - beta * 0.3, rel=1e-12)
    assert found.upper == pytest.approx(found.value + half + 2 * error + beta * 0.3, rel=1e-12)
    # the chains by h / 2 tell all else: at s = 0 the loss over q, at s = 1 the shift, 0.5 times the mean of z
    assert found.mean_loss == pytest.approx(c.mean() + 1, rel=1e-12)
    assert found.mean_loss_stderr == pytest.approx(c.std(ddof=1) / 2, rel=1e-12)
    np.testing.assert_allclose(found.step_loss, c.mean() + 1 - s, atol=1e-15)
    np.testing.assert_allclose(found.step_potential, beta * found.step_loss)
    assert found.shift.tolist() == [0.5 * 2 * moves]
    assert found.shift_stderr == 0
    assert not found.reliable


def test_the_bias_of_sgld_is_that_of_the_autoregression_that_its_proposals_are(monkeypatch):
    """On a/2 |z - m|^2 the proposals are z' = (c - 2 h/(2 + h) s a) z + ... + sqrt(1 - c^2) xi, c = (2 - h)/(2 + h).

    Their mean s a m / (1 + s a) is that of the Gibbs measure, but their variance v is not 1/(1 + s a):

        v = (1 - c^2) / (1 - (c - 2 h/(2 + h) s a)^2),    <psi>_s = a/2 (n v + |m|^2 / (1 + s a)^2).
    """
    n, a, m = 60, 3.0, 0.5  # m in each coordinate
    model = nn.Linear(n, 1, bias=False).double()
    # n examples of loss n a w_i^2 / 2 each have the mean a |w|^2 / 2, in one part without noise
    x = torch.eye(n, dtype=DOUBLE) * (n * a) ** 0.5
    f = ModelObjective(model, lambda outputs, batch: (outputs**2).mean() / 2, [(x,)])
    assert f.value(torch.ones(n, dtype=DOUBLE)) == pytest.approx(n * a / 2)
    quick = _isotropic(n, a)  # the same without a network
    quick.examples = n
    monkeypatch.setattr(f, "parts", lambda count: [quick])
    options = {"method": "sgld", "parts": 1, "populations": 8, "moves": 8}
    x = torch.full((n,), -m, dtype=DOUBLE)
    found = local_entropy(f, x, radius=1.0, beta=1.0, **options, generator=seeded(0))
    s = (np.arange(17) / 16) ** 4

    def value(divisor: float) -> float:
        h = 1 / (1 + s * a) / divisor
        c = (2 - h) / (2 + h)
        v = (1 - c**2) / (1 - (c - 2 * h / (2 + h) * s * a) ** 2)
        return -float(np.trapezoid(n * a / 2 * (v + m**2 / (1 + s * a) ** 2), s))

    # eight chains: within four errors, of seven degrees of freedom
    assert abs(found.value - value(2)) < 4 * found.stderr
    assert abs(found.step_size_bias - (value(2) - value(1))) < 4 * found.step_size_bias_stderr
    assert abs(value(2) - value(1)) > 8 * found.step_size_bias_stderr  # so that its sign is known
    assert found.cost.gradients == 8 * 17 * 8 * (2 + 4)
    assert "not finite" not in found.note
    # the shift's error is the root of the expected square over all n: within twice it
    assert float((found.shift - m * a / (1 + a)).norm()) < 2 * found.shift_stderr < 0.5 * float(found.shift.norm())
    once = local_entropy(f, x, radius=1.0, beta=1.0, **options | {"moves": 1, "populations": 30}, generator=seeded(0))
    assert float(once.shift.mean()) == pytest.approx(m * a / (1 + a), abs=0.05)  # 1800 coordinates of deviation 0.5


# The worst case: what its ascents say of each other


class _Hills:
    """f(x) = 2 x^2 + x/4 - x^3: up to 1.25 at 1, where the slope at 0 leads, and to 2.75 at -1."""

    size, dtype, device = 1, DOUBLE, torch.device("cpu")

    def value_and_gradient(self, x):
        return float(2 * x**2 + x / 4 - x**3), 4 * x + 0.25 - 3 * x**2


@pytest.mark.parametrize("seed", range(6))
def test_the_restart_spread_is_by_how_much_the_ascents_differ(seed):
    # the second ascent begins where its draw points to
    left = float(torch.randn(1, generator=seeded(seed), dtype=DOUBLE)) < 0
    top, spread = (2.75, 1.5) if left else (1.25, 0.0)
    found = sharpness.worst_case(_Hills(), _ZERO, rho=1.0, adaptive=False, restarts=2, generator=seeded(seed))
    assert found.value == pytest.approx(top, rel=1e-12)
    assert found.diagnostics["restart_spread"] == pytest.approx(spread, abs=1e-12)
    assert found.contributions.tolist() == [found.value]  # one part of the data: no spread, no error
    assert np.isnan(found.stderr)
    box = sharpness.epsilon_sharpness(_Hills(), _ZERO, epsilon=1.0, restarts=2, generator=seeded(seed))
    assert box.value == pytest.approx(100 * top, rel=1e-12)
    assert box.diagnostics["restart_spread"] == pytest.approx(spread, abs=1e-12)  # in units of the loss
    assert np.isnan(box.stderr)
    alone = sharpness.worst_case(_Hills(), _ZERO, rho=1.0, adaptive=False, restarts=1)
    assert (alone.value, alone.diagnostics["restart_spread"]) == (pytest.approx(1.25, rel=1e-12), 0)


def test_over_parts_the_spread_is_that_of_the_worst_part_and_the_error_that_of_the_parts():
    class Polynomial(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(_ZERO.clone())

        def forward(self, x):
            return x * (2 * self.w**2 + self.w / 4 - self.w**3)

    heights = torch.tensor(
        [[1.0], [3.0]], dtype=DOUBLE
    )  # an example each of the hills, and of hills three times as high
    f = ModelObjective(Polynomial(), lambda outputs, batch: outputs.mean(), [(heights,)])
    found = sharpness.worst_case(f, _ZERO, rho=1.0, adaptive=False, parts=2, restarts=9, generator=seeded(0))
    assert sorted(found.contributions) == pytest.approx([2.75, 3 * 2.75], rel=1e-12)
    assert found.value == pytest.approx(2 * 2.75, rel=1e-12)
    assert found.stderr == pytest.approx(2.75, rel=1e-12)  # of two draws: half their difference
    assert found.diagnostics["restart_spread"] == pytest.approx(3 * 1.5, rel=1e-12)
    assert found.diagnostics["not_finite"] == 0


# The barrier of the error


def _of_signs(**options: object) -> ModelObjective:
    """Answers sign(v x) at (u, v) with u > 0: of ten examples, three are wrong for v > 0 and the others for v < 0."""
    x = torch.tensor([1.0, 2.0, 3.0, -1.0, -2.0, 4.0, 5.0, -3.0, 6.0, 7.0], dtype=DOUBLE)[:, None]
    targets = (x[:, 0] > 0).long()
    targets[:3] = 1 - targets[:3]
    model = nn.Linear(1, 2, bias=False).double()  # outputs (u x, w x): class 1 where (w - u) x > 0
    return ModelObjective(model, options.pop("loss", nn.CrossEntropyLoss()), (x, targets), **options)


def _batch_mean(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch[1])


@pytest.mark.parametrize(
    ("loss", "batch_size"), [(nn.CrossEntropyLoss(), 10), (nn.CrossEntropyLoss(), 3), (_batch_mean, 4)]
)
@pytest.mark.parametrize("baseline", ["mean", "linear"])
def test_the_error_of_a_barrier_of_the_error_is_over_single_answers(loss, batch_size, baseline):
    f = _of_signs(loss=loss, batch_size=batch_size)
    right, wrong = torch.tensor([0.0, 1.0], dtype=DOUBLE), torch.tensor([1.0, 0.0], dtype=DOUBLE)
    found = barrier(f, wrong, right, points=6, metric="error", baseline=baseline)
    first = np.array([0.0] * 3 + [1.0] * 7)  # who is wrong for w < u, at alpha < 1/2
    last = 1 - first
    for alpha, value, rise, error in zip(found.alpha, found.values, found.rise, found.rise_stderr, strict=True):
        wrongs = first if alpha < 0.5 else last
        share = alpha if baseline == "linear" else 0.5
        rises = wrongs - (1 - share) * first - share * last
        assert value == pytest.approx(wrongs.mean(), abs=1e-15)
        assert rise == pytest.approx(rises.mean(), abs=1e-15)
        assert error == pytest.approx(rises.std(ddof=1) / 10**0.5, abs=1e-15)
    matrix = barrier_matrix(f, [wrong, right], points=6, metric="error", baseline=baseline)
    np.testing.assert_allclose(matrix.stderr, found.stderr * (1 - np.eye(2)))
    np.testing.assert_allclose(matrix.height, found.height * (1 - np.eye(2)))

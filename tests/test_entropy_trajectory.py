"""Local entropy along a trajectory, and that it is what Entropy-SGD follows."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Hessian, eigenpairs, local_entropy, spectral_density
from landscape.checkpoints import load_checkpoint
from landscape.local_entropy import local_entropy_trajectory
from optim import EntropySGD, train
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, symmetric, tiny_mlp, tiny_objective

SMALL = {"populations": 4, "chains": 2, "moves": 8}


def _quadratic():
    return Quadratic(symmetric([3.0, 1.0, 0.5]), torch.ones(3, dtype=DOUBLE), 0.3)


def test_each_point_is_measured_as_if_alone_with_the_same_seed():
    f, points = LogisticRegression(), torch.randn(3, 8, generator=seeded(1), dtype=DOUBLE)
    along = local_entropy_trajectory(f, points, radius=[0.1, 0.2], method="monte_carlo", generator=seeded(0))
    for point, found in zip(points, along, strict=True):
        alone = local_entropy(f, point, radius=[0.1, 0.2], method="monte_carlo", generator=seeded(0))
        np.testing.assert_array_equal(found.contributions, alone.contributions)


def test_along_a_line_through_a_quadratic_the_entropy_is_the_closed_form():
    f, gamma, beta = _quadratic(), 2.0, 5.0
    points = [t * torch.ones(3, dtype=DOUBLE) for t in (0.0, 0.5, 1.0)]
    along = local_entropy_trajectory(
        f, points, radius=(beta * gamma) ** -0.5, beta=beta, pairs=3, **SMALL, generator=seeded(0)
    )
    for point, found in zip(points, along, strict=True):
        assert found.value.shape == (1,)
        # psi is 0 with all eigenpairs; 1e-6 are their residuals
        assert found.value[0] == pytest.approx(f.local_entropy(point, gamma, beta), abs=1e-6)


def test_a_recorded_trajectory_is_read_as_its_docstring_says(tmp_path):
    model, data = tiny_mlp()
    start = torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    train(
        model,
        optimizer,
        nn.functional.cross_entropy,
        data,
        data,
        gradients=20,
        generator=seeded(0),
        run=tmp_path,
        trajectory_every=10,
    )
    f = tiny_objective()
    points = [f.space.flatten(load_checkpoint(path).tensors) for path in sorted((tmp_path / "trajectory").iterdir())]
    assert len(points) == 3
    assert torch.equal(points[0], start)
    along = local_entropy_trajectory(f, points, radius=0.1, method="monte_carlo", generator=seeded(0))
    assert [found.loss for found in along] == [f.value(point) for point in points]
    assert along[0].loss > along[1].loss > along[2].loss


def test_a_budget_that_does_not_last_for_a_point_leaves_nan_there_and_the_others_as_they_are():
    f = _quadratic()
    f.minimum[:] = 0
    points = torch.tensor([[30.0, 30.0, 30.0], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    along = local_entropy_trajectory(
        f, points, radius=0.5, beta=5.0, pairs=0, **SMALL, budget=1500, generator=seeded(0)
    )
    assert [bool(np.isfinite(found.value).all()) for found in along] == [False, True]
    assert "no estimate at radius 0.5: " in along[0].note


def test_what_is_no_trajectory_is_named():
    f = _quadratic()
    with pytest.raises(ValueError, match="points is empty"):
        local_entropy_trajectory(f, [], radius=0.1)
    with pytest.raises(ValueError, match=r"points\[1\] has shape \(2,\)"):
        local_entropy_trajectory(f, [torch.zeros(3), torch.zeros(2)], radius=0.1)
    with pytest.raises(ValueError, match=r"points\[0\] is not finite"):
        local_entropy_trajectory(f, torch.full((1, 3), torch.nan), radius=0.1)
    with pytest.raises(ValueError, match="method='all'"):
        local_entropy_trajectory(f, torch.zeros(1, 3), radius=0.1, method="all")
    with pytest.raises(ValueError, match="radius=") as caught:
        local_entropy_trajectory(f, torch.zeros(1, 3, dtype=DOUBLE), radius=-0.1)
    assert caught.value.__notes__ == ["this was at points[0] of 1"]


def test_the_spectrum_of_one_point_is_no_other_points():
    f, points = LogisticRegression(), torch.zeros(2, 8, dtype=DOUBLE)
    hessian = Hessian(f, points[0])
    pairs = eigenpairs(hessian, 2, which="largest", generator=seeded(0))
    density = spectral_density(hessian, steps=5, probes=2, generator=seeded(0))
    for name, given in (("pairs", pairs), ("density", density)):
        with pytest.raises(ValueError, match=f"{name} is of one theta"):
            local_entropy_trajectory(f, points, radius=0.1, method="laplace", **{name: given})
    options = {"radius": 0.1, "tol": 1.0, **SMALL}
    assert len(local_entropy_trajectory(f, points, method="smc", pairs=pairs, **options, generator=seeded(0))) == 2


def test_points_of_another_dtype_are_taken_as_those_of_the_objective():
    f = tiny_objective()
    rough = torch.stack([f.theta, 2 * f.theta]).float()
    found, exact = (
        local_entropy_trajectory(f, points, radius=0.1, method="monte_carlo", generator=seeded(0))
        for points in (rough, rough.double())
    )
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_array_equal(one.contributions, other.contributions)


def test_whichever_point_breaks_down_is_told():
    class Overflows(Quadratic):
        def hvp(self, theta, v):
            return v * torch.inf

    f = Overflows(symmetric([3.0, 1.0, 0.5]), torch.ones(3, dtype=DOUBLE))
    with pytest.raises(FloatingPointError) as caught:
        local_entropy_trajectory(f, torch.zeros(2, 3, dtype=DOUBLE), radius=0.1)
    assert caught.value.__notes__ == ["this was at points[0] of 2"]


def _skewed():
    """Logistic regression far from its minimum, and what is known there by quadrature: <x'> - x.

    The Gibbs measure is no Gaussian: by the parabola of the loss at x, <x'> would be three times as far from x.
    """
    f, x, gamma, beta = LogisticRegression(size=2, seed=3), torch.tensor([1.5, -1.0], dtype=DOUBLE), 0.3, 20.0
    f.x[:, 0] *= 3
    z = torch.cartesian_prod(*[torch.linspace(-7, 7, 141, dtype=DOUBLE)] * 2)
    around = (beta * gamma) ** -0.5 * z
    losses = nn.functional.softplus(-f.y * ((x + around) @ f.x.T)).mean(1)
    shift = torch.softmax(-(z**2).sum(1) / 2 - beta * losses, 0) @ around
    return f, x, gamma, beta, shift


def test_the_gradient_by_smc_is_the_direction_that_entropy_sgd_follows_at_the_same_temperature():
    f, x, gamma, beta, shift = _skewed()

    # many inner chains at once: each row of x' is one of its own
    chains, temperature = 800, 1 / beta
    rows = x.repeat(chains, 1).requires_grad_()
    optimizer = EntropySGD(
        [rows],
        lr=1.0,  # x <- mu
        L=300,  # the slowest rate is eta gamma = 0.03: e^-9 of the start is left
        gamma=gamma,
        scoping=0.0,
        langevin_lr=0.1,
        noise=math.sqrt(2 * temperature),  # 1/beta = eps^2/2 in the paper's convention
        averaging=0.05,  # over the last 20 steps, to average noise out; practice's 0.75 takes about the last one
        generator=seeded(0),
    )

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.softplus(-f.y * (rows @ f.x.T)).mean(1).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mu = rows.detach()
    followed = -(x - mu.mean(0))  # the gradient over beta gamma
    error = mu.std(0) / chains**0.5

    found = local_entropy(f, x, gamma=gamma, beta=beta, method="smc", pairs=0, tol=1.0, generator=seeded(1))
    measured = found.gradient / (beta * gamma)

    # four standard errors, and what steps of eta = 0.1 do: they widen the chain by about eta (lambda + gamma) / 2 = 3 %
    # and shift its mean by a part of that
    assert (followed - shift).norm() < 4 * error.norm() + 0.01 * shift.norm()
    # across the shift each of both has an error of 0.7 % of its length: four of them together are an angle of 0.04,
    # whose cosine is 1 - 8e-4
    assert torch.cosine_similarity(followed, measured, dim=0) > 0.999
    assert torch.cosine_similarity(-f.gradient(x), measured, dim=0) < 0.97  # the loss' own gradient leads elsewhere

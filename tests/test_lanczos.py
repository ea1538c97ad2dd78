import numpy as np
import pytest
import torch

from landscape.lanczos import Lanczos
from landscape.operators import Dense
from tests.problems import DOUBLE, seeded, symmetric


def _start(n: int) -> torch.Tensor:
    return torch.randn(n, generator=seeded(7), dtype=DOUBLE)


def _tridiagonal(run: Lanczos) -> torch.Tensor:
    off = torch.tensor(run.betas[:-1], dtype=DOUBLE)
    return torch.diag(torch.tensor(run.alphas, dtype=DOUBLE)) + torch.diag(off, 1) + torch.diag(off, -1)


# 1e3 in one outlier, the rest crowded: without reorthogonalisation, orthogonality is gone in 20 steps
SPECTRUM = np.concatenate([[1e3, -50.0], np.linspace(0, 1, 58)])


def test_the_basis_is_orthonormal_to_rounding():
    run = Lanczos(Dense(symmetric(SPECTRUM)), _start(60))
    run.extend(40)
    identity = torch.eye(40, dtype=DOUBLE)
    assert (run.basis @ run.basis.T - identity).abs().max() < 1e-13


def test_the_three_term_recurrence_holds():
    matrix = symmetric(SPECTRUM)
    run = Lanczos(Dense(matrix), _start(60))
    run.extend(30)
    q, t = run.basis, _tridiagonal(run)
    residual = q @ matrix - t @ q
    # all rows but the last vanish; the last is beta_m q_{m+1}; the scale is ||H|| = 1e3
    assert residual[:-1].abs().max() < 1e-10
    assert float(residual[-1].norm()) == pytest.approx(run.betas[-1], rel=1e-8)


def test_full_depth_gives_all_eigenvalues():
    run = Lanczos(Dense(symmetric(SPECTRUM)), _start(60))
    run.extend(100)
    assert run.steps == 60
    assert run.invariant
    np.testing.assert_allclose(run.ritz()[0].numpy(), np.sort(SPECTRUM), atol=1e-9)


def test_moments_are_exact_to_degree_2m_minus_1():
    matrix, start = symmetric(np.linspace(-1, 1, 30)), _start(30)
    run = Lanczos(Dense(matrix), start)
    run.extend(4)
    nodes, s = run.ritz()
    q = start / start.norm()
    for degree in range(8):
        exact = float(q @ torch.linalg.matrix_power(matrix, degree) @ q)
        assert float((s[0] ** 2 * nodes**degree).sum()) == pytest.approx(exact, abs=1e-13)


def test_extending_in_parts_changes_nothing():
    whole, parts = (Lanczos(Dense(symmetric(SPECTRUM)), _start(60)) for _ in range(2))
    whole.extend(20)
    for steps in (0, 1, 7, 12):
        parts.extend(steps)
    assert whole.alphas == parts.alphas
    assert whole.betas == parts.betas


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_breakdown_is_judged_by_the_operators_own_scale(scale):
    run = Lanczos(Dense(scale * symmetric([1.0] * 5 + [2.0] * 5)), _start(10))
    run.extend(10)
    assert run.steps == 2
    np.testing.assert_allclose(run.ritz()[0].numpy(), [scale, 2 * scale])


@pytest.mark.parametrize(
    ("matrix", "steps"),
    [
        (2 * torch.eye(6, dtype=DOUBLE), 1),
        (torch.zeros(6, 6, dtype=DOUBLE), 1),
        (torch.ones(6, 6, dtype=DOUBLE), 2),
        (torch.full((1, 1), 3.0, dtype=DOUBLE), 1),
    ],
)
def test_degenerate_operators_break_down_early_and_restart(matrix, steps):
    run = Lanczos(Dense(matrix), _start(len(matrix)))
    run.extend(6)
    assert (run.steps, run.invariant) == (steps, True)
    while run.steps < len(matrix):
        run.restart(seeded(run.steps))
        run.extend(6)
    np.testing.assert_allclose(run.ritz()[0], torch.linalg.eigvalsh(matrix), atol=1e-14)
    torch.testing.assert_close(run.basis @ run.basis.T, torch.eye(len(matrix), dtype=DOUBLE))


def test_a_product_that_is_not_finite_is_said():
    matrix = torch.eye(3, dtype=DOUBLE)
    matrix[1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="step 0 is not finite"):
        Lanczos(Dense(matrix), _start(3)).extend(3)


@pytest.mark.parametrize("start", [torch.zeros(3), torch.tensor([1.0, float("inf"), 0.0])])
def test_a_start_without_a_direction_is_refused(start):
    with pytest.raises(ValueError, match="start has norm"):
        Lanczos(Dense(torch.eye(3)), start)

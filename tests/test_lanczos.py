import io

import numpy as np
import pytest
import torch

from landscape.operators import Dense
from landscape.spectrum.lanczos import Lanczos, Recurrence
from tests.problems import DOUBLE, seeded, symmetric


def _start(n: int) -> torch.Tensor:
    return torch.randn(n, generator=seeded(7), dtype=DOUBLE)


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
    q, t = run.basis, run.projection
    residual = q @ matrix - t @ q
    # all rows but the last vanish; the last is beta_m q_{m+1}; the scale is ||H|| = 1e3
    assert residual[:-1].abs().max() < 1e-10
    assert float(residual[-1].norm()) == pytest.approx(run.beta, rel=1e-8)


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
    assert torch.equal(whole.projection, parts.projection)
    assert whole.beta == parts.beta


def test_a_compressed_run_keeps_its_pairs_and_its_krylov_space():
    """After a thick restart, T and Q still satisfy Q H Q' = T, and the run finds what a longer one finds."""
    matrix = symmetric(SPECTRUM)
    run = Lanczos(Dense(matrix), _start(60))
    run.extend(20)
    values, s = run.ritz()
    keep = [0, 1, 18, 19]
    run.compress(values[keep], s[:, keep])
    assert run.steps == 4
    run.extend(10)
    assert run.products == 30
    q = run.basis
    # rounding: ||H|| eps = 2e-13, times the terms of the sums
    assert (q @ matrix @ q.T - run.projection).abs().max() < 1e-10
    assert (q @ q.T - torch.eye(14, dtype=DOUBLE)).abs().max() < 1e-13
    residual = q @ matrix - run.projection @ q
    assert residual[:-1].abs().max() < 1e-10
    assert float(residual[-1].norm()) == pytest.approx(run.beta, rel=1e-8)


def test_a_locked_run_searches_the_complement():
    matrix = symmetric([5.0, 5.0, 3.0, *np.linspace(0, 1, 27)])
    run = Lanczos(Dense(matrix), _start(30))
    run.extend(14)  # converged to 1e-10; some ten steps later, rounding brings in the second copy
    values, s = run.ritz()
    assert (values > 4).sum() == 1
    run.lock(values[-1:], s[:, -1:], seeded(0))
    run.extend(20)
    np.testing.assert_allclose(run.ritz()[0][-3:], [3, 5, 5], atol=1e-10)


def test_what_locking_drops_is_kept_account_of():
    """After locks far from convergence T is the projection still, and residuals without a product are the true ones."""
    matrix = symmetric([5.0, 5.0, 3.0, *np.linspace(0, 1, 27)])
    run = Lanczos(Dense(matrix), _start(30))
    for steps, keep in ((6, 2), (5, 3), (7, None)):
        run.extend(steps)
        values, s = run.ritz()
        y = run.combine(s)
        true = (matrix @ y - y * values).norm(dim=0)
        # rounding: sums of 30 terms of ||H|| eps = 1e-15; a difference of squares loses half of the digits
        torch.testing.assert_close(run.residuals(s), true, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(run.basis @ matrix @ run.basis.T, run.projection, rtol=0, atol=1e-13)
        if keep:
            assert true[-keep:].max() > 1e-3
            run.lock(values[-keep:], s[:, -keep:], seeded(steps))


def test_a_reserved_basis_never_moves_and_only_what_is_used_is_saved():
    run = Lanczos(Dense(symmetric(SPECTRUM)), _start(60), room=40)
    where = run.basis.untyped_storage().data_ptr()
    for steps in (1, 20, 19):
        run.extend(steps)
        assert run.basis.untyped_storage().data_ptr() == where
    run = Lanczos(Dense(symmetric(np.arange(2000.0))), _start(2000), room=50)
    run.extend(3)
    file = io.BytesIO()
    torch.save(run.state(), file)
    # three basis vectors and the next one, of 8 bytes for each entry
    assert len(file.getvalue()) < 5 * 2000 * 8
    again = Lanczos.resume(run.operator, run.state(), room=50)
    where = again.basis.untyped_storage().data_ptr()
    again.extend(47)
    assert again.basis.untyped_storage().data_ptr() == where


def test_a_saved_run_goes_on_bit_for_bit():
    operator = Dense(symmetric(SPECTRUM))
    whole, first = (Lanczos(operator, _start(60)) for _ in range(2))
    for run in (whole, first):
        run.extend(12)
        values, s = run.ritz()
        run.compress(values[-5:], s[:, -5:])
        run.extend(3)
        run.lock(*(part[..., -4:] for part in run.ritz()), seeded(1))
        run.extend(3)
    second = Lanczos.resume(operator, first.state())
    for run in (whole, second):
        run.extend(10)
    assert torch.equal(whole.projection, second.projection)
    assert torch.equal(whole.basis, second.basis)
    assert whole.products == second.products


def test_the_recurrence_without_a_basis_gives_the_same_quadrature():
    """Ghosts appear in T, but the rule of v' h(H) v is the same (Greenbaum 1989)."""
    matrix, start = symmetric(SPECTRUM), _start(60)
    run = Lanczos(Dense(matrix), start)
    run.extend(40)
    bare_run = Recurrence(Dense(matrix), start)
    bare_run.extend(25)
    bare_run = Recurrence.resume(Dense(matrix), bare_run.state())
    bare_run.extend(15)
    nodes, s = bare_run.ritz()
    exact_nodes, exact_s = run.ritz()
    assert (nodes > 999).sum() > 1  # a ghost of the outlier, so orthogonality is lost
    for function in (lambda t: t, torch.square, lambda t: torch.exp(-t.abs()), lambda t: 1 / (t + 60)):
        full, bare = (float((w[0] ** 2 * function(x)).sum()) for x, w in ((exact_nodes, exact_s), (nodes, s)))
        assert bare == pytest.approx(full, rel=1e-9)  # the clusters' weights sum to the node's to near rounding
    flat = Recurrence(Dense(2 * torch.eye(6, dtype=DOUBLE)), _start(6))
    flat.extend(5)
    assert (flat.steps, flat.invariant, flat.beta) == (1, True, 0)


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
    with pytest.raises(FloatingPointError, match="product 1 is not finite"):
        Lanczos(Dense(matrix), _start(3)).extend(3)


@pytest.mark.parametrize("start", [torch.zeros(3), torch.tensor([1.0, float("inf"), 0.0])])
def test_a_start_without_a_direction_is_refused(start):
    with pytest.raises(ValueError, match="start has norm"):
        Lanczos(Dense(torch.eye(3)), start)

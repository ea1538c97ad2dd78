import numpy as np
import pytest
import torch

from landscape import Dense, Hessian, eigenpairs
from tests.problems import DOUBLE, dense_hessian, seeded, symmetric, tiny_mlp, tiny_objective

SPECTRUM = np.concatenate([[100.0, 40.0, 9.0, -5.0], np.linspace(-0.1, 1, 46)])


class Counting(Dense):
    count = 0

    def matvec(self, v):
        self.count += 1
        return super().matvec(v)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("magnitude", [100, 40, 9, -5]),
        ("largest", [100, 40, 9, 1]),
        ("smallest", [-5, -0.1, -0.1 + 1.1 / 45, -0.1 + 2.2 / 45]),
        ("both", [100, 40, -5, -0.1]),
    ],
)
def test_the_wanted_pairs_with_their_true_residuals(which, expected):
    matrix = symmetric(SPECTRUM)
    pairs = eigenpairs(Dense(matrix), 4, which=which, tol=1e-8, generator=seeded(0))
    np.testing.assert_allclose(pairs.values, expected, rtol=1e-9, atol=1e-9)
    residuals = (matrix @ pairs.vectors - pairs.vectors * torch.from_numpy(pairs.values)).norm(dim=0)
    # a residual near rounding differs by rounding: ||H|| eps = 2e-14
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-12)
    assert pairs.converged.all()
    assert (pairs.residuals <= 1e-8 * 100).all()
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(4, dtype=DOUBLE), rtol=0, atol=1e-8)


def test_products_are_counted():
    operator = Counting(symmetric(SPECTRUM))
    pairs = eigenpairs(operator, 3, generator=seeded(0))
    assert pairs.products == operator.count < 50
    assert eigenpairs(operator, 3, copies=False, generator=seeded(0)).products < pairs.products


@pytest.mark.parametrize(
    ("diagonal", "k"),
    [
        ([2.0] * 9, 1),
        ([2.0] * 9, 9),
        ([0.0] * 5, 3),
        ([2, 2, 2, 1], 2),
        ([5, 5, 5, 1, 1, -2, -2, -2], 8),
        ([7.0] + [0.0] * 19, 3),
        ([3.0], 1),
    ],
)
def test_multiple_eigenvalues_and_degenerate_operators(diagonal, k):
    pairs = eigenpairs(Dense(symmetric(diagonal)), k, which="magnitude", generator=seeded(0))
    expected = sorted(diagonal, key=abs, reverse=True)[:k]
    np.testing.assert_allclose(pairs.values, expected, atol=1e-12)
    assert pairs.converged.all()


def test_pairs_that_do_not_converge_say_so():
    flat = Dense(symmetric(np.linspace(0, 1, 200)))  # no gaps: hard for Lanczos
    pairs = eigenpairs(flat, 5, tol=1e-10, max_products=20, generator=seeded(0))
    assert len(pairs.values) == 5
    assert not pairs.converged.all()
    assert pairs.products == 20
    assert (pairs.residuals[~pairs.converged] > 1e-10).all()


def test_the_same_seed_gives_the_same_pairs_with_a_fixed_sign():
    operator = Dense(symmetric(SPECTRUM))
    a, b = (eigenpairs(operator, 3, generator=seeded(0)) for _ in range(2))
    assert torch.equal(a.vectors, b.vectors)
    c = eigenpairs(operator, 3, tol=1e-10, generator=seeded(1))
    assert torch.allclose(a.vectors, c.vectors, atol=1e-2)  # their residuals are below 1e-3 relative
    assert (c.vectors.gather(0, c.vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_more_pairs_than_the_default_budget_need_no_further_argument():
    pairs = eigenpairs(Dense(symmetric(np.arange(400.0))), 350, generator=seeded(0))
    assert len(pairs.values) == 350


@pytest.mark.parametrize(
    "diagonal",
    [
        [5.0, 5.0, 5.0, 3.0, 3.0, *np.linspace(0, 1, 95)],  # copies at the top
        [-4.0, -4.0, *np.linspace(0, 1, 94), 3.0, 3.0, 3.0, 2.0],  # at both ends
    ],
)
@pytest.mark.parametrize("max_basis", [None, 12])
def test_copies_of_multiple_eigenvalues_are_found_among_many_others(diagonal, max_basis):
    for which in ("magnitude", "largest", "both"):
        pairs = eigenpairs(
            Dense(symmetric(diagonal)), 5, which=which, tol=1e-6, max_basis=max_basis, generator=seeded(0)
        )
        ascending = np.sort(diagonal)
        expected = {
            "magnitude": sorted(diagonal, key=abs, reverse=True)[:5],
            "largest": ascending[::-1][:5],
            "both": [*ascending[::-1][:3], *ascending[:2]],
        }[which]
        np.testing.assert_allclose(pairs.values, expected, atol=1e-9)  # errors are quadratic in 1e-6
        assert pairs.converged.all()


@pytest.mark.parametrize("max_basis", [None, 12])
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4])
def test_residuals_are_the_true_ones_after_looking_for_copies(tol, max_basis):
    for bulk in (np.linspace(0, 1, 95), np.linspace(0, 2.9, 195)):
        matrix = symmetric([5.0, 5.0, 5.0, 3.0, 3.0, *bulk])
        for seed in range(5):
            pairs = eigenpairs(Dense(matrix), 5, tol=tol, max_basis=max_basis, generator=seeded(seed))
            true = (matrix @ pairs.vectors - pairs.vectors * torch.from_numpy(pairs.values)).norm(dim=0)
            # rounding: ||H|| eps = 1e-15 in each of some hundred steps
            np.testing.assert_allclose(pairs.residuals, true, rtol=1e-7, atol=1e-12)
            assert pairs.converged.all()


def test_converged_means_that_the_residual_is_no_more_than_the_tolerance():
    """Where rounding is more than the tolerance the search ends there, before its products are spent, and says so."""
    matrix = symmetric([100.0, 40.0, *np.linspace(-1, 1, 58)]).float()
    fine = eigenpairs(Dense(matrix), 2, tol=1e-9, max_products=1000, generator=seeded(0))
    assert fine.products < 100
    assert not fine.converged.any()
    assert (fine.residuals > 1e-9 * 100).all()
    # rounding in float32 is 1e-6 of the largest eigenvalue or less, here 1e-4
    assert (fine.residuals < 1e-4).all()
    own = eigenpairs(Dense(matrix), 8, which="smallest", tol=1e-6, relative_to="own", generator=seeded(0))
    np.testing.assert_array_equal(own.converged, own.residuals <= 1e-6 * abs(own.values))
    assert not own.converged.any()


def test_without_looking_for_copies_one_vector_sees_one_of_them():
    operator = Dense(symmetric([5.0, 5.0, 3.0, *np.linspace(0, 1, 97)]))
    pairs = eigenpairs(operator, 2, copies=False, generator=seeded(0))
    np.testing.assert_allclose(pairs.values, [5, 3], rtol=1e-5)


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest", "both"])
def test_restarts_bound_the_basis_and_change_the_answer_by_rounding_only(which):
    matrix = symmetric(np.concatenate([[10.0, 7, 5, -6, -3], np.linspace(-1, 1, 295)]))
    whole = eigenpairs(Dense(matrix), 4, which=which, tol=1e-8, generator=seeded(0))
    thrifty = eigenpairs(Dense(matrix), 4, which=which, tol=1e-8, max_basis=14, max_products=3000, generator=seeded(0))
    assert thrifty.converged.all()
    np.testing.assert_allclose(thrifty.values, whole.values, atol=1e-12)
    residuals = (matrix @ thrifty.vectors - thrifty.vectors * torch.from_numpy(thrifty.values)).norm(dim=0)
    np.testing.assert_allclose(thrifty.residuals, residuals, atol=1e-11)  # rounding, ||H|| eps = 2e-15 per restart


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_residuals_had_without_a_product_are_those_of_the_network(dtype):
    model, data = tiny_mlp()
    hessian = dense_hessian(model, data)
    f = tiny_objective()
    operator = Hessian(f) if dtype == DOUBLE else Dense(hessian.float())
    pairs = eigenpairs(operator, 6, which="both", tol=1e-3, copies=False, generator=seeded(0))
    v = pairs.vectors.double()
    true = (hessian @ v - v * torch.from_numpy(pairs.values)).norm(dim=0)
    # rounding of single precision, relative to the largest eigenvalue
    floor = 10 * torch.finfo(dtype).eps * abs(pairs.values).max()
    np.testing.assert_allclose(pairs.residuals, true, rtol=1e-3, atol=floor)


def test_small_eigenvalues_to_their_own_scale():
    matrix = symmetric(np.concatenate([[1000.0, 300], np.linspace(0, 1, 60), [-1.5, -0.7]]))
    rough = eigenpairs(Dense(matrix), 2, which="smallest", copies=False, generator=seeded(0))
    fine = eigenpairs(Dense(matrix), 2, which="smallest", relative_to="own", copies=False, generator=seeded(0))
    assert rough.products < fine.products
    np.testing.assert_allclose(fine.values, [-1.5, -0.7], rtol=1e-3)
    assert (fine.residuals <= 1e-3 * abs(fine.values)).all()


def test_a_start_near_the_answer_saves_products():
    matrix = symmetric(np.concatenate([[10.0, 8, 6], np.linspace(-1, 5, 297)]))
    nearby = matrix + 1e-3 * symmetric(np.linspace(-1, 1, 300), seed=5)
    known = eigenpairs(Dense(nearby), 3, tol=1e-6, generator=seeded(0)).vectors
    options = {"tol": 1e-3, "copies": False}
    cold = eigenpairs(Dense(matrix), 3, **options, generator=seeded(1))
    warm = eigenpairs(Dense(matrix), 3, **options, start=known, generator=seeded(1))
    assert warm.converged.all()
    assert warm.products < cold.products
    np.testing.assert_allclose(warm.values, cold.values, atol=1e-2)  # within the residuals of 1e-3 of 10


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [7, 23, 33])
def test_a_killed_search_goes_on_bit_for_bit(tmp_path, at):
    spectrum = [5.0, 5.0, 3.0, *np.linspace(0, 1, 97)]
    options = {"k": 3, "tol": 1e-8, "max_basis": 15, "max_products": 500}
    whole = eigenpairs(Dense(symmetric(spectrum)), **options, generator=seeded(0))
    assert whole.products > at

    class Mortal(Counting):
        def matvec(self, v):
            if self.count == at:
                raise _KilledError
            return super().matvec(v)

    file = tmp_path / "run.pt"
    with pytest.raises(_KilledError):
        eigenpairs(Mortal(symmetric(spectrum)), **options, resume=file, generator=seeded(0))
    with pytest.raises(ValueError, match=r"'k': 3.*'k': 2"):
        eigenpairs(Dense(symmetric(spectrum)), 2, resume=file)
    with pytest.raises(ValueError, match=r"resume=.*holds a run of another operator"):
        eigenpairs(Dense(symmetric(spectrum) + 1e-9 * torch.eye(100, dtype=DOUBLE)), **options, resume=file)
    again = eigenpairs(Dense(symmetric(spectrum)), **options, resume=file, generator=seeded(99))
    assert again.products == whole.products
    assert torch.equal(again.vectors, whole.vectors)
    np.testing.assert_array_equal(again.residuals, whole.residuals)
    assert not file.exists()


def test_bad_input_to_eigenpairs_is_named():
    operator = Dense(torch.eye(3))
    for options, message in (
        ({"k": 0}, "k=0.*1 to the operator's 3"),
        ({"k": 4}, "k=4"),
        ({"k": 1, "tol": 0.0}, "tol=0.0"),
        ({"k": 1, "tol": float("nan")}, "tol=nan"),
        ({"k": 1, "which": "top"}, "which='top'.*magnitude"),
        ({"k": 2, "max_products": 1}, "max_products=1"),
        ({"k": 2, "max_basis": 3}, r"max_basis=3: give at least k \+ 2 = 4"),
        ({"k": 1, "relative_to": "each"}, "relative_to='each'.*own"),
        ({"k": 1, "start": torch.ones(4)}, r"start has shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            eigenpairs(operator, **options)

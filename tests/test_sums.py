"""Sums over weights: what torch's own float32 sums lose at many weights, these do not."""

import subprocess
import sys

import pytest
import torch

from landscape.objective.evaluation.agreement import agree
from landscape.sums import against, dot, dots, norm
from tests.problems import DOUBLE, seeded

MANY = 8_000_000
SIZES = [1, 4095, 4096, 4097, 100_000, MANY]


@pytest.mark.parametrize("n", SIZES)
def test_norms_of_many_weights(n):
    v = torch.randn(n, generator=seeded(0))
    # squares of float32 are exact in float64, of which n eps = 2e-9 at worst
    assert norm(v) == pytest.approx(float(v.double().norm()), rel=1e-12)
    assert norm(torch.full((n,), 0.5)) == pytest.approx(0.5 * n**0.5, rel=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_products_of_many_weights(n):
    u, v = (torch.randn(n, generator=seeded(seed)) for seed in (0, 1))
    scale = float(v.double().norm()) * float(u.double().norm())
    # as above
    assert dot(u, v) == pytest.approx(float(u.double() @ v.double()), abs=1e-12 * scale)
    assert dot(v, v) == pytest.approx(float(v.double().square().sum()), rel=1e-12)
    basis = torch.stack([u, v, v + u])
    found = against(basis, v)
    exact = torch.stack([row.double() @ v.double() for row in basis])
    assert found.dtype == DOUBLE
    # blocks of 16384 in float32, eps = 1.2e-7: roundings of either sign leave a few eps; v + u is longer by 1.4
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6 * scale)
    assert against(basis[:0], v).shape == (0,)
    # and where digits matter, as of norms; also where all products are equal, and with several vectors at once
    both, equal = torch.stack([u, v], dim=1), torch.full((1, n), 0.1)
    torch.testing.assert_close(dots(basis, v), exact, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(dots(basis[:2], both)[:, 1], exact[:2], rtol=0, atol=1e-12 * scale)
    assert dots(equal, equal[0]).item() == pytest.approx(n * float(equal[0, 0]) ** 2, rel=1e-12)
    assert dots(basis[:0], both).shape == (0, 2)


def test_double_precision_is_summed_as_torch_does():
    u, v = (torch.randn(100_000, generator=seeded(seed), dtype=DOUBLE) for seed in (0, 1))
    assert norm(u) == float(u.norm())
    assert dot(u, v) == float(u @ v)
    assert torch.equal(against(torch.stack([u, v]), v), torch.stack([u, v]) @ v)
    assert torch.equal(dots(torch.stack([u, v]), v), torch.stack([u, v]) @ v)


def test_strides_precisions_and_what_is_not_finite():
    columns = torch.randn(20_000, 3, generator=seeded(0))
    assert norm(columns[:, 1]) == pytest.approx(float(columns[:, 1].double().norm()), rel=1e-12)
    assert dot(columns[:, 1], columns[:, 1].double()) == pytest.approx(norm(columns[:, 1].double()) ** 2, rel=1e-14)
    assert norm(torch.ones(10_000, dtype=torch.bfloat16)) == 100
    for place in (0, 9_999):
        for bad in (float("nan"), float("inf")):
            v = torch.ones(10_000)
            v[place] = bad
            assert not norm(v) < float("inf")
    assert not dots(v[None], v).isfinite()
    # squares beyond float32, and below it
    for scale in (1e30, 1e-30):
        assert norm(torch.full((10_000,), scale)) == pytest.approx(100 * scale, rel=1e-7)  # eps/2 of the entries


def test_gradients_whose_squares_are_beyond_float32_agree_if_they_are_the_same():
    """At w = 1, a (w - 1) is 0 for every a, and its gradient a: 2 a is as far from a as a from 0."""
    w = torch.ones(3, requires_grad=True)

    def of(a: float):
        return lambda: (a * (w - 1)).sum()

    for a in (1.0, 1e25):
        assert agree(of(a), of(a), [w])
        assert not agree(of(a), of(2 * a), [w])


COPIES = """
import torch
from landscape.sums import against, dot, dots, norm
torch.set_num_threads(1)
def peak():
    return int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
basis = torch.ones(4, 10_000_000)
against(basis[:, :20_000], basis[0, :20_000]), dot(basis[0, :20_000], basis[1, :20_000]), norm(basis[0, :20_000])
dots(basis[:, :20_000], basis.T[:20_000])
before = peak()
against(basis, basis[0]), dot(basis[0], basis[1]), norm(basis[0]), dots(basis, basis.T)
print(peak() - before)
"""


def test_nothing_larger_than_a_block_is_copied():
    done = subprocess.run([sys.executable, "-c", COPIES], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 8_000  # KiB; one vector is 40_000

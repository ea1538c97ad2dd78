"""Millions of weights in single precision: answers right to its rounding, and no more memory than promised."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.linalg import vector_norm

from landscape import eigenpairs, spectral_density
from landscape.directions.ascent import Ball
from landscape.local_entropy.smc.potential import Potential
from landscape.operators import check_symmetric
from landscape.randomness import unit
from landscape.results import Cost, Eigenpairs
from landscape.spectrum import trace
from landscape.spectrum.trace_estimators import _Basis
from landscape.sums import dot
from tests.problems import DOUBLE, seeded

MANY = 8_000_000
# eps = 1.2e-7 of float32, in which vectors and products are rounded, some ten times; torch's float32 sums over so many
# weights are 1e-4 to 1e-3 off
ROUNDING = 2e-6


class Diagonal:
    """From 0 to 1 evenly, and one outlier of 8."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, size: int) -> None:
        self.size = size
        self.diagonal = torch.cat([torch.linspace(0, 1, size - 1), torch.tensor([8.0])])

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.diagonal * v


@pytest.fixture(scope="module")
def operator() -> Diagonal:
    return Diagonal(MANY)


@pytest.mark.parametrize("tol", [1e-2, 1e-5])
def test_the_largest_eigenvalue_and_its_residual(operator, tol):
    found = eigenpairs(operator, 1, which="largest", tol=tol, max_basis=10, copies=False, generator=seeded(0))
    y, value = found.vectors[:, 0], float(found.values[0])
    assert float(vector_norm(y, dtype=DOUBLE)) == pytest.approx(1, rel=ROUNDING)
    residual = float(vector_norm(operator.diagonal.double() * y - value * y.double()))
    assert found.converged.all()
    # a residual cannot be known to be below rounding of 8
    assert float(found.residuals[0]) == pytest.approx(residual, rel=1e-3, abs=8 * ROUNDING)
    assert value == pytest.approx(8, abs=8 * ROUNDING + residual**2 / 7)  # the gap: 8 - 1


def test_moments_of_a_density_without_a_basis(operator):
    rule = spectral_density(operator, steps=4, probes=1, low_memory=True, generator=seeded(0))
    v = unit(MANY, seeded(0), torch.float32, torch.device("cpu")).double()
    for power in range(1, 4):
        exact = float(v.square() @ operator.diagonal.double() ** power)
        assert rule.moment(power)[0] == pytest.approx(exact, rel=power * ROUNDING)
    assert rule.weights.sum() == pytest.approx(1, rel=1e-12)  # an eigenvector of T has unit length, in float64


def test_random_vectors_and_balls_have_the_radius_asked_for():
    v = unit(MANY, seeded(0), torch.float32, torch.device("cpu"))
    assert float(vector_norm(v, dtype=DOUBLE)) == pytest.approx(1, rel=ROUNDING)
    ball = Ball(torch.ones(MANY), 0.5)
    for point in (ball.furthest(v), ball.project(v)):
        assert float(vector_norm(point, dtype=DOUBLE)) == pytest.approx(0.5, rel=ROUNDING)


def test_the_basis_of_a_trace_is_orthonormal_and_spans_the_sketch():
    sketch = 1 + torch.randn(3, MANY, generator=seeded(0))  # nearly along one another
    sketch = torch.cat([sketch, sketch[:1] - sketch[1:2]])  # and one along the others
    rows = sketch.clone()
    r = _Basis().extend(rows, seeded(1))
    wide = rows.double()
    torch.testing.assert_close(wide @ wide.T, torch.eye(4, dtype=DOUBLE), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(r.T @ wide, sketch, rtol=0, atol=10 * ROUNDING)  # entries of up to 7
    assert r[3, 3] == 0


def test_the_trace_and_symmetry(operator):
    estimate = trace(operator, method="hutchinson", products=2, generator=seeded(0))
    # signs have no variance over a diagonal
    assert estimate.value == pytest.approx(float(operator.diagonal.double().sum()), rel=ROUNDING)
    check_symmetric(operator, seeded(0), tol=ROUNDING)


class Valley:
    """f(x) = h (v'x - c)^2 / 2, with v a random unit vector: one eigenvalue h, and all others zero."""

    size, dtype, device = MANY, torch.float32, torch.device("cpu")
    h, c = 100.0, 1.0

    def __init__(self) -> None:
        self.v = unit(MANY, seeded(0), self.dtype, self.device)
        self.squared = dot(self.v, self.v)  # 1 but for rounding to float32, of which 1e-7 would be seen below

    def value_and_gradient(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        off = dot(self.v, x) - self.c
        return self.h * off**2 / 2, self.h * off * self.v


def test_smc_starts_from_the_gaussian_of_a_parabola():
    """log Z_b = F~ of the parabola itself, and nothing is left of it: psi = 0."""
    f, radius = Valley(), 1.0
    pairs = Eigenpairs(np.array([f.h]), f.v[:, None], np.zeros(1), np.ones(1, bool), "largest", 1e-3, Cost())
    potential = Potential(f, torch.zeros(MANY), radius, 1.0, pairs)
    a = f.h * radius**2
    exact = -np.log1p(a) / 2 - f.h * f.c**2 / (2 * (1 + a))
    # rounding of f = 50, which it is the remainder of
    assert potential.log_normalizer == pytest.approx(exact, abs=50 * ROUNDING)
    at = potential.sample_initial(3, seeded(1))
    np.testing.assert_allclose(at.psi, 0, atol=50 * ROUNDING)
    # of slopes of length sqrt(a), in which 1 + a is rounded
    assert float(vector_norm(at.gradient, dtype=DOUBLE)) < 100 * ROUNDING


PEAK = """
import sys
import torch
from landscape import eigenpairs, spectral_density
from landscape.spectrum import trace
from tests.problems import seeded
from tests.test_many_weights import Diagonal
torch.set_num_threads(1)
def peak():
    return int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
for n in (1000, 1_000_000):  # all that is loaded and made once, first
    operator = Diagonal(n)
    before = peak()
    CALL
print(1024 * (peak() - before) / (4 * n))
"""


@pytest.mark.parametrize(
    ("call", "promised", "more"),
    [
        # a third and a half of the products, and ten: three test vectors, each drawn in float64
        ("trace(operator, method='hutch++', products=30, generator=seeded(0))", 10, 10),
        ("trace(operator, method='xtrace', products=30, generator=seeded(0))", 15, 10),
        ("trace(operator, method='hutch++', products=30, tol=1e-9, generator=seeded(0))", 15, 10),
        ("trace(operator, method='xtrace', products=30, tol=1e-9, generator=seeded(0))", 15, 10),
        # the basis, four vectors at work, one for each of two starts for copies, the result's four; what the heap holds
        ("eigenpairs(operator, 4, max_basis=16, max_products=60, generator=seeded(0))", 16, 12),
        ("spectral_density(operator, steps=30, probes=2, low_memory=True, generator=seeded(0))", 3, 3),
    ],
)
def test_peak_memory_is_what_is_promised(call, promised, more):
    # in a process of its own: the peak of this one may be another test's. Linux alone tells it. A threshold that is set
    # does not grow with what is freed, so that vectors are given back at once and the heap does not come in pieces
    done = subprocess.run(
        [sys.executable, "-c", PEAK.replace("CALL", call)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"},
    )
    assert float(done.stdout) < promised + more

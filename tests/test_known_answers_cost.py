"""What every record says that it cost is what was asked of the function: each call is counted here.

Where a product takes its turn with a function of the user's own, two more check that the operator is symmetric; no
result counts them.
"""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from landscape import (
    Checkpoint,
    Dense,
    ModelObjective,
    barrier,
    barrier_matrix,
    bezier_path,
    eigenpairs,
    flatness_table,
    line,
    line_band,
    local_entropy,
    path,
    plane,
    sharpness,
    spectral_density,
    trace,
)
from tests.problems import DOUBLE, Quadratic, seeded, symmetric, tiny_objective

_N = 6
_SYMMETRY = 2  # products of the check
_A, _B = torch.full((_N,), 0.3, dtype=DOUBLE), torch.linspace(-1, 1, _N, dtype=DOUBLE)


class _CountedMatrix(Dense):
    products = 0

    def matvec(self, v):
        self.products += 1
        return super().matvec(v)


class _Counted(Quadratic):
    """A quadratic that counts what it is asked for."""

    def __init__(self):
        super().__init__(symmetric(np.arange(1.0, _N + 1)), torch.zeros(_N, dtype=DOUBLE), constant=0.5)
        self.values = self.gradients = self.products = 0

    def value(self, theta):
        self.values += 1
        return self._at(theta)[0]

    def value_and_gradient(self, theta):
        self.gradients += 1
        return self._at(theta)

    def gradient(self, theta):
        return self.value_and_gradient(theta)[1]

    def hvp(self, theta, v):
        self.products += 1
        return super().hvp(theta, v)

    gnvp = hvp

    def _at(self, theta):
        gradient = self.hessian @ theta
        return self.constant + float(theta @ gradient) / 2, gradient


@dataclass
class _Passes:
    """Over all the data: a part counts for its share."""

    values: float = 0
    gradients: float = 0
    products: float = 0


@pytest.fixture
def passes(monkeypatch):
    """Counts what all networks are asked for; what is asked on the way of another answer is part of that."""
    found, inside = _Passes(), []

    def counted(name, kind):
        original = getattr(ModelObjective, name)

        def method(self, *args, **options):
            inside.append(name)
            try:
                return original(self, *args, **options)
            finally:
                inside.pop()
                if not inside:
                    setattr(found, kind, getattr(found, kind) + self.examples / 50)

        monkeypatch.setattr(ModelObjective, name, method)

    for name in ("value", "metrics", "per_example"):
        counted(name, "values")
    for name in ("gradient", "value_and_gradient"):
        counted(name, "gradients")
    for name in ("hvp", "gnvp"):
        counted(name, "products")
    return found


def _check(cost, counted, since, *, checks=0):
    assert (cost.values, cost.gradients) == (counted.values, counted.gradients)
    assert cost.products == counted.products - checks
    assert 0 < cost.seconds <= time.perf_counter() - since


@pytest.mark.parametrize(
    "call",
    [
        partial(eigenpairs, k=2, which="largest", tol=1e-6),
        partial(eigenpairs, k=3, copies=False, max_products=7),
        partial(eigenpairs, k=2, tol=1e-9, max_basis=5),
        partial(spectral_density, steps=5, probes=3),
        partial(spectral_density, steps=5, probes=3, low_memory=True),
        partial(trace, method="hutchinson", products=7),
        partial(trace, method="hutch++", products=8),
        partial(trace, method="xtrace", products=9),
        partial(trace, products=30),  # more than n: the diagonal
        partial(trace, method="hutchinson", products=19, tol=1e-9),
    ],
)
def test_of_an_operator_it_is_the_products(call):
    matrix, since = _CountedMatrix(symmetric(np.linspace(-1, 3, 20))), time.perf_counter()
    cost = call(matrix, generator=seeded(0)).cost
    assert cost.products == matrix.products > 0
    assert (cost.values, cost.gradients) == (0, 0)
    assert 0 < cost.seconds <= time.perf_counter() - since


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        # eigenpairs and density check the function's Hessian each; the last, from the gradient, does not
        ({"method": "laplace", "pairs": 2, "steps": 4, "probes": 3, "gamma": 1.0}, 2 * _SYMMETRY),
        ({"method": "laplace", "pairs": 0, "steps": 4, "probes": 3, "gamma": [1.0, 2.0]}, _SYMMETRY),
        ({"method": "monte_carlo", "samples": 11, "radius": [0.1, 0.2]}, 0),
        ({"method": "monte_carlo", "samples": 11}, 0),  # and the search for radii
        ({"method": "smc", "pairs": 0, "gamma": [1.0, 2.0], "moves": 4, "tol": 9.0}, 0),
        ({"method": "smc", "pairs": 2, "gamma": 1.0, "moves": 4, "tol": 9.0}, _SYMMETRY),
        ({"method": "smc", "pairs": 0, "gamma": [1e3, 1e-3], "moves": 4, "tol": 9.0, "budget": 900}, 0),  # one is NaN
    ],
)
def test_of_local_entropy_it_is_all_calls(options, checks):
    f, since = _Counted(), time.perf_counter()
    found = local_entropy(f, _A, beta=3.0, **options, generator=seeded(0))
    assert np.isnan(found.value).any() == ("budget" in options)
    _check(found.cost, f, since, checks=checks)


def test_of_sgld_it_is_passes_over_all_the_data(passes):
    f, since = tiny_objective(), time.perf_counter()
    # 50 examples in 5 parts of equal size
    options = {"method": "sgld", "parts": 5, "populations": 2, "moves": 1, "radius": [0.1, 0.2]}
    found = local_entropy(f, f.theta, **options, generator=seeded(0))
    assert found.cost.values == pytest.approx(passes.values)
    assert found.cost.gradients == int(np.ceil(passes.gradients - 1e-9))  # fifths of a pass
    assert found.cost.products == passes.products  # a network's own Hessian is not checked
    assert 0 < found.cost.seconds <= time.perf_counter() - since


_T = np.linspace(-1, 1, 5)


@pytest.mark.parametrize(
    "call",
    [
        lambda f: line(f, _A, _B, _T),
        lambda f: line(f, _A, _B, _T[_T != 0], derivatives=True),
        lambda f: line_band(f, _A, _T, directions=3, normalization="none", generator=seeded(0)),
        lambda f: path(f, _A, _B, np.linspace(0, 1, 4)),
        lambda f: path(f, _A, _B, [0.5, 1.0]),
        lambda f: plane(f, _A, _B, _B.flip(0) + _A, _T, _T + 0.1),
        lambda f: plane(f, _A, _B, _B**2, np.linspace(-1, 1, 11), np.linspace(-1, 1, 11), tol=0.01, held_out=3),
        lambda f: barrier(f, _A, _B, points=7),
        lambda f: barrier_matrix(f, [_A, _B, -_A], points=4),
        lambda f: bezier_path(f, _A, _B, steps=9, points=5, generator=seeded(0)),
    ],
)
def test_of_slices_and_curves_it_is_all_calls(call):
    f, since = _Counted(), time.perf_counter()
    _check(call(f).cost, f, since)


def test_of_several_functions_on_one_line_it_is_what_each_was_asked_for():
    several, since = {"train": _Counted(), "test": _Counted()}, time.perf_counter()
    for name, found in line(several, _A, _B, _T, derivatives=True).items():
        _check(found.cost, several[name], since)


def test_of_a_barrier_of_the_error_it_is_all_passes(passes):
    f, since = tiny_objective(), time.perf_counter()
    _check(barrier(f, f.theta, -f.theta, points=4, metric="error").cost, passes, since)


@pytest.mark.parametrize(
    ("measure", "checks"),
    [
        (sharpness.gradient_norm, 0),
        (partial(sharpness.largest_eigenvalue, generator=seeded(0)), _SYMMETRY),
        (partial(sharpness.hessian_trace, probes=3, generator=seeded(0)), _SYMMETRY),
        (partial(sharpness.hessian_trace, probes=3, per_weight=True, generator=seeded(0)), _SYMMETRY),
        (sharpness.fisher_rao, 0),
        (partial(sharpness.worst_case, steps=4, restarts=3, generator=seeded(0)), 0),
        (partial(sharpness.epsilon_sharpness, steps=4, restarts=3, generator=seeded(0)), 0),
        (partial(sharpness.low_pass, samples=7, generator=seeded(0)), 0),
        (partial(sharpness.average_case, samples=7, generator=seeded(0)), 0),
        (partial(sharpness.pac_bayes_sigma, metric="loss", samples=3, generator=seeded(0)), 0),
        (
            partial(
                sharpness.local_learning_coefficient, examples=20, chains=2, burn_in=3, draws=4, generator=seeded(0)
            ),
            0,
        ),
    ],
)
def test_of_a_flatness_measure_it_is_all_calls(measure, checks):
    f, since = _Counted(), time.perf_counter()
    _check(measure(f, _A).cost, f, since, checks=checks)


def test_sam_takes_a_gradient_and_a_value():
    f, since = _Counted(), time.perf_counter()
    _check(sharpness.sam(f, _A).cost, f, since)


@pytest.mark.parametrize(
    "measure",
    [
        partial(sharpness.local_energy, samples=3, generator=seeded(0)),
        partial(sharpness.pac_bayes_sigma, samples=2, generator=seeded(0)),
        partial(sharpness.relative_flatness, layer="0.weight", products=16),  # 4^2, the exact sum
        partial(sharpness.relative_flatness, layer="0.weight", products=3, generator=seeded(0)),
        partial(sharpness.worst_case, parts=5, steps=4, restarts=2, generator=seeded(0)),
    ],
)
def test_of_what_only_networks_have_it_is_passes_over_all_the_data(measure, passes):
    f, since = tiny_objective(), time.perf_counter()
    cost = measure(f, f.theta).cost
    passes.gradients = round(passes.gradients, 9)
    _check(cost, passes, since)


def test_a_table_of_measures_costs_what_its_records_say(passes):
    f = tiny_objective()
    checkpoints = [Checkpoint(name, dict(f.space.views(factor * f.theta))) for name, factor in (("a", 1.0), ("b", 0.9))]
    measures = [
        sharpness.gradient_norm,
        partial(sharpness.hessian_trace, probes=3),
        partial(sharpness.hessian_trace, probes=3, per_weight=True),
        sharpness.sam,
        partial(sharpness.low_pass, samples=2),
    ]
    table = flatness_table(f, checkpoints, measures=measures, generator=seeded(0))
    costs = [record.cost for row in table.results.values() for record in row]
    assert sum(cost.gradients for cost in costs) == passes.gradients
    assert sum(cost.products for cost in costs) == passes.products
    assert sum(cost.values for cost in costs) == passes.values


def test_a_network_counts_what_a_function_does(passes):
    """A line, with its derivatives, of a network: a pass for each point, which gives its examples too."""
    model = nn.Linear(2, 1, bias=False).double()
    f = ModelObjective(model, nn.MSELoss(), (torch.ones(50, 2, dtype=DOUBLE), torch.zeros(50, 1, dtype=DOUBLE)))
    since = time.perf_counter()
    _check(line(f, f.theta, torch.ones(2, dtype=DOUBLE), _T, derivatives=True).cost, passes, since)

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from landscape import sharpness
from landscape.compare import compare, verdicts
from tests.problems import dense_hessian, seeded, tiny_mlp
from tests.test_compare import QUICK, _checkpoint, _problem, _row


@pytest.fixture(scope="module")
def comparison():
    return compare([_checkpoint("A"), _checkpoint("B", 2.0)], _problem(), settings=QUICK)


def test_the_measures_are_those_of_the_checkpoints(comparison):
    model, data = tiny_mlp()
    hessian = dense_hessian(model, data)
    measures = comparison.measures

    def value(name):
        return measures.values[_row(comparison, name), 0]

    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    loss = nn.functional.cross_entropy(model(data[0]), data[1]).item()
    assert value("train loss") == pytest.approx(loss)
    assert value("weight norm") == pytest.approx(float(theta.norm()))
    # of a symmetric matrix an eigenvalue is as near as the residual, which is the error told
    residual = measures.stderr[_row(comparison, "largest eigenvalue"), 0]
    assert abs(value("largest eigenvalue") - float(torch.linalg.eigvalsh(hessian)[-1])) <= residual
    error = measures.stderr[_row(comparison, "Hessian trace"), 0]
    assert abs(value("Hessian trace") - float(torch.trace(hessian))) < 4 * error
    distance = measures.values[_row(comparison, "distance from the first")]
    np.testing.assert_allclose(distance, [0, float(theta.norm())])


def test_differences_are_paired():
    """A checkpoint hardly differs from its neighbour, and that is known far better than either."""
    neighbours = [_checkpoint("A"), _checkpoint("B", 1 + 1e-7)]
    measures = compare(neighbours, _problem(), settings=QUICK).measures
    of_smc = np.array(["annealed SMC" in name for name in measures.names])
    # below 1e-7 lies the residual of the eigenvalue, which is no sample
    sampled = (measures.stderr[:, 0] > 1e-7) & ~of_smc
    assert sampled.sum() >= 3  # the trace and two free energies at least
    # weights that differ by 1e-7 of themselves change each draw by about as much, and shares by ten times that, for
    # which eigenvalues near the threshold count; unpaired errors would be 2^(1/2) of either
    assert (measures.differences_stderr[sampled, 1] < 1e-5 * measures.stderr[sampled, 1]).all()
    assert measures.differences[:, 0].tolist() == [0] * len(measures.names)


def test_smc_tells_differences_of_independent_estimates(comparison):
    """Its schedule depends on the weights, so that its draws do not pair up."""
    row = _row(comparison, "excess free energy at radius 0.01 (annealed SMC)")
    errors = [r.excess_stderr[0] for r in comparison.of("smc").values()]
    np.testing.assert_allclose(comparison.measures.stderr[row], errors)
    np.testing.assert_allclose(comparison.measures.differences_stderr[row], [0, np.hypot(*errors)])


def test_the_bracket_of_smc_is_tabulated_without_a_verdict(comparison):
    smc = comparison.of("smc").values()
    name = "excess free energy at radius 0.01 (annealed SMC)"
    brackets = [[bound[0] for bound in r.excess_bracket] for r in smc]
    rows = [_row(comparison, f"{name}, at least"), _row(comparison, f"{name}, at most")]
    np.testing.assert_allclose(comparison.measures.values[rows].T, brackets)
    low, high = comparison.measures.values[rows]
    assert (low < high).all()
    # the errors are in the bounds already
    assert np.isnan(comparison.measures.stderr[rows]).all()
    assert not [v for v in verdicts(comparison.measures) if "at least" in v.measure or "at most" in v.measure]


def test_what_is_not_reliable_has_no_value_and_no_verdict():
    """At a radius of 3 per weight a handful of draws says nothing, and one draw has no error."""
    for changes, radius in (({"radii": (3.0,)}, "3"), ({"probes": 1, "samples": 1}, "0.01")):
        settings = dataclasses.replace(QUICK, **changes)
        measures = compare([_checkpoint("A"), _checkpoint("B", 2.0)], _problem(), settings=settings).measures
        name = f"excess free energy at radius {radius} (Monte Carlo)"
        row = measures.names.index(name)
        for numbers in (measures.values, measures.stderr, measures.differences_stderr):
            assert np.isnan(numbers[row]).all()
        assert [(v.flattest, v.says) for v in verdicts(measures) if v.measure == name] == [("", "not reliable")]
    # one probe has a value, but no error that a verdict could be drawn from
    assert np.isfinite(measures.values[measures.names.index("Hessian trace")]).all()
    trace = [(v.flattest, v.says) for v in verdicts(measures) if v.measure == "Hessian trace"]
    assert trace == [("", "error not known")]


def test_the_error_of_an_eigenvalue_is_its_residual(comparison):
    row = _row(comparison, "largest eigenvalue")
    residuals = [p.residuals[0] for p in comparison.of("eigenpairs").values()]
    np.testing.assert_allclose(comparison.measures.stderr[row], residuals)
    assert comparison.measures.differences_stderr[row, 1] == pytest.approx(np.hypot(*residuals))


def test_the_middle_radius_is_tabulated(comparison):
    assert QUICK.reference_radius == 0.01
    name = "excess free energy at radius 0.01 (Laplace)"
    found = comparison.measures.values[_row(comparison, name)]
    np.testing.assert_allclose(found, [r.excess[1] for r in comparison.of("laplace").values()])


def test_measures_of_the_literature_stand_beside_the_others_and_are_marked(comparison):
    f = _problem().objective("train").at(_checkpoint("B", 2.0))
    expected = {
        "adaptive average-case sharpness, rho 0.1": sharpness.average_case(
            f, f.theta, samples=QUICK.samples, generator=seeded(QUICK.seed)
        ),
        "Fisher-Rao norm squared": sharpness.fisher_rao(f, f.theta),
    }
    measures = comparison.measures
    for name, record in expected.items():
        row = _row(comparison, name)
        # the objective's graphs are summed in another order than there
        assert measures.values[row, 1] == pytest.approx(record.value, rel=1e-9)
        assert measures.stderr[row, 1] == pytest.approx(record.stderr, rel=1e-6)
    marked = {name for name, mark in zip(measures.names, measures.invariant, strict=True) if mark}
    assert marked == {*expected, *(name for name in measures.names if name.startswith("relative flatness"))}
    assert len(marked) == 3

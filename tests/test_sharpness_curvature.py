import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape import ModelObjective, sharpness
from tests.problems import DOUBLE, Quadratic, dense_hessian, seeded, symmetric, tiny_mlp, tiny_objective

X = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=DOUBLE)


def test_derivatives_of_a_quadratic():
    f, theta = Quadratic(symmetric([4.0, 2.0, -1.0, -9.0]), X), X + 0.1
    assert sharpness.gradient_norm(f, theta).value == pytest.approx(float(f.gradient(theta).norm()))
    largest = sharpness.largest_eigenvalue(f, theta, generator=seeded(0))
    assert largest.value == pytest.approx(4.0, abs=1e-9)  # the largest, not the largest in magnitude; n steps are exact
    assert largest.stderr < 1e-9
    trace = sharpness.hessian_trace(f, theta, probes=400, generator=seeded(0))
    assert abs(trace.value - (-4.0)) < 4 * trace.stderr
    mean = sharpness.hessian_trace(f, theta, probes=400, per_weight=True, generator=seeded(0))
    np.testing.assert_allclose(4 * mean.contributions, trace.contributions, rtol=1e-12)


def test_the_trace_of_a_multiple_of_the_identity_takes_one_probe():
    f = Quadratic(3 * torch.eye(4, dtype=DOUBLE), X)
    assert sharpness.hessian_trace(f, X, probes=1, generator=seeded(0)).value == pytest.approx(12.0)
    assert np.isnan(sharpness.hessian_trace(f, X, probes=1, generator=seeded(0)).stderr)


def test_derivatives_of_a_network_against_its_dense_hessian():
    model, data = tiny_mlp()
    f, hessian = tiny_objective(), dense_hessian(model, data)
    eigenvalue = sharpness.largest_eigenvalue(f, f.theta, generator=seeded(0))
    assert abs(eigenvalue.value - float(torch.linalg.eigvalsh(hessian)[-1])) <= eigenvalue.stderr
    trace = sharpness.hessian_trace(f, f.theta, probes=200, generator=seeded(0))
    assert abs(trace.value - float(hessian.trace())) < 4 * trace.stderr


def test_a_search_for_an_eigenvalue_that_did_not_converge_has_no_error():
    f = tiny_objective()
    found = sharpness.largest_eigenvalue(f, f.theta, generator=seeded(0))
    assert found.stderr == found.diagnostics["residual"] > 0
    values = torch.cat([torch.arange(2000.0), torch.tensor([2000.0, 2000.001])]).double()
    crowded = Quadratic(torch.zeros(1), torch.zeros(2002, dtype=DOUBLE))
    crowded.hvp = lambda theta, v: values * v
    found = sharpness.largest_eigenvalue(crowded, crowded.minimum, tol=1e-12, generator=seeded(0))
    assert np.isnan(found.stderr)


def test_the_fisher_rao_norm_of_a_quadratic():
    class WithGaussNewton(Quadratic):
        def gnvp(self, theta: Tensor, v: Tensor) -> Tensor:
            return self.hessian @ v

    f = WithGaussNewton(symmetric([4.0, 2.0, 1.0, 0.0]), torch.zeros(4, dtype=DOUBLE))
    assert sharpness.fisher_rao(f, X).value == pytest.approx(float(X @ f.hessian @ X), rel=1e-12)


def test_the_fisher_is_that_of_the_networks_own_predictions():
    model, (inputs, _) = tiny_mlp()
    f = tiny_objective()
    parameters = list(model.parameters())
    total = 0.0
    for log_p in model(inputs).log_softmax(dim=1):
        for c in range(3):  # E over y ~ p of (theta . grad log p(y))^2
            pieces = torch.autograd.grad(log_p[c], parameters, retain_graph=True)
            slope = sum((p.detach() * g).sum() for p, g in zip(parameters, pieces, strict=True))
            total += float(log_p[c].exp().detach() * slope**2) / len(inputs)
    assert sharpness.fisher_rao(f, f.theta).value == pytest.approx(total, rel=1e-10)


def _blockwise(hessian: Tensor, w: Tensor) -> float:
    """sum_st <w_s, w_t> tr H_st by loops; hessian (d m, d m)."""
    d, m = w.shape
    blocks = hessian.view(d, m, d, m)
    return sum(float(w[s] @ w[t]) * float(blocks[s, :, t, :].trace()) for s in range(d) for t in range(d))


@pytest.mark.parametrize(("layer", "first", "shape"), [("0.weight", 0, (5, 4)), ("2.weight", 25, (3, 5))])
def test_relative_flatness_is_the_sum_over_blocks_of_the_hessian(layer, first, shape):
    model, data = tiny_mlp()
    f, hessian = tiny_objective(), dense_hessian(model, data)
    own = slice(first, first + shape[0] * shape[1])
    truth = _blockwise(hessian[own, own], f.space.views(f.theta)[layer])
    exact = sharpness.relative_flatness(f, f.theta, layer=layer)  # m^2 <= 50
    assert exact.value == pytest.approx(truth, rel=1e-10)
    assert exact.stderr == 0
    assert exact.cost.products == shape[1] ** 2
    sampled = sharpness.relative_flatness(f, f.theta, layer=layer, products=15, generator=seeded(0))
    assert abs(sampled.value - truth) < 4 * sampled.stderr
    assert sampled.cost.products == 15


def test_relative_flatness_of_a_softmax_layer_in_closed_form():
    """mean over examples of |x|^2 tr W W' (diag p - p p'), of the last matrix where none is named."""
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, targets))
    features = model[:2](inputs).detach()
    p = model(inputs).softmax(dim=1).detach()
    gram = model[2].weight.detach() @ model[2].weight.detach().T
    curved = (p * gram.diagonal()).sum(dim=1) - ((p @ gram) * p).sum(dim=1)
    truth = float((features.square().sum(dim=1) * curved).mean())
    found = sharpness.relative_flatness(f, f.theta)
    assert found.value == pytest.approx(truth, rel=1e-10)
    assert found.settings["layer"] == "2.weight"


def test_bad_input_is_named():
    f, network = Quadratic(torch.eye(4, dtype=DOUBLE), X), tiny_objective()
    for call, message in (
        (lambda: sharpness.gradient_norm(f, X[:1]), r"theta has shape \(1,\)"),
        (lambda: sharpness.hessian_trace(f, X, probes=0), "probes=0"),
        (lambda: sharpness.fisher_rao(f, X), "Quadratic without gnvp"),
        (lambda: sharpness.relative_flatness(f, X), "Quadratic, which has no layers"),
        (lambda: sharpness.relative_flatness(network, network.theta, layer="0.bias"), r"give one of \['0.weight'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

"""Nothing of the user's changes: not the network, not the global generators."""

import copy

import numpy as np
import torch
from torch import nn

from landscape import (
    Checkpoint,
    Hessian,
    ModelObjective,
    barrier,
    barrier_matrix,
    bezier_path,
    eigenpairs,
    line,
    line_band,
    local_entropy,
    match_weights,
    path,
    plane,
    random_direction,
    spectral_density,
)
from tests.problems import seeded


def _network() -> nn.Module:
    """All that an analysis could disturb: BatchNorm, dropout, a frozen layer, a stale gradient, modes."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    model[0].bias.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    model.train()
    model[3].eval()
    return model


def _everything(model: nn.Module, batch_norm: str) -> None:
    data = (torch.randn(20, 4, generator=seeded(0)), torch.arange(20) % 3)
    f = ModelObjective(model, nn.CrossEntropyLoss(), data, batch_size=7, batch_norm=batch_norm, weight_decay=0.1)
    g = seeded(1)
    elsewhere = f.theta + 1
    f.metrics(elsewhere)
    f.value_and_gradient(elsewhere)
    f.hvp(elsewhere, f.theta)
    f.at(Checkpoint.of(model))
    pairs = eigenpairs(Hessian(f), 2, generator=g)
    spectral_density(Hessian(f), steps=5, probes=2, deflate=pairs, generator=g)
    for method in ("laplace", "monte_carlo"):
        local_entropy(f, f.theta, radius=0.1, method=method, samples=3, generator=g)
    d1, d2 = (random_direction(f, f.theta, generator=g) for _ in range(2))
    line(f, f.theta, d1, [0.0, 1.0])
    plane(f, f.theta, d1, d2, [0.0, 1.0], [0.0, 1.0])
    plane(f, f.theta, d1, d2, np.linspace(-1, 1, 6), np.linspace(-1, 1, 6), tol=0.1, generator=g)
    line_band(f, f.theta, [0.0, 1.0], directions=2, generator=g)
    a = Checkpoint.of(model, "a")
    b = Checkpoint("b", {k: 2 * t if k in (*f.space.names, "1.running_var") else t for k, t in a.tensors.items()})
    path(f, a, b, [0.0, 0.5])
    path(f, f.theta, 2 * f.theta, [0.0, 0.5])
    bezier_path(f, f.theta, 2 * f.theta, steps=2, points=3, batches=f.parts(2), generator=g)
    match_weights(f, a, b, generator=g)
    barrier(f, a, b, points=3)
    barrier_matrix(f, [a, b], points=3, generator=g)


def test_the_network_is_bit_identical_after_everything():
    model = _network()
    before = copy.deepcopy(model)
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    pointers = [p.data_ptr() for p in model.parameters()]
    for batch_norm in ("frozen", "recalibrated", "batch"):
        _everything(model, batch_norm)
    for (name, now), then in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(now, then), name
    for now, then, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        assert now.requires_grad == then.requires_grad
        assert (now.grad is None) == (gradient is None)
        assert now.grad is None or torch.equal(now.grad, gradient)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert pointers == [p.data_ptr() for p in model.parameters()]


def test_global_generators_are_neither_read_nor_written():
    model = _network()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    _everything(model, "frozen")
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


def test_no_seed_is_another_seed_each_time():
    f = ModelObjective(_network(), nn.CrossEntropyLoss(), (torch.ones(3, 4), torch.arange(3)))
    a, b = (random_direction(f, f.theta) for _ in range(2))
    assert not torch.equal(a, b)
    assert not torch.equal(a, random_direction(f, f.theta, generator=seeded(0)))

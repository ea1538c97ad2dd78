import numpy as np
import pytest
import torch
from torch import nn

from landscape import Dense, ModelObjective, between, eigenpairs, eigenvector, random_direction
from tests.problems import DOUBLE, LogisticRegression, seeded, symmetric


def _network() -> ModelObjective:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model[4].weight[1].zero_()  # a dead unit
    return ModelObjective(model, nn.CrossEntropyLoss(), (torch.ones(3, 1, 6, 6), torch.arange(3)))


def test_each_filter_has_the_norm_of_the_weights_filter():
    f = _network()
    d = random_direction(f, f.theta, generator=seeded(0))
    shapes = dict(zip(f.space.names, f.space.shapes, strict=True))
    for (name, rows), (_, weights) in zip(f.space.filters(d), f.space.filters(f.theta), strict=True):
        if len(shapes[name]) < 2:  # biases and BatchNorm
            assert rows.abs().max() == 0, name
        else:
            torch.testing.assert_close(rows.norm(dim=1), weights.norm(dim=1), rtol=1e-6, atol=0)


def test_two_random_directions_are_nearly_orthogonal_and_not_all_positive():
    f = _network()
    g = seeded(0)
    a, b = (random_direction(f, f.theta, generator=g) for _ in range(2))
    cosine = float(a @ b / (a.norm() * b.norm()))
    assert abs(cosine) < 5 / f.size**0.5
    share = (a[a != 0] > 0).double().mean()
    assert abs(share - 0.5) < 5 * 0.5 / f.size**0.5


def test_unnormalised_directions_are_standard_normal():
    f = LogisticRegression(size=4000)
    d = random_direction(f, torch.zeros(4000, dtype=DOUBLE), normalization="none", generator=seeded(0))
    assert float(d.mean()) == pytest.approx(0, abs=5 / 4000**0.5)
    assert float(d.var()) == pytest.approx(1, abs=5 * (2 / 4000) ** 0.5)


def test_the_seed_decides():
    f = _network()
    a, b = (random_direction(f, f.theta, generator=seeded(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, random_direction(f, f.theta, generator=seeded(4)))


def test_between_leads_from_the_first_to_the_second():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0])
    assert torch.equal(a + between(a, b), b)


def test_an_eigenvector_is_a_unit_direction_of_its_eigenvalue():
    matrix = symmetric([5.0, 2.0, 1.0])
    pairs = eigenpairs(Dense(matrix), 2, tol=1e-10, generator=seeded(0))
    f = LogisticRegression(size=3)
    v = eigenvector(pairs, 1, f)
    assert float(v.norm()) == pytest.approx(1)
    np.testing.assert_allclose(matrix @ v, 2 * v, atol=1e-8)


def test_bad_input_is_named():
    f = _network()
    with pytest.raises(ValueError, match=r"normalization='layer'.*filter"):
        random_direction(f, f.theta, normalization="layer")
    with pytest.raises(ValueError, match=r"LogisticRegression.*normalization='none'"):
        random_direction(LogisticRegression(), torch.zeros(8, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"theta has shape \(2,\)"):
        random_direction(f, torch.zeros(2))
    with pytest.raises(ValueError, match=r"theta_b has shape \(3,\)"):
        between(torch.zeros(2), torch.zeros(3))

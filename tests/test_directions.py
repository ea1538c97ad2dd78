import math

import numpy as np
import pytest
import torch
from torch import nn

import optim
from landscape import (
    Dense,
    ModelObjective,
    between,
    eigenpairs,
    eigenvector,
    gradient_direction,
    load_checkpoint,
    plane_through,
    project_onto_plane,
    random_direction,
    sharpest_ascent,
    trajectory_plane,
)
from landscape.directions.fingerprints import fingerprints
from landscape.directions.random import _give_norms
from landscape.objective.tensors import checkpoint_of
from landscape.results import from_dataset, to_dataset
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, symmetric, tiny_mlp


def _objective(model: nn.Module, inputs: torch.Tensor) -> ModelObjective:
    return ModelObjective(model, lambda outputs, batch: outputs.square().mean(), (inputs, torch.zeros(len(inputs))))


def _network(dtype: torch.dtype = torch.float32) -> ModelObjective:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).to(dtype)
    with torch.no_grad():
        model[4].weight[1].zero_()
    return _objective(model, torch.ones(3, 1, 6, 6, dtype=dtype))


class _Zoo(nn.Module):
    """Every kind of layer whose filters lie in a place of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.gru = nn.GRU(3, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(2, 6, 3, groups=2)
        self.norm = nn.LayerNorm((6, 7))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.gru(self.lstm(self.embedding(tokens))[0])[0]
        return self.norm(self.up(hidden.transpose(1, 2)))


def _zoo() -> ModelObjective:
    return _objective(_Zoo().double(), torch.arange(10).view(2, 5) % 7)


# --- random ------------------------------------------------------------------------------------------


# the norms are taken in float64 and rounded once, to the precision of the weights
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (DOUBLE, 1e-14)])
def test_each_filter_has_the_norm_of_the_weights_filter(dtype, rtol):
    f = _network(dtype)
    d = random_direction(f, f.theta, generator=seeded(0))
    for (name, filters), (_, weights) in zip(f.space.filters(d), f.space.filters(f.theta), strict=True):
        if name in f.space.one_dimensional:  # biases and BatchNorm
            assert filters.abs().max() == 0, name
        else:
            torch.testing.assert_close(filters.norm(dim=1), weights.norm(dim=1), rtol=rtol, atol=0)
    assert f.space.views(d)["4.weight"][1].abs().max() == 0  # the dead unit


def test_a_gate_a_token_and_an_output_channel_keep_their_norms():
    f = _zoo()
    d = random_direction(f, f.theta, generator=seeded(0))
    found, weights = f.space.views(d), f.space.views(f.theta)

    def same(norms):
        torch.testing.assert_close(norms(found), norms(weights), rtol=1e-14, atol=0)

    same(lambda of: of["embedding.weight"].norm(dim=1))
    for name, gates in (("lstm.weight_ih_l0", 4), ("lstm.weight_hh_l0", 4), ("gru.weight_ih_l0", 3)):
        same(lambda of, name=name, gates=gates: torch.stack([gate.norm() for gate in of[name].chunk(gates)]))
    # (in, out/groups, kernel): output channel 3 g + j reads the one input channel of its group g
    same(lambda of: of["up.weight"].norm(dim=2))
    rows = found["lstm.weight_ih_l0"].norm(dim=1) / weights["lstm.weight_ih_l0"].norm(dim=1)
    assert (rows - 1).abs().max() > 0.1  # within a gate the rows are free
    assert found["norm.weight"].abs().max() == 0  # though its shape has two dimensions


def test_biases_and_normalisation_layers_move_where_asked():
    f = _zoo()
    d = random_direction(f, f.theta, one_dimensional="normalize", generator=seeded(0))
    found, weights = f.space.views(d), f.space.views(f.theta)
    for name in ("up.bias", "norm.weight", "norm.bias"):  # an entry is a filter
        torch.testing.assert_close(found[name].abs(), weights[name].abs(), rtol=1e-14, atol=0)
    for found_gate, gate in zip(found["lstm.bias_ih_l0"].chunk(4), weights["lstm.bias_ih_l0"].chunk(4), strict=True):
        torch.testing.assert_close(found_gate.norm(), gate.norm(), rtol=1e-14, atol=0)
    assert set(found["norm.weight"].sign().flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("one_dimensional", ["zero", "normalize"])
def test_layer_normalisation_gives_whole_tensors_their_norms(one_dimensional):
    f = _network(DOUBLE)
    d = random_direction(f, f.theta, normalization="layer", one_dimensional=one_dimensional, generator=seeded(0))
    for name, tensor in f.space.views(d).items():
        fixed = one_dimensional == "zero" and name in f.space.one_dimensional
        norm = 0.0 if fixed else float(f.space.views(f.theta)[name].norm())
        assert float(tensor.norm()) == pytest.approx(norm, rel=1e-14), name


def test_a_filter_normalised_direction_scales_with_the_units():
    # ReLU(s z) / s = ReLU(z): the direction at the rescaled network is the rescaled direction, so a picture stays
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    inputs, s = torch.ones(2, 4, dtype=DOUBLE), torch.tensor([0.1, 3.0, 10.0], dtype=DOUBLE)
    f = _objective(model, inputs)
    with torch.no_grad():
        model[0].weight.mul_(s[:, None])
        model[0].bias.mul_(s)
    scaled = _objective(model, inputs)
    d, ds = (random_direction(g, g.theta, one_dimensional="normalize", generator=seeded(0)) for g in (f, scaled))
    views, scaled_views = f.space.views(d), f.space.views(ds)
    torch.testing.assert_close(scaled_views["0.weight"], s[:, None] * views["0.weight"], rtol=1e-13, atol=0)
    torch.testing.assert_close(scaled_views["0.bias"], s * views["0.bias"], rtol=1e-13, atol=0)


def test_a_filter_of_zeros_stays_where_it_is_whichever_is_zero():
    d, w = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]], dtype=DOUBLE), torch.ones(3, 2)
    w[2] = 0
    _give_norms(d, w)
    torch.testing.assert_close(d, torch.tensor([[0.6, 0.8], [0, 0], [0, 0]], dtype=DOUBLE) * math.sqrt(2))


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_two_random_directions_are_nearly_orthogonal_and_not_all_positive(normalization):
    f = _network()
    g = seeded(0)
    a, b = (random_direction(f, f.theta, normalization=normalization, generator=g) for _ in range(2))
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


def test_no_direction_touches_the_weights_or_the_buffers():
    f = _network()
    theta, before = f.theta.clone(), checkpoint_of(f)
    d = random_direction(f, theta, generator=seeded(0))
    gradient_direction(f, theta)
    sharpest_ascent(f, theta, 0.1, steps=3)
    plane_through(theta, theta + d, 2 * theta)
    assert torch.equal(theta, f.theta)
    buffers = set(before.tensors) - set(f.space.names)
    assert all(torch.equal(before.tensors[name], checkpoint_of(f).tensors[name]) for name in buffers)


# --- between, through and along checkpoints ----------------------------------------------------------


def test_between_leads_from_the_first_to_the_second():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0])
    assert torch.equal(a + between(a, b), b)


def _is_orthonormal(directions: torch.Tensor) -> None:
    # rounding of sums over n = 1,000 entries
    torch.testing.assert_close(directions @ directions.T, torch.eye(2, dtype=DOUBLE), rtol=0, atol=1e-14)


def test_a_plane_goes_through_its_three_points():
    a, b, c = torch.randn(3, 1000, generator=seeded(0), dtype=DOUBLE)
    frame = plane_through(a, b, c, names=("SGD", "Entropy-SGD", "average"))
    _is_orthonormal(frame.directions)
    for point, coordinates in zip((a, b, c), frame.coordinates, strict=True):
        torch.testing.assert_close(frame.at(*coordinates), point, rtol=0, atol=1e-12)
    assert frame.names == ["SGD", "Entropy-SGD", "average"]
    np.testing.assert_allclose(frame.coordinates[:2], [[0, 0], [float((b - a).norm()), 0]], rtol=1e-14, atol=1e-12)
    assert frame.coordinates[2, 1] > 0
    np.testing.assert_allclose(frame.out_of_plane, 0, atol=1e-12)
    assert frame.explained.sum() == pytest.approx(1, rel=1e-14)


def test_float32_checkpoints_come_back_bit_for_bit():
    points = torch.randn(3, 1000, generator=seeded(0))
    frame = plane_through(*points)
    for point, coordinates in zip(points, frame.coordinates, strict=True):
        assert torch.equal(frame.at(*coordinates).float(), point)


def test_points_that_span_no_plane_are_refused():
    a, b = torch.randn(2, 1000, generator=seeded(0))
    for c in ((a + b) / 2, a + 3 * (b - a), a, b):  # off the line by the rounding of float32 alone
        with pytest.raises(ValueError, match="theta_a, theta_b and theta_c are collinear"):
            plane_through(a, b, c)
    with pytest.raises(ValueError, match="theta_a and theta_b are the same point"):
        plane_through(a, a.clone(), b)
    near = torch.zeros(1000)
    near[0] = 1e-3  # but a thousand times the rounding spans one
    assert plane_through(a, b, (a + b) / 2 + near).coordinates[2, 1] == pytest.approx(1e-3, rel=0.1)


def _trajectory(points: int = 30, n: int = 200) -> torch.Tensor:
    return torch.randn(points, n, generator=seeded(0), dtype=DOUBLE).cumsum(0)


def test_the_plane_of_a_trajectory_is_that_of_the_singular_value_decomposition():
    w = _trajectory()
    frame = trajectory_plane(w)
    _is_orthonormal(frame.directions)
    m = (w - w[-1]).numpy()
    _, sigma, v = np.linalg.svd(m, full_matrices=False)
    # the Gram matrix has the condition of M squared, here 1e4
    np.testing.assert_allclose(np.abs(np.sum(v[:2] * frame.directions.numpy(), axis=1)), 1, rtol=1e-12)
    np.testing.assert_allclose(frame.explained, sigma[:2] ** 2 / (sigma**2).sum(), rtol=1e-12)
    assert (frame.directions.gather(1, frame.directions.abs().argmax(dim=1, keepdim=True)) > 0).all()
    np.testing.assert_allclose(frame.coordinates, m @ frame.directions.numpy().T, atol=1e-12)
    assert frame.names[-1] == "29"


def test_in_plane_and_out_of_plane_make_up_the_whole_distance():
    w = _trajectory()
    for frame in (trajectory_plane(w), trajectory_plane(w, origin=w[3])):
        squared = (frame.coordinates**2).sum(axis=1) + frame.out_of_plane**2
        np.testing.assert_allclose(squared, (w - frame.origin).square().sum(dim=1).numpy(), rtol=1e-12, atol=1e-20)


def test_no_plane_through_the_end_is_nearer_to_the_trajectory():
    w = _trajectory()
    best = (trajectory_plane(w).out_of_plane ** 2).sum()
    centred = np.linalg.svd((w - w.mean(dim=0)).numpy(), full_matrices=False)[2][:2]  # as Li et al. do
    assert best < (project_onto_plane(w, w[-1], *torch.from_numpy(centred)).out_of_plane ** 2).sum()


def test_a_trajectory_in_a_plane_is_in_it_to_rounding():
    d1, d2 = torch.randn(2, 500, generator=seeded(1), dtype=DOUBLE)
    t = torch.linspace(0, 3, 20, dtype=DOUBLE)[:, None]
    frame = trajectory_plane(5 + t.cos() * d1 + 0.01 * t.sin() * d2)
    # not the 1e-8 that a difference of squares would leave
    assert frame.out_of_plane.max() < 1e-13
    assert frame.explained.sum() == pytest.approx(1, rel=1e-15)


def test_blocks_are_no_part_of_the_answer(monkeypatch):
    w = _trajectory()
    whole = trajectory_plane(w)
    monkeypatch.setattr("landscape.directions.checkpoints._BLOCK", 30 * 7)
    parts = trajectory_plane(list(w))  # and a list is as good as a tensor
    np.testing.assert_allclose(parts.coordinates, whole.coordinates, atol=1e-11)
    np.testing.assert_allclose(parts.out_of_plane, whole.out_of_plane, atol=1e-11)


def test_the_trajectory_that_training_records(tmp_path):
    model, data = tiny_mlp()
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"gradients": 20, "generator": seeded(0), "batch_size": 10, "trajectory_every": 4}
    optim.train(model, optimizer, nn.CrossEntropyLoss(), data, data, run=tmp_path, **options)
    paths = sorted(tmp_path.glob("trajectory/*.safetensors"))
    frame = trajectory_plane([f.space.flatten(load_checkpoint(path).tensors) for path in paths])
    assert torch.equal(frame.origin, ModelObjective(model, nn.CrossEntropyLoss(), data).theta)
    start = (f.theta - frame.origin).norm()
    assert math.hypot(*frame.coordinates[0], frame.out_of_plane[0]) == pytest.approx(float(start), rel=1e-12)
    assert len(frame.names) == 6


def test_points_are_placed_on_a_plane_of_oblique_directions():
    origin, d1, e2, off = torch.linalg.qr(torch.randn(50, 4, generator=seeded(0), dtype=DOUBLE))[0].T
    d1 = 2 * d1
    d2 = 3 * e2 + d1
    frame = project_onto_plane([origin + 0.5 * d1 - 2 * d2 + 0.7 * off, origin], origin, d1, d2)
    np.testing.assert_allclose(frame.coordinates, [[0.5, -2.0], [0, 0]], atol=1e-14)
    np.testing.assert_allclose(frame.out_of_plane, [0.7, 0], atol=1e-14)
    # (0.5 d1 - 2 d2) is -3 along d1 at unit length and -6 along e2
    np.testing.assert_allclose(frame.explained, np.array([9, 36]) / (45 + 0.49), rtol=1e-13)


def test_a_point_that_is_not_finite_is_kept():
    w = torch.ones(3, 2)
    w[1, 0] = float("nan")
    frame = project_onto_plane(w, torch.zeros(2), *torch.eye(2))
    np.testing.assert_array_equal(np.isfinite(frame.out_of_plane), [True, False, True])
    np.testing.assert_allclose(frame.coordinates[[0, 2]], 1)


def test_a_frame_survives_its_dataset():
    frame = trajectory_plane(_trajectory(5, 20), names=list("vwxyz"))
    dataset = to_dataset(frame)
    assert dataset.coordinates.dims == ("point", "direction")
    assert dataset.directions.dims == ("direction", "weight")
    again = from_dataset(dataset)
    assert again.names == frame.names
    assert torch.equal(again.directions, frame.directions)
    assert torch.equal(again.at(1.0, 2.0), frame.at(1.0, 2.0))
    for name in ("coordinates", "out_of_plane", "explained"):
        np.testing.assert_array_equal(getattr(again, name), getattr(frame, name))


# --- derivatives -------------------------------------------------------------------------------------


def test_a_fingerprint_is_linear_and_off_by_as_much_as_its_vector(monkeypatch):
    monkeypatch.setattr("landscape.directions.fingerprints._BLOCK", 100)
    u, v = torch.randn(2, 250, generator=seeded(0), dtype=DOUBLE)
    of_u, of_v, of_both = fingerprints(u, v, u + 3 * v)
    np.testing.assert_allclose(of_both, of_u + 3 * of_v, rtol=1e-12)
    # unit vectors, whose numbers are independent N(0, 1): the mean square of 1000 is 1 to 3 * sqrt(2/1000)
    assert np.mean(fingerprints(*torch.eye(250)) ** 2) == pytest.approx(1, abs=3 * math.sqrt(2 / 1000))
    # rounding to float32 is of 1e-8 of each weight
    np.testing.assert_allclose(*fingerprints(u, u.float()), atol=1e-6 * float(u.norm()))


def test_an_eigenvector_is_a_unit_direction_of_its_eigenvalue():
    matrix = symmetric([5.0, 2.0, 1.0])
    pairs = eigenpairs(Dense(matrix), 2, tol=1e-10, generator=seeded(0))
    f = Quadratic(matrix, torch.zeros(3, dtype=DOUBLE))
    v = eigenvector(pairs, 1, f)
    assert float(v.norm()) == pytest.approx(1, rel=1e-14)
    np.testing.assert_allclose(matrix @ v, 2 * v, atol=1e-8)
    assert f.value(f.minimum + 3 * v) == pytest.approx(2 / 2 * 3**2, rel=1e-8)  # a coordinate is a distance


def test_the_gradient_direction_is_the_steepest_unit_direction():
    f = LogisticRegression()
    w = torch.ones(8, dtype=DOUBLE)
    d = gradient_direction(f, w)
    assert float(d.norm()) == pytest.approx(1, rel=1e-14)
    h = 1e-5  # a central difference is right to h^2
    assert (f.value(w + h * d) - f.value(w - h * d)) / (2 * h) == pytest.approx(float(f.gradient(w).norm()), rel=1e-8)


def test_sharpest_ascent_solves_the_trust_region_problem():
    # max of g'd + d'Hd/2 on the sphere: (lambda - H) d = g with lambda > lambda_max chosen so that ||d|| = radius
    # (Moré & Sorensen 1983); H is indefinite
    f = Quadratic(symmetric([3.0, 1.0, 0.2, -2.0]), torch.zeros(4, dtype=DOUBLE))
    theta, radius = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=DOUBLE), 0.7
    g, identity = f.gradient(theta), torch.eye(4, dtype=DOUBLE)
    low, high = 3.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        d = torch.linalg.solve(middle * identity - f.hessian, g)
        low, high = (middle, high) if d.norm() > radius else (low, middle)
    found = sharpest_ascent(f, theta, radius, steps=200)
    # the maximum is quadratic in d, so that d is known to the root of f's rounding
    torch.testing.assert_close(found, d, rtol=0, atol=1e-7)
    assert f.value(theta + found) == pytest.approx(f.value(theta + d), rel=1e-13)
    assert float(found.norm()) == pytest.approx(radius, rel=1e-14)


def test_derivatives_take_theta_to_where_the_objective_is():
    """As a checkpoint's on the CPU, for a network on a GPU."""

    class AtHome(Quadratic):
        def gradient(self, theta: torch.Tensor) -> torch.Tensor:
            assert (theta.dtype, theta.device) == (self.dtype, self.device)
            return super().gradient(theta)

    f, theta = AtHome(symmetric([3.0, 1.0]), torch.ones(2, dtype=DOUBLE)), torch.tensor([0.5, 2.0])
    assert torch.equal(gradient_direction(f, theta), gradient_direction(f, theta.double()))
    assert torch.equal(sharpest_ascent(f, theta, 0.1), sharpest_ascent(f, theta.double(), 0.1))


def test_sharpest_ascent_is_the_gradient_to_first_order():
    f = LogisticRegression()
    w = torch.ones(8, dtype=DOUBLE)
    # it turns by radius * ||H|| / ||g|| at most
    turned = sharpest_ascent(f, w, 1e-6) / 1e-6 - gradient_direction(f, w)
    assert float(turned.norm()) < 1e-6 * float(f.dense_hessian(w).norm() / f.gradient(w).norm())


def test_sharpest_ascent_at_a_minimum_is_the_top_eigenvector():
    values = [4.0, 2.0, 1.0, 0.0]
    f = Quadratic(symmetric(values), torch.ones(4, dtype=DOUBLE), constant=0.1)
    d = sharpest_ascent(f, f.minimum, 0.5, steps=100, generator=seeded(0))
    assert f.value(f.minimum + d) == pytest.approx(0.1 + 4.0 / 2 * 0.5**2, rel=1e-12)
    assert torch.equal(d, sharpest_ascent(f, f.minimum, 0.5, steps=100, generator=seeded(0)))


def test_sharpest_ascent_finds_a_maximum_inside_the_ball():
    f = Quadratic(-torch.eye(3, dtype=DOUBLE), torch.full((3,), 0.2, dtype=DOUBLE))
    found = sharpest_ascent(f, torch.zeros(3, dtype=DOUBLE), 1.0, steps=200)
    # the shortest step is 1e-6 of the radius
    torch.testing.assert_close(found, f.minimum, rtol=0, atol=2e-6)


def test_sharpest_ascent_stays_where_f_is_finite():
    class Cliff(Quadratic):
        def value_and_gradient(self, theta):
            return super().value_and_gradient(theta) if theta.norm() < 0.8 else (float("inf"), self.gradient(theta))

    f = Cliff(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    found = sharpest_ascent(f, torch.tensor([0.1, 0.0], dtype=DOUBLE), 1.0, steps=100)
    # f rises along the first axis up to the cliff; the shortest step is 1e-6
    torch.testing.assert_close(found, torch.tensor([0.7, 0.0], dtype=DOUBLE), rtol=0, atol=2e-6)


def test_sharpest_ascent_spends_no_more_than_its_steps():
    class Counted(LogisticRegression):
        spent = 0

        def value_and_gradient(self, w):
            self.spent += 1
            return super().value_and_gradient(w)

    f = Counted()
    sharpest_ascent(f, torch.ones(8, dtype=DOUBLE), 0.5, steps=7)
    assert f.spent == 7


# --- bad input ---------------------------------------------------------------------------------------


def test_bad_input_of_random_directions_is_named():
    f = _network()
    with pytest.raises(ValueError, match=r"normalization='tensor'.*'layer'"):
        random_direction(f, f.theta, normalization="tensor")
    with pytest.raises(ValueError, match=r"one_dimensional='one'.*'zero'"):
        random_direction(f, f.theta, one_dimensional="one")
    with pytest.raises(ValueError, match=r"LogisticRegression.*normalization='none'"):
        random_direction(LogisticRegression(), torch.zeros(8, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"theta has shape \(2,\)"):
        random_direction(f, torch.zeros(2))
    biases = f.restrict("*.bias")
    for objective, theta in ((biases, biases.theta), (f, torch.zeros(f.size))):
        with pytest.raises(ValueError, match=r"direction is zero.*one_dimensional='normalize'"):
            random_direction(objective, theta)


def test_bad_input_of_points_is_named():
    w = _trajectory(4, 5)
    with pytest.raises(ValueError, match=r"theta_b has shape \(3,\)"):
        between(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"theta_c has shape \(3,\)"):
        plane_through(w[0], w[1], w[2, :3])
    with pytest.raises(ValueError, match="theta_b is not finite"):
        plane_through(w[0], w[1] / 0, w[2])
    with pytest.raises(ValueError, match=r"points\[1\] has shape \(3,\)"):
        trajectory_plane([w[0], w[1, :3], w[2]])
    with pytest.raises(ValueError, match=r"origin has shape \(\)"):
        trajectory_plane(w[0])
    with pytest.raises(ValueError, match="points has 1"):
        trajectory_plane(w[:1])
    with pytest.raises(ValueError, match="lie on a line"):
        trajectory_plane(torch.arange(5.0)[:, None] * torch.ones(8) / 3)
    with pytest.raises(ValueError, match="lie on a line"):
        trajectory_plane(torch.ones(4, 8))
    with pytest.raises(ValueError, match=r"points \[1, 3\] \(from 0\)"):
        trajectory_plane(torch.stack([w[0], w[1] / 0, w[2], w[3] * float("nan")]), origin=w[0])
    with pytest.raises(ValueError, match="names has 2 for 4 points"):
        project_onto_plane(w, w[0], w[1], w[2], names=["a", "b"])
    with pytest.raises(ValueError, match="names has 0 for 0 points"):
        project_onto_plane([], w[0], w[1], w[2])
    with pytest.raises(ValueError, match=r"direction_b has norm 0\.0"):
        project_onto_plane(w, w[0], w[1], 0 * w[2])
    with pytest.raises(ValueError, match="parallel"):
        project_onto_plane(w, w[0], w[1].float(), -2 * w[1])
    with pytest.raises(ValueError, match=r"direction_a has shape \(2,\)"):
        project_onto_plane(w, w[0], w[1, :2], w[2])


def test_bad_input_of_derivatives_is_named():
    f = Quadratic(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    pairs = eigenpairs(Dense(torch.eye(2, dtype=DOUBLE)), 1, generator=seeded(0))
    with pytest.raises(ValueError, match=r"index=1: there are 1 pairs"):
        eigenvector(pairs, 1, f)
    with pytest.raises(ValueError, match=r"eigenvectors of size 2, the objective 8"):
        eigenvector(pairs, 0, LogisticRegression())
    with pytest.raises(ValueError, match=r"gradient at theta has norm 0\.0"):
        gradient_direction(f, f.minimum)
    with pytest.raises(ValueError, match=r"theta has shape \(3,\)"):
        gradient_direction(f, torch.zeros(3))
    for radius in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"radius="):
            sharpest_ascent(f, f.minimum, radius)
    with pytest.raises(ValueError, match="steps=1"):
        sharpest_ascent(f, f.minimum, 1.0, steps=1)
    hill = Quadratic(-torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"radius=1\.0 of theta is higher than f = 0\.0"):
        sharpest_ascent(hill, hill.minimum, 1.0)

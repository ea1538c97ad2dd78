import numpy as np
import pytest
import torch

from landscape import line, plane
from tests.problems import DOUBLE, Quadratic, seeded, symmetric, tiny_objective


def _quadratic() -> tuple[Quadratic, torch.Tensor, torch.Tensor, torch.Tensor]:
    f = Quadratic(symmetric([3.0, 1.0, -0.5, 0.0]), torch.ones(4, dtype=DOUBLE), constant=0.2)
    x, d1, d2 = torch.randn(3, 4, generator=seeded(0), dtype=DOUBLE)
    return f, x, d1, d2


def test_a_line_through_a_quadratic_is_its_parabola():
    f, x, d, _ = _quadratic()
    a = np.linspace(-2, 3, 11)
    found = line(f, x, d, a)
    slope, curvature = float(f.gradient(x) @ d), float(d @ f.hessian @ d)
    np.testing.assert_allclose(found.loss, f.value(x) + slope * a + curvature / 2 * a**2, rtol=1e-12)
    np.testing.assert_array_equal(found.coordinates, a)
    assert found.direction_norm == pytest.approx(float(d.norm()))
    assert found.cost.values == 11


def test_a_plane_is_evaluated_where_its_axes_say():
    f, x, d1, d2 = _quadratic()
    a, b = np.array([-1.0, 0.0, 2.0]), np.array([0.0, 0.5])
    found = plane(f, x, d1, d2, a, b)
    direct = [[f.value(x + ai * d1 + bj * d2) for bj in b] for ai in a]
    np.testing.assert_allclose(found.loss, direct, rtol=1e-12)
    assert found.loss.shape == (3, 2)
    np.testing.assert_allclose(found.direction_norms, [float(d1.norm()), float(d2.norm())])
    assert found.cosine == pytest.approx(float(d1 @ d2 / (d1.norm() * d2.norm())))


def test_slices_of_a_network_are_direct_evaluations_with_its_accuracy():
    f = tiny_objective()
    d1, d2 = torch.randn(2, f.size, generator=seeded(0), dtype=DOUBLE)
    found = line(f, f.theta, d1, [0.0, 0.7])
    assert found.loss.tolist() == [f.value(f.theta), f.value(f.theta + 0.7 * d1)]
    assert found.accuracy[1] == f.metrics(f.theta + 0.7 * d1)["accuracy"]
    surface = plane(f, f.theta, d1, d2, [0.0, 0.7], [0.0, 0.3])
    assert surface.loss[:, 0].tolist() == found.loss.tolist()


def test_the_middle_of_a_line_between_two_points_is_their_mean():
    f, x, y, _ = _quadratic()
    assert line(f, x, y - x, [0.5]).loss[0] == pytest.approx(f.value((x + y) / 2), rel=1e-12)


def test_losses_that_are_not_finite_are_kept_and_counted():
    class Cliff(Quadratic):
        def value(self, theta: torch.Tensor) -> float:
            value = super().value(theta)
            return float("nan") if value > 5 else float("inf") if value > 2 else value

    f = Cliff(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    x, e = torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)
    found = line(f, x, e[0], [0.0, 2.5, 4.0])
    assert found.loss[0] == 0
    assert np.isinf(found.loss[1])
    assert np.isnan(found.loss[2])
    assert found.not_finite == 2
    assert plane(f, x, e[0], e[1], [0.0, 2.5], [0.0, 4.0]).not_finite == 3


def test_progress_is_asked_to_show_every_point():
    f, x, d, _ = _quadratic()
    seen = []

    def progress(iterable, description):
        seen.append((description, len(list(iterable))))
        return iterable

    line(f, x, d, [0.0, 1.0, 2.0], progress=progress)
    assert seen == [("line", 3)]


def test_bad_input_is_named():
    f, x, d1, _ = _quadratic()
    for direction, message in (
        (torch.zeros(4, dtype=DOUBLE), r"direction has norm 0\.0"),
        (torch.ones(3), r"direction has shape \(3,\)"),
        (d1 * float("nan"), "direction has norm nan"),
    ):
        with pytest.raises(ValueError, match=message):
            line(f, x, direction, [0.0])
    with pytest.raises(ValueError, match="coordinates has shape"):
        line(f, x, d1, [])
    with pytest.raises(ValueError, match=r"theta has shape \(2,\)"):
        line(f, x[:2], d1, [0.0])
    with pytest.raises(ValueError, match=r"parallel \(cosine -1\.0"):
        plane(f, x, d1, -2 * d1, [0.0], [0.0])
    with pytest.raises(ValueError, match="b has shape"):
        plane(f, x, d1, x, [0.0], [[0.0]])

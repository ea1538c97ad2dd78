"""Lines and planes through weights: between two points, through three, along a trajectory.

The weights w_i of a trajectory, seen from the origin w (its last point), are the rows of M (points, n). The plane
through w nearest to all of them, in the sense of the sum of squared distances, is spanned by the two leading right
singular vectors of M; sigma_k^2 / ||M||_F^2 is the share of the sum of squares along each. They come from the Gram
matrix M M' = Q Sigma^2 Q' of (points, points) as d_k = M' q_k / sigma_k, so nothing of size (n, n) is formed.

Li et al. 2018 (arXiv:1712.09913) take the same M but let their PCA subtract its mean, which finds the nearest plane
through the mean and shifts it to w; the points lie further from that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from landscape.directions.fingerprints import fingerprints
from landscape.parameters import check_vector
from landscape.results import Frame
from landscape.sums import norm

__all__ = ["between", "plane_through", "project_onto_plane", "trajectory_plane"]

_BLOCK = 2**20  # numbers to hold in float64 at once: blocks of 8 MiB were 3.5 times faster than of 128 MiB
_PARALLEL = 1e-6  # sine of the angle below which two directions span no plane, float32 or float64
# sigma_2 / sigma_1 below which the Gram matrix, which squares it, holds nothing but rounding: sqrt(eps) with a margin
_GRAM = 1e-7


def between(theta_a: Tensor, theta_b: Tensor) -> Tensor:
    """From a to b: coordinate 0 is a, coordinate 1 is b."""
    check_vector("theta_b", theta_b, len(theta_a))
    return theta_b - theta_a


def plane_through(
    theta_a: Tensor, theta_b: Tensor, theta_c: Tensor, *, names: Sequence[str] = ("a", "b", "c")
) -> Frame:
    """The plane through three points, with orthonormal directions.

        d1 = (b - a) / ||b - a||,   d2 = the part of c - a orthogonal to d1, at unit length

    Args:
        theta_a: the origin, shape (n,).
        theta_b: on the first axis, shape (n,).
        theta_c: above it, shape (n,).
        names: of the three, for legends.

    Returns:
        Frame, whose ``at(*coordinates[i])`` is point i to rounding.

    Raises:
        ValueError: sizes that do not fit, points that are not finite, coincide or lie on one line.

    Reference:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson 2018, arXiv:1802.10026.

    Example:
        >>> frame = plane_through(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]))
        >>> frame.coordinates
        array([[0., 0.],
               [2., 0.],
               [1., 1.]])
    """
    points = (theta_a, theta_b, theta_c)
    for name, point in zip(("theta_a", "theta_b", "theta_c"), points, strict=True):
        check_vector(name, point, len(theta_a))
        if not bool(point.isfinite().all()):
            raise ValueError(f"{name} is not finite: give finite weights")
    a, b, c = (_double(point) for point in points)
    basis, triangle = _orthonormal(b - a, c - a)
    rounding = _rounding(points)
    if not float(triangle[0, 0]) > rounding:
        raise ValueError("theta_a and theta_b are the same point: give three that differ")
    if not float(triangle[1, 1]) > rounding:
        raise ValueError(
            f"theta_a, theta_b and theta_c are collinear to rounding (theta_c is {float(triangle[1, 1]):.1e} from the "
            "line): give three that span a plane, or take a line through them"
        )
    return project_onto_plane(points, theta_a, *basis, names=names)


def trajectory_plane(
    points: Tensor | Sequence[Tensor], *, origin: Tensor | None = None, names: Sequence[str] | None = None
) -> Frame:
    """The plane nearest to the points of a trajectory, by PCA of w_i - w.

    Args:
        points: the weights w_i, shape (points, n), or a list of (n,). From the files of ``optim.train``:
            ``[f.at(load_checkpoint(path)).theta for path in sorted((run / "trajectory").iterdir())]``.
        origin: w, shape (n,). Default: the last point.
        names: of the points. Default: "0", "1", ...

    Returns:
        Frame with orthonormal directions, each one's entry of largest magnitude positive. The squares of a point's
        coordinates and of its distance ``out_of_plane`` add up to ||w_i - w||^2, and ``explained`` is
        sigma_k^2 / ||M||_F^2.

    Raises:
        ValueError: sizes that do not fit, points that are not finite or lie on one line.

    Reference:
        Li, Xu, Taylor, Studer & Goldstein 2018, arXiv:1712.09913, section 7.2.
    """
    points = list(points)
    if len(points) < 2:
        raise ValueError(f"points has {len(points)}: give at least two besides the origin")
    origin = points[-1] if origin is None else origin
    _check_points(points, origin)
    gram = torch.zeros(len(points), len(points), dtype=torch.float64)
    for _, block in _displacements(points, origin):
        gram.addmm_(block, block.T)
    broken = (~gram.diag().isfinite()).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"points {broken} (from 0) or the origin are not finite: leave them out")
    squares, q = torch.linalg.eigh(gram)
    sigma = squares[-2:].clamp(min=0).sqrt()
    if not float(sigma[0]) > max(_GRAM * float(sigma[1]), _rounding([*points, origin]) * len(points) ** 0.5):
        raise ValueError(
            "the points lie on a line through the origin to rounding: give a trajectory that turns, or take a line"
        )
    directions = torch.empty(2, len(origin), dtype=torch.float64)
    for columns, block in _displacements(points, origin):
        directions[:, columns] = q[:, [-1, -2]].T @ block
    basis, _ = _orthonormal(*directions)
    largest = basis.abs().argmax(dim=1, keepdim=True)
    return project_onto_plane(points, origin, *(basis * basis.gather(1, largest).sign()), names=names)


def project_onto_plane(
    points: Tensor | Sequence[Tensor],
    origin: Tensor,
    direction_a: Tensor,
    direction_b: Tensor,
    *,
    names: Sequence[str] | None = None,
) -> Frame:
    """Where points lie on the plane origin + a d1 + b d2, and how far off it.

    Args:
        points: shape (points, n), or a list of (n,).
        origin: shape (n,).
        direction_a: d1, shape (n,), of any length.
        direction_b: d2, shape (n,), not parallel to d1 but at any other angle.
        names: of the points. Default: "0", "1", ...

    Returns:
        Frame. The coordinates and the distance of a point that is not finite are not finite either.

    Raises:
        ValueError: sizes that do not fit, zero or parallel directions, a name for each point missing.
    """
    points = list(points)
    names = [str(i) for i in range(len(points))] if names is None else list(names)
    if len(names) != len(points) or not points:
        raise ValueError(f"names has {len(names)} for {len(points)} points: give points, and one name for each")
    _check_points(points, origin)
    for name, direction in (("direction_a", direction_a), ("direction_b", direction_b)):
        check_vector(name, direction, len(origin))
        length = norm(direction)
        if not 0 < length < float("inf"):
            raise ValueError(f"{name} has norm {length}: give a finite direction that is not zero")
    directions = torch.stack([_double(direction_a), _double(direction_b)])
    basis, triangle = _orthonormal(*directions)
    if not float(triangle[1, 1]) > _PARALLEL * float(directions[1].norm()):
        raise ValueError("direction_a and direction_b are parallel: give two that span a plane")
    in_plane = torch.zeros(len(points), 2, dtype=torch.float64)  # coefficients of the orthonormal basis
    for columns, block in _displacements(points, origin):
        in_plane += block @ basis[:, columns].T
    # summed from the rest itself: ||w_i - w||^2 - ||in_plane_i||^2 would lose half of the digits near the plane
    squared_rest = torch.zeros(len(points), dtype=torch.float64)
    for columns, block in _displacements(points, origin):
        squared_rest += (block - in_plane @ basis[:, columns]).square().sum(dim=1)
    squares = in_plane.square()
    return Frame(
        names=names,
        origin=_double(origin).clone(),
        directions=directions,
        coordinates=torch.linalg.solve_triangular(triangle, in_plane.T, upper=True).T.numpy(),
        out_of_plane=squared_rest.sqrt().numpy(),
        explained=(squares.sum(dim=0) / (squares.sum() + squared_rest.sum())).numpy(),
        fingerprint=fingerprints(origin, *directions),
    )


def _check_points(points: Sequence[Tensor], origin: Tensor) -> None:
    check_vector("origin", origin, origin.numel())
    for i, point in enumerate(points):
        check_vector(f"points[{i}]", point, len(origin))


def _double(vector: Tensor) -> Tensor:
    return vector.detach().to("cpu", torch.float64)


def _displacements(points: Sequence[Tensor], origin: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """w_i - w as float64 blocks (points, columns), which together are M."""
    width = max(1, _BLOCK // len(points))
    for start in range(0, len(origin), width):
        columns = slice(start, start + width)
        yield columns, torch.stack([_double(point[columns]) for point in points]) - _double(origin[columns])


def _orthonormal(d1: Tensor, d2: Tensor) -> tuple[Tensor, Tensor]:
    """Q (2, n) with orthonormal rows and R (2, 2) upper triangular: d1 = r11 q1, d2 = r12 q1 + r22 q2."""
    triangle = torch.zeros(2, 2, dtype=torch.float64)
    triangle[0, 0] = d1.norm()
    q1 = d1 / triangle[0, 0]
    for _ in range(2):  # twice is enough (Giraud et al. 2005)
        projection = q1 @ d2
        triangle[0, 1] += projection
        d2 = d2 - projection * q1
    triangle[1, 1] = d2.norm()
    return torch.stack([q1, d2 / triangle[1, 1]]), triangle


def _rounding(points: Sequence[Tensor]) -> float:
    """A bound on the distance from a line that rounding alone may cause, as for the mean of two points.

    Each weight is rounded by eps/2 of itself, and so is each of the few operations that computed it.
    """
    eps = max(torch.finfo(point.dtype).eps for point in points)
    return 4 * eps * max(norm(point) for point in points)

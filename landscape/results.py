"""What the analyses return: frozen records of CPU arrays, and their form as xarray Datasets.

An array's dimensions are declared in its type, ``Annotated[np.ndarray, "probe", "step"]``; ``to_dataset``
and ``from_dataset`` go by that, so a record needs no code of its own to be stored. All arrays are NumPy's
but the eigenvectors, which are torch tensors, as all points of the parameter space are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, get_type_hints

import numpy as np
import torch
import xarray

__all__ = [
    "Comparison",
    "Cost",
    "Eigenpairs",
    "Line",
    "LocalEntropy",
    "Measures",
    "Plane",
    "SpectralDensity",
    "from_dataset",
    "standard_error",
    "to_dataset",
]


@dataclass(frozen=True)
class Cost:
    """What a result took."""

    values: int = 0  # evaluations of f over all its data
    gradients: int = 0
    products: int = 0  # Hessian-vector products
    seconds: float = 0.0


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues and eigenvectors, each with its residual."""

    values: Annotated[np.ndarray, "pair"]  # (k,), in the order that `which` names
    vectors: Annotated[torch.Tensor, "weight", "pair"]  # (n, k), unit columns
    residuals: Annotated[np.ndarray, "pair"]  # (k,), ||H v - lambda v||: an eigenvalue is this near
    converged: Annotated[np.ndarray, "pair"]  # (k,) bool, residual <= tol * |lambda_max|
    which: str
    tol: float
    cost: Cost

    @property
    def products(self) -> int:
        """Hessian-vector products spent, the residuals' included."""
        return self.cost.products


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of the n eigenvalues: some of them exactly, the others as a quadrature rule per probe.

    A probe's rule sum_j w_j delta(t - node_j) has the moments of the spectral measure seen from that
    probe, exact up to degree 2 steps - 1. With k eigenvalues known, the mean over probes of

        1/n (sum_i delta(t - known_i) + (n - k) sum_j w_j delta(t - node_j))

    estimates 1/n sum_i delta(t - lambda_i). A rule with fewer nodes (an invariant space was found) is
    padded by weights of zero.
    """

    nodes: Annotated[np.ndarray, "probe", "step"]  # (probes, steps), Ritz values, ascending
    weights: Annotated[np.ndarray, "probe", "step"]  # (probes, steps), each probe's sum to 1
    known: Annotated[np.ndarray, "pair"]  # (k,), eigenvalues that were deflated; often none
    size: int  # n
    cost: Cost

    def function_mean(self, function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """tr function(H) / n and its standard error over probes (NaN for one probe).

        Example:
            >>> nodes, weights = np.array([[1.0, 3.0]]), np.array([[0.5, 0.5]])
            >>> rule = SpectralDensity(nodes, weights, np.zeros(0), 10, Cost())
            >>> float(rule.function_mean(np.square)[0])
            5.0
        """
        draws = self.per_probe(function)
        return float(draws.mean()), float(standard_error(draws))

    def per_probe(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Each probe's estimate of tr function(H) / n, shape (probes,)."""
        rest = (self.weights * function(self.nodes)).sum(axis=1)
        k = len(self.known)
        return (function(self.known).sum() + (self.size - k) * rest) / self.size

    def atoms(self) -> tuple[np.ndarray, np.ndarray]:
        """The measure averaged over probes: where it has mass, ascending, and how much; the sum is 1."""
        share = (self.size - len(self.known)) / self.size / len(self.nodes)
        places = np.concatenate([self.known, self.nodes.ravel()])
        masses = np.concatenate([np.full(len(self.known), 1 / self.size), self.weights.ravel() * share])
        order = np.argsort(places)
        return places[order], masses[order]

    def trace(self) -> tuple[float, float]:
        """tr H and its standard error over probes."""
        mean, error = self.function_mean(lambda t: t)
        return self.size * mean, self.size * error

    def mass(self, low: float, high: float) -> tuple[float, float]:
        """The share of eigenvalues in [low, high] and its standard error over probes."""
        return self.function_mean(lambda t: (t >= low) & (t <= high))

    def cdf(self, t: np.ndarray) -> np.ndarray:
        """The share of eigenvalues <= t, averaged over probes; same shape as ``t``."""
        places, masses = self.atoms()
        below = np.concatenate([[0.0], np.cumsum(masses)])
        return below[np.searchsorted(places, t, side="right")]

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """Estimated number of eigenvalues in each bin, shape (len(edges) - 1,).

        Bins are half-open but for the last, as NumPy's are. They sum to n if the edges span all nodes.
        """
        places, masses = self.atoms()
        return np.histogram(places, bins=edges, weights=masses * self.size)[0]

    def density(self, grid: np.ndarray, width: float) -> np.ndarray:
        """The measure smoothed by a Gaussian of standard deviation ``width``, at each point of ``grid``.

        Smoothing is a view: it has its own error, at most ``width`` in Wasserstein-1 distance. What of
        the mass lies outside the grid stays outside; :meth:`grid` makes one that holds all of it.
        """
        return self.density_per_probe(grid, width).mean(axis=0)

    def density_per_probe(self, grid: np.ndarray, width: float) -> np.ndarray:
        """Likewise for each probe, shape (probes, len(grid))."""

        def bump(at: float) -> Callable[[np.ndarray], np.ndarray]:
            return lambda t: np.exp(-(((t - at) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))

        return np.stack([self.per_probe(bump(at)) for at in grid], axis=1)

    def grid(self, width: float, points: int = 1001) -> np.ndarray:
        """An even grid that reaches five widths beyond every node and known eigenvalue."""
        places, _ = self.atoms()
        return np.linspace(places[0] - 5 * width, places[-1] + 5 * width, points)


@dataclass(frozen=True)
class LocalEntropy:
    """F~(x; gamma, beta) = log E exp(-beta f(x')), x' ~ N(x, I/(beta gamma)), at one or more radii.

    The arrays have the shape of the radius asked for: scalars for one, (radii,) for a sweep.
    """

    value: Annotated[np.ndarray, "radius"]  # F~; NaN where `reliable` is False for want of a meaning
    stderr: Annotated[np.ndarray, "radius"]  # standard error of `value` over probes or samples
    # what each draw (Laplace: probe) adds, linearised: their mean is `value`, their spread its error;
    # results drawn with the same seed pair up draw by draw
    contributions: Annotated[np.ndarray, "radius", "draw"]
    # bool. Monte Carlo: whether enough draws carry it for its error to be known. Laplace: whether H + gamma I is
    # positive, so that it exists; how far f is from its parabola it cannot know.
    reliable: Annotated[np.ndarray, "radius"]
    effective_samples: Annotated[np.ndarray, "radius"]  # of the weights exp(-beta f); NaN for Laplace
    mean_loss: Annotated[np.ndarray, "radius"]  # E f(x') over the ball; NaN for Laplace
    mean_loss_stderr: Annotated[np.ndarray, "radius"]
    radius: Annotated[np.ndarray, "radius"]  # 1/sqrt(beta gamma), standard deviation per weight
    gamma: Annotated[np.ndarray, "radius"]
    loss: float  # f(x)
    beta: float
    size: int  # n; the typical ||x' - x|| is radius * sqrt(n)
    method: str
    note: str  # why some radii are not reliable, or ""
    cost: Cost

    @property
    def method_name(self) -> str:
        """As it is written in text."""
        return {"laplace": "Laplace", "monte_carlo": "Monte Carlo"}[self.method]

    @property
    def free_energy(self) -> np.ndarray:
        """-F~/beta, in units of the loss."""
        return -self.value / self.beta

    @property
    def excess(self) -> np.ndarray:
        """-F~/beta - f(x): how much the loss rises over the ball, softly averaged."""
        return self.free_energy - self.loss

    @property
    def excess_stderr(self) -> np.ndarray:
        """Its standard error."""
        return self.stderr / self.beta

    @property
    def jensen_excess(self) -> np.ndarray:
        """E f(x') - f(x), never below the true excess (Jensen); known even where F~ is not."""
        return self.mean_loss - self.loss


@dataclass(frozen=True)
class Line:
    """f(theta + a d) for each coordinate a; NaN and inf are kept."""

    coordinates: Annotated[np.ndarray, "coordinates"]  # (points,), in multiples of d
    loss: Annotated[np.ndarray, "coordinates"]  # (points,)
    accuracy: Annotated[np.ndarray, "coordinates"]  # (points,), NaN where the objective knows none
    direction_norm: float  # ||d||, so that a is a displacement of |a| ||d||
    not_finite: int  # points where the loss is NaN or inf
    cost: Cost


@dataclass(frozen=True)
class Plane:
    """f(theta + a d1 + b d2) on a grid; NaN and inf are kept."""

    a: Annotated[np.ndarray, "a"]  # (A,), in multiples of d1
    b: Annotated[np.ndarray, "b"]  # (B,), in multiples of d2
    loss: Annotated[np.ndarray, "a", "b"]  # (A, B)
    direction_norms: Annotated[np.ndarray, "direction"]  # (2,), ||d1|| and ||d2||
    cosine: float  # of the angle between d1 and d2
    not_finite: int
    cost: Cost


@dataclass(frozen=True)
class Measures:
    """One number per measure and checkpoint, and its difference from the first checkpoint's.

    Differences are paired: the probes, draws and examples were the same for all checkpoints, so the
    standard error is that of the differences themselves. An error of 0 means exact for these examples, NaN that
    it is not known; a value of NaN could not be told.
    """

    names: list[str]  # of the measures, with their units
    flatter: list[str]  # "lower" or "higher": which way is flatter; "" where neither is
    checkpoints: list[str]
    values: Annotated[np.ndarray, "measure", "checkpoint"]
    stderr: Annotated[np.ndarray, "measure", "checkpoint"]
    differences: Annotated[np.ndarray, "measure", "checkpoint"]
    differences_stderr: Annotated[np.ndarray, "measure", "checkpoint"]


@dataclass(frozen=True)
class Comparison:
    """All that was found of several checkpoints of one problem."""

    names: list[str]  # of the checkpoints, the one that others are compared with first
    results: dict[str, Any]  # "checkpoint/analysis" -> its record
    measures: Measures
    metadata: dict[str, dict[str, Any]]  # checkpoint -> what its file says of its training
    settings: dict[str, Any]
    provenance: dict[str, Any]  # versions, seeds, hashes of weights and data

    def of(self, analysis: str) -> dict[str, Any]:
        """The records of one analysis, by checkpoint; those checkpoints that have it."""
        return {name: self.results[f"{name}/{analysis}"] for name in self.names if f"{name}/{analysis}" in self.results}


Result = Eigenpairs | SpectralDensity | LocalEntropy | Line | Plane | Measures
_KINDS: dict[str, type[Result]] = {
    kind.__name__: kind for kind in (Eigenpairs, SpectralDensity, LocalEntropy, Line, Plane, Measures)
}


def to_dataset(result: Result) -> xarray.Dataset:
    """The record as a Dataset: arrays as variables, everything else as JSON attributes."""
    arrays, attributes = {}, {"kind": type(result).__name__}
    for name, dimensions in _fields(type(result)):
        value = getattr(result, name)
        if dimensions:
            array = np.asarray(value)
            # where a sweep would have an axis, a single radius has none
            arrays[name] = (dimensions[len(dimensions) - array.ndim :], array)
        else:
            attributes[name] = json.dumps(asdict(value) if isinstance(value, Cost) else value)
    return xarray.Dataset(arrays, attrs=attributes)


def from_dataset(dataset: xarray.Dataset) -> Any:
    """The record that ``to_dataset`` made ``dataset`` from."""
    kind = _KINDS[dataset.attrs["kind"]]
    values: dict[str, Any] = {}
    for name, dimensions in _fields(kind):
        if dimensions:
            array = dataset[name].values
            values[name] = torch.from_numpy(array) if name == "vectors" else array[()]
        else:
            value = json.loads(dataset.attrs[name])
            values[name] = Cost(**value) if name == "cost" else value
    return kind(**values)


def _fields(kind: type[Result]) -> list[tuple[str, tuple[str, ...]]]:
    """Each field with the dimensions of its array; none for what is no array."""
    hints = get_type_hints(kind, include_extras=True)
    return [(name, getattr(hint, "__metadata__", ())) for name, hint in hints.items()]


def standard_error(draws: np.ndarray) -> np.ndarray:
    """Of the mean over the last axis; NaN for a single draw, which has no spread to tell it from."""
    count = draws.shape[-1]
    if count < 2:
        return np.full(draws.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):  # draws that are not finite have no finite error
        return draws.std(axis=-1, ddof=1) / np.sqrt(count)

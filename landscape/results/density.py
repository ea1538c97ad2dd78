"""The distribution of the n eigenvalues as a quadrature rule per probe; everything else is a view of the rules.

Two errors are told. The spread over probes is that of a sample; intervals are those of ``quadratic_forms``. The rule of
one probe differs from the probe's own spectral measure by what m nodes can miss: the measure's CDF Psi interlaces the
rule's, with C_j = w_1 + ... + w_j,

    C_{j-1} <= Psi(t) <= C_{j+1}   for t between node_j and node_{j+1}   (Chebyshev, Markov, Stieltjes),

so that the Kolmogorov-Smirnov distance is at most max_j w_j, and the Wasserstein-1 distance at most
sum_j (node_{j+1} - node_j) max(w_j, w_{j+1}), where the ends of the support count as nodes without weight (Chen,
Trogdon & Ubaru 2021). The support itself is estimated, so what depends on it is sure only once the outermost nodes
have settled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from landscape.results.estimate import Estimate, standard_error
from landscape.results.quadratic_forms import estimate_of_mean
from landscape.results.records import Cost

__all__ = ["SpectralDensity"]


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
    support: Annotated[np.ndarray, "end"]  # (2,), what the rest lies in: outermost nodes -+ the last beta
    size: int  # n
    cost: Cost

    def function_mean(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """tr function(H) / n and its standard error over probes (NaN for one probe).

        Example:
            >>> nodes, weights = np.array([[1.0, 3.0]]), np.array([[0.5, 0.5]])
            >>> rule = SpectralDensity(nodes, weights, np.zeros(0), np.array([1.0, 3.0]), 10, Cost())
            >>> float(rule.function_mean(np.square)[0])
            5.0
        """
        return self._estimate(function)

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

    def function_trace(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """tr function(H) and its standard error over probes."""
        return self._estimate(function, self.size)

    def trace(self) -> Estimate:
        """tr H and its standard error over probes."""
        return self.function_trace(lambda t: t)

    def moment(self, degree: int) -> Estimate:
        """tr H^degree / n and its standard error over probes; exact per probe below degree 2 steps."""
        return self.function_mean(lambda t: t**degree)

    def log_determinant(self, gamma: float) -> Estimate:
        """log det(I + H / gamma) and its standard error over probes.

        Whether I + H / gamma is positive is told by the lowest node or known eigenvalue, as in Laplace's method. Nodes
        lie inside the spectrum, so that H may reach a little lower.

        Raises:
            ValueError: gamma is not positive, or I + H / gamma is not positive definite as far as is known.
        """
        if not gamma > 0:
            raise ValueError(f"gamma={gamma}: give a positive one")
        lowest = float(self.atoms()[0][0])
        if lowest <= -gamma:
            raise ValueError(
                f"gamma={gamma}: I + H/gamma has no log-determinant, as the eigenvalues of H reach down to "
                # a hundredth more, so that rounding to three digits does not give one that is refused again
                f"{lowest:.6g} <= -gamma: give at least gamma={1.01 * -lowest:.3g}"
            )
        return self.function_trace(lambda t: np.log1p(t / gamma))

    def mass(self, low: float, high: float) -> Estimate:
        """The share of eigenvalues in [low, high] and its standard error over probes.

        Its intervals hold what the quadrature can miss, too, by the bounds on the CDF at both ends.
        """
        from_low, from_middle, from_high = self._cumulative(np.array([low]), "left")
        to_low, to_middle, to_high = self._cumulative(np.array([high]), "right")
        middle = (to_middle - from_middle).mean()
        least, most = np.maximum(to_low - from_high, 0).mean(), (to_high - from_low).mean()
        missed = self._share * (middle - least), self._share * (most - middle)
        return self._estimate(lambda t: (t >= low) & (t <= high), missed=missed)

    def _estimate(
        self, function: Callable[[np.ndarray], np.ndarray], scale: float = 1.0, missed: tuple[float, float] = (0.0, 0.0)
    ) -> Estimate:
        values, known = np.asarray(function(self.nodes), float), np.asarray(function(self.known), float)
        return estimate_of_mean(values, self.weights, known, self.size, scale, missed)

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

    def ks_bound(self) -> float:
        """At most so far are the CDFs of the rules from those of the probes' own measures, averaged over probes."""
        return self._share * float(self.weights.max(axis=1).mean())

    def wasserstein_bound(self) -> float:
        """Likewise in Wasserstein-1 distance, in the units of the eigenvalues."""
        places, heights = self._steps()
        return self._share * float((np.diff(places, axis=1) * heights).sum(axis=1).mean())

    def cdf_band(self, t: np.ndarray, errors: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
        """Between which values the CDF lies at ``t`` (T,): quadrature bounds and so many standard errors over probes.

        With ``errors=0`` the quadrature bounds alone, which are sure; with others it is NaN for one probe.
        """
        low, middle, high = self._cumulative(t, "right")
        spread = errors * standard_error(middle.T) if errors else 0.0
        counted = (self.known[:, None] <= t).sum(axis=0) / self.size
        ends = (counted + self._share * bound for bound in (low.mean(axis=0) - spread, high.mean(axis=0) + spread))
        low, high = (np.clip(end, 0, 1) for end in ends)  # as every CDF is
        return low, high

    def _cumulative(self, t: np.ndarray, side: Literal["left", "right"]) -> Iterator[np.ndarray]:
        """C_{j-1}, C_j and C_{j+1} of each probe, (probes, T), with j the number of nodes below t, or up to it."""
        before = np.pad(np.cumsum(self.weights, axis=1), ((0, 0), (1, 0)))  # C_0 = 0, C_1, ..., C_m
        j = np.stack([np.searchsorted(nodes, t, side=side) for nodes in self.nodes])
        last, step = self.nodes.shape[1], np.isfinite(t).astype(int)  # below or above everything nothing is missed
        return (np.take_along_axis(before, np.clip(j + k * step, 0, last), axis=1) for k in (-1, 0, 1))

    def density_band(self, grid: np.ndarray, width: float, errors: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
        """Between which values the smoothed density lies: quadrature bounds and so many standard errors over probes.

        The quadrature's part is |int bump' (Psi - C)| <= sum_j max(w_j, w_{j+1}) times the bump's total variation
        between node_j and node_{j+1}.
        """
        places, heights = self._steps()

        def bump(distance: np.ndarray) -> np.ndarray:
            return np.exp(-((distance / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))

        missed = np.zeros(len(grid))
        for nodes, height in zip(places, heights, strict=True):
            at = bump(grid[:, None] - nodes)
            inside = (nodes[:-1] < grid[:, None]) & (grid[:, None] < nodes[1:])
            peak = 2 * bump(np.zeros(1)) - at[:, :-1] - at[:, 1:]
            variation = np.where(inside, peak, abs(np.diff(at, axis=1)))
            missed += self._share * variation @ height / len(places)
        draws = self.density_per_probe(grid, width)
        middle, half = draws.mean(axis=0), missed + (errors * standard_error(draws.T) if errors else 0.0)
        return np.maximum(middle - half, 0), middle + half

    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the CDFs may jump (probes, m + 2), the support's ends included, and how far they may be off between."""
        low, high = (np.full((len(self.nodes), 1), end) for end in self.support)
        places = np.concatenate([np.minimum(low, self.nodes[:, :1]), self.nodes, high], axis=1)
        places = np.maximum.accumulate(places, axis=1)
        padded = np.pad(self.weights, ((0, 0), (1, 1)))
        return places, np.maximum(padded[:, :-1], padded[:, 1:])

    @property
    def _share(self) -> float:
        """How much of the measure the rules stand for."""
        return (self.size - len(self.known)) / self.size

    def fraction_near_zero(self, threshold: float) -> Estimate:
        """The share of eigenvalues within ``threshold`` of zero and its standard error over probes."""
        return self.mass(-threshold, threshold)

    def outliers(self) -> tuple[int | None, float]:
        """How many large eigenvalues stand apart from the bulk, and where the bulk ends.

        A heuristic: the known eigenvalues and the largest of the rest, in descending order, are cut at their widest
        ratio lambda_i / lambda_{i+1}. Without known eigenvalues there is nothing to count, and the number is None.
        """
        rest = float(self.nodes.max())
        if len(self.known) == 0:
            return None, rest
        top = np.append(np.sort(self.known[self.known > max(rest, 0)])[::-1], rest)
        if len(top) == 1 or rest <= 0:  # what is positive is known then, and infinitely further off than the rest
            return len(top) - 1, rest
        count = int((top[:-1] / top[1:]).argmax()) + 1
        return count, float(top[count])

    def summary(self, threshold: float | None = None) -> dict[str, float]:
        """The spectrum in a few numbers.

        Args:
            threshold: what counts as zero. Default: a thousandth of the largest |lambda|.

        Returns:
            By name; ``outliers`` is NaN where no eigenvalue is known, as they are counted among those.
        """
        places, _ = self.atoms()
        largest = float(max(abs(places[0]), abs(places[-1])))
        threshold = 1e-3 * largest if threshold is None else threshold
        count, edge = self.outliers()
        trace, trace_error = self.trace()
        near, near_error = self.fraction_near_zero(threshold)
        negative, negative_error = self.mass(-np.inf, np.nextafter(-threshold, -np.inf))
        return {
            "lowest": float(places[0]),
            "highest": float(places[-1]),
            "trace": trace,
            "trace_stderr": trace_error,
            "outliers": np.nan if count is None else count,
            "bulk_edge": edge,
            "threshold": threshold,
            "near_zero": near,
            "near_zero_stderr": near_error,
            "negative": negative,
            "negative_stderr": negative_error,
            "ks_bound": self.ks_bound(),
            "wasserstein_bound": self.wasserstein_bound(),
        }

    def merged(self, other: SpectralDensity) -> SpectralDensity:
        """Both results' probes together, of the same operator with the same eigenvalues known and as many steps.

        Raises:
            ValueError: they are of different sizes or steps, or know different eigenvalues.
        """
        if self.size != other.size or not np.array_equal(self.known, other.known):
            raise ValueError(
                f"other is of size {other.size} with {len(other.known)} eigenvalues known, this of {self.size} with "
                f"{len(self.known)}: merge densities of one operator with the same deflation"
            )
        steps, others = self.nodes.shape[1], other.nodes.shape[1]
        if steps != others:  # padded without weight, a shorter rule would pass for one that is exact
            raise ValueError(f"other has {others} steps, this {steps}: make both with the same steps")
        return SpectralDensity(
            nodes=np.concatenate([self.nodes, other.nodes]),
            weights=np.concatenate([self.weights, other.weights]),
            known=self.known,
            support=np.array([min(self.support[0], other.support[0]), max(self.support[1], other.support[1])]),
            size=self.size,
            cost=Cost(
                products=self.cost.products + other.cost.products, seconds=self.cost.seconds + other.cost.seconds
            ),
        )

"""What the analyses return: frozen records of CPU arrays.

An array's dimensions are declared in its type, ``Annotated[np.ndarray, "probe", "step"]``. All arrays are NumPy's but
the eigenvectors, which are torch tensors, as all points of the parameter space are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch

from landscape.results.estimate import check_level, standard_error, student_interval

__all__ = [
    "Comparison",
    "Cost",
    "Eigenpairs",
    "LocalEntropy",
    "Measures",
    "error_covariance",
    "paired_errors",
    "without_seed",
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
    # (k,), ||H v - lambda v||: an eigenvalue is this near; none is told to be below rounding
    residuals: Annotated[np.ndarray, "pair"]
    # (k,) bool, residual <= tol * |lambda_max|, or tol * |lambda| where it was asked relative to each one's own
    converged: Annotated[np.ndarray, "pair"]
    which: str
    tol: float
    cost: Cost

    @property
    def products(self) -> int:
        """Products spent in the search, which gives the residuals too.

        Those that check the operator are not counted: two of one that is not ours, one where a run was resumed.
        """
        return self.cost.products


@dataclass(frozen=True)
class LocalEntropy:
    """F~(x; gamma, beta) = log E exp(-beta f(x')), x' ~ N(x, I/(beta gamma)), at one or more radii.

    The arrays have the shape of the radius asked for: scalars for one, (radii,) for a sweep.
    """

    value: Annotated[np.ndarray, "radius"]  # F~; NaN where `reliable` is False for want of a meaning
    stderr: Annotated[np.ndarray, "radius"]  # of `value`, over its draws: see `contributions`
    # contribution of each draw (Laplace: probe; SMC: population; SGLD: chain), linearised: their mean is `value`, their
    # spread its error. For Laplace and Monte Carlo, results of the same seed are paired draw by draw.
    contributions: Annotated[np.ndarray, "radius", "draw"]
    # bool. Monte Carlo: whether enough draws carry it for its error to be known. Laplace: whether H + gamma I is
    # positive as far as the nodes tell, so that it exists; how far f is from its parabola it cannot know. SMC: whether
    # its chains have burnt in, its particles are effective and its populations agree. SGLD: never.
    reliable: Annotated[np.ndarray, "radius"]
    # effective sample size, for Monte Carlo of the weights exp(-beta f), for SMC of the populations; NaN otherwise
    effective_samples: Annotated[np.ndarray, "radius"]
    mean_loss: Annotated[np.ndarray, "radius"]  # E f(x') over the ball, inf where f is not finite; NaN for Laplace
    mean_loss_stderr: Annotated[np.ndarray, "radius"]
    # Of SMC, in part of SGLD; NaN or empty otherwise. F~ lies between lower and upper, which are Riemann sums over the
    # schedule widened by two standard errors; thermodynamic integrates over the same schedule to higher order.
    lower: Annotated[np.ndarray, "radius"]
    upper: Annotated[np.ndarray, "radius"]
    within_tol: Annotated[np.ndarray, "radius"]  # bool: the bracket is no wider than `tol`; False without a bracket
    thermodynamic: Annotated[np.ndarray, "radius"]
    thermodynamic_stderr: Annotated[np.ndarray, "radius"]
    virial: Annotated[np.ndarray, "radius"]  # <y . grad U> / n at s = 1: 1 in equilibrium
    virial_stderr: Annotated[np.ndarray, "radius"]
    shift: Annotated[torch.Tensor, "radius", "weight"]  # <x'> - x at s = 1
    shift_stderr: Annotated[np.ndarray, "radius"]  # square root of the expected squared norm of its error
    r_hat: Annotated[np.ndarray, "radius"]  # split R-hat of the chains at s = 1: near 1 where they mix
    autocorrelation_time: Annotated[np.ndarray, "radius"]  # there, in draws: draws per effective draw
    drift: Annotated[np.ndarray, "radius"]  # of psi along the chains at s = 1: below 0 where they are still burning in
    drift_stderr: Annotated[np.ndarray, "radius"]
    step_size_bias: Annotated[np.ndarray, "radius"]  # SGLD alone: `value` minus that with twice the step size
    step_size_bias_stderr: Annotated[np.ndarray, "radius"]
    # inverse temperatures s, from 0 to 1; NaN after the last where other radii have more
    schedule: Annotated[np.ndarray, "radius", "temperature"]
    step_loss: Annotated[np.ndarray, "radius", "temperature"]  # <f>_s
    # <psi>_s: F~ is minus its integral over s, plus a constant; beta <f>_s where the particles start from q
    step_potential: Annotated[np.ndarray, "radius", "temperature"]
    step_acceptance: Annotated[np.ndarray, "radius", "temperature"]  # rate of the moves at s; NaN at s = 0
    # effective sample size over the number of particles, of the weights of the step to s; NaN at s = 0
    step_relative_ess: Annotated[np.ndarray, "radius", "temperature"]
    radius: Annotated[np.ndarray, "radius"]  # 1/sqrt(beta gamma), standard deviation per weight
    gamma: Annotated[np.ndarray, "radius"]
    loss: float  # f(x)
    beta: float
    size: int  # n; the typical ||x' - x|| is radius * sqrt(n)
    method: str
    note: str  # why some radii are not reliable, and what else is amiss, with the remedy; or ""
    cost: Cost

    @property
    def method_name(self) -> str:
        """As it is written in text."""
        names = {"laplace": "Laplace", "monte_carlo": "Monte Carlo", "smc": "annealed SMC", "sgld": "SGLD"}
        return names[self.method]

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
    def excess_bracket(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the excess, from ``lower`` and ``upper``."""
        return -self.upper / self.beta - self.loss, -self.lower / self.beta - self.loss

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Confidence interval of F~ by Student's t of as many draws as there are, which may be few.

        It holds where ``reliable`` is True: the spread of draws that do not carry the estimate says nothing of its
        error.

        Args:
            level: the share of such intervals that hold F~.

        Raises:
            ValueError: level is not between 0 and 1.
        """
        check_level(level)
        return student_interval(self.value, self.stderr, self.contributions.shape[-1] - 1, level)

    @property
    def jensen_bracket(self) -> tuple[np.ndarray, np.ndarray]:
        """-beta E_q f <= F~ <= -beta <f>_1, by Jensen's and Gibbs' inequalities: wide, but free of the schedule."""
        if self.schedule.shape[-1] == 0:
            return -self.beta * self.mean_loss, np.full(np.shape(self.value), np.nan)[()]
        last = np.isfinite(self.schedule).sum(axis=-1, keepdims=True) - 1
        return -self.beta * self.mean_loss, -self.beta * np.take_along_axis(self.step_loss, last, axis=-1)[..., 0]

    @property
    def gradient(self) -> torch.Tensor:
        """grad F~ = -beta gamma (x - <x'>), (radii, n) or (n,): what Entropy-SGD follows.

        Raises:
            ValueError: the method does not estimate it.
        """
        if self.shift.shape[-1] == 0:
            raise ValueError(f"the {self.method_name} result has no gradient: use method='smc'")
        return torch.as_tensor(self.beta * self.gamma).to(self.shift)[..., None] * self.shift

    @property
    def jensen_excess(self) -> np.ndarray:
        """E f(x') - f(x), never below the true excess (Jensen); known even where F~ is not."""
        return self.mean_loss - self.loss


@dataclass(frozen=True)
class Measures:
    """One number per measure and checkpoint, and its difference from the first checkpoint's.

    Differences are paired: the probes, draws and examples were the same for all checkpoints, so the
    standard error is that of the differences themselves; of SMC that of independent estimates. An error of 0 means
    exact for these examples, NaN that it is not known; a value of NaN could not be told.
    """

    names: list[str]  # of the measures, with what each depends on, such as the radius
    flatter: list[str]  # "lower" or "higher": which way is flatter; "" where neither is
    checkpoints: list[str]
    values: Annotated[np.ndarray, "measure", "checkpoint"]
    stderr: Annotated[np.ndarray, "measure", "checkpoint"]
    differences: Annotated[np.ndarray, "measure", "checkpoint"]
    differences_stderr: Annotated[np.ndarray, "measure", "checkpoint"]
    # of the errors of any two values: of paired draws, or zero but for each with itself
    covariance: Annotated[np.ndarray, "measure", "checkpoint", "with"]
    invariant: list[bool]  # whether the rescaling of ReLU layers leaves it as it is (Dinh et al. 2017)


@dataclass(frozen=True)
class Comparison:
    """All that was found of several checkpoints of one problem."""

    names: list[str]  # of the checkpoints, the one that others are compared with first
    results: dict[str, Any]  # "checkpoint/analysis", or "minima/analysis" of all of them -> its record
    measures: Measures
    metadata: dict[str, dict[str, Any]]  # checkpoint -> what its file says of its training
    settings: dict[str, Any]
    provenance: dict[str, Any]  # versions, seeds, hashes of weights and data
    failures: dict[str, str] = field(default_factory=dict)  # those of `results` that there are not -> why
    groups: dict[str, list[str]] = field(default_factory=dict)  # optimizers -> the checkpoints of their seeds, if any
    diverged: tuple[str, ...] = ()  # checkpoints that were left out, since their loss is not finite
    analyses: tuple[Any, ...] = ()  # the rows of the table of analyses that were asked for

    @property
    def replicated(self) -> bool:
        """Whether a group has several runs; otherwise nothing is known of other seeds."""
        return any(len(names) > 1 for names in self.groups.values())

    def of(self, analysis: str) -> dict[str, Any]:
        """The records of one analysis, by checkpoint; those checkpoints that have it."""
        return {name: self.results[f"{name}/{analysis}"] for name in self.names if f"{name}/{analysis}" in self.results}


def paired_errors(errors: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
    """The standard error of each difference from the first.

    Args:
        errors: of each value, (values,).
        draws: (values, draws), where each value is the mean of its draws and these pair up. Then the error is that of
            the paired differences, else that of both values together.
    """
    if draws is not None:
        return standard_error(draws - draws[0])
    together = np.hypot(errors, errors[0])
    together[0] = 0.0  # from itself it differs by nothing
    return together


def without_seed(label: str) -> str:
    """NAME of ``NAME-seedK``, which runs of one group are called; other labels as they are."""
    return re.sub(r"-seed-?\d+(?=$|:)", "", label)


def error_covariance(errors: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
    """The covariance of the errors of any two values, (values, values); arguments as of ``paired_errors``."""
    if draws is None:
        return np.diag(errors**2)
    count = draws.shape[-1]
    if count < 2:
        return np.full((len(draws), len(draws)), np.nan)
    with np.errstate(invalid="ignore"):
        centred = draws - draws.mean(axis=-1, keepdims=True)
        return centred @ centred.T / (count * (count - 1))

"""Comparison of the top eigenvalues and the trace of a network's Hessian with those of PyHessian (Yao et al. 2020).

Both get the same network, loss, data and theta. Nothing else is shared: PyHessian's eigenvalues come from power
iteration with deflation, ours from Lanczos; both traces are Hutchinson's, from independent probes. Four properties of
PyHessian are taken into account:

- It keeps the gradient's graph for a single batch only, and rebuilds it for every product if there are several. So it
  is given all data as one batch.
- It does not check the second derivatives of torch's kernels. As ours, it is run on kernels that have correct ones
  (``landscape.objective.evaluation.kernels``): those of the fused weight normalisation are wrong, and fused attention
  and cuDNN's recurrent layers have none.
- Its power iteration stops when two successive estimates differ by less than ``tol``, its default being 1e-3, which
  bounds no error. Here it is run to 1e-6, and an agreement to 1e-3 is required. Between two eigenvalues of nearly the
  same magnitude it may still stop too early.
- Its trace stops early as well, and after two samples where the trace is negative; here it never does.

PyHessian's spectral density is not compared, since it fails: it calls ``torch.eig``, which PyTorch no longer has. It
uses the same products as its eigenvalues and its trace.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyhessian
import torch
from torch import Tensor, nn

from landscape.objective import ModelObjective
from landscape.objective.evaluation.kernels import differentiable_twice
from landscape.objective.evaluation.loss import is_criterion
from landscape.objective.tensors import network_at_theta
from landscape.operators import Hessian
from landscape.randomness import generator_or_new
from landscape.results import standard_error
from landscape.spectrum.density import spectral_density
from landscape.spectrum.eigenpairs import eigenpairs

__all__ = ["Agreement", "CrossCheck", "cross_check"]

_OUR_TOL = 1e-4  # so that our own error adds little to what is allowed
_THEIR_TOL, _THEIR_ITERATIONS = 1e-6, 2000
_ALLOWED = 1e-3  # PyHessian's default tol
_ERRORS = 3.0  # combined standard errors: two right traces differ by more once in 370 times


@dataclass(frozen=True)
class Agreement:
    """One quantity, computed by both."""

    quantity: str
    ours: float
    theirs: float
    allowed: float  # |ours - theirs| that still is agreement
    agree: bool  # that it is no more, and that ours converged

    @property
    def relative(self) -> float:
        """|ours - theirs|, relative to the larger of both magnitudes; 0 where both are 0."""
        larger = max(abs(self.ours), abs(self.theirs))
        return abs(self.ours - self.theirs) / larger if larger > 0 else 0.0


@dataclass(frozen=True)
class CrossCheck:
    """A table of agreement; ``print`` shows it."""

    rows: tuple[Agreement, ...]  # k eigenvalues, by magnitude, and the trace
    eigenvalue_seconds: tuple[float, float]  # ours, PyHessian's
    trace_seconds: tuple[float, float]
    trace_errors: tuple[float, float]  # standard errors
    trace_products: int  # of each

    @property
    def agree(self) -> bool:
        """Whether all rows do."""
        return all(row.agree for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{'':<16}{'ours':>14}{'PyHessian':>14}{'difference':>14}{'allowed':>12}{'relative':>12}  agree"]
        for row in self.rows:
            lines.append(
                f"{row.quantity:<16}{row.ours:>14.6g}{row.theirs:>14.6g}{row.ours - row.theirs:>14.2e}"
                f"{row.allowed:>12.2e}{row.relative:>12.2e}  {'yes' if row.agree else 'NO'}"
            )
        pairs = {
            "standard error": self.trace_errors,
            "eigenvalues, s": self.eigenvalue_seconds,
            "trace, s": self.trace_seconds,
        }
        for name, pair in pairs.items():
            lines.append(f"{name:<16}{pair[0]:>14.3g}{pair[1]:>14.3g}")
        lines.append(f"{'trace, products':<16}{self.trace_products:>14}{self.trace_products:>14}")
        lines.append("density: not compared, as PyHessian's calls torch.eig, which PyTorch no longer has")
        return "\n".join(lines)


def cross_check(
    objective: ModelObjective,
    *,
    k: int = 3,
    trace_products: int = 100,
    generator: torch.Generator | None = None,
) -> CrossCheck:
    """The k eigenvalues of largest magnitude and the trace of H(theta), ours and PyHessian's.

    An eigenvalue agrees if the two differ by no more than 1e-3 of PyHessian's plus our residual, and ours converged.
    The traces agree if they differ by no more than three combined standard errors (and rounding). With
    ``weight_decay``, PyHessian gets a loss with the same term. The objective and the global random state stay as they
    are: PyHessian works on a copy of the network, with PyTorch's own generator set aside. Its spectral density is not
    compared, since it fails: it calls ``torch.eig``, which PyTorch no longer has.

    Args:
        objective: at whose ``theta``. Its loss is a criterion over batches ``(inputs, targets)``, and its
            ``batch_norm`` is ``"frozen"``. All examples go through the network at once, with the graph of the
            gradient, so they have to fit the memory together.
        k: eigenvalues, 1 to n.
        trace_products: Hessian-vector products that each spends on its trace, 2 at least.
        generator: of all random vectors, PyHessian's too. Default: seeded by the operating system.

    Raises:
        TypeError: ``objective`` is no ModelObjective.
        ValueError: PyHessian cannot do it: another kind of loss or ``batch_norm``, batches that do not fit together,
            a device but CPU and CUDA, or a parameter in which the loss is constant or linear. Or k or
            ``trace_products`` out of range.

    Example:
        The mean squared error of w x over x = 1, 2, whose Hessian is 2 (1 + 4) / 2 = 5:

        >>> from landscape import ModelObjective
        >>> data = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
        >>> f = ModelObjective(nn.Linear(1, 1, bias=False), nn.MSELoss(), data)
        >>> check = cross_check(f, k=1)
        >>> [(row.quantity, round(row.ours, 3), round(row.theirs, 3), row.agree) for row in check.rows]
        [('eigenvalue 1', 5.0, 5.0, True), ('trace', 5.0, 5.0, True)]
    """
    if trace_products < 2:
        raise ValueError(f"trace_products={trace_products}: give at least 2, since one has no standard error")
    inputs, targets = _one_batch(objective)
    generator = generator_or_new(generator)
    hessian = Hessian(objective)
    pairs = eigenpairs(hessian, k, tol=_OUR_TOL, generator=generator)
    # with one step a probe's Gauss rule is v'Hv, so that no product is spent on more than the trace
    density = spectral_density(hessian, steps=1, probes=trace_products, generator=generator)
    our_trace, our_error = density.trace()

    seed = int(torch.randint(2**62, (1,), generator=generator))
    with _global_state_kept(objective.device, seed), network_at_theta(objective) as network, differentiable_twice():
        start = time.perf_counter()
        theirs = _theirs(objective, network, inputs, targets)
        values, _ = theirs.eigenvalues(maxIter=_THEIR_ITERATIONS, tol=_THEIR_TOL, top_n=k)
        trace_start = time.perf_counter()
        # never stop early: |change| / trace is below -inf for no trace, and below any other tol for a negative one
        samples = np.array(theirs.trace(maxIter=trace_products, tol=-math.inf))
        end = time.perf_counter()
    their_trace, their_error = float(samples.mean()), float(standard_error(samples))

    rows = []
    by_magnitude = sorted(map(float, values), key=abs, reverse=True)
    for i, (our_value, their_value) in enumerate(zip(map(float, pairs.values), by_magnitude, strict=True)):
        allowed = _ALLOWED * abs(their_value) + float(pairs.residuals[i])
        agree = bool(pairs.converged[i]) and abs(our_value - their_value) <= allowed
        rows.append(Agreement(f"eigenvalue {i + 1}", our_value, their_value, allowed, agree))
    # if all probes give the same, as for a multiple of the identity, the difference is rounding alone
    rounding = torch.finfo(objective.dtype).eps ** 0.5 * abs(their_trace)
    allowed = _ERRORS * math.hypot(our_error, their_error) + rounding
    rows.append(Agreement("trace", our_trace, their_trace, allowed, abs(our_trace - their_trace) <= allowed))
    return CrossCheck(
        rows=tuple(rows),
        eigenvalue_seconds=(pairs.cost.seconds, trace_start - start),
        trace_seconds=(density.cost.seconds, end - trace_start),
        trace_errors=(our_error, their_error),
        trace_products=trace_products,
    )


def _one_batch(objective: ModelObjective) -> tuple[Tensor, Tensor]:
    """All inputs and all targets as one batch; ValueError or TypeError if PyHessian does not support the objective."""
    if not isinstance(objective, ModelObjective):
        raise TypeError(
            f"objective is a {type(objective).__name__}: give a ModelObjective, since PyHessian needs a network"
        )
    if objective.batch_norm != "frozen":
        raise ValueError(
            f"objective has batch_norm={objective.batch_norm!r}: make it with 'frozen', since PyHessian sets the "
            "network to evaluation mode"
        )
    if objective.device.type not in ("cpu", "cuda"):
        raise ValueError(f"objective is on {objective.device}: move it to the CPU or CUDA, all that PyHessian knows")
    loss, batches = objective._evaluation.loss, [batch for batch, _ in objective._batches]  # ours
    if loss is None or not is_criterion(loss):
        raise ValueError(
            f"objective has loss={loss!r}: give one of torch.nn or torch.nn.functional, since PyHessian calls it as "
            "loss(outputs, targets)"
        )
    if not all(isinstance(b, tuple) and len(b) == 2 and all(isinstance(t, Tensor) for t in b) for b in batches):
        raise ValueError("objective has batches that are no (inputs, targets): PyHessian takes pairs of tensors only")
    shapes = {tuple(tuple(t.shape[1:]) for t in batch) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f"objective has examples of several shapes, {sorted(shapes)}: pad them to one, since PyHessian needs all "
            "of them in one batch"
        )
    inputs, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return inputs, targets


class _Network(nn.Module):
    """The objective's network, at its theta while it is lent, called as PyHessian calls networks."""

    def __init__(self, objective: ModelObjective, network: nn.Module, targets: Tensor) -> None:
        super().__init__()
        self.network = network
        self._call, self._targets = objective._evaluation.forward, targets  # ours

    def forward(self, inputs: Tensor) -> Any:
        return self._call(self.network, (inputs, self._targets))


def _theirs(objective: ModelObjective, lent: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
    """A ``pyhessian.hessian`` of f over all the data as one batch."""
    network = _Network(objective, lent, targets)
    weights = [p for p in network.parameters() if p.requires_grad]
    loss: Callable[..., Tensor] = objective._evaluation.loss  # type: ignore[assignment]  # ours; _one_batch knows it is not None

    def criterion(outputs: Any, targets: Tensor) -> Tensor:
        squares = torch.stack([w.square().sum() for w in weights]).sum()
        mean = loss(outputs, targets)
        return mean + objective.weight_decay / 2 * squares if objective.weight_decay else mean

    with torch.no_grad():
        value, expected = float(criterion(network(inputs), targets)), objective.value(objective.theta)
    # half of the digits: far more than sums over other batches lose
    if abs(value - expected) > torch.finfo(objective.dtype).eps ** 0.5 * max(abs(expected), 1.0):
        raise ValueError(
            f"objective is {expected:.9g} at its theta, but {value:.9g} on all its data as one batch: give a loss that "
            "is a mean over examples, and a network that treats each on its own"
        )
    theirs = pyhessian.hessian(network, criterion, data=(inputs, targets), cuda=objective.device.type == "cuda")
    flat = [
        n for n, g in zip(objective.space.names, theirs.gradsH, strict=True) if not getattr(g, "requires_grad", False)
    ]
    if flat:
        raise ValueError(
            f"the loss is constant or linear in {', '.join(flat)}, which PyHessian cannot differentiate twice: make "
            "the objective without them, by requires_grad_(False)"
        )
    return theirs


@contextmanager
def _global_state_kept(device: torch.device, seed: int) -> Iterator[None]:
    """PyHessian draws from the global generators, seeded here and afterwards as they were; its warning is hidden."""
    cuda = device.type == "cuda"
    with (
        torch.cuda.device(device) if cuda else nullcontext(),
        torch.random.fork_rng(devices=[device] if cuda else []),
        warnings.catch_warnings(),
    ):
        # it calls loss.backward(create_graph=True); the graph then held by .grad goes with its first zero_grad()
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
        # not torch.manual_seed, which would seed every other device as well
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield

"""Checks of the loss by a few evaluations of one micro-batch, when an objective is made.

- *f is a function*: two evaluations at the same theta give the same value.
- *f is a mean over examples*: with c examples in a batch and c_1 + c_2 = c in its parts, c f = c_1 f_1 + c_2 f_2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from landscape.objective.data.batches import can_be_split, rows_of, tensors_in
from landscape.objective.data.parts import concatenated, select
from landscape.objective.evaluation.generators import preserve_rng_state, rng_state
from landscape.objective.evaluation.kernels import Kernels
from landscape.objective.lending.network import Network

__all__ = [
    "FIRST_BATCH",
    "check_at_other_weights",
    "check_function",
    "check_mean_over_examples",
    "checked_for_randomness",
    "equal_losses",
    "evaluation_error",
]

_T = TypeVar("_T")
FIRST_BATCH = "the first batch of data"


def check_function(one: float, other: float, dtype: torch.dtype, *, frozen: bool) -> None:
    """Check that two evaluations at the same theta gave the same loss.

    Raises:
        ValueError: the two values differ.
    """
    if equal_losses(one, other, dtype):
        return
    if frozen:
        raise ValueError(
            f"f(theta) is {one:.9g} and then {other:.9g} though noise='frozen': forward or the loss keeps state of its "
            "own, or draws from another generator than the global ones of torch, NumPy and Python; take that out"
        )
    raise ValueError(
        f"f(theta) is {one:.9g} and then {other:.9g} at the same theta, so forward or the loss draws random numbers, "
        "as dropout does that is not told of evaluation mode: stop it, or give noise='frozen', by which each "
        "evaluation draws the same"
    )


def check_at_other_weights(value: float, reevaluate: Callable[[], float], network: Network, *, frozen: bool) -> None:
    """Check at other weights too, if the loss is near zero, where rounding might hide a difference.

    Raises:
        ValueError: two values differ there.
    """
    if not _is_near_zero(value, network.dtype):
        return
    with _other_weights(network):
        try:
            one, other = reevaluate(), reevaluate()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a network that fails at such weights is not checked
            return
    check_function(one, other, network.dtype, frozen=frozen)


def checked_for_randomness(
    first_run: Callable[[], _T],
    rerun: Callable[[], _T],
    number: Callable[[_T], float],
    kernels: Kernels,
    network: Network,
) -> _T:
    """``first_run()``, with a check that the result does not depend on random numbers, if any are drawn.

    The state of the global generators is restored.

    Args:
        first_run: evaluates a batch.
        rerun: evaluates it again, with new random numbers.
        number: maps their results to the numbers that are compared.
        kernels: the settings, in which it is recorded that random numbers are drawn.
        network: at theta.

    Raises:
        ValueError: the numbers differ.
    """
    drew = kernels.draws
    try:
        with preserve_rng_state():
            before, kernels.draws = rng_state(), False
            result = first_run()
            if rng_state() != before:
                drew, value = True, number(result)
                check_function(value, number(rerun()), network.dtype, frozen=False)
                check_at_other_weights(value, lambda: number(rerun()), network, frozen=False)
    finally:
        kernels.draws = drew
    return result


def check_mean_over_examples(
    value_of: Callable[[Any], float],
    weight_of: Callable[[Any], float],
    batches: list[Any],
    network: Network,
) -> Any:
    """Check that the loss of a batch is the mean over its examples, on a sample of the examples of all batches.

    Args:
        value_of: the loss of a batch.
        weight_of: the weight of a batch, by default its number of examples.
        batches: the batches; those that cannot be split are skipped.
        network: at theta; its dtype determines the tolerance.

    Returns:
        The sample; None if no two examples have the same structure.

    Raises:
        ValueError: it is not, or a part of the batch cannot be evaluated.
    """
    whole, dtype = _representative_sample(batches), network.dtype
    if whole is None:
        return None
    rows = rows_of(whole) or 0
    first = max(1, rows // 3)
    parts = [select(whole, index) for index in torch.arange(rows).split([first, rows - first])]
    weights = [weight_of(part) for part in parts]
    total = weight_of(whole)
    if not all(weight > 0 for weight in weights):
        return whole
    try:
        value, values = value_of(whole), [value_of(part) for part in parts]
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:
        for batch in batches:
            value_of(batch)  # raises the error if it is not due to splitting
        raise ValueError(
            f"some examples of a batch cannot be evaluated without the others ({type(cause).__name__}: {cause}): give "
            "whole_batches=True, which takes each batch as it is and never splits it"
        ) from cause
    if _is_near_zero(value, dtype):
        with _other_weights(network):
            try:
                value, values = value_of(whole), [value_of(part) for part in parts]
            except torch.OutOfMemoryError:
                raise
            except Exception:
                return whole
    mean = sum(weight * part for weight, part in zip(weights, values, strict=True)) / total
    # batches of other sizes are summed in another order, and layers amplify the difference, so only half of the digits
    # are compared; many networks and losses compute in float32 internally, whatever their dtype
    tolerance = max(torch.finfo(dtype).eps ** 0.5, 1e-6)
    if not math.isfinite(value) or equal_losses(value, mean, dtype, tolerance):
        return whole
    message = f"the loss of {rows} examples is {value:.6g}, but the weighted mean of its parts ({values[0]:.6g} of "
    message += f"{weights[0]:g} and {values[1]:.6g} of {weights[1]:g}) is {mean:.6g}"
    if equal_losses(value, sum(values), dtype, tolerance):
        raise ValueError(f"{message}: it is their sum, so divide it by the number of examples")
    raise ValueError(
        f"{message}: f would depend on how the data are cut into batches. Give count=, a function of the batch, where "
        "a batch weighs something else than its first dimension: for a mean over tokens "
        "count=lambda batch: (batch['labels'] != -100).sum(), with ['labels'][:, 1:] where labels are "
        "shifted. Give whole_batches=True where the loss is of a batch "
        "as such (contrastive, Dice, triplets, statistics of the batch): f then belongs to these batches"
    )


def evaluation_error(cause: Exception, batch: Any, dtype: torch.dtype, which: str = FIRST_BATCH) -> Exception:
    """The exception to raise if a batch cannot be evaluated.

    Errors of our own checks and out-of-memory errors are returned as they are, others with an explanation.
    """
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__") if trace is not None else None
    if isinstance(cause, torch.OutOfMemoryError) or raised_in in _OWN_MODULES:
        return cause
    others = {str(t.dtype) for t in tensors_in(batch) if t.is_floating_point() and t.dtype != dtype}
    hint = f" The network is in {dtype} and data holds {', '.join(sorted(others))}: convert one." if others else ""
    message = f"{which} cannot be evaluated ({type(cause).__name__}: {cause}).{hint}"
    if which != FIRST_BATCH:
        return ValueError(f"{message} Leave it out of the data, or let forward and loss take it as they do the others")
    return ValueError(
        f"{message} By default forward is "
        "model(inputs) for tuples and tensors and model(**batch) for mappings, a criterion is called as loss(outputs, "
        "targets) and any other loss as loss(outputs, batch): give forward= or loss= to have it otherwise"
    )


# of integers or masks that are sorted: larger data are images, where rare values mean nothing
_MAX_ENTRIES = 10_000_000
# whose errors explain themselves
_OWN_MODULES = tuple(
    f"landscape.objective.{name}"
    for name in ("data.batches", "evaluation.checks", "evaluation.batch_loss", "evaluation.loss")
)


def equal_losses(one: float, other: float, dtype: torch.dtype, tolerance: float | None = None) -> bool:
    """Whether two losses are equal, by default up to what some GPU operations lose by another order of summation."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return (math.isnan(one) and math.isnan(other)) or one == other
    eps = torch.finfo(dtype).eps
    # a loss near zero is the difference of terms of order one
    return abs(one - other) <= (tolerance or 1e3 * eps) * max(abs(one), abs(other)) + 10 * eps


def _is_near_zero(value: float, dtype: torch.dtype) -> bool:
    """Whether a loss is not much larger than the absolute tolerance of :func:`equal_losses`."""
    return abs(value) < 1e3 * torch.finfo(dtype).eps


@contextmanager
def _other_weights(network: Network) -> Iterator[None]:
    """Context in which noise of the size of initial weights is added to theta, so that the loss is not near zero."""
    before, generator = network.flat.clone(), torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for view in network.space.views(network.flat).values():
                inputs = view[0].numel() if view.dim() and len(view) else 1
                view.add_(torch.randn(view.shape, generator=generator).to(view), alpha=max(inputs, 1) ** -0.5)
        yield
    finally:
        with torch.no_grad():
            network.flat.copy_(before)


def _representative_sample(batches: list[Any]) -> Any:
    """A batch of examples from all batches of the same structure, at most as many as the first batch has.

    A loss that is not a mean over examples usually gives other weights to ignored targets, rare classes, masked
    positions or missing values. So a third are the examples with the rarest entries, the others are spread evenly over
    the rest. Within each batch the rarest come first, so that the two parts of the sample differ.
    """
    batches = [batch for batch in batches if rows_of(batch) and can_be_split(batch)]
    if not batches:
        return None
    rows = [rows_of(batch) or 0 for batch in batches]
    rarest_counts = _rarest_entry_counts(batches, sum(rows))
    order = rarest_counts.argsort(stable=True)
    most = min(rows[0] if rows[0] > 1 else 8, len(order))
    first, others = order.tensor_split([most // 3])
    evenly = torch.linspace(0, len(others) - 1, most - len(first)).round().long()
    chosen = torch.cat([first, others[evenly]]).unique()
    # in the order of the batches, and within each the rarest first
    ends = torch.tensor(rows).cumsum(0)
    pieces = []
    for i, batch in enumerate(batches):
        here = chosen[(chosen < ends[i]) & (chosen >= ends[i] - rows[i])]
        if len(here):
            here = here[rarest_counts[here].argsort(stable=True)]
            pieces.append(select(batch, here - (ends[i] - rows[i])))
    whole = max(concatenated(pieces), key=lambda piece: rows_of(piece) or 0)
    return whole if (rows_of(whole) or 0) > 1 else None


def _rarest_entry_counts(batches: list[Any], rows: int) -> Tensor:
    """For each example the count, over all data, of its rarest entry.

    Entries are integers, booleans, and for floating tensors whether a value is NaN.
    """
    rarest_counts = torch.full((rows,), torch.iinfo(torch.long).max)
    for tensors in zip(*(list(tensors_in(batch)) for batch in batches), strict=False):
        if any(t.is_complex() or t.layout is not torch.strided for t in tensors):
            continue
        entries = [(t.isnan() if t.is_floating_point() else t).detach().cpu().flatten() for t in tensors]
        if sum(map(len, entries)) > _MAX_ENTRIES or not all(map(len, entries)):
            continue
        _, which, counts = torch.cat(entries).unique(return_inverse=True, return_counts=True)
        pieces = counts[which].split([len(each) for each in entries])
        rarest = [piece.view(len(t), -1).amin(1) for piece, t in zip(pieces, tensors, strict=True)]
        rarest_counts = torch.minimum(rarest_counts, torch.cat(rarest))
    return rarest_counts

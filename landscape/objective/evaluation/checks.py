"""What a few evaluations of one micro-batch tell of a network when its objective is made.

- *f is a function*: two values at the same theta are one.
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
from landscape.objective.data.parts import taken, together
from landscape.objective.evaluation.generators import generators_kept, state_of_generators
from landscape.objective.evaluation.kernels import Kernels
from landscape.objective.lending.network import Network

__all__ = [
    "FIRST",
    "check_elsewhere",
    "check_function",
    "check_mean_over_examples",
    "checked_for_draws",
    "refused_clearly",
    "same",
]

_T = TypeVar("_T")
FIRST = "the first batch of data"


def check_function(one: float, other: float, dtype: torch.dtype, *, frozen: bool) -> None:
    """Refuse a network whose loss is another each time.

    Raises:
        ValueError: the two values differ.
    """
    if same(one, other, dtype):
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


def check_elsewhere(value: float, value_again: Callable[[], float], network: Network, *, frozen: bool) -> None:
    """The same at other weights where the loss is next to zero, so that rounding might hide the difference.

    Raises:
        ValueError: two values differ there.
    """
    if not _is_small(value, network.dtype):
        return
    with _elsewhere(network):
        try:
            one, other = value_again(), value_again()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of a network that takes no such weights nothing is told
            return
    check_function(one, other, network.dtype, frozen=frozen)


def checked_for_draws(
    observed: Callable[[], _T],
    again: Callable[[], _T],
    number: Callable[[_T], float],
    kernels: Kernels,
    network: Network,
) -> _T:
    """``observed()``; where random numbers are drawn in it, the user's generators are put back.

    Args:
        observed: evaluates a batch.
        again: the same, another time, for which random numbers are drawn on.
        number: what in their results must be one.
        kernels: which learn that there are draws.
        network: at theta.

    Raises:
        ValueError: the numbers differ.
    """
    drew = kernels.draws
    try:
        with generators_kept():
            before, kernels.draws = state_of_generators(), False
            result = observed()
            if state_of_generators() != before:
                drew, value = True, number(result)
                check_function(value, number(again()), network.dtype, frozen=False)
                check_elsewhere(value, lambda: number(again()), network, frozen=False)
    finally:
        kernels.draws = drew
    return result


def check_mean_over_examples(
    value_of: Callable[[Any], float],
    weight_of: Callable[[Any], float],
    batches: list[Any],
    network: Network,
) -> Any:
    """Refuse a loss of a batch that is not the mean over its examples, on some examples of all batches.

    Args:
        value_of: the loss of a batch.
        weight_of: how many examples it weighs.
        batches: those that cannot be split are passed over.
        network: at theta, whose dtype the tolerance follows.

    Returns:
        The examples; None where there are not two that are alike.

    Raises:
        ValueError: it is not, or a part cannot be evaluated.
    """
    whole, dtype = _sample(batches), network.dtype
    if whole is None:
        return None
    rows = rows_of(whole) or 0
    first = max(1, rows // 3)
    parts = [taken(whole, index) for index in torch.arange(rows).split([first, rows - first])]
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
            value_of(batch)  # where that cannot be evaluated either, splitting is not to blame
        raise ValueError(
            f"some examples of a batch cannot be evaluated without the others ({type(cause).__name__}: {cause}): give "
            "whole_batches=True, which takes each batch as it is and never splits it"
        ) from cause
    if _is_small(value, dtype):
        with _elsewhere(network):
            try:
                value, values = value_of(whole), [value_of(part) for part in parts]
            except torch.OutOfMemoryError:
                raise
            except Exception:
                return whole
    mean = sum(weight * part for weight, part in zip(weights, values, strict=True)) / total
    # other sizes are summed in other orders, and layers enlarge what that changes; half of the digits are left. Many
    # networks and losses calculate in float32 within, whatever they are in
    tolerance = max(torch.finfo(dtype).eps ** 0.5, 1e-6)
    if not math.isfinite(value) or same(value, mean, dtype, tolerance):
        return whole
    told = f"the loss of {rows} examples is {value:.6g}, but the weighted mean of its parts ({values[0]:.6g} of "
    told += f"{weights[0]:g} and {values[1]:.6g} of {weights[1]:g}) is {mean:.6g}"
    if same(value, sum(values), dtype, tolerance):
        raise ValueError(f"{told}: it is their sum, so divide it by the number of examples")
    raise ValueError(
        f"{told}: f would depend on how the data are cut into batches. Give count=, a function of the batch, where a "
        "batch weighs something else than its first dimension: for a mean over tokens "
        "count=lambda batch: (batch['labels'] != -100).sum(), with ['labels'][:, 1:] where labels are "
        "shifted. Give whole_batches=True where the loss is of a batch "
        "as such (contrastive, Dice, triplets, statistics of the batch): f then belongs to these batches"
    )


def refused_clearly(cause: Exception, batch: Any, dtype: torch.dtype, which: str = FIRST) -> Exception:
    """What to raise where a batch cannot be evaluated: ours as it is, others with what they are about."""
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__") if trace is not None else None
    if isinstance(cause, torch.OutOfMemoryError) or raised_in in _OURS:
        return cause
    others = {str(t.dtype) for t in tensors_in(batch) if t.is_floating_point() and t.dtype != dtype}
    hint = f" The network is in {dtype} and data holds {', '.join(sorted(others))}: convert one." if others else ""
    told = f"{which} cannot be evaluated ({type(cause).__name__}: {cause}).{hint}"
    if which != FIRST:
        return ValueError(f"{told} Leave it out of the data, or let forward and loss take it as they do the others")
    return ValueError(
        f"{told} By default forward is "
        "model(inputs) for tuples and tensors and model(**batch) for mappings, a criterion is called as loss(outputs, "
        "targets) and any other loss as loss(outputs, batch): give forward= or loss= to have it otherwise"
    )


# to be sorted: more are images
_MOST_ENTRIES = 10_000_000
# where errors are raised that say what they are about
_OURS = tuple(
    f"landscape.objective.{name}"
    for name in ("data.batches", "evaluation.checks", "evaluation.batch_loss", "evaluation.loss")
)


def same(one: float, other: float, dtype: torch.dtype, tolerance: float | None = None) -> bool:
    """Whether two losses are one. By default to what some operations on a GPU lose by another order of summation."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return (math.isnan(one) and math.isnan(other)) or one == other
    eps = torch.finfo(dtype).eps
    # a loss near zero is the difference of terms of about one
    return abs(one - other) <= (tolerance or 1e3 * eps) * max(abs(one), abs(other)) + 10 * eps


def _is_small(value: float, dtype: torch.dtype) -> bool:
    """Whether a loss is next to what :func:`same` passes over in one that is near zero."""
    return abs(value) < 1e3 * torch.finfo(dtype).eps


@contextmanager
def _elsewhere(network: Network) -> Iterator[None]:
    """Within it the network has weights about as large as initial ones are, at which few losses are next to zero."""
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


def _sample(batches: list[Any]) -> Any:
    """Examples of all batches that are alike, no more than the first holds, those that most differ at its ends.

    Targets that are ignored, rare classes, masks and missing values are what a mean of a batch may weigh otherwise: a
    third are the examples that hold the rarest entries.
    """
    batches = [batch for batch in batches if rows_of(batch) and can_be_split(batch)]
    if not batches:
        return None
    rows = [rows_of(batch) or 0 for batch in batches]
    common = _commonness(batches, sum(rows))
    order = common.argsort(stable=True)
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
            here = here[common[here].argsort(stable=True)]
            pieces.append(taken(batch, here - (ends[i] - rows[i])))
    whole = max(together(pieces), key=lambda piece: rows_of(piece) or 0)
    return whole if (rows_of(whole) or 0) > 1 else None


def _commonness(batches: list[Any], rows: int) -> Tensor:
    """For each example how often the rarest of its entries occurs: integers, masks, and whether a number is missing."""
    common = torch.full((rows,), torch.iinfo(torch.long).max)
    for tensors in zip(*(list(tensors_in(batch)) for batch in batches), strict=False):
        if any(t.is_complex() or t.layout is not torch.strided for t in tensors):
            continue
        entries = [(t.isnan() if t.is_floating_point() else t).detach().cpu().flatten() for t in tensors]
        if sum(map(len, entries)) > _MOST_ENTRIES or not all(map(len, entries)):
            continue
        _, which, counts = torch.cat(entries).unique(return_inverse=True, return_counts=True)
        pieces = counts[which].split([len(each) for each in entries])
        rarest = [piece.view(len(t), -1).amin(1) for piece, t in zip(pieces, tensors, strict=True)]
        common = torch.minimum(common, torch.cat(rarest))
    return common

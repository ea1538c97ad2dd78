"""One pass over the data: means over the examples, and the spread among them.

The mean loss over N examples is one of many that other samples of N would have given. Its standard error is
s / sqrt(N) with s the standard deviation of the examples' losses, and that of a difference between two theta is the
same of the examples' differences: what moves both losses of an example alike cancels.

A loss that yields no more than its mean over a batch is known by batches. With m_b the means of M batches of c_b
examples and m their weighted mean, an example's variance is estimated by sum_b c_b (m_b - m)^2 / (M - 1), which for
batches of one is the usual estimate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.objective.evaluation.loss import reduction_of, right_answers

__all__ = ["Examples", "means", "per_example"]

# a batch -> its outputs and their mean loss
Run = Callable[[Any], tuple[Any, Tensor]]
# heuristic: beyond, nobody looks at each, and a plane of them fills the memory
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Examples:
    """f at one theta, and what it is the mean of."""

    metrics: dict[str, float]  # as ModelObjective.metrics: weight decay is in the loss
    loss: np.ndarray  # (units,) weight decay apart; a unit is an example, or a batch where the loss gives no more
    counts: np.ndarray  # (units,) examples in each
    right: np.ndarray  # (N,) share of each example's answers that are right; (0,) where there are no classes
    class_accuracy: np.ndarray  # (classes,) NaN for one without examples; (0,) where there are no classes

    def stderr(self, reference: Examples | None = None) -> float:
        """Of the mean loss; given a reference, of the difference from its mean loss, paired by example.

        NaN for a single unit, and where a loss is not finite.
        """
        with np.errstate(invalid="ignore"):  # inf - inf
            return _stderr(self.loss if reference is None else self.loss - reference.loss, self.counts)

    def accuracy_stderr(self) -> float:
        """Of the mean accuracy; NaN where there is none."""
        return _stderr(self.right, np.ones(len(self.right)))


def means(run: Run, batches: Iterable[tuple[Any, float]], decay: float) -> dict[str, float]:
    """``loss``, and for classifiers ``accuracy``, each the mean over all examples.

    Args:
        run: the outputs for a batch, and their mean loss.
        batches: each with its number of examples.
        decay: added to the loss.
    """
    found = []
    for batch, count in batches:
        outputs, loss = run(batch)
        found.append((_means(loss, right_answers(outputs, batch)), count))
    return _weighted(found, decay)


def per_example(
    run: Run, batches: Iterable[tuple[Any, float]], loss: Callable[..., Tensor] | None, decay: float
) -> Examples:
    """The same means, bit for bit, with what they are the means of; ``loss`` as ModelObjective takes it."""
    found, losses, rights, labels, classes = [], [], [], [], 0
    terms_of = _unreduced(loss)
    for batch, count in batches:
        outputs, mean = run(batch)
        right = right_answers(outputs, batch)
        found.append((_means(mean, right), count))
        if terms_of is not None and isinstance(batch, tuple) and len(batch) == 2:
            terms = _by_example(terms_of(outputs, batch[1]), reduction_of(loss))
            if len(terms) == count and _is_mean(mean, terms):
                losses.append(terms)
        if right is not None:
            rights.append(right)
            labels.append(batch[1])
            classes = outputs.shape[1]
    every_one = len(losses) == len(found)
    return Examples(
        metrics=_weighted(found, decay),
        loss=_numpy(losses) if every_one else np.array([means["loss"] for means, _ in found]),
        counts=np.ones(sum(len(each) for each in losses)) if every_one else np.array([count for _, count in found]),
        right=_numpy([_by_example(right, "mean") for right in rights]),
        class_accuracy=_class_accuracy(labels, rights, classes),
    )


def _means(loss: Tensor, right: Tensor | None) -> dict[str, float]:
    return {"loss": float(loss)} if right is None else {"loss": float(loss), "accuracy": float(right.mean())}


def _weighted(found: list[tuple[dict[str, float], float]], decay: float) -> dict[str, float]:
    examples = sum(count for _, count in found)
    totals: dict[str, float] = {}
    for means, count in found:
        for name, mean in means.items():
            totals[name] = totals.get(name, 0.0) + mean * count
    averages = {name: total / examples for name, total in totals.items()}
    averages["loss"] += decay
    return averages


def _unreduced(loss: Callable[..., Tensor] | None) -> Callable[..., Tensor] | None:
    """The same criterion without its mean; None where ``loss`` is none that could be asked for it."""
    if isinstance(loss, nn.Module):
        # a module of the user's may know nothing of reductions; the mean of CTC is not that of its terms
        if type(loss).__module__ != nn.modules.loss.__name__ or isinstance(loss, nn.CTCLoss):
            return None
        single: Any = copy.copy(loss)
        single.reduction = "none"
        return single
    function = loss.func if isinstance(loss, partial) else loss
    known = getattr(function, "__module__", None) == nn.functional.__name__
    return partial(loss, reduction="none") if loss is not None and known else None


def _by_example(terms: Tensor, reduction: str) -> Tensor:
    """The mean, or for sums over examples the sum, over all that belongs to an example, (N,)."""
    if terms.dim() < 2:
        return terms
    return terms.flatten(1).mean(1) if reduction == "mean" else terms.flatten(1).sum(1)


def _is_mean(mean: Tensor, terms: Tensor) -> bool:
    """Whether they are the terms of that mean, to what another order of summation loses; or not finite, as it."""
    apart = (terms.double().mean() - mean.double()).abs()
    scale = terms.double().abs().mean()
    return not bool(apart > 1e3 * torch.finfo(mean.dtype).eps * scale)


def _class_accuracy(labels: list[Tensor], rights: list[Tensor], classes: int) -> np.ndarray:
    if not 0 < classes <= _MOST_CLASSES:
        return np.empty(0)
    label, right = (torch.cat([piece.flatten() for piece in pieces]).cpu().numpy() for pieces in (labels, rights))
    known = (label >= 0) & (label < classes)  # a loss of the user's may mark positions that have no label
    with np.errstate(invalid="ignore"):  # 0/0 is NaN: a class without examples has no accuracy
        return np.bincount(label[known], right[known], classes) / np.bincount(label[known], minlength=classes)


def _numpy(pieces: list[Tensor]) -> np.ndarray:
    return torch.cat(pieces).cpu().double().numpy() if pieces else np.empty(0)


def _stderr(values: np.ndarray, counts: np.ndarray) -> float:
    units = len(values)
    if units < 2:
        return float("nan")
    with np.errstate(invalid="ignore", over="ignore"):  # losses that are not finite have no finite error
        squares = counts @ (values - counts @ values / counts.sum()) ** 2
    return float(np.sqrt(squares / (units - 1) / counts.sum()))

"""Means over the examples in one pass over the data, with per-example values and standard errors.

The mean loss over N examples is a sample mean. Its standard error is s / sqrt(N) with s the standard deviation of the
examples' losses. That of a difference between two thetas is the same formula for the examples' differences (paired),
so that variation common to both cancels.

Some losses return only the mean over a batch. With m_b the means of M batches of c_b examples and m their weighted
mean, the variance of an example is then estimated by sum_b c_b (m_b - m)^2 / (M - 1), which for batches of one is the
usual estimate.
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

from landscape.objective.evaluation.loss import correct_predictions, reduction_of

__all__ = ["PerExampleMetrics", "mean_metrics", "per_example_metrics"]

# a batch -> its outputs and their mean loss
Run = Callable[[Any], tuple[Any, Tensor]]
# heuristic: with more, class accuracies are unreadable, and those of all points of a plane would fill the memory
_MAX_CLASSES = 1000


@dataclass(frozen=True)
class PerExampleMetrics:
    """f at one theta, and the values that it is the mean of."""

    metrics: dict[str, float]  # as ModelObjective.metrics: the loss includes weight decay
    loss: np.ndarray  # (units,) without weight decay; a unit is an example, or a batch if only its mean is known
    counts: np.ndarray  # (units,) examples in each
    right: np.ndarray  # (N,) fraction of each example's predictions that are correct; (0,) if there are no classes
    class_accuracy: np.ndarray  # (classes,) NaN for a class without examples; (0,) if there are no classes

    def stderr(self, reference: PerExampleMetrics | None = None) -> float:
        """Standard error of the mean loss; given a reference, of the difference from its mean loss, paired by example.

        NaN for a single unit, and if a loss is not finite.
        """
        with np.errstate(invalid="ignore"):  # inf - inf
            return _stderr(self.loss if reference is None else self.loss - reference.loss, self.counts)

    def accuracy_stderr(self) -> float:
        """Standard error of the mean accuracy; NaN if there is none."""
        return _stderr(self.right, np.ones(len(self.right)))


def mean_metrics(run: Run, batches: Iterable[tuple[Any, float]], decay: float) -> dict[str, float]:
    """``loss``, and for classifiers ``accuracy``, each the mean over all examples.

    Args:
        run: maps a batch to its outputs and their mean loss.
        batches: each with its number of examples.
        decay: added to the loss.
    """
    found = []
    for batch, count in batches:
        outputs, loss = run(batch)
        found.append((_means(loss, correct_predictions(outputs, batch)), count))
    return _weighted(found, decay)


def per_example_metrics(
    run: Run, batches: Iterable[tuple[Any, float]], loss: Callable[..., Tensor] | None, decay: float
) -> PerExampleMetrics:
    """The same means, bit for bit, with the per-example values; ``loss`` as given to ModelObjective."""
    found, losses, corrects, labels, classes = [], [], [], [], 0
    terms_of = _unreduced(loss)
    for batch, count in batches:
        outputs, mean = run(batch)
        correct = correct_predictions(outputs, batch)
        found.append((_means(mean, correct), count))
        if terms_of is not None and isinstance(batch, tuple) and len(batch) == 2:
            terms = _by_example(terms_of(outputs, batch[1]), reduction_of(loss))
            if len(terms) == count and _is_mean(mean, terms):
                losses.append(terms)
        if correct is not None:
            corrects.append(correct)
            labels.append(batch[1])
            classes = outputs.shape[1]
    per_example = len(losses) == len(found)
    return PerExampleMetrics(
        metrics=_weighted(found, decay),
        loss=_numpy(losses) if per_example else np.array([means["loss"] for means, _ in found]),
        counts=np.ones(sum(len(each) for each in losses)) if per_example else np.array([count for _, count in found]),
        right=_numpy([_by_example(correct, "mean") for correct in corrects]),
        class_accuracy=_class_accuracy(labels, corrects, classes),
    )


def _means(loss: Tensor, correct: Tensor | None) -> dict[str, float]:
    return {"loss": float(loss)} if correct is None else {"loss": float(loss), "accuracy": float(correct.mean())}


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
    """The criterion with ``reduction="none"``, or None if ``loss`` has no such option."""
    if isinstance(loss, nn.Module):
        # a user's module may have no reduction; the mean of CTC is not the mean of its terms
        if type(loss).__module__ != nn.modules.loss.__name__ or isinstance(loss, nn.CTCLoss):
            return None
        single: Any = copy.copy(loss)
        single.reduction = "none"
        return single
    function = loss.func if isinstance(loss, partial) else loss
    known = getattr(function, "__module__", None) == nn.functional.__name__
    return partial(loss, reduction="none") if loss is not None and known else None


def _by_example(terms: Tensor, reduction: str) -> Tensor:
    """One value per example, (N,): the mean, or for a sum over examples the sum, of its terms."""
    if terms.dim() < 2:
        return terms
    return terms.flatten(1).mean(1) if reduction == "mean" else terms.flatten(1).sum(1)


def _is_mean(mean: Tensor, terms: Tensor) -> bool:
    """Whether the mean is that of the terms, up to another order of summation; True if it is not finite."""
    apart = (terms.double().mean() - mean.double()).abs()
    scale = terms.double().abs().mean()
    return not bool(apart > 1e3 * torch.finfo(mean.dtype).eps * scale)


def _class_accuracy(labels: list[Tensor], corrects: list[Tensor], classes: int) -> np.ndarray:
    if not 0 < classes <= _MAX_CLASSES:
        return np.empty(0)
    label, correct = (torch.cat([piece.flatten() for piece in pieces]).cpu().numpy() for pieces in (labels, corrects))
    known = (label >= 0) & (label < classes)  # a user's loss may use other values for missing labels
    with np.errstate(invalid="ignore"):  # 0/0 is NaN: the accuracy of a class without examples
        return np.bincount(label[known], correct[known], classes) / np.bincount(label[known], minlength=classes)


def _numpy(pieces: list[Tensor]) -> np.ndarray:
    return torch.cat(pieces).cpu().double().numpy() if pieces else np.empty(0)


def _stderr(values: np.ndarray, counts: np.ndarray) -> float:
    units = len(values)
    if units < 2:
        return float("nan")
    with np.errstate(invalid="ignore", over="ignore"):  # non-finite losses have a non-finite error
        squares = counts @ (values - counts @ values / counts.sum()) ** 2
    return float(np.sqrt(squares / (units - 1) / counts.sum()))

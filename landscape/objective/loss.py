"""How a network and its loss are called, which losses are means over examples, as f must be, and when a classifier is
right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["check_mean", "default_forward", "is_criterion", "loss_of", "right_answers"]


def default_forward(model: nn.Module, batch: Any) -> Any:
    """The outputs for a dictionary, or for a tuple whose first item are the inputs."""
    return model(**batch) if isinstance(batch, dict) else model(batch[0])


def is_criterion(loss: Callable[..., Tensor]) -> bool:
    """Whether it is called as loss(outputs, targets)."""
    return isinstance(loss, nn.Module) or loss.__module__ == nn.functional.__name__


def loss_of(loss: Callable[..., Tensor] | None, outputs: Any, batch: Any) -> Tensor:
    """The loss of a batch, called as its kind asks for."""
    if loss is None:
        return outputs.loss
    return loss(outputs, batch[1] if is_criterion(loss) and isinstance(batch, tuple) else batch)


def check_mean(loss: Callable[..., Tensor] | None, batches: list[tuple[Any, int]]) -> None:
    """Refuse criteria whose mean over a batch is not over its examples: f would depend on the batches."""
    if getattr(loss, "reduction", "mean") != "mean":
        raise ValueError(
            f"loss has reduction={getattr(loss, 'reduction', None)!r}: give one with reduction='mean', since "
            "batches are weighted by their number of examples"
        )
    if getattr(loss, "weight", None) is not None:
        raise ValueError(
            "loss has class weights, so its mean is not over examples and depends on the batches: give a function "
            "loss(outputs, batch) that weighs each example and divides by their number"
        )
    ignored = getattr(loss, "ignore_index", None)
    for batch, _ in batches if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) else []:
        if isinstance(batch, tuple) and not batch[1].is_floating_point() and bool((batch[1] == ignored).any()):
            raise ValueError(
                f"targets hold the loss's ignore_index={ignored}, so its mean depends on the batches: leave those "
                "examples out, or give a function loss(outputs, batch) that divides by the number of examples"
            )


def right_answers(outputs: Any, batch: Any) -> Tensor | None:
    """Which answers are right, 1 or 0 (N, ...), where outputs are (N, classes, ...) and targets class indices."""
    if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(outputs, Tensor)):
        return None
    targets = batch[1]
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    if outputs.dim() != targets.dim() + 1 or outputs.shape[1] < 2:
        return None
    return (outputs.argmax(1) == targets).double()

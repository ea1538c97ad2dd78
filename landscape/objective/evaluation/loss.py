"""How a network and its loss are called, which losses are means over examples, and which predictions are correct."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "batch_loss",
    "check_call",
    "check_mean",
    "correct_predictions",
    "default_forward",
    "is_criterion",
    "modules_in",
    "reduction_of",
]

# with class weights or ignored targets, the mean of these is not over examples
_WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss)
_WEIGHTED_FUNCTIONS = (nn.functional.cross_entropy, nn.functional.nll_loss)
# heuristic: a loss from which more objects can be reached is not searched any further
_MAX_OBJECTS = 10_000
_LEAVES = type | Tensor | str | bytes | int | float


def default_forward(model: nn.Module, batch: Any) -> Any:
    """The outputs for a mapping (as keyword arguments), for a tuple (its first item), or for inputs alone."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0]) if isinstance(batch, tuple) else model(batch)


def is_criterion(loss: Callable[..., Tensor] | None) -> bool:
    """Whether the loss is called as ``loss(outputs, targets)``."""
    loss = _without_partial(loss)
    if isinstance(loss, nn.Module) or isinstance(getattr(loss, "__self__", None), nn.modules.loss._Loss):
        return True
    return getattr(loss, "__module__", None) == nn.functional.__name__


def reduction_of(loss: Callable[..., Tensor] | None) -> str:
    """The ``reduction`` of a criterion of torch; "mean" for any other loss."""
    if isinstance(loss, partial) and "reduction" in loss.keywords:
        return loss.keywords["reduction"]
    loss = _without_partial(loss)
    # in a user's class the attribute may mean something else
    return getattr(loss, "reduction", "mean") if type(loss).__module__ == nn.modules.loss.__name__ else "mean"


def batch_loss(loss: Callable[..., Tensor] | None, outputs: Any, batch: Any, weight: Callable[[], float]) -> Tensor:
    """The mean loss of a batch; sums are divided by ``weight()``, its number of examples.

    Raises:
        ValueError: the loss is not a single real number.
    """
    value = (
        _loss_in_outputs(outputs) if loss is None else loss(outputs, _targets(batch) if is_criterion(loss) else batch)
    )
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        returned = (
            f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        )
        raise ValueError(
            f"loss returns {returned}: give one that returns a single real number, the mean over the batch"
        )
    value = value.reshape(())
    return value / weight() if reduction_of(loss) == "sum" else value


def check_call(loss: Callable[..., Tensor] | None, batch: Any) -> None:
    """Check that it is clear which part of the batch is the target.

    Raises:
        TypeError: the loss is not callable.
        ValueError: a criterion with batches other than pairs, inputs alone, or (for a module) mappings.
    """
    if loss is not None and not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}: give a criterion, a function loss(outputs, batch), or None for outputs "
            "that carry their own"
        )
    if loss is None or not is_criterion(loss):
        return
    if isinstance(batch, tuple) and len(batch) > 2:
        raise ValueError(
            f"loss is a criterion, called as loss(outputs, targets), but data has batches of {len(batch)} items, so "
            "which of them holds the targets is not known: give loss=lambda outputs, batch: criterion(outputs, "
            "batch[i]), and a forward(model, batch) where the inputs are not batch[0] alone"
        )
    if not isinstance(batch, tuple | Tensor) and not _is_user_module(loss):
        raise ValueError(
            f"loss is a criterion, called as loss(outputs, targets), but data has batches of type "
            f"{type(batch).__name__}: give loss=lambda outputs, batch: criterion(outputs, ...), with the targets taken "
            "from the batch"
        )


def check_mean(loss: Callable[..., Tensor] | None, batches: list[tuple[Any, float]]) -> None:
    """Check that the mean of a criterion over a batch is over its examples, since otherwise f depends on the batches.

    Raises:
        ValueError: it has class weights; targets are ignored; or it returns one loss per example.
    """
    reduction = reduction_of(loss)
    if reduction == "none":
        raise ValueError("loss has reduction='none', one loss for each example: give one with reduction='mean'")
    inner, options = _without_partial(loss), loss.keywords if isinstance(loss, partial) else {}
    if reduction == "sum" or not (isinstance(inner, _WEIGHTED) or inner in _WEIGHTED_FUNCTIONS):
        return
    if getattr(inner, "weight", None) is not None or options.get("weight") is not None:
        raise ValueError(
            "loss has class weights, so its mean is not over examples and depends on the batches: give it "
            "reduction='sum', which is divided by the number of examples, or a function loss(outputs, batch) that "
            "weighs each example and divides by their number, or whole_batches=True to take the batches as they are"
        )
    ignored = options.get("ignore_index", getattr(inner, "ignore_index", -100))
    for batch, _ in batches:
        targets = _targets(batch)
        if isinstance(targets, Tensor) and not targets.is_floating_point() and bool((targets == ignored).any()):
            raise ValueError(
                f"targets hold the loss's ignore_index={ignored}, so its mean depends on the batches: leave those "
                "examples out, or weigh each batch by what it does not ignore, as by "
                f"count=lambda batch: (batch[1] != {ignored}).sum(), or give a function loss(outputs, batch) that "
                "divides by the number of examples"
            )


def modules_in(*holders: Any) -> list[nn.Module]:
    """All modules reachable from losses, forwards and modules.

    Followed are attributes, containers, bound objects, arguments of partials, defaults, closures and globals.

    Modules that are reached in other ways are found when they are called
    (``landscape.objective.lending.external_modules``).

    Args:
        holders: losses, forwards and modules.
    """
    found: dict[int, Any] = {}
    queue = list(holders)
    while queue:
        item = queue.pop()
        if item is None or id(item) in found or _is(item, _LEAVES):
            continue
        if len(found) > _MAX_OBJECTS:
            break
        found[id(item)] = item
        queue += _references(item)
    return [item for item in found.values() if _is(item, nn.Module)]


def _is(item: Any, kinds: Any) -> bool:
    """isinstance by the type only, since a proxy may raise or import something when asked for its class."""
    return issubclass(type(item), kinds)


def _references(item: Any) -> list[Any]:
    if _is(item, partial):
        return [item.func, *item.args, *item.keywords.values()]
    if _is(item, dict):
        return list(dict.values(item))
    if _is(item, list | tuple | set):
        return list(item)
    if _is(item, nn.Module):
        return list(vars(item).values())
    if _is(item, MethodType):
        bound = item.__self__
        return [item.__func__, *([bound] if _is(bound, nn.Module) else _attributes(bound))]
    if _is(item, FunctionType):
        references = [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
        for cell in item.__closure__ or ():
            with suppress(ValueError):  # not bound yet
                references.append(cell.cell_contents)
        codes = [item.__code__]
        for code in codes:
            codes += [const for const in code.co_consts if isinstance(const, CodeType)]
            references += [item.__globals__.get(name) for name in code.co_names]
        return references
    return _attributes(item)


def _attributes(item: Any) -> list[Any]:
    """The attributes of a user's object; objects of torch, NumPy and builtins are not searched."""
    foreign = str(type(item).__module__).startswith(("torch.", "numpy", "builtins", "weakref")) or _is(item, ModuleType)
    try:
        attributes = {} if foreign else object.__getattribute__(item, "__dict__")
    except AttributeError:
        return []
    return list(attributes.values()) if _is(attributes, dict) else []


def correct_predictions(outputs: Any, batch: Any) -> Tensor | None:
    """Which predictions are correct, 1 or 0, shape (N, ...); None unless this is a classifier.

    That is, outputs are (N, classes, ...) and targets class indices (N, ...).
    """
    if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(outputs, Tensor)):
        return None
    targets = batch[1]
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype is torch.bool:
        return None
    if outputs.dim() != targets.dim() + 1 or outputs.shape[1] < 2 or outputs.shape[0] != targets.shape[0]:
        return None
    if outputs.shape[2:] != targets.shape[1:]:  # e.g. if the classes are the last dimension
        return None
    return (outputs.argmax(1) == targets).double()


def _targets(batch: Any) -> Any:
    """The second item of a tuple; the only item if there is one, as for an autoencoder."""
    return batch[min(1, len(batch) - 1)] if isinstance(batch, tuple) and batch else batch


def _loss_in_outputs(outputs: Any) -> Any:
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "loss", None)
    if found is None and isinstance(outputs, Mapping):
        found = outputs.get("loss")
    if found is None:
        raise ValueError(
            f"loss=None, but forward returns a {type(outputs).__name__} without a loss: give a criterion or a function "
            "loss(outputs, batch), or batches that hold the labels which the network needs for its own"
        )
    return found


def _without_partial(loss: Any) -> Any:
    while isinstance(loss, partial):
        loss = loss.func
    return loss


def _is_user_module(loss: Any) -> bool:
    inner = _without_partial(loss)
    return isinstance(inner, nn.Module) and type(inner).__module__ != nn.modules.loss.__name__

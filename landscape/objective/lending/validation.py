"""Checks of a network before it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from landscape.objective.lending.containers import instances_in
from landscape.objective.lending.modes import EMBEDDINGS

__all__ = ["HALF_PRECISION", "check_classes", "check_initialised", "check_memory", "checked_dtype", "is_copyable"]

# evaluated in float32: in these, rounding errors dominate second derivatives
HALF_PRECISION = (torch.float16, torch.bfloat16)


def is_copyable(module: nn.Module) -> bool:
    """Whether all of the module's own tensors are initialised and plain, so that they can be copied."""
    own = (*getattr(module, "_parameters", {}).values(), *getattr(module, "_buffers", {}).values())
    return not any(
        t is not None and (is_lazy(t) or t.is_meta or t.is_quantized or is_traceable_wrapper_subclass(t)) for t in own
    )


def check_initialised(model: nn.Module, what: str = "model") -> None:
    """Check that ``model`` is a module whose tensors are initialised and plain.

    Args:
        model: the module.
        what: its name in error messages.

    Raises:
        TypeError: it is not an ``nn.Module``.
        ValueError: it has lazy tensors, tensors on the meta device, or tensor subclasses that wrap others.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}: give a torch.nn.Module, or for a function of a dictionary of tensors "
            "and the inputs, params={name: tensor}"
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, t in tensors if is_lazy(t)]
    if lazy:
        raise ValueError(
            f"{what} has parameters without a shape yet, {', '.join(lazy[:5])}: run it once on a batch, so that its "
            "lazy modules are initialised"
        )
    empty = [name for name, t in tensors if t.is_meta]
    if empty:
        raise ValueError(
            f"{what} has tensors on the meta device, which has no values, {', '.join(empty[:5])}: build it on a real "
            "one, or load its weights with load_state_dict(..., assign=True)"
        )
    wrapped = [
        f"{name} ({t.dtype if t.is_quantized else type(t).__name__})"
        for name, t in tensors
        if t.is_quantized or is_traceable_wrapper_subclass(t)
    ]
    if wrapped:
        raise ValueError(
            f"{what} has tensors that are made of others, {', '.join(wrapped[:5])}: give it plain ones, such as the "
            "full_tensor() of a distributed or the dequantize() of a quantised one"
        )


def check_classes(modules: Sequence[nn.Module], classes: Sequence[type]) -> None:
    """Check that each module is still an instance of its original class.

    Raises:
        ValueError: one is not.
    """
    for module, original in zip(modules, classes, strict=True):
        if type(module) is not original:
            raise ValueError(
                f"model has a {original.__name__} that has become a {type(module).__name__} since this objective was "
                "made, as parametrizations do: make the objective anew"
            )


def check_memory(model: nn.Module, theta: Sequence[Tensor]) -> None:
    """Check that no module stores a view of a trainable parameter, and that no embedding has a ``max_norm``.

    Raises:
        ValueError: one does.
    """
    theirs, own = {t.untyped_storage().data_ptr() for t in theta}, {id(t) for t in theta}
    for name, module in model.named_modules():
        if isinstance(module, EMBEDDINGS) and module.max_norm is not None:
            raise ValueError(
                f"model has an embedding {name!r} with max_norm={module.max_norm}, whose forward changes the weights "
                "in place, so that they are no longer those of theta: give it max_norm=None"
            )
        attributes = {**vars(module), **vars(module).get("_buffers", {})}
        tensors = ((key, tensor) for key, value in attributes.items() for tensor in instances_in(value, Tensor))
        for key, value in tensors:
            if isinstance(value, nn.Parameter) or id(value) in own:
                continue
            if f"{key}_orig" in vars(module)["_parameters"]:  # recomputed by a hook before each forward
                continue
            if value.layout is torch.strided and value.numel() and value.untyped_storage().data_ptr() in theirs:
                raise ValueError(
                    f"{f'{name}.{key}'.lstrip('.')} of the model is a view of one of its trainable parameters, such as "
                    "weight.data, which would not follow theta: let forward read the parameter itself"
                )


def checked_dtype(theta: Sequence[Tensor], dtype: torch.dtype | None) -> torch.dtype:
    """The dtype in which to evaluate a network with these trainable parameters; ``dtype`` if the user gives one.

    Raises:
        ValueError: they are complex, or of several dtypes or devices.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={dtype}: give a floating one, torch.float32 or torch.float64")
    dtypes, devices = ({str(getattr(p, what)) for p in theta} for what in ("dtype", "device"))
    if any(p.is_complex() for p in theta):
        raise ValueError(
            "model has complex parameters: give it real ones, such as torch.view_as_real of them, since theta is a "
            "vector of real numbers"
        )
    if len(devices) > 1 or (len(dtypes) > 1 and dtype is None):
        raise ValueError(
            f"model has parameters of several dtypes or devices, {sorted(dtypes | devices)}: convert it with "
            "model.to(device, dtype), or give dtype=torch.float32 to have it evaluated so"
        )
    own = theta[0].dtype
    return dtype or (torch.float32 if own in HALF_PRECISION else own)

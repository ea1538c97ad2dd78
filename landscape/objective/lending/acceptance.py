"""Which networks are taken at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from landscape.objective.lending.containers import found
from landscape.objective.lending.modes import EMBEDDINGS

__all__ = ["HALF", "can_be_owned", "check_initialised", "check_kinds", "check_memory", "checked_dtype"]

# evaluated in float32: their rounding would be most of a second derivative
HALF = (torch.float16, torch.bfloat16)


def can_be_owned(module: nn.Module) -> bool:
    """Whether all of the module's own tensors have a shape, values and memory of their own."""
    own = (*getattr(module, "_parameters", {}).values(), *getattr(module, "_buffers", {}).values())
    return not any(
        t is not None and (is_lazy(t) or t.is_meta or t.is_quantized or is_traceable_wrapper_subclass(t)) for t in own
    )


def check_initialised(model: nn.Module, what: str = "model") -> None:
    """Refuse what is no module, or one whose tensors have no shape, no values or no memory of their own.

    Args:
        model: the one.
        what: what errors call it.

    Raises:
        TypeError, ValueError: it is.
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


def check_kinds(modules: Sequence[nn.Module], kinds: Sequence[type]) -> None:
    """Refuse modules that are of another type than they were.

    Raises:
        ValueError: one is.
    """
    for module, kind in zip(modules, kinds, strict=True):
        if type(module) is not kind:
            raise ValueError(
                f"model has a {kind.__name__} that has become a {type(module).__name__} since this objective was "
                "made, as parametrizations do: make the objective anew"
            )


def check_memory(model: nn.Module, theta: Sequence[Tensor]) -> None:
    """Refuse networks that keep a view of a trainable parameter, or whose embeddings renormalise their weights.

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
        held = {**vars(module), **vars(module).get("_buffers", {})}
        tensors = ((key, tensor) for key, value in held.items() for tensor in found(value, Tensor))
        for key, value in tensors:
            if isinstance(value, nn.Parameter) or id(value) in own:
                continue
            if f"{key}_orig" in vars(module)["_parameters"]:  # which a hook calculates anew before each forward
                continue
            if value.layout is torch.strided and value.numel() and value.untyped_storage().data_ptr() in theirs:
                raise ValueError(
                    f"{f'{name}.{key}'.lstrip('.')} of the model is a view of one of its trainable parameters, such as "
                    "weight.data, which would not follow theta: let forward read the parameter itself"
                )


def checked_dtype(theta: Sequence[Tensor], dtype: torch.dtype | None) -> torch.dtype:
    """In which to evaluate a network with these trainable parameters; ``dtype`` where the user asks for one.

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
    return dtype or (torch.float32 if own in HALF else own)

"""A function of a dictionary of tensors and the inputs, as a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["as_module"]


def as_module(function: Callable[..., Any], params: Mapping[str, Tensor]) -> nn.Module:
    """The network whose parameters are ``params`` and whose forward is ``function(params, *inputs)``.

    Trainable are the tensors that require gradients; if none does, as in functional code, all floating tensors.

    Raises:
        TypeError: ``function`` is not a function, or ``params`` not a dictionary of tensors.
        ValueError: a name is both a tensor and a prefix of another name, as "a" and "a.b".
    """
    if isinstance(function, nn.Module) or not callable(function):
        raise TypeError(
            f"model is a {type(function).__name__} and params is given: give a function of a dictionary of tensors and "
            "the inputs as model, or leave params out"
        )
    if not (isinstance(params, Mapping) and params and all(isinstance(t, Tensor) for t in params.values())):
        raise TypeError(
            "params is no dictionary of tensors: give {name: tensor}, with nested dictionaries flattened to names such "
            "as 'layer1.weight'"
        )
    return _Functional(function, params)


class _Functional(nn.Module):
    def __init__(self, function: Callable[..., Any], params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.function = function
        self._names = tuple(params)
        chosen = any(t.requires_grad for t in params.values())
        for name, tensor in params.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]  # type: ignore[assignment]
            if last in place._modules or last in place._parameters or last in place._buffers:
                raise ValueError(f"params has {name!r} beside names that begin or end there: rename it")
            if tensor.is_floating_point() or tensor.is_complex():
                trainable = tensor.requires_grad if chosen else True
                place.register_parameter(last, nn.Parameter(tensor.detach(), requires_grad=trainable))
            else:
                place.register_buffer(last, tensor)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return self.function({name: tensors[name] for name in self._names}, *inputs, **named)

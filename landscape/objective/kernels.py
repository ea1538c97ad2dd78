"""Which of torch's kernels a second derivative can go through."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["differentiable_twice", "with_graph", "without_cudnn_rnn"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def differentiable_twice(model: nn.Module) -> AbstractContextManager[Any]:
    """Within it the network runs on kernels that have a right second derivative.

    Fused attention has none; its MATH kernel has. Nor have the recurrent layers of cuDNN. That of the fused weight
    normalisation is wrong in torch 2.13 (gradgradcheck fails), so it is written out.
    """
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.enter_context(_WeightNormWrittenOut())
    stack.enter_context(without_cudnn_rnn(model))
    return stack


def with_graph(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function`` with autograd on: under ``no_grad`` derivatives would be taken for zero, without a word."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


def without_cudnn_rnn(model: nn.Module) -> AbstractContextManager[Any]:
    """Where there is a recurrent layer: cuDNN's has no gradient in evaluation mode."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


class _WeightNormWrittenOut(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = _weight_norm if function is torch._weight_norm else function
        return function(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """v g / ||v||, with the norm over all dimensions but ``dim`` (-1: over all)."""
    others = [d for d in range(v.dim()) if d != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))

"""Which of torch's kernels a second derivative can go through."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable_twice", "without_cudnn_rnn"]


def differentiable_twice(model: nn.Module) -> AbstractContextManager[Any]:
    """Fused attention has no second derivative; its MATH kernel has. Nor have the recurrent layers of cuDNN."""
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.enter_context(without_cudnn_rnn(model))
    return stack


def without_cudnn_rnn(model: nn.Module) -> AbstractContextManager[Any]:
    """Where there is a recurrent layer: cuDNN's has no gradient in evaluation mode."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()

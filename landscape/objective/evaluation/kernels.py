"""What torch does by itself while f is evaluated, and must not.

Which kernels a second derivative can go through; compiled code, whose backward pass cannot be differentiated; the
precision of an ``autocast`` around the analysis; noise.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from landscape.objective.evaluation.generators import generators_kept
from landscape.objective.lending.network import Network

__all__ = ["Kernels", "differentiable_twice", "with_graph"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_SEED = 0
_DROPOUTS = {
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
}


class Kernels:
    """How the modules of a network are to be run.

    Args:
        network: the one.
        frozen_noise: whether each evaluation begins with the same state of the global generators.
        without_dropout: whether ``functional.dropout``, and that within attention, does nothing.

    Attributes:
        draws: whether forward was seen to draw random numbers; then the global generators are put back after it.
    """

    def __init__(
        self,
        network: Network,
        *,
        frozen_noise: bool,
        without_dropout: bool,
    ) -> None:
        # cuDNN's recurrent layers have no gradient in evaluation mode, and would move weights to a buffer of their own
        self._recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules)
        self._device, self._frozen, self._without_dropout = network.flat.device, frozen_noise, without_dropout
        self.draws = False
        self._originals: dict[str, Tensor] = {}
        self._exchanged: list[tuple[Tensor, Tensor]] = []

    def exchange(self, originals: Mapping[str, Tensor], network: Network) -> None:
        """Have some of the user's parameters, by name, taken for ours wherever a function of torch gets them.

        So are reached those that code holds on to by other ways than its modules' attributes, as in a closure.
        """
        self._originals, ours = {**self._originals, **originals}, network.named_tensors()
        self._exchanged = [(theirs, ours[name]) for name, theirs in self._originals.items()]

    def of(self, network: Network) -> Kernels:
        """The same for another network of the same code."""
        other = copy.copy(self)
        if self._originals:
            other.exchange({}, network)
        return other

    def reaches(self, name: str) -> bool:
        """Whether that one of the user's is among them."""
        return name in self._originals

    @property
    def exchanges(self) -> bool:
        """Whether there are such."""
        return bool(self._exchanged)

    def noise(self) -> AbstractContextManager[None]:
        """Within it a batch is evaluated, with the same random numbers each time where noise is frozen."""
        if self._frozen:
            return generators_kept(_SEED)
        return generators_kept() if self.draws else nullcontext()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the network runs so."""
        with ExitStack() as stack:
            if self._recurrent:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if torch.is_autocast_enabled(self._device.type):
                stack.enter_context(torch.autocast(self._device.type, enabled=False))
            if torch.backends.mha.get_fastpath_enabled():  # which values would take and gradients would not
                torch.backends.mha.set_fastpath_enabled(False)
                stack.callback(torch.backends.mha.set_fastpath_enabled, True)
            stack.enter_context(_checkpointing_again())
            if self._without_dropout:
                stack.enter_context(_WithoutDropout())
            if self._exchanged:
                stack.enter_context(_Exchanged({id(theirs): ours for theirs, ours in self._exchanged}))
            yield


# what these keep serves one backward pass; without them all is calculated again, each time
_SELECTIVE = [
    (getattr(checkpoint, name), getattr(checkpoint, name).__torch_dispatch__)
    for name in ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")
    if hasattr(checkpoint, name)
]


@contextmanager
def _checkpointing_again() -> Iterator[None]:
    """Activation checkpointing by the way that can be differentiated by ``autograd.grad``, and twice."""
    theirs = checkpoint.CheckpointFunction
    try:
        checkpoint.CheckpointFunction = _Checkpointed  # type: ignore[misc, assignment]
        for mode, _ in _SELECTIVE:
            mode.__torch_dispatch__ = _as_it_is
        yield
    finally:
        checkpoint.CheckpointFunction = theirs  # type: ignore[misc]
        for mode, its in _SELECTIVE:
            mode.__torch_dispatch__ = its


def _as_it_is(mode: Any, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return function(*args, **(kwargs or {}))


class _Checkpointed:
    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)


def differentiable_twice() -> AbstractContextManager[Any]:
    """Within it the network runs on kernels that have a right second derivative.

    Fused attention has none; its MATH kernel has. That of the fused weight normalisation is wrong in torch 2.13
    (gradgradcheck fails), so it is written out. Sparse gradients of embeddings have none.
    """
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.enter_context(_WrittenOut())
    return stack


def with_graph(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function`` with autograd on: under ``no_grad`` derivatives would be taken for zero, without a word."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


class _WrittenOut(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        if function in (functional.embedding, functional.embedding_bag):
            kwargs = {**kwargs, "sparse": False}  # which these give by name
        return function(*args, **kwargs)


class _WithoutDropout(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if function is functional.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
            args = args[:4] + args[5:]
        return function(*args, **kwargs)


class _Exchanged(TorchFunctionMode):
    def __init__(self, exchanged: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._exchanged = exchanged

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = torch.utils._pytree.tree_map(self._ours, tuple(args))
        return function(*args, **torch.utils._pytree.tree_map(self._ours, kwargs or {}))

    def _ours(self, item: Any) -> Any:
        return self._exchanged.get(id(item), item)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """v g / ||v||, with the norm over all dimensions but ``dim`` (-1: over all)."""
    others = [d for d in range(v.dim()) if d != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))

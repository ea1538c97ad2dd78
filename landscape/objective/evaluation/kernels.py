"""Settings of torch while f is evaluated.

Kernels that have second derivatives; no compiled code, whose backward pass cannot be differentiated; no ``autocast``
from outside; random numbers; substitutes for parameters that forward does not read from its modules.
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

from landscape.objective.evaluation.generators import preserve_rng_state
from landscape.objective.lending.network import Network

__all__ = ["Kernels", "differentiable_twice", "no_second_derivative", "with_graph"]

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
    """The settings under which the modules of a network run.

    Args:
        network: the network.
        frozen_noise: whether each evaluation starts from the same state of the global generators.
        without_dropout: whether to disable ``functional.dropout`` and the dropout of attention.

    Attributes:
        draws: whether forward was observed to draw random numbers; the global generators are then restored after it.
    """

    def __init__(
        self,
        network: Network,
        *,
        frozen_noise: bool,
        without_dropout: bool,
    ) -> None:
        # cuDNN's recurrent layers have no gradient in evaluation mode, and would copy the weights to their own buffer
        self._recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules)
        self._device, self._frozen, self._without_dropout = network.flat.device, frozen_noise, without_dropout
        self.draws = False
        self._originals: dict[str, Tensor] = {}
        self._substitutes: list[tuple[Tensor, Tensor]] = []

    def substitute(self, originals: Mapping[str, Tensor], network: Network) -> None:
        """Substitute ours for the named parameters of the user's in the arguments of all functions of torch.

        For parameters that the code reads from elsewhere than its modules' attributes, such as from a closure.
        """
        self._originals, ours = {**self._originals, **originals}, network.named_tensors()
        self._substitutes = [(theirs, ours[name]) for name, theirs in self._originals.items()]

    def with_network(self, network: Network) -> Kernels:
        """The same settings for another network with the same code."""
        other = copy.copy(self)
        if self._originals:
            other.substitute({}, network)
        return other

    def is_substituted(self, name: str) -> bool:
        """Whether the user's parameter of that name is substituted."""
        return name in self._originals

    @property
    def has_substitutes(self) -> bool:
        """Whether any parameters are substituted."""
        return bool(self._substitutes)

    def noise(self) -> AbstractContextManager[None]:
        """Context for the evaluation of a batch, with the same random numbers each time if noise is frozen."""
        if self._frozen:
            return preserve_rng_state(_SEED)
        return preserve_rng_state() if self.draws else nullcontext()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context in which the network runs with these settings."""
        with ExitStack() as stack:
            if self._recurrent:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if "torch._dynamo" in sys.modules:  # otherwise nothing can have been compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if torch.is_autocast_enabled(self._device.type):
                stack.enter_context(torch.autocast(self._device.type, enabled=False))
            if torch.backends.mha.get_fastpath_enabled():  # used without autograd only, so values would differ
                torch.backends.mha.set_fastpath_enabled(False)
                stack.callback(torch.backends.mha.set_fastpath_enabled, True)
            stack.enter_context(_recomputing_checkpoints())
            if self._without_dropout:
                stack.enter_context(_WithoutDropout())
            if self._substitutes:
                stack.enter_context(_Substituting({id(theirs): ours for theirs, ours in self._substitutes}))
            yield


# the modes of selective checkpointing; what they cache can be used for one backward pass only
_SELECTIVE = [
    (getattr(checkpoint, name), getattr(checkpoint, name).__torch_dispatch__)
    for name in ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")
    if hasattr(checkpoint, name)
]


@contextmanager
def _recomputing_checkpoints() -> Iterator[None]:
    """Run activation checkpointing as non-reentrant and non-selective.

    That supports ``autograd.grad``, double backward, and several backward passes.
    """
    theirs = checkpoint.CheckpointFunction
    try:
        checkpoint.CheckpointFunction = _NonReentrant  # type: ignore[misc, assignment]
        for mode, _ in _SELECTIVE:
            mode.__torch_dispatch__ = _call_directly
        yield
    finally:
        checkpoint.CheckpointFunction = theirs  # type: ignore[misc]
        for mode, original in _SELECTIVE:
            mode.__torch_dispatch__ = original


def _call_directly(mode: Any, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return function(*args, **(kwargs or {}))


class _NonReentrant:
    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)


def differentiable_twice() -> AbstractContextManager[Any]:
    """Context in which the network runs on kernels with a correct second derivative.

    Fused attention has none, but its MATH kernel has. That of the fused weight normalisation is wrong in torch 2.13
    (gradgradcheck fails), so it is computed from elementary operations. Sparse gradients of embeddings have none.
    """
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.enter_context(_DoubleDifferentiable())
    return stack


def no_second_derivative(cause: RuntimeError) -> ValueError:
    """The error to raise if torch fails to differentiate the network twice."""
    return ValueError(
        f"the network cannot be differentiated twice ({cause}): replace the operation, or where it changes a tensor in "
        "place, write it out of place"
    )


def with_graph(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function`` with autograd enabled: under ``no_grad`` derivatives would silently be zero."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


class _DoubleDifferentiable(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        if function in (functional.embedding, functional.embedding_bag):
            kwargs = {**kwargs, "sparse": False}  # torch passes it by keyword here
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


class _Substituting(TorchFunctionMode):
    def __init__(self, substitutes: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._substitutes = substitutes

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = torch.utils._pytree.tree_map(self._ours, tuple(args))
        return function(*args, **torch.utils._pytree.tree_map(self._ours, kwargs or {}))

    def _ours(self, item: Any) -> Any:
        return self._substitutes.get(id(item), item)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """v g / ||v||, with the norm over all dimensions but ``dim`` (-1: over all)."""
    others = [d for d in range(v.dim()) if d != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))

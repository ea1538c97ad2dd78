"""Modules that forward or the loss calls without a reference that we find, such as globals of another file.

They have to be treated like the network: in evaluation mode, with fixed statistics. A search through attributes cannot
find all of them, but a global forward hook sees each module that is called, before it runs and changes any state. Then
the evaluation is aborted, the module is added to the network, and the evaluation is repeated.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from landscape.objective.lending.modes import has_mode
from landscape.objective.lending.network import Network

__all__ = ["with_external_modules"]

_T = TypeVar("_T")
# heuristic: code with more of them probably creates a new one in each call
_MAX_MODULES = 20


class _ModuleCalled(BaseException):
    """Aborts an evaluation. Not an ``Exception``, since the user's code may catch these."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.kind = weakref.ref(module), type(module)


def with_external_modules(network: Network, body: Callable[[], _T]) -> _T:
    """``body()``, which lends ``network``, repeated until all modules that it calls are in ``network``.

    Raises:
        ValueError: too many modules, or one that cannot be added.
    """
    for _ in range(_MAX_MODULES):
        owned = {id(module) for module in network.modules}

        def stop(module: nn.Module, _: Any, owned: set[int] = owned) -> None:
            if id(module) not in owned and type(module) not in network.transient_types and not _is_stateless(module):
                raise _ModuleCalled(module)

        handle = register_module_forward_pre_hook(stop)
        try:
            with warnings.catch_warnings():
                # compiled modules warn that they call global hooks twice
                warnings.filterwarnings("ignore", ".*when there are global hooks on modules", UserWarning)
                return body()
        except _ModuleCalled as called:
            reference, kind = called.module, called.kind
        finally:
            handle.remove()
        if reference() is not None:
            gc.collect()  # a module with reference cycles may outlive its call
        module = reference()
        if module is None:  # created within forward, and a new one in each call
            network.transient_types.add(kind)
        else:
            network.add_module(module)
    raise ValueError(
        f"forward or the loss calls modules that neither refers to, more than {_MAX_MODULES}, the last a "
        f"{kind.__name__}, or keeps each that it makes anew: let the network or the loss hold them as attributes"
    )


def _is_stateless(module: nn.Module) -> bool:
    """Whether it is a module of torch without tensors, submodules and mode, such as a criterion."""
    ours = type(module).__module__.startswith("torch.nn.modules.") and not has_mode(module)
    return ours and not any((module._parameters, module._buffers, module._modules))

"""Modules that forward or the loss calls and nobody named: in a class, in another file, behind a trainer.

They are to be owned like the network, in evaluation mode and with statistics that stay as they are. No search through
attributes finds them all, but a hook sees each that is called, before its code runs and anything of it has changed.
Then the evaluation is given up, the module taken in, and the evaluation begun anew.
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

__all__ = ["with_outsiders"]

_T = TypeVar("_T")
# heuristic: whatever keeps more of its modules where no attribute leads makes a new one for each call
_MOST = 20


class _Called(BaseException):
    """No ``Exception``, which code of the user's may catch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.kind = weakref.ref(module), type(module)


def with_outsiders(network: Network, body: Callable[[], _T]) -> _T:
    """``body()``, which lends ``network``, with all modules that it calls owned.

    Raises:
        ValueError: there is no end of them, or one cannot be owned.
    """
    for _ in range(_MOST):
        owned = {id(module) for module in network.modules}

        def stop(module: nn.Module, _: Any, owned: set[int] = owned) -> None:
            if id(module) not in owned and type(module) not in network.made_anew and not _says_all(module):
                raise _Called(module)

        handle = register_module_forward_pre_hook(stop)
        try:
            with warnings.catch_warnings():
                # of compiled modules, which call such a hook twice
                warnings.filterwarnings("ignore", ".*when there are global hooks on modules", UserWarning)
                return body()
        except _Called as called:
            reference, kind = called.module, called.kind
        finally:
            handle.remove()
        if reference() is not None:
            gc.collect()  # one that refers to itself outlives its call
        module = reference()
        if module is None:  # made within forward: nobody's state, and another one each time
            network.made_anew.add(kind)
        else:
            network.take_in(module)
    raise ValueError(
        f"forward or the loss calls modules that neither refers to, more than {_MOST}, the last a {kind.__name__}, or "
        "keeps each that it makes anew: let the network or the loss hold them as attributes"
    )


def _says_all(module: nn.Module) -> bool:
    """Whether it is one of torch's without tensors, parts and mode, such as a criterion."""
    ours = type(module).__module__.startswith("torch.nn.modules.") and not has_mode(module)
    return ours and not any((module._parameters, module._buffers, module._modules))

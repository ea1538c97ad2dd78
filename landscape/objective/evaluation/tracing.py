"""Tracing of the tensors that a forward pass reads, by torch's dispatch and function modes.

- *Parameters of the user's network*: an operation on the memory of one, or a graph that ends in one, shows that forward
  reads it from elsewhere than its modules' attributes, such as from a closure.
- *Embeddings with a padding row*, to which autograd gives no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PaddingTracer", "ReadTracer", "inner_nodes", "original_leaves", "shares_nodes"]


class ReadTracer(TorchDispatchMode):
    """Records which of the given tensors are read by operations, also through views and ``.data``.

    Args:
        tensors: by name.

    Attributes:
        found: those that were read.
    """

    # needed for higher-order operators, some of which refuse modes that do not support them
    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether torch's compiler may run under this mode."""
        return True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}
        self._tensors = tensors
        self._names: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            for memory in _memory(tensor):
                self._names.setdefault(memory, []).append(name)

    def record_leaves(self, loss: Tensor) -> None:
        """Record the leaves of the graph of ``loss``: tensors computed from them before forward have other memory."""
        self._record(original_leaves(loss, self._tensors))

    def _record(self, names: Iterable[str]) -> None:
        self.found.update((name, self._tensors[name]) for name in names)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for item in tree_leaves((args, kwargs)):
            if isinstance(item, Tensor):
                for memory in _memory(item):
                    self._record(self._names.get(memory, ()))
        return function(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> Iterator[int]:
    """The address of the tensor's memory, if it has one."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, or within a transform of torch.func
        return
    if address:  # 0 for all empty tensors
        yield address


def original_leaves(loss: Tensor, originals: Mapping[str, Tensor]) -> set[str]:
    """The names of the user's parameters that are leaves of the graph of ``loss``."""
    names = {id(tensor): name for name, tensor in originals.items()}
    leaves = (id(getattr(node, "variable", None)) for node in _graph(loss))
    return {names[leaf] for leaf in leaves if leaf in names}


def inner_nodes(loss: Tensor) -> set[Any]:
    """The nodes of the graph of ``loss`` that are not leaves.

    Sequence numbers would not do, since each thread counts its own.
    """
    return {node for node in _graph(loss) if not hasattr(node, "variable")}


def shares_nodes(loss: Tensor, nodes: set[Any]) -> bool:
    """Whether the graph of ``loss`` includes any of ``nodes``, those of an earlier call."""
    return any(node in nodes for node in _graph(loss))


def _graph(loss: Tensor) -> Iterator[Any]:
    """The nodes of the graph, each once."""
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes.extend(parent for parent, _ in node.next_functions)


class PaddingTracer(TorchFunctionMode):
    """Records the embeddings that are called with a ``padding_idx``."""

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self._weights = weights
        self.found: dict[str, int] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (functional.embedding, functional.embedding_bag):
            name, row = self._weights.get(id(args[1])), kwargs.get("padding_idx")
            if name is not None and row is not None:
                self.found[name] = row % len(args[1])
        return function(*args, **kwargs)

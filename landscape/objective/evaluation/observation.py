"""What a forward pass of the user's code reads, observed while it runs.

- *Tensors of the user's own*: an operation that gets memory of the user's parameter, or a loss whose graph ends in it,
  shows that forward holds on to it by other ways than its modules' attributes, such as a closure over the tensor.
- *Embeddings with a padded row*, which autograd holds fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PaddedRows", "TensorsRead", "goes_on_from", "nodes_of", "originals_in"]


class TensorsRead(TorchDispatchMode):
    """Notes which of some tensors operations read, by their memory: views and ``.data`` of them count.

    Args:
        tensors: by name.

    Attributes:
        found: those that are read.
    """

    # of higher-order operators, too, some of which refuse all other modes
    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether torch's own compiler may run under it."""
        return True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}
        self._tensors = tensors
        self._names: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            for memory in _memory(tensor):
                self._names.setdefault(memory, []).append(name)

    def end_in(self, loss: Tensor) -> None:
        """Note those that the graph of ``loss`` ends in: what was calculated from them earlier has other memory."""
        self._note(originals_in(loss, self._tensors))

    def _note(self, names: Iterable[str]) -> None:
        self.found.update((name, self._tensors[name]) for name in names)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for item in tree_leaves((args, kwargs)):
            if isinstance(item, Tensor):
                for memory in _memory(item):
                    self._note(self._names.get(memory, ()))
        return function(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> Iterator[int]:
    """The address of its memory, where there is one."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, or within a transform of torch.func
        return
    if address:  # which all empty tensors share
        yield address


def originals_in(loss: Tensor, originals: Mapping[str, Tensor]) -> set[str]:
    """The names of those of the user's parameters that the graph of ``loss`` ends in."""
    names = {id(tensor): name for name, tensor in originals.items()}
    leaves = (id(getattr(node, "variable", None)) for node in _graph(loss))
    return {names[leaf] for leaf in leaves if leaf in names}


def nodes_of(loss: Tensor) -> set[Any]:
    """Those of its graph that are no leaves. Their order cannot be compared: each thread numbers its own."""
    return {node for node in _graph(loss) if not hasattr(node, "variable")}


def goes_on_from(loss: Tensor, nodes: set[Any]) -> bool:
    """Whether the graph of ``loss`` goes on in that of an earlier call, whose ``nodes`` are."""
    return any(node in nodes for node in _graph(loss))


def _graph(loss: Tensor) -> Iterator[Any]:
    """Its nodes, each once."""
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes.extend(before for before, _ in node.next_functions)


class PaddedRows(TorchFunctionMode):
    """Notes the embeddings that are looked up with a ``padding_idx``."""

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

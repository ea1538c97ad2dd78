"""The map between a network's named tensors and one flat vector theta of shape (n,).

Everything else in this package works on theta. The order is that of ``model.named_parameters()``;
tied parameters appear once, and parameters with ``requires_grad=False`` are not part of theta.

A *filter* is what feeds one output channel or unit (Li et al. 2018). The type of the layer says where it lies in the
tensor: see ``ParameterSpace.filters``.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["ParameterSpace"]


@dataclass(frozen=True)
class ParameterSpace:
    """Names and shapes of the tensors that make up theta.

    Example:
        >>> space = ParameterSpace.of(nn.Linear(3, 2))
        >>> space.size
        8
        >>> {name: tuple(view.shape) for name, view in space.views(torch.zeros(8)).items()}
        {'weight': (2, 3), 'bias': (2,)}
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    layouts: tuple[Layout, ...]  # of each tensor's filters

    @classmethod
    def of(cls, model: nn.Module) -> ParameterSpace:
        """The trainable parameters of ``model``.

        Raises:
            ValueError: it has none.
        """
        named = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError(
                f"model={type(model).__name__} has no parameter with requires_grad=True: "
                "unfreeze those whose landscape you want"
            )
        modules = dict(model.named_modules())
        return cls(tuple(named), tuple(named.values()), tuple(_layout(modules, *item) for item in named.items()))

    @property
    def size(self) -> int:
        """n, the number of scalars in theta."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def one_dimensional(self) -> frozenset[str]:
        """The names of biases, of what normalisation layers hold, and of all else of fewer than two dimensions."""
        return frozenset(n for n, layout in zip(self.names, self.layouts, strict=True) if layout.one_dimensional)

    def restricted(self, patterns: Sequence[str]) -> ParameterSpace:
        """Those of the names that fit a pattern, as in a shell.

        Raises:
            ValueError: a pattern fits no name.
        """
        for pattern in patterns:
            if not fnmatch.filter(self.names, pattern):
                raise ValueError(f"pattern {pattern!r} fits no parameter: the names are {', '.join(self.names)}")
        chosen = [
            item
            for item in zip(self.names, self.shapes, self.layouts, strict=True)
            if any(fnmatch.fnmatchcase(item[0], pattern) for pattern in patterns)
        ]
        return ParameterSpace(*(tuple(column) for column in zip(*chosen, strict=True)))

    def rows(self, rows: Mapping[str, int]) -> Tensor:
        """Where one row of some tensors lies in theta, as indices; names that it does not have are left out."""
        found = [torch.zeros(0, dtype=torch.long)]
        for name, view in self.views(torch.arange(self.size)).items():
            if name in rows:
                found.append(view[rows[name]].flatten())
        return torch.cat(found)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the named tensors into a new vector (n,); further names are left out.

        Raises:
            ValueError: a tensor is missing or of another shape.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in tensors:
                raise ValueError(f"tensors lack {name!r}: give one tensor for each of {self.names}")
            if tensors[name].shape != shape:
                raise ValueError(
                    f"tensors[{name!r}] has shape {tuple(tensors[name].shape)}, "
                    f"but the network's is {tuple(shape)}: load weights of the same architecture"
                )
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The named tensors as views of ``vector`` (n,): writing to one writes to the other.

        Raises:
            ValueError: ``vector`` is not of shape (n,).
        """
        check_vector("vector", vector, self.size)
        pieces = vector.split([math.prod(shape) for shape in self.shapes])
        return {name: piece.view(shape) for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)}

    def filters(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """For each tensor a view of ``vector`` (n,) whose dimension 0 counts its filters.

        - Linear and convolutional layers: the weights into one output unit or channel.
        - Transposed convolutions, and the ``Conv1D`` of Hugging Face: likewise, though outputs are dimension 1 of their
          weights. With groups, one view for each group.
        - Embeddings: a row, the vector of one token.
        - Recurrent layers: a gate, that is a block of ``hidden_size`` rows of ``weight_ih`` or ``weight_hh``, or of
          entries of a bias (LSTM 4, GRU 3, plain RNN 1).
        - ``one_dimensional`` parameters else: each entry is one filter.
        - What is not known: a slice of dimension 0.
        """
        for (name, view), (kind, parts, _) in zip(self.views(vector).items(), self.layouts, strict=True):
            if kind == "entries":
                yield name, view.reshape(-1, 1)
            elif kind == "gates":
                yield name, view.reshape(parts, -1)
            elif kind == "columns":
                yield from ((name, group.transpose(0, 1)) for group in view.chunk(parts))
            else:
                yield name, view.flatten(1)


class Layout(NamedTuple):
    """Where a tensor's filters lie in it."""

    kind: str  # "rows": slices of dimension 0, "columns": of dimension 1, "gates", or "entries"
    parts: int = 1  # gates, or groups of columns
    one_dimensional: bool = False


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _layout(modules: Mapping[str, nn.Module], name: str, shape: torch.Size) -> Layout:
    owner, _, own = name.rpartition(".")
    # a parametrization holds what its layer would
    layer = modules[f".{owner}".partition(".parametrizations.")[0].removeprefix(".")]
    if _is_scale(modules[owner], layer, own):
        return Layout("entries", one_dimensional=True)
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase) and own.startswith(("weight_ih", "weight_hh", "bias_")):
        return Layout("gates", shape[0] // layer.hidden_size, one_dimensional=len(shape) < 2)
    if isinstance(layer, _NORMS) or len(shape) < 2:
        return Layout("entries", one_dimensional=True)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return Layout("columns", layer.groups)
    if type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers."):
        return Layout("columns")
    return Layout("rows")


def _is_scale(owner: nn.Module, layer: nn.Module, own: str) -> bool:
    """Whether it is g of a weight normalisation w = g v / ||v||, which like BatchNorm's scale moves a whole filter."""
    if isinstance(owner, nn.utils.parametrize.ParametrizationList):
        return own == "original0" and isinstance(owner[0], nn.utils.parametrizations._WeightNorm)
    hooks = getattr(layer, "_forward_pre_hooks", {}).values()
    return any(type(hook).__name__ == "WeightNorm" and own == f"{hook.name}_g" for hook in hooks)


def check_vector(name: str, vector: Tensor, size: int) -> None:
    """Raise ValueError unless ``vector`` has shape (size,)."""
    if vector.shape != (size,):
        raise ValueError(f"{name} has shape {tuple(vector.shape)}: give a flat vector of shape ({size},)")

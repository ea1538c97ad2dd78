"""The map between a network's named tensors and one flat vector theta of shape (n,).

Everything else in this package works on theta. The order is that of ``model.named_parameters()``;
tied parameters appear once, and parameters with ``requires_grad=False`` are not part of theta.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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

    @classmethod
    def of(cls, model: nn.Module) -> ParameterSpace:
        """The trainable parameters of ``model``.

        Raises:
            ValueError: it has none.
        """
        named = [(name, p.shape) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(
                f"model={type(model).__name__} has no parameter with requires_grad=True: "
                "unfreeze those whose landscape you want"
            )
        names, shapes = zip(*named, strict=True)
        return cls(names, shapes)

    @property
    def size(self) -> int:
        """n, the number of scalars in theta."""
        return sum(math.prod(shape) for shape in self.shapes)

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
        """For each tensor its filters as the rows of a view (filters, entries) of ``vector``.

        A filter is a slice of dimension 0: the incoming weights of one output channel or unit (Li et
        al. 2018). Tensors of fewer than two dimensions have none, and come as one column (entries, 1).
        """
        for name, view in self.views(vector).items():
            yield name, view.flatten(1) if view.dim() > 1 else view.reshape(-1, 1)


def check_vector(name: str, vector: Tensor, size: int) -> None:
    """Raise ValueError unless ``vector`` has shape (size,)."""
    if vector.shape != (size,):
        raise ValueError(f"{name} has shape {tuple(vector.shape)}: give a flat vector of shape ({size},)")

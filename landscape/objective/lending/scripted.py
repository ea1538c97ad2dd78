"""The state of TorchScript modules that is stored in C++: parameters, buffers and the training flag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objective.lending.modes import training_mode

__all__ = ["Scripted"]


class Scripted:
    """The tensor slots of the ScriptModules among some modules.

    Args:
        modules: any modules; others than ScriptModules are ignored.

    Attributes:
        tensors: the contents of the slots while they are lent, module by module; initially the user's own.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._slots: list[Any] = [m._c for m in modules if isinstance(m, torch.jit.ScriptModule) and hasattr(m, "_c")]
        self.tensors = [_tensors_of(slots) for slots in self._slots]
        self._training: list[tuple[Any, bool]] = []

    def __bool__(self) -> bool:
        return any(self.tensors)

    def with_tensors(self, tensors: Sequence[dict[str, Tensor]]) -> Scripted:
        """The same slots with other tensors, module by module."""
        other = Scripted(())
        other._slots, other._training, other.tensors = self._slots, self._training, list(tensors)
        return other

    def __add__(self, more: Scripted) -> Scripted:
        both = self.with_tensors([*self.tensors, *more.tensors])
        both._slots, both._training = [*self._slots, *more._slots], [*self._training, *more._training]
        return both

    def set_training(self, modules: Iterable[nn.Module], training: bool) -> None:
        """Set the mode that the modules have while they are lent."""
        scripted = (m for m in modules if isinstance(m, torch.jit.ScriptModule))
        self._training = [(m._c, training_mode(m, training)) for m in scripted if m._c.hasattr("training")]

    def state(self) -> tuple[list[dict[str, Tensor]], list[bool]]:
        """The current contents of the slots."""
        return [_tensors_of(slots) for slots in self._slots], [slots.getattr("training") for slots, _ in self._training]

    def lend(self, swaps: Mapping[int, Tensor]) -> None:
        """Write our tensors into the slots, or their replacements ``swaps[id(tensor)]``."""
        self._write(
            [{name: swaps.get(id(own), own) for name, own in tensors.items()} for tensors in self.tensors],
            [on for _, on in self._training],
        )

    def restore(self, state: tuple[list[dict[str, Tensor]], list[bool]]) -> None:
        """Write the contents given by :meth:`state` back into the slots."""
        self._write(*state)

    def _write(self, tensors: list[dict[str, Tensor]], training: list[bool]) -> None:
        for slots, named in zip(self._slots, tensors, strict=True):
            for name, tensor in named.items():
                slots.setattr(name, tensor)
        for (slots, _), on in zip(self._training, training, strict=True):
            slots.setattr("training", on)


def _tensors_of(slots: Any) -> dict[str, Tensor]:
    return {
        **dict(torch._C.ParameterDict(slots).items()),  # type: ignore[attr-defined]
        **dict(torch._C.BufferDict(slots).items()),  # type: ignore[attr-defined]
    }

"""A checkpoint: the named tensors of a network, with a name and metadata."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints.fitting import fit, tied_names
from landscape.checkpoints.loading import load, migrated_entries, state_of
from landscape.checkpoints.values import bytes_of

__all__ = ["Checkpoint"]

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Checkpoint:
    """Parameters and buffers by name, as in ``model.state_dict()``.

    Attributes:
        name: its name in tables and legends.
        tensors: by the names in the file. ``*._extra_state`` may be of any type.
        metadata: of the file.
        notes: what was done when it was read, in sentences.
    """

    name: str
    tensors: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, name: str = "model") -> Checkpoint:
        """A copy of the network's current ``state_dict``.

        Raises:
            ValueError: it is not a mapping of names to tensors.
        """
        return cls(name, {k: _copied(v) for k, v in state_of(model).items()})

    def digest(self) -> str:
        """SHA-256 over names and bytes: two checkpoints with the same digest hold the same tensors.

        Entries that are not tensors, such as an ``_extra_state``, are left out: they have no reproducible bytes.
        """
        sha = hashlib.sha256()
        for name in sorted(self.tensors):
            if isinstance(self.tensors[name], Tensor):
                sha.update(name.encode())
                sha.update(bytes_of(self.tensors[name]).numpy().tobytes())
        return sha.hexdigest()

    def fitted(
        self, expected: Mapping[str, Any], *, aliases: Mapping[str, str] = _NONE, of: str = "the network"
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """One tensor for each name of a network, whatever wrappers and trainers have added to the names.

        Parts of names from wrappers (``module.``, ``_orig_mod.``) are ignored on both sides. One prefix may exist in
        the checkpoint only (``net.0.weight`` for ``0.weight``); entries without it are then ignored. Or one may exist
        in the network only (``h.0.weight`` for ``transformer.h.0.weight``); names without it must then be the same.

        Args:
            expected: the network's tensors by its own names, as in ``model.state_dict()``. Their values are not used,
                except BatchNorm's ``num_batches_tracked`` if the checkpoint has none.
            aliases: another name for each tied tensor, so that it may be saved under any of them. They may include
                names that are not expected.
            of: the network's name in error messages.

        Returns:
            The tensors by the names of ``expected``, with the dtypes of the checkpoint and not copied; and what was
            done to find them, in sentences: prefixes, ignored entries, tied weights, conversions of dtypes.

        Raises:
            ValueError: names or shapes do not fit, or several prefixes fit with different values; the network's dtype
                cannot represent the values; names of one tied tensor have different values.

        Example:
            >>> import torch
            >>> saved = Checkpoint("last", {"net.weight": torch.ones(1, 2), "loss.scale": torch.ones(1)})
            >>> saved.fitted({"weight": torch.zeros(1, 2)})[0]
            {'weight': tensor([[1., 1.]])}
        """
        return fit(self.tensors, expected, aliases, f"checkpoint {self.name!r}", of)

    def load_into(self, model: nn.Module) -> tuple[str, ...]:
        """Copy all tensors into ``model``, keeping its dtypes, and return what was done, in sentences: see ``fitted``.

        Names of older versions, such as those of the old weight normalisation, are converted by the model's load hooks.
        Tensors that the model's ``state_dict`` does not include, as with adapters, are not changed.

        Raises:
            ValueError: names, shapes or dtypes do not fit, or the model overrides ``load_state_dict`` and does not
                accept what its ``state_dict`` returns; the model is then unchanged.
        """
        state, of = state_of(model), type(model).__name__
        aliases = tied_names(state)
        try:
            values, notes = self.fitted(state, aliases=aliases, of=of)
        except ValueError:
            # names of older versions, which the network's own hooks convert
            for tensors in migrated_entries(model, state, self.tensors):
                with suppress(ValueError):
                    values, notes = Checkpoint(self.name, tensors).fitted(state, aliases=aliases, of=of)
                    notes = (*notes, "names of before are brought up to date by the network's own load_state_dict")
                    break
            else:
                raise
        return (*notes, *load(model, state, values, f"checkpoint {self.name!r} does not fit {of}"))


@torch.inference_mode(False)  # inference tensors cannot become parameters
def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)

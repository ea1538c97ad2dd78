"""A checkpoint: the named tensors of a network, what they are called and what is known of them."""

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
from landscape.checkpoints.loading import brought_up_to_date, load, state_of
from landscape.checkpoints.values import bytes_of

__all__ = ["Checkpoint"]

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Checkpoint:
    """Parameters and buffers by name, as in ``model.state_dict()``.

    Attributes:
        name: what tables and legends call it.
        tensors: by the names of the file. ``*._extra_state`` may be of any type.
        metadata: what is known of it.
        notes: what was done when it was read, in sentences.
    """

    name: str
    tensors: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, name: str = "model") -> Checkpoint:
        """A copy of the network's present state, as its ``state_dict`` gives it.

        Raises:
            ValueError: that gives something else than tensors by name.
        """
        return cls(name, {k: _copied(v) for k, v in state_of(model).items()})

    def digest(self) -> str:
        """SHA-256 over names and bytes: two checkpoints with the same digest hold the same tensors.

        What is no tensor, as an ``_extra_state`` may be, is left out: it has no bytes that are the same in every run.
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
        """One tensor for each name of a network, however wrappers and trainers have renamed them.

        Wrappers' parts of names (``module.``, ``_orig_mod.``) may be in either, anywhere. One prefix may be in the
        checkpoint alone (``net.0.weight`` for ``0.weight``), and then what is outside it is ignored; or one in the
        network alone (``h.0.weight`` for ``transformer.h.0.weight``), and then names without it are found as they are.

        Args:
            expected: the network's tensors by its own names, as in ``model.state_dict()``. Their values do not count,
                but for BatchNorm's ``num_batches_tracked``, which stand where the checkpoint has none.
            aliases: for a tied tensor's name another of its names, so that it may be saved under any of them. Names
                that are not expected may be among them.
            of: what errors call the network.

        Returns:
            The tensors by the names of ``expected``, in the dtypes that they are saved in and not copied; and what was
            done to find them, in sentences: prefixes, entries ignored, tied weights, what the network's dtypes will do.

        Raises:
            ValueError: names or shapes do not fit, or other values fit under several prefixes; the network's dtype
                loses more than digits; names of one tied tensor have different values.

        Example:
            >>> import torch
            >>> saved = Checkpoint("last", {"net.weight": torch.ones(1, 2), "loss.scale": torch.ones(1)})
            >>> saved.fitted({"weight": torch.zeros(1, 2)})[0]
            {'weight': tensor([[1., 1.]])}
        """
        return fit(self.tensors, expected, aliases, f"checkpoint {self.name!r}", of)

    def load_into(self, model: nn.Module) -> tuple[str, ...]:
        """Copy all tensors into ``model``, whose dtypes stay, and tell what was done: see ``fitted``.

        Names of before, such as those of the older weight normalisation, are taken as the model's hooks take them.
        Where the model's ``state_dict`` leaves out some of its tensors, as adapters' do, these stay as they are.

        Raises:
            ValueError: names, shapes or dtypes do not fit, or the model has a ``load_state_dict`` of its own that does
                not take what its ``state_dict`` gives; the model is then unchanged.
        """
        state, of = state_of(model), type(model).__name__
        aliases = tied_names(state)
        try:
            values, notes = self.fitted(state, aliases=aliases, of=of)
        except ValueError:
            # names of before, which the network's own hooks know
            for tensors in brought_up_to_date(model, state, self.tensors):
                with suppress(ValueError):
                    values, notes = Checkpoint(self.name, tensors).fitted(state, aliases=aliases, of=of)
                    notes = (*notes, "names of before are brought up to date by the network's own load_state_dict")
                    break
            else:
                raise
        return (*notes, *load(model, state, values, f"checkpoint {self.name!r} does not fit {of}"))


@torch.inference_mode(False)  # whose tensors no network could take for its own
def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)

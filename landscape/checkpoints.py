"""A checkpoint: the named tensors of a network, what they are called and what is known of them."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

T = TypeVar("T")

__all__ = ["Checkpoint", "load_checkpoint", "load_checkpoints", "unwrapped"]

# where training scripts put the state_dict when they save more than that
_NESTED = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Checkpoint:
    """Parameters and buffers by name, as in ``model.state_dict()``."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, name: str = "model") -> Checkpoint:
        """A copy of the network's present state."""
        return cls(name, {k: v.detach().clone() for k, v in model.state_dict().items()})

    def digest(self) -> str:
        """SHA-256 over names and bytes: two checkpoints with the same digest are the same."""
        sha = hashlib.sha256()
        for name in sorted(self.tensors):
            sha.update(name.encode())
            sha.update(self.tensors[name].cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def load_into(self, model: nn.Module) -> None:
        """Copy all tensors into ``model``.

        Raises:
            ValueError: names or shapes do not fit; the model is then unchanged.
        """
        own = unwrapped(model.state_dict())
        missing = [name for name in own if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in own]
        reshaped = [
            f"{name} is {tuple(self.tensors[name].shape)}, the network's is {tuple(own[name].shape)}"
            for name in own
            if name in self.tensors and self.tensors[name].shape != own[name].shape
        ]
        problems = [
            f"{kind}: {', '.join(names)}"
            for kind, names in (
                ("missing", missing),
                ("not in the network", unexpected),
                ("other shape", reshaped),
            )
            if names
        ]
        if problems:
            raise ValueError(
                f"checkpoint {self.name!r} does not fit {type(model).__name__}: "
                f"{'; '.join(problems)}. Give the network that it was saved from."
            )
        model.load_state_dict({name: self.tensors[bare] for name, bare in zip(model.state_dict(), own, strict=True)})


def load_checkpoint(path: str | Path, name: str | None = None) -> Checkpoint:
    """Read a ``.safetensors`` file, or a ``torch.save`` file that holds nothing but tensors.

    Args:
        path: the file. A ``torch.save`` file may hold the state_dict itself or a dictionary with it
            under ``state_dict``, ``model_state_dict`` or ``model``. The prefixes of wrapped networks, ``module.`` and
            ``_orig_mod.``, are taken off.
        name: what tables and legends call it. Default: the file's stem.

    Returns:
        A Checkpoint on the CPU, with the JSON metadata of a safetensors header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds no tensors, or could run code when unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r} is not a file: give a saved checkpoint")
    tensors, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return Checkpoint(name or path.stem, tensors, metadata)


def load_checkpoints(specs: Iterable[str]) -> list[Checkpoint]:
    """Read several, each given as ``PATH`` or, to say what it is called, as ``NAME=PATH``.

    Files of the same stem are told apart by their folder, as ``folder-stem``.
    """
    named = [_name_and_path(spec) for spec in specs]
    stems = Counter(path.stem for name, path in named if not name)
    return [
        load_checkpoint(path, name or (f"{path.parent.name}-{path.stem}" if stems[path.stem] > 1 else None))
        for name, path in named
    ]


def _name_and_path(spec: str) -> tuple[str, Path]:
    name, equals, path = spec.partition("=")
    # a file of that very name comes first: folders are often called lr=0.1
    return ("", Path(spec)) if not equals or Path(spec).is_file() else (name, Path(path))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} is not a whole safetensors file ({error}): save it again") from error
    return unwrapped(tensors), {key: _json_or_text(value) for key, value in header.items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # another writer's header: {"format": "pt"}
        return text


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"path={str(path)!r} holds more than tensors, so loading it could run code. Where you "
            "trust it, save the weights alone: torch.save(model.state_dict(), path)"
        ) from error
    except OSError:  # it cannot be read at all
        raise
    except Exception as error:  # damaged or foreign files fail in the unpickler in many ways
        raise ValueError(f"path={str(path)!r} is not a whole torch.save file ({error}): save it again") from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ValueError(
            f"path={str(path)!r} holds a {type(content).__name__}, no state_dict: save "
            "torch.save(model.state_dict(), path)"
        )
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if len(others) == len(content):
        raise ValueError(
            f"path={str(path)!r} holds no state_dict, neither itself nor under {_NESTED}, but "
            f"{', '.join(others) or 'nothing'}: save torch.save(model.state_dict(), path)"
        )
    if others:
        raise ValueError(
            f"path={str(path)!r} holds entries that are no tensors ({', '.join(others)}): save the state_dict "
            "without them"
        )
    return unwrapped(dict(content)), {}


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Without the prefixes that DistributedDataParallel and torch.compile put before every name.

    A network whose only child is called ``module`` looks the same, so files and networks are both read this way.
    """
    tensors = dict(tensors)
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors

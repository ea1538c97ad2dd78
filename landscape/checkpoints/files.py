"""Read one file, without running code from it: a safetensors file, or a file of ``torch.save``.

Trainers save more than a state_dict, so it is looked up under the keys that they use. If there are several, trained
weights take precedence over their running averages.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from landscape.checkpoints.fitting import is_extra_state
from landscape.checkpoints.names import truncated

__all__ = ["read_file"]

_TRAINED = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "weights", "params")
# the last is Lightning's key for the trained weights when state_dict holds their average
_FURTHER = ("ema", "ema_state_dict", "model_ema", "state_dict_ema", "ema_model", "current_model_state")

Contents = tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]


def read_file(path: Path) -> Contents:
    """The named tensors of a file, the metadata of its header, and what was done to find them.

    Raises:
        ValueError: the file is damaged, holds no tensors, or could run code when unpickled.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} is not a whole safetensors file ({error}): save it again") from error
    return tensors, {key: _json_or_text(value) for key, value in header.items()}, ()


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # a header from another program: {"format": "pt"}
        return text


def _read_torch(path: Path) -> Contents:
    content = _unpickled(path)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"path={str(path)!r} holds a {type(content).__name__}, no state_dict: save "
            "torch.save(model.state_dict(), path)"
        )
    notes = []
    keys = [key for key in (*_TRAINED, *_FURTHER) if isinstance(content.get(key), Mapping) and _named(content[key])]
    if keys:
        content = content[keys[0]]
        if keys[0] in _FURTHER:
            notes.append(f"the weights under {keys[0]!r} are taken, which are all that the file has")
        if others := keys[1:]:
            notes.append(
                f"the weights under {keys[0]!r} are taken, not the others under {truncated(map(repr, others))}"
            )
    tensors = _named(content)
    if not tensors:
        raise ValueError(
            f"path={str(path)!r} holds no state_dict, neither itself nor under {truncated(_TRAINED)}, but "
            f"{truncated(map(str, content)) or 'nothing'}: save torch.save(model.state_dict(), path)"
        )
    extra = {key: value for key, value in content.items() if isinstance(key, str) and is_extra_state(key)}
    if ignored := [str(key) for key in content if key not in tensors and key not in extra]:
        notes.append(f"entries that are no tensors are ignored: {truncated(ignored)}")
    return {**tensors, **extra}, {}, tuple(notes)


def _named(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors among the entries."""
    return {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it names {refused[1]})" if refused else ""
        raise ValueError(
            f"path={str(path)!r} holds more than tensors{what}, so loading it could run code. Where you trust it, save "
            "the weights alone: torch.save(model.state_dict(), path); or, of a trainer's file, "
            'torch.save(torch.load(path, weights_only=False)["state_dict"], new_path)'
        ) from error
    except OSError:  # the file cannot be read
        raise
    except Exception as error:  # damaged or other files raise various errors in the unpickler
        if "TorchScript" in str(error):
            raise ValueError(
                f"path={str(path)!r} is a TorchScript archive, which is code: where you trust it, save the weights "
                "alone, torch.save(torch.jit.load(path).state_dict(), new_path)"
            ) from error
        raise ValueError(f"path={str(path)!r} is not a whole torch.save file ({error}): save it again") from error

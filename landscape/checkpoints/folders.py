"""Folders written by Hugging Face's ``save_pretrained``: the weights in one file, or in several with an index."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from landscape.checkpoints.files import Contents, read_file
from landscape.checkpoints.names import truncated

__all__ = ["read_folder"]

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_folder(folder: Path) -> Contents:
    """The contents of the first of the files that such a folder may have.

    Raises:
        FileNotFoundError: a file of the index is missing.
        ValueError: the folder has none of the files, the index is damaged or names files elsewhere, or a file is
            damaged, lacks what the index says, or could run code.
    """
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        inside = truncated(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise ValueError(
            f"path={str(folder)!r} is a folder with none of {', '.join(_WEIGHTS)}, but {inside}: give the file that "
            "holds the weights"
        )
    return _read_sharded(found) if found.suffix == ".json" else read_file(found)


def _read_sharded(index: Path) -> Contents:
    """The tensors of several files, each from the file that the index names."""
    places = _weight_map(index)
    shards: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for shard in dict.fromkeys(places.values()):
        path = index.parent / shard
        if not path.is_file():
            raise FileNotFoundError(f"path={str(path)!r}, which {index.name} names, is missing: fetch it too")
        shards[shard], _, shard_notes = read_file(path)
        notes += shard_notes
    if lacking := [f"{name} in {shard}" for name, shard in places.items() if name not in shards[shard]]:
        raise ValueError(
            f"path={str(index)!r} names what its files do not hold: {truncated(lacking)}. Save the folder again"
        )
    return {name: shards[shard][name] for name, shard in places.items()}, {}, tuple(dict.fromkeys(notes))


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, after a check that none is outside the folder."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        whole = all(isinstance(place, str) for place in places.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole or not places:
        raise ValueError(
            f'path={str(index)!r} is no index, which is JSON as {{"weight_map": {{"0.weight": "model-1.safetensors"}}}}'
            ": save the folder again"
        )
    # the path as written, not resolved: downloaded files are often links to a cache elsewhere
    for place in places.values():
        kinds = PurePosixPath(place), PureWindowsPath(place)
        if any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds):
            raise ValueError(f"path={str(index)!r} names {place!r}, which is outside its folder: do not trust it")
    return places

"""Load checkpoints from files and folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from landscape.checkpoints.checkpoint import Checkpoint
from landscape.checkpoints.files import read_file
from landscape.checkpoints.folders import read_folder
from landscape.checkpoints.names import unwrapped

__all__ = ["load_checkpoint", "load_checkpoints"]


def load_checkpoint(path: str | Path, name: str | None = None) -> Checkpoint:
    """Read a ``.safetensors`` file, a ``torch.save`` file (``.pt``, ``.ckpt``, ``.bin``), or a Hugging Face folder.

    No code in the file is run: a ``torch.save`` file may only hold tensors and plain containers.

    Args:
        path: the file, or the folder with ``model.safetensors`` or ``pytorch_model.bin``, as one file or in shards with
            an index. A ``torch.save`` file may hold the state_dict itself or a dictionary with it under ``state_dict``,
            ``model_state_dict``, ``model`` or another key that trainers use. The prefixes of wrapped networks,
            ``module.`` and ``_orig_mod.``, are removed if all names have them; other prefixes only when the checkpoint
            is loaded into a network (``Checkpoint.load_into``), by its names.
        name: in tables and legends. Default: the file's stem, or the folder's name.

    Returns:
        A Checkpoint on the CPU, with the JSON metadata of a safetensors header. Its ``notes`` say which of several sets
        of weights was used, and what was ignored.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        ValueError: the file is damaged, has no tensors, or could run code when unpickled; the folder has no weights.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r} is not a file, nor a folder: give a saved checkpoint")
    tensors, metadata, notes = read_folder(path) if path.is_dir() else read_file(path)
    bare = unwrapped(tensors)
    if first := next((name for name, short in zip(tensors, bare, strict=True) if name != short), None):
        prefix = first.removesuffix(next(iter(bare)))
        notes = (*notes, f"the prefix {prefix!r} of all names is taken off")
    return Checkpoint(name or _default_name(path), bare, metadata, notes)


def load_checkpoints(specs: Iterable[str]) -> list[Checkpoint]:
    """Read several checkpoints, each given as ``PATH``, or as ``NAME=PATH`` to give it a name.

    Files with the same stem are called ``folder-stem``. A NAME that is given several times is that of a group of runs:
    they are called ``NAME-seedK``, with K the seed that their files tell of, or else their place from 0 on.
    """
    named = [_name_and_path(spec) for spec in specs]
    stems = Counter(_default_name(path) for name, path in named if not name)
    loaded = [
        load_checkpoint(
            path, name or (f"{path.parent.name}-{_default_name(path)}" if stems[_default_name(path)] > 1 else None)
        )
        for name, path in named
    ]
    for group, count in Counter(name for name, _ in named if name).items():
        if count > 1:
            _name_runs(loaded, [i for i, (name, _) in enumerate(named) if name == group])
    return loaded


def _name_runs(loaded: list[Checkpoint], places: list[int]) -> None:
    """Name the checkpoints at ``places``, all of one name, by their seeds."""
    seeds = [loaded[i].metadata.get("seed") for i in places]
    if not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        seeds = list(range(len(places)))
    for i, seed in zip(places, seeds, strict=True):
        loaded[i] = replace(loaded[i], name=f"{loaded[i].name}-seed{seed}")


def _default_name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _name_and_path(spec: str) -> tuple[str, Path]:
    name, equals, path = spec.partition("=")
    # an existing path takes precedence: folders are often called lr=0.1
    return ("", Path(spec)) if not equals or Path(spec).exists() else (name, Path(path))

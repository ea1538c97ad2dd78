"""A run on disk: one Zarr store, a group per checkpoint and analysis.

A record is written beside the store and renamed into it, so a killed run holds whole records only, each with the key of
what it was made of. Resuming means computing those that are missing or were made of something else.
``xarray.open_datatree(path)`` opens a finished run.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import xarray
import zarr

from landscape.results import from_dataset, to_dataset

__all__ = ["Store", "output_folder"]

R = TypeVar("R")

_FORMAT: Literal[2] = 2  # consolidated metadata is part of format 2, and not (yet) of format 3
_RUN, _OLDER = 3, 1  # of what groups a run holds, and of what fields they do
_MARK = "landscape-run"  # a file in every output folder of ours: only such folders are overwritten


class Store:
    """The records of one run, in the folder ``path`` (conventionally ``*.zarr``).

    Args:
        path: made if missing.

    Raises:
        ValueError: the run is of another format than this version writes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        root = zarr.open_group(self.path, mode="a", zarr_format=_FORMAT)
        found = root.attrs.setdefault("format", _OLDER if "settings" in root.attrs else _RUN)
        if found != _RUN:
            raise ValueError(
                f"path={str(self.path)!r} holds a run of format {found}, and this version writes format {_RUN}: "
                "open it with the version that wrote it, or overwrite it"
            )

    def read(self, group: str, key: str | None = None) -> Any:
        """The record in ``group``.

        Args:
            group: its place.
            key: of what it must have been made. Default: of anything.

        Raises:
            KeyError: there is none, or none of that key.
        """
        if not (self.path / group / ".zgroup").is_file():
            raise KeyError(f"group={group!r}: {str(self.path)!r} holds no such record")
        with xarray.open_zarr(self.path / group, consolidated=False) as dataset:
            found = dataset.attrs.pop("key", "")
            if key is not None and found != key:
                raise KeyError(f"group={group!r}: {str(self.path)!r} holds one that was made of something else")
            return from_dataset(dataset)

    def write(self, group: str, result: Any, key: str = "") -> None:
        """Put ``result``, made of what ``key`` tells, into ``group``, in place of what is there."""
        target = self.path / group
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".partial-") as folder:
            partial = Path(folder) / "group"
            dataset = to_dataset(result)
            dataset.assign_attrs(key=key).to_zarr(partial, zarr_format=_FORMAT, consolidated=False)
            if len(Path(group).parts) > 1:
                zarr.open_group(target.parent, mode="a", zarr_format=_FORMAT)
            if target.exists():
                os.replace(target, Path(folder) / "old")
            os.replace(partial, target)

    def read_or_compute(self, group: str, key: str, compute: Callable[[], R]) -> R:
        """The record of that key in ``group``; where it is missing, ``compute()`` it and keep it."""
        try:
            return self.read(group, key)
        except KeyError:
            result = compute()
            self.write(group, result, key)
            return result

    @contextmanager
    def partial(self, group: str, key: str) -> Iterator[Path]:
        """A folder beside the run for what a record that is under way goes on with; it is gone when that is there."""
        beside = self.path.with_suffix(".partial")
        folder = beside / f"{group.replace('/', '-')}-{key[:16]}"
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # there is none, or another record is under way
            beside.rmdir()

    def finish(self, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Keep both as attributes, and index the store so that it opens fast."""
        attrs = zarr.open_group(self.path, mode="a", zarr_format=_FORMAT).attrs
        attrs["settings"], attrs["provenance"] = json.dumps(settings), json.dumps(provenance)
        zarr.consolidate_metadata(self.path, zarr_format=_FORMAT)


@contextmanager
def output_folder(path: str | Path, *, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """Make an output folder, or take an existing one as told; where nothing came of it, take it away again.

    Args:
        path: the folder.
        overwrite: empty it first, if it is one that this function made.
        resume: keep what it holds.

    Raises:
        FileExistsError: it exists and neither was asked for, or it is not ours to overwrite.
    """
    path = Path(path)
    if overwrite and resume:
        raise ValueError("overwrite and resume were both given: give one of them")
    fresh = not path.exists() or not any(path.iterdir())
    if not fresh and not (overwrite or resume):
        raise FileExistsError(
            f"out={str(path)!r} exists: give --resume to go on with it, --overwrite to begin anew, or another folder"
        )
    if not fresh and not (path / _MARK).is_file():
        raise FileExistsError(f"out={str(path)!r} holds files that no run of ours made: give another folder")
    if overwrite and path.exists():
        shutil.rmtree(path)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    (path / _MARK).touch()
    try:
        yield path
    except BaseException:
        # a command that fails at once must not stand in the way of the corrected one
        kept = any(file != path / _MARK and not file.is_dir() for file in path.rglob("*"))
        if (fresh or overwrite) and not kept:
            shutil.rmtree(path, ignore_errors=True)  # the command's own error is the one to show
            with suppress(OSError):  # another run has begun there
                for parent in new_parents:
                    parent.rmdir()
        raise

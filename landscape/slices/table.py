"""What was measured at the points of a grid: in memory, and on disk where a path is given.

On disk it is a Zarr group of format 2 with one array ``measured`` (objective, ..., quantity), whose chunks hold one
point of the grid each. A chunk is written to a temporary file and renamed, so that it exists whole or not at all; a
point is done when its chunk exists. Hence a killed process loses only the point it was measuring, and several processes
fill one table without locks: each takes points that are missing. A point taken by two at the same time is measured
twice, with the same result. ``xarray.open_zarr`` reads a table at any time, with NaN where nothing was measured yet.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray
import zarr

__all__ = ["Table"]

_ARRAY = "measured"
_SIGNATURE = "slice"  # the attribute that says what was measured


class Table:
    """Quantities of several objectives over a grid.

    Args:
        objectives: their names.
        axes: the grid's coordinates by name, (points,) each.
        quantities: what is measured of every objective at every point.
        path: of the store, made if missing. Default: none.
        signature: what the measurements depend on, as JSON-able values.
        origin: f(theta) of each objective, which must agree with that of a store that is resumed.
        eps: of the coarsest dtype that an objective calculates in.

    Attributes:
        values: (objectives, ..., quantities), NaN where nothing was measured or read yet.

    Raises:
        ValueError: the store is of another slice, or of something else.
    """

    def __init__(
        self,
        objectives: list[str],
        axes: Mapping[str, np.ndarray],
        quantities: list[str],
        *,
        path: str | Path | None,
        signature: Mapping[str, Any],
        origin: list[float],
        eps: float,
    ) -> None:
        self.shape = tuple(len(points) for points in axes.values())
        self.values = np.full((len(objectives), *self.shape, len(quantities)), np.nan)
        self._known = np.zeros(self.shape, dtype=bool)
        self._path = None if path is None else Path(path)
        self._eps = eps
        if self._path is not None:
            wanted = json.loads(json.dumps({**signature, "objectives": objectives, "f(theta)": origin}))
            coordinates = {"objective": np.array(objectives), **axes, "quantity": np.array(quantities)}
            if _empty(self._path):
                _create(self._path, coordinates, wanted)
            _check(self._path, wanted, eps)

    def has(self, index: tuple[int, ...]) -> bool:
        """Whether the point was measured, by any process; ``values`` then contains it."""
        if not self._known[index] and self._path is not None:
            with suppress(FileNotFoundError):
                self._keep(index, np.fromfile(self._chunk(self._path, index), dtype="<f8"))
        return bool(self._known[index])

    def stored(self) -> list[tuple[int, ...]]:
        """The points that are on disk, in no order."""
        names = [] if self._path is None else os.listdir(self._path / _ARRAY)
        return [tuple(map(int, name.split(".")[1:-1])) for name in names if not name.startswith(".")]

    def check(self, index: tuple[int, ...], losses: list[float]) -> None:
        """Raise ValueError if the stored losses at a point differ from ``losses``, measured again."""
        loss: tuple[Any, ...] = (slice(None), *index, 0)
        for kept, found in zip(self.values[loss].tolist(), losses, strict=True):
            if not _same_losses([kept], [found], self._eps):
                raise ValueError(
                    f"store={str(self._path)!r} holds a loss of {kept:.6g} at point {index}, where it is {found:.6g} "
                    "now: it is of another function, so go on with the one it was begun with, or give another store"
                )

    def put(self, index: tuple[int, ...], measured: np.ndarray) -> None:
        """Keep the point's quantities, (objectives, quantities)."""
        self._keep(index, measured)
        if self._path is not None:
            chunk = self._chunk(self._path, index)
            partial = chunk.with_name(f".{chunk.name}-{os.getpid()}")
            partial.write_bytes(measured.astype("<f8").tobytes())
            os.replace(partial, chunk)

    def _keep(self, index: tuple[int, ...], measured: np.ndarray) -> None:
        each: tuple[Any, ...] = (slice(None), *index)
        self.values[each] = measured.reshape(len(self.values), -1)
        self._known[index] = True

    @staticmethod
    def _chunk(path: Path, index: tuple[int, ...]) -> Path:
        # the chunk's name in Zarr's format 2: its place along each axis, of which the first and last are not divided
        return path / _ARRAY / ".".join(map(str, (0, *index, 0)))


def _empty(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _create(path: Path, coordinates: Mapping[str, np.ndarray], signature: Mapping[str, Any]) -> None:
    """Create an empty table atomically; if another process was faster, its table is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        partial = Path(folder) / "table"
        labels = xarray.Dataset(coords=coordinates)
        labels.to_zarr(partial, zarr_format=2, consolidated=False)
        group = zarr.open_group(partial, mode="a", zarr_format=2)
        shape = tuple(len(labels) for labels in coordinates.values())
        group.create_array(
            _ARRAY,
            shape=shape,
            chunks=(shape[0], *(1 for _ in shape[1:-1]), shape[-1]),
            dtype="<f8",
            fill_value=np.nan,
            compressors=None,  # a chunk is the numbers themselves
            attributes={"_ARRAY_DIMENSIONS": list(coordinates)},
        )
        group.attrs[_SIGNATURE] = json.dumps(signature)
        zarr.consolidate_metadata(partial, zarr_format=2)
        try:
            os.rename(partial, path)
        except OSError:
            if _empty(path):
                raise


def _check(path: Path, wanted: Mapping[str, Any], eps: float) -> None:
    attributes = path / ".zattrs"
    written = json.loads(attributes.read_text()).get(_SIGNATURE) if attributes.is_file() else None
    if written is None:
        raise ValueError(f"store={str(path)!r} holds something else: give a new folder, or one of this slice's")
    found = json.loads(written)
    other = [name for name in wanted if name not in found or not _same(name, found[name], wanted[name], eps)]
    if other:
        raise ValueError(
            f"store={str(path)!r} is of another slice (other {', '.join(other)}): go on with what it was begun with, "
            "or give another store"
        )


def _same(name: str, found: Any, wanted: Any, eps: float) -> bool:
    return _same_losses(found, wanted, eps) if name == "f(theta)" else bool(found == wanted)


def _same_losses(found: list[float], wanted: list[float], eps: float) -> bool:
    # Sums are rounded differently by another number of threads: by some eps of the loss, and of the outputs that it is
    # made of, which for an example that is fitted well are far more than its loss and about 1. What else changes f
    # changes it by more.
    rtol, atol = max(1e-5, 10 * eps), 10 * eps
    return len(found) == len(wanted) and np.allclose(found, wanted, rtol=rtol, atol=atol, equal_nan=True)

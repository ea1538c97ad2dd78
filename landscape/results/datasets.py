"""Records as xarray Datasets and back: the dimensions that a record's types declare are those of its arrays.

A Dataset is a record, too: what an analysis of the user's own returns.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
import xarray

from landscape.results.barriers import Barrier, BarrierMatrix
from landscape.results.bezier import BezierPath
from landscape.results.density import SpectralDensity
from landscape.results.failed import Failed
from landscape.results.frames import Frame
from landscape.results.records import Cost, Eigenpairs, LocalEntropy, Measures
from landscape.results.sharpness import Sharpness
from landscape.results.slices import Line, LineBand, Plane

__all__ = ["digest_of", "from_dataset", "to_dataset"]

Result = (
    Eigenpairs
    | SpectralDensity
    | LocalEntropy
    | Line
    | LineBand
    | Plane
    | Frame
    | Barrier
    | BarrierMatrix
    | BezierPath
    | Measures
    | Sharpness
    | Failed
)
_KINDS: dict[str, type[Result]] = {kind.__name__: kind for kind in get_args(Result)}


def to_dataset(result: Result | xarray.Dataset) -> xarray.Dataset:
    """The record as a Dataset: arrays as variables, everything else as JSON attributes."""
    if isinstance(result, xarray.Dataset):
        return result
    arrays, attributes = {}, {"kind": type(result).__name__}
    for name, _, dimensions in _fields(type(result)):
        value = getattr(result, name)
        if dimensions:
            array = np.asarray(value)
            # where a sweep would have an axis, a single radius has none
            arrays[name] = (dimensions[len(dimensions) - array.ndim :], array)
        else:
            attributes[name] = json.dumps(asdict(value) if isinstance(value, Cost) else value)
    return xarray.Dataset(arrays, attrs=attributes)


def from_dataset(dataset: xarray.Dataset) -> Any:
    """The record that ``to_dataset`` made ``dataset`` from."""
    if "kind" not in dataset.attrs:
        return dataset.load()
    kind = _KINDS[dataset.attrs["kind"]]
    values: dict[str, Any] = {}
    for name, of, dimensions in _fields(kind):
        if dimensions:
            array = dataset[name].values
            values[name] = torch.from_numpy(array) if of is torch.Tensor else array[()]
        else:
            value = json.loads(dataset.attrs[name])
            values[name] = Cost(**value) if name == "cost" else value
    return kind(**values)


def digest_of(result: Result | xarray.Dataset) -> str:
    """SHA-256 of all that the record says but its cost, which is another in each run."""
    dataset = to_dataset(result)
    sha = hashlib.sha256()
    for name, variable in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
        array = np.ascontiguousarray(variable.values)
        sha.update(f"{name} {variable.dims} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    sha.update(json.dumps({k: v for k, v in dataset.attrs.items() if k != "cost"}, sort_keys=True).encode())
    return sha.hexdigest()


def _fields(kind: type[Result]) -> list[tuple[str, Any, tuple[str, ...]]]:
    """Each field with its type, and the dimensions of its array; none for what is no array."""
    types, hints = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    return [(name, types[name], getattr(hint, "__metadata__", ())) for name, hint in hints.items()]

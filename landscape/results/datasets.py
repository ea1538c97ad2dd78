"""Records as xarray Datasets and back: the dimensions that a record's types declare are those of its arrays."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
import xarray

from landscape.results.barriers import Barrier, BarrierMatrix
from landscape.results.bezier import BezierPath
from landscape.results.density import SpectralDensity
from landscape.results.frames import Frame
from landscape.results.records import Cost, Eigenpairs, LocalEntropy, Measures
from landscape.results.sharpness import Sharpness
from landscape.results.slices import Line, LineBand, Plane

__all__ = ["from_dataset", "to_dataset"]

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
)
_KINDS: dict[str, type[Result]] = {kind.__name__: kind for kind in get_args(Result)}


def to_dataset(result: Result) -> xarray.Dataset:
    """The record as a Dataset: arrays as variables, everything else as JSON attributes."""
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


def _fields(kind: type[Result]) -> list[tuple[str, Any, tuple[str, ...]]]:
    """Each field with its type, and the dimensions of its array; none for what is no array."""
    types, hints = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    return [(name, types[name], getattr(hint, "__metadata__", ())) for name, hint in hints.items()]

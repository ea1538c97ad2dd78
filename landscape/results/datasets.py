"""Records as xarray Datasets and back: the dimensions that a record's types declare are those of its arrays."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, get_type_hints

import numpy as np
import torch
import xarray

from landscape.results.density import SpectralDensity
from landscape.results.records import Cost, Eigenpairs, Line, LocalEntropy, Measures, Plane

__all__ = ["from_dataset", "to_dataset"]

Result = Eigenpairs | SpectralDensity | LocalEntropy | Line | Plane | Measures
_KINDS: dict[str, type[Result]] = {
    kind.__name__: kind for kind in (Eigenpairs, SpectralDensity, LocalEntropy, Line, Plane, Measures)
}


_TENSORS = ("vectors", "shift")  # points of the parameter space


def to_dataset(result: Result) -> xarray.Dataset:
    """The record as a Dataset: arrays as variables, everything else as JSON attributes."""
    arrays, attributes = {}, {"kind": type(result).__name__}
    for name, dimensions in _fields(type(result)):
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
    for name, dimensions in _fields(kind):
        if dimensions:
            array = dataset[name].values
            values[name] = torch.from_numpy(array) if name in _TENSORS else array[()]
        else:
            value = json.loads(dataset.attrs[name])
            values[name] = Cost(**value) if name == "cost" else value
    return kind(**values)


def _fields(kind: type[Result]) -> list[tuple[str, tuple[str, ...]]]:
    """Each field with the dimensions of its array; none for what is no array."""
    hints = get_type_hints(kind, include_extras=True)
    return [(name, getattr(hint, "__metadata__", ())) for name, hint in hints.items()]

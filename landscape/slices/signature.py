"""What the points of a store depend on: a store is resumed only by the same function on the same slice.

Tensors, and the settings of a loss of ``torch.nn``, are included by value. Code is not: a change in a network's forward
or in a user's own loss is detected by ``Sweep``, which measures one stored point again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.objective import ModelObjective, Objective
from landscape.objective.data.batches import digest
from landscape.objective.tensors import fixed_tensors
from landscape.slices.policies import keeps_statistics, recalibrates

__all__ = ["signature"]


def signature(
    objectives: Mapping[str, Objective], axes: Mapping[str, np.ndarray], others: Mapping[str, Any]
) -> dict[str, Any]:
    """The signature as JSON-able values, by names for error messages; tensors are hashed."""
    kinds = {}
    for name, f in objectives.items():
        kinds[name] = [type(f).__name__, f.size, str(f.dtype)]
        if isinstance(f, ModelObjective):
            fixed = fixed_tensors(f, with_statistics=keeps_statistics(f))
            kinds[name] += [
                f.batch_norm,
                f.weight_decay,
                [f.whole_batches, f.noise or "", f.mode],
                f.data_digest(),
                digest(f._calibration) if recalibrates(f) else "",
                _hashed(fixed),
                _settings(f._evaluation.loss),
            ]
    coordinates = {name: torch.from_numpy(points) for name, points in axes.items()}
    return {"objective": kinds, **_hashed(coordinates), **_hashed(others)}


def _settings(loss: Any) -> dict[str, Any]:
    if not isinstance(loss, nn.Module):
        return {}
    simple = {
        name: value
        for name, value in vars(loss).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_") and name != "training"
    }
    return {"type": type(loss).__name__, **simple, **_hashed(loss.state_dict())}


def _hashed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _hash(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()

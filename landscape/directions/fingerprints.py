"""Random projections that identify a vector of the parameter space, for records that do not store it.

The fingerprint of v is (r_1'v, ..., r_4'v), with r_k ~ N(0, I) the same for all vectors of one size. That of v + e is
off by a Gaussian of standard deviation ||e|| in each number, whatever the direction of e.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["fingerprints"]

_PROJECTIONS = 4
_SEED = 0
_BLOCK = 2**20  # weights at once


def fingerprints(*vectors: Tensor) -> np.ndarray:
    """The fingerprints of vectors of shape (n,), as (vectors, 4)."""
    generator = torch.Generator().manual_seed(_SEED)
    found = torch.zeros(len(vectors), _PROJECTIONS, dtype=torch.float64)
    for blocks in zip(*(vector.detach().split(_BLOCK) for vector in vectors), strict=True):
        r = torch.randn(len(blocks[0]), _PROJECTIONS, generator=generator)
        found += torch.stack([block.to("cpu", torch.float64) for block in blocks]) @ r.double()
    return found.numpy()

"""Random vectors. They come from a ``torch.Generator`` on the CPU and are then moved, so that the
same seed gives the same vector on every device; no global generator is read or written."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.sums import norm

__all__ = ["generator_or_new", "normal", "unit"]


def generator_or_new(generator: torch.Generator | None) -> torch.Generator:
    """``generator``, or where it is None a new one seeded by the operating system.

    Raises:
        ValueError: it is not on the CPU.
    """
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    if generator.device.type != "cpu":
        raise ValueError(
            f"generator is on {generator.device}: give one on the CPU, torch.Generator(), whatever device the network "
            "is on, so that a seed means the same everywhere"
        )
    return generator


def normal(size: int, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """N(0, I) of shape (size,), drawn in float64 so that precisions agree as well."""
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)


def unit(size: int, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniform on the sphere in ``size`` dimensions."""
    v = normal(size, generator, dtype, device)
    return v / norm(v)

"""Sums over weights: norms and products of flat vectors, right however many weights there are.

A sum of n terms of one sign in the order that they come loses up to n/2 eps. On a CPU torch sums so in as many strands
as a register holds, so that in float32 a norm is 2e-4 off at 8e6 entries and 1.1 % at 1e8, and the product of a basis
with a vector 1e-3 and more. Here a vector is cut into blocks that stay in the cache, for one pass over memory as before
and no copy larger than a block:

    norms, products of vectors  each block in float64, where products of float32 are exact
    a basis against a vector    each block in float32, their results in float64

The latter costs hardly more than torch's own, and errs by 2e-7 of the norms. Where all products are equal, roundings
are too, and it may be 1e-4: whoever orthogonalises does so twice, which squares that. What torch calls ``sum`` and
``mean`` needs none of this: it adds in pairs, and errs by some eps.

float64 vectors are summed as torch does, at n eps = 2e-8 for 1e8 weights at worst.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["against", "dot", "dots", "norm"]

# Entries at once on a CPU; elsewhere each block is a launch, and sums are trees
_ENTRIES = 32_000  # of a vector: from 32768 on torch would call all threads, to wait for each other at every block
_COLUMNS = 16_384  # of a basis: a quarter as many takes 1.6 times as long, twice as many lose three times as much
_ELSEWHERE = 2**20


def norm(v: Tensor) -> float:
    """||v|| of a vector (n,)."""
    if v.dtype == torch.float64:
        return float(v.norm())
    return _sum(_wide(part).square_().sum() for part in v.split(_size(v, _ENTRIES))) ** 0.5


def dot(u: Tensor, v: Tensor) -> float:
    """u'v of vectors (n,)."""
    if u.dtype == v.dtype == torch.float64:
        return float(u @ v)
    size = _size(v, _ENTRIES)
    return _sum((_wide(a) * _wide(b)).sum() for a, b in zip(u.split(size), v.split(size), strict=True))


def dots(rows: Tensor, v: Tensor) -> Tensor:
    """The products, float64, of the rows of (m, n) with a vector (n,), or with the columns of (n, k)."""
    if rows.dtype == v.dtype == torch.float64:
        return rows @ v
    width = 1 if v.dim() == 1 else v.shape[1]
    size = max(1, _size(v, _ENTRIES) // max(1, len(rows) + width))
    total = _wide(rows[:, :size]) @ _wide(v[:size])
    for at in range(size, len(v), size):
        total += _wide(rows[:, at : at + size]) @ _wide(v[at : at + size])
    return total


def against(rows: Tensor, v: Tensor) -> Tensor:
    """The products (m,), float64, of the rows of a basis (m, n), each of them contiguous, with a vector (n,)."""
    if rows.dtype == v.dtype == torch.float64:
        return rows @ v
    size = _size(v, _COLUMNS)
    total = _wide(rows[:, :size] @ v[:size])
    for at in range(size, len(v), size):
        total += _wide(rows[:, at : at + size] @ v[at : at + size])
    return total


def _sum(parts: Iterator[Tensor]) -> float:
    # none is kept: between blocks that come and go, what stays would spread over the heap and make it grow
    total = next(parts)
    for part in parts:
        total += part
    return float(total)


def _size(v: Tensor, on_a_cpu: int) -> int:
    return on_a_cpu if v.device.type == "cpu" else _ELSEWHERE


def _wide(x: Tensor) -> Tensor:
    """As float64, which Apple's devices do not have: on the CPU then."""
    return (x.cpu() if x.device.type == "mps" else x).double()

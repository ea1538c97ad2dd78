"""How much memory graphs hold, how much there is, and how many examples to evaluate at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from landscape.objective.data.batches import tensors_in

__all__ = ["USUAL", "cached_bytes", "examples_at_once", "free_bytes", "saved_bytes"]

# What a forward pass may hold at once: about what fits the caches. Measured on two cores: the digits' networks are
# fastest in one piece (1 to 8 MB), LeNet at 10 to 20 MB.
_CACHED = 16e6
_CACHED_ON_A_GPU = 1e9  # not measured
# examples; with fewer each call does too little: ResNet-20, whose 128 hold 50 MB, is slower with fewer and with more
USUAL = 128
_HELD = 512e6  # but so many examples must not hold more than this

# where Linux tells what a container may take, what it holds, and how much of that is files it would let go of
_CGROUP = Path("/sys/fs/cgroup")
_CONTAINERS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def examples_at_once(loss_on: Callable[[Any], Tensor], batch: Any, count: float, flat: Tensor) -> int:
    """How many examples the network evaluates fastest together, the same in every run.

    Args:
        loss_on: the loss of a batch, with its graph.
        batch: some examples.
        count: how many.
        flat: theta.
    """
    try:
        per_example = saved_bytes(lambda: loss_on(batch), [flat, *tensors_in(batch)]) / count
    except RuntimeError:  # a network that does not let its graph be watched
        return USUAL
    return max(1, int(max(cached_bytes(flat.device), min(USUAL * per_example, _HELD)) / max(per_example, 1.0)))


def cached_bytes(device: torch.device) -> float:
    """What a forward pass may hold at once to be fast."""
    return _CACHED if device.type == "cpu" else _CACHED_ON_A_GPU


def saved_bytes(build: Callable[[], object], shared: Iterable[Tensor]) -> int:
    """What the graph that ``build`` makes holds on to beside ``shared``, each storage once."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold on to the graph that holds it

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        graph = build()
    del graph  # only now: storages that were freed meanwhile would lend their addresses to others
    for tensor in shared:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def free_bytes(device: torch.device) -> int:
    """On a GPU or in main memory, there no more than the container leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(max(min(psutil.virtual_memory().available, _left_to_the_container()), 0))


def _left_to_the_container() -> float:
    for limit, held, statistics, cached in _CONTAINERS:  # of cgroups, versions 2 and 1
        try:
            told = dict(line.split() for line in (_CGROUP / statistics).read_text().splitlines())
            allowed, taken = (int((_CGROUP / file).read_text()) for file in (limit, held))
            return allowed - taken + int(told[cached])
        except (OSError, ValueError, KeyError):  # not this version, or "max": no limit
            continue
    return math.inf

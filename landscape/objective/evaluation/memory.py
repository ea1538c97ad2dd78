"""The memory that graphs hold, the memory that is free, and the size of micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from landscape.objective.data.batches import tensors_in

__all__ = ["DEFAULT_MICRO_BATCH", "cache_budget", "free_bytes", "micro_batch_size", "saved_bytes"]

# Bytes that a forward pass may save: about the size of the caches. Measured on two cores: the networks on digits are
# fastest in one micro-batch (1 to 8 MB), LeNet at 10 to 20 MB.
_CPU_BUDGET = 16e6
_GPU_BUDGET = 1e9  # not measured
# examples; with fewer the overhead of a call dominates: ResNet-20 (50 MB at 128) is slower with fewer and with more
DEFAULT_MICRO_BATCH = 128
_MAX_SAVED = 512e6  # bytes that DEFAULT_MICRO_BATCH examples may save

# files of cgroups, versions 2 and 1: a container's limit, its usage, and the reclaimable file cache in that usage
_CGROUP = Path("/sys/fs/cgroup")
_CONTAINERS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def micro_batch_size(loss_on: Callable[[Any], Tensor], batch: Any, count: float, flat: Tensor) -> int:
    """The number of examples per micro-batch, from the bytes that a forward pass saves; the same in every run.

    Args:
        loss_on: the loss of a batch, with its graph.
        batch: some examples.
        count: how many.
        flat: theta.
    """
    try:
        per_example = saved_bytes(lambda: loss_on(batch), [flat, *tensors_in(batch)]) / count
    except RuntimeError:  # saved-tensor hooks are disabled in this network
        return DEFAULT_MICRO_BATCH
    return max(
        1,
        int(max(cache_budget(flat.device), min(DEFAULT_MICRO_BATCH * per_example, _MAX_SAVED)) / max(per_example, 1.0)),
    )


def cache_budget(device: torch.device) -> float:
    """Bytes that a forward pass may save and still be fast."""
    return _CPU_BUDGET if device.type == "cpu" else _GPU_BUDGET


def saved_bytes(build: Callable[[], object], shared: Iterable[Tensor]) -> int:
    """Bytes saved by the graph that ``build`` makes, each storage counted once, without those of ``shared``."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # saving the tensor itself would make a reference cycle with its graph

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        graph = build()
    del graph  # only now: the addresses of storages freed earlier would be reused
    for tensor in shared:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def free_bytes(device: torch.device) -> int:
    """Free bytes on a GPU, or in main memory within the limit of the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(max(min(psutil.virtual_memory().available, _container_free_bytes()), 0))


def _container_free_bytes() -> float:
    for limit, usage, statistics, cached in _CONTAINERS:
        try:
            entries = dict(line.split() for line in (_CGROUP / statistics).read_text().splitlines())
            limit_bytes, used = (int((_CGROUP / file).read_text()) for file in (limit, usage))
            return limit_bytes - used + int(entries[cached])
        except (OSError, ValueError, KeyError):  # not this version, or "max": no limit
            continue
    return math.inf

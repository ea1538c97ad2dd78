"""Prefixes that wrappers and trainers add to the names of a network's tensors.

A *prefix map* gives the entry of a checkpoint for each name of the network: the name itself, the name with a prefix
added (``net.0.weight`` for ``0.weight``), or the name with a prefix removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

__all__ = ["WRAPPERS", "PrefixMap", "last_part", "prefix_maps", "truncated", "unwrapped", "without_wrappers"]

# attributes with the wrapped module in torch.compile, DataParallel, FSDP, activation checkpointing, Lightning's Fabric
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Remove the prefixes that DistributedDataParallel and torch.compile add to every name.

    A network whose only child is called ``module`` looks the same, so both files and networks are treated this way.
    Parts inside names are kept: whether the one in ``0.module.weight`` is from a wrapper depends on the network.
    """
    tensors = dict(tensors)
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def without_wrappers(*names: Iterable[str]) -> list[dict[str, str]]:
    """Map each name of several collections to the name without the parts in ``WRAPPERS``.

    If two names of one collection would become equal, as ``0.weight`` and ``0.module.weight``, no name is changed.
    """
    bare = [{name: ".".join(p for p in name.split(".") if p not in WRAPPERS) for name in group} for group in names]
    if all(len(set(group.values())) == len(group) for group in bare):
        return bare
    return [{name: name for name in group} for group in bare]


@dataclass(frozen=True)
class PrefixMap:
    """A prefix that only the checkpoint's names have, or one that only the network's names have."""

    checkpoint: str = ""  # prefix of the checkpoint's names only
    network: str = ""  # prefix of the network's names only

    def entry(self, name: str) -> str:
        """The checkpoint's name for the network's ``name``."""
        return self.checkpoint + name.removeprefix(self.network)

    def __str__(self) -> str:
        return f"prefix {self.checkpoint!r} taken off" if self.checkpoint else f"prefix {self.network!r} put before"


def prefix_maps(own: Collection[str], entries: Collection[str]) -> Iterator[PrefixMap]:
    """Every prefix map that finds at least one of the network's ``own`` names among ``entries``."""
    yield from (PrefixMap(checkpoint=prefix) for prefix in _prefixes(entries, own))
    for prefix in _prefixes(own, entries):
        # two names that differ only by the prefix would map to one entry
        if not any(prefix + name in own for name in own):
            yield PrefixMap(network=prefix)


def _prefixes(longer: Collection[str], shorter: Collection[str]) -> list[str]:
    """All prefixes p such that p plus a name in ``shorter`` is a name in ``longer``."""
    found = {}
    for name in longer:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if (rest := ".".join(parts[i:])) in shorter:
                found[name.removesuffix(rest)] = True
    return list(found)


def last_part(name: str) -> str:
    """``running_mean`` of ``1.running_mean``."""
    return name.rpartition(".")[2]


def truncated(names: Iterable[str]) -> str:
    """The first five names as text, with the number of the others."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

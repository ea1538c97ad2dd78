"""What wrappers and trainers put before the names of a network's tensors, and how it is seen through.

A *reading* says which entry of a checkpoint a name of the network stands for: the name itself, the name with a prefix
put before it (``net.0.weight`` for ``0.weight``), or the name with its own prefix taken off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

__all__ = ["WRAPPERS", "Reading", "few", "last_part", "readings", "unwrapped", "without_wrappers"]

# what torch.compile, DataParallel, fully sharded and checkpointed modules and Lightning's Fabric call what they wrap
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Without the prefixes that DistributedDataParallel and torch.compile put before every name.

    A network whose only child is called ``module`` looks the same, so files and networks are both read this way. What
    stands inside names stays: that ``0.module.weight`` is a wrapper's can be told only beside the network's names.
    """
    tensors = dict(tensors)
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def without_wrappers(*names: Iterable[str]) -> list[dict[str, str]]:
    """Each name of several collections, without the parts that are in ``WRAPPERS``.

    All stay as they are where two names of one collection would become the same: ``0.weight`` and ``0.module.weight``.
    """
    bare = [{name: ".".join(p for p in name.split(".") if p not in WRAPPERS) for name in group} for group in names]
    if all(len(set(group.values())) == len(group) for group in bare):
        return bare
    return [{name: name for name in group} for group in bare]


@dataclass(frozen=True)
class Reading:
    """The entries' names are the network's after ``off``, or without ``on``."""

    off: str = ""  # prefix of the entries that the network's names lack
    on: str = ""  # prefix of the network's names that the entries lack

    def entry(self, name: str) -> str:
        """What the network's ``name`` is called in the checkpoint."""
        return self.off + name.removeprefix(self.on)

    def __str__(self) -> str:
        return f"prefix {self.off!r} taken off" if self.off else f"prefix {self.on!r} put before"


def readings(own: Collection[str], entries: Collection[str]) -> Iterator[Reading]:
    """Every prefix by which at least one of the network's ``own`` names is found among ``entries``."""
    yield from (Reading(off=prefix) for prefix in _prefixes(entries, own))
    for prefix in _prefixes(own, entries):
        # two names that differ by the prefix alone would be read from one entry
        if not any(prefix + name in own for name in own):
            yield Reading(on=prefix)


def _prefixes(longer: Collection[str], shorter: Collection[str]) -> list[str]:
    """What stands before a name of ``shorter`` in one of ``longer``."""
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


def few(names: Iterable[str]) -> str:
    """The first five of them, and how many more there are."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

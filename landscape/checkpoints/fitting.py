"""Match the entries of a checkpoint to the names of a network.

The names may differ: parts that wrappers add are ignored on both sides, one prefix may be missing on either side, and a
tied tensor may be stored under another of its names. BatchNorm's ``num_batches_tracked`` may be missing. Entries that
are not needed are ignored only if they do not have the prefix. Everything that is done is reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.checkpoints.names import PrefixMap, last_part, prefix_maps, truncated, without_wrappers
from landscape.checkpoints.values import conversion_effect, dtype_name, equal

__all__ = ["fit", "is_extra_state", "tied_names"]

_COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel: not part of the network
# of BatchNorm; does not affect its output, and is missing in files of PyTorch before 0.4.1 and of other frameworks
_COUNTED = "num_batches_tracked"
_LEFT_OVER = "not in the network"


def fit(
    tensors: Mapping[str, Any], expected: Mapping[str, Any], aliases: Mapping[str, str], who: str, of: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The entry of ``tensors`` for each name in ``expected``, and what was done to find them, in sentences.

    Args:
        tensors: the checkpoint's entries.
        expected: the network's.
        aliases: another name of the same tied tensor; they may include names that are not expected.
        who: the checkpoint's name in error messages.
        of: the network's name in error messages.

    Raises:
        ValueError: names, shapes, dtypes or ties do not fit, or several prefixes fit.
    """
    theirs, ours, others = without_wrappers(tensors, expected, [*aliases.keys(), *aliases.values()])
    entries = {theirs[name]: value for name, value in tensors.items()}
    own = {ours[name]: value for name, value in expected.items()}
    groups = _groups({others[name]: others[other] for name, other in aliases.items()})

    misfit = f"{who} does not fit {of}"
    found = _best_fit(_Sides(entries, own, groups), misfit, f"{who} fits {of}")
    _check_ties(found, entries, groups, misfit)
    values = {name: entries[entry] for name, entry in found.entries.items()}
    stored = {bare: name for name, bare in theirs.items()}
    wrapped = any(
        stored[found.entries[bare]] != found.prefix_map.entry(name)
        for name, bare in ours.items()
        if bare in values and bare not in found.tied
    )
    notes = [*found.notes(wrapped), *_conversions(values, own, misfit)]
    values.update((name, own[name]) for name in found.uncounted)
    return {name: values[bare] for name, bare in ours.items()}, tuple(notes)


def tied_names(state: Mapping[str, Any]) -> dict[str, str]:
    """For each entry of a state_dict that shares its memory with an earlier one, the name of that one."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, t in state.items():
        if isinstance(t, Tensor) and t.layout == torch.strided and t.numel() and t.device.type != "meta":
            other = first.setdefault((t.device, t.dtype, t.data_ptr(), t.shape, t.stride()), name)
            if other != name:
                aliases[name] = other
    return aliases


def is_extra_state(name: str) -> bool:
    """Whether it is the result of a module's ``get_extra_state``, which may be of any type and shape."""
    return last_part(name) == "_extra_state"


@dataclass(frozen=True)
class _Sides:
    """A checkpoint's entries and a network's tensors, by names without wrappers, and the groups of tied names."""

    entries: Mapping[str, Any]
    own: Mapping[str, Any]
    groups: Mapping[str, tuple[str, ...]]

    def found(self, prefix_map: PrefixMap) -> dict[str, str]:
        """For each of the network's names that is found, the name (itself or a tied one) that the checkpoint has."""
        found = {}
        for name in self.own:
            for called in (name, *self.groups.get(name, ())):
                if prefix_map.entry(called) in self.entries:
                    found[name] = called
                    break
        return found

    def has_shape(self, name: str, entry: str) -> bool:
        """Whether the entry has the shape of the network's tensor ``name``."""
        own = self.own[name]
        return not isinstance(own, Tensor) or is_extra_state(name) or _shape(self.entries[entry]) == _shape(own)

    def score(self, prefix_map: PrefixMap) -> tuple[int, int]:
        """The number of the network's names found with the right shape, and found at all.

        ``num_batches_tracked`` is not included.
        """
        found = {name: called for name, called in self.found(prefix_map).items() if last_part(name) != _COUNTED}
        return sum(self.has_shape(name, prefix_map.entry(called)) for name, called in found.items()), len(found)

    def fit(self, prefix_map: PrefixMap) -> _Fit:
        """The matches under a prefix map, and its problems."""
        found = self.found(prefix_map)
        entries = {name: prefix_map.entry(called) for name, called in found.items()}
        known = {prefix_map.entry(name) for name in (*self.own, *self.groups)}
        prefix = prefix_map.checkpoint
        left = {
            entry: entry.startswith(prefix) and last_part(entry) not in _COUNTERS and not is_extra_state(entry)
            for entry in self.entries
            if entry not in known
        }
        lacking = [name for name in self.own if name not in found]
        problems = {
            "missing": [name for name in lacking if last_part(name) != _COUNTED],
            _LEFT_OVER: [entry for entry, counts in left.items() if counts],
            "other shape": [
                f"{entry} is {_shape(self.entries[entry])}, the network's is {_shape(self.own[name])}"
                for name, entry in entries.items()
                if not self.has_shape(name, entry)
            ],
        }
        return _Fit(
            prefix_map,
            entries,
            tied={name: called for name, called in found.items() if called != name},
            uncounted=[name for name in lacking if last_part(name) == _COUNTED],
            ignored=[entry for entry, counts in left.items() if not counts],
            problems={kind: names for kind, names in problems.items() if names},
        )


@dataclass(frozen=True)
class _Fit:
    """The matches under a prefix map, and its problems."""

    prefix_map: PrefixMap
    entries: dict[str, str]  # the network's name -> the checkpoint's, for those that are found
    tied: dict[str, str]  # the network's name -> the tied name under which it is found
    uncounted: list[str]  # names of num_batches_tracked that are not found
    ignored: list[str]  # entries of the checkpoint that are not used
    problems: dict[str, list[str]]  # kind -> names

    @property
    def complete(self) -> bool:
        """Whether the whole network is found; the checkpoint may have other entries."""
        return self.problems.keys() <= {_LEFT_OVER}

    def notes(self, wrapped: bool) -> list[str]:
        """What was done, in sentences.

        Args:
            wrapped: whether parts of names from wrappers were ignored.
        """
        notes = []
        if wrapped:
            notes.append("what wrappers add to names, such as 'module.' and '_orig_mod.', is passed over")
        if removed := self.prefix_map.checkpoint:
            notes.append(f"the prefix {removed!r} of its names is taken off")
        if added := self.prefix_map.network:
            notes.append(f"the prefix {added!r}, which the network's names have, is put before its own")
        if self.ignored:
            notes.append(f"what the network has not is ignored: {truncated(self.ignored)}")
        if self.tied:
            pairs = [f"{name} from {other}" for name, other in self.tied.items()]
            notes.append(f"tied weights that are saved once are taken from their partners: {truncated(pairs)}")
        if self.uncounted:
            notes.append(f"counts of batches that it lacks stay the network's own: {truncated(self.uncounted)}")
        return notes


def _best_fit(sides: _Sides, misfit: str, fits: str) -> _Fit:
    """The only fit that finds the whole network and leaves over no entry with its prefix.

    Raises:
        ValueError: there is none, or there are several with different values.
    """
    exact = sides.fit(PrefixMap())
    if not exact.problems:
        return exact
    tried = {
        prefix_map: sides.score(prefix_map) for prefix_map in (PrefixMap(), *prefix_maps(sides.own, sides.entries))
    }
    top = max(tried.values())
    # those with the highest score, which include all complete ones if there are any; the unchanged names come first
    best = [sides.fit(prefix_map) for prefix_map, score in tried.items() if score == top]
    good: list[_Fit] = []
    for fit in sorted((f for f in best if f.complete), key=lambda f: (len(f.problems), len(f.uncounted))):
        # the same network saved twice, as by a trainer that has two references to it, is not ambiguous
        if not any(_same(fit, other, sides.entries) for other in good):
            good.append(fit)
    if len(good) > 1:
        prefixes = [fit.prefix_map.checkpoint or fit.prefix_map.network for fit in good]
        listed = truncated(repr(prefix) if prefix else "none" for prefix in prefixes)
        raise ValueError(
            f"{fits} under more than one prefix ({listed}), with other values under each: save the part that "
            "you mean alone, as torch.save(trainer.part.state_dict(), path), and give that file"
        )
    if good and not good[0].problems:
        return good[0]
    nearest = best[0]
    how = "" if nearest.prefix_map == PrefixMap() else f", with the {nearest.prefix_map} its names, by which most fit"
    kinds = "; ".join(f"{kind}: {truncated(names)}" for kind, names in nearest.problems.items())
    raise ValueError(f"{misfit}{how}: {kinds}. Give the network that it was saved from.")


def _same(a: _Fit, b: _Fit, entries: Mapping[str, Any]) -> bool:
    """Whether two fits have the same values."""
    pairs = [(entries[entry], entries[b.entries[name]]) for name, entry in a.entries.items() if name in b.entries]
    return all(equal(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor))


def _groups(aliases: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """For each tied name, all names of its tensor."""
    groups: dict[str, tuple[str, ...]] = {}
    for name, other in aliases.items():
        union = tuple(dict.fromkeys([*groups.get(name, (name,)), *groups.get(other, (other,))]))
        groups.update(dict.fromkeys(union, union))
    return groups


def _check_ties(found: _Fit, entries: Mapping[str, Any], groups: Mapping[str, tuple[str, ...]], misfit: str) -> None:
    """Check that names which are one tensor in the network have the same values in the checkpoint."""
    for group in dict.fromkeys(groups.values()):
        saved = [entry for name in group if isinstance(entries.get(entry := found.prefix_map.entry(name)), Tensor)]
        for entry in saved[1:]:
            if not equal(entries[saved[0]], entries[entry]):
                raise ValueError(
                    f"{misfit}: {saved[0]} and {entry} are one tensor in the network, but have different values. Give "
                    "a network that does not tie them"
                )


def _conversions(values: Mapping[str, Any], own: Mapping[str, Any], misfit: str) -> list[str]:
    """The effect of the network's dtypes on the values, in sentences.

    Raises:
        ValueError: a conversion that does more than rounding.
    """
    counts: dict[tuple[torch.dtype, torch.dtype, str], int] = defaultdict(int)
    lost = []
    for name, value in values.items():
        target = own[name]
        if is_extra_state(name) or not isinstance(target, Tensor) or value.dtype == target.dtype:
            continue
        effect = conversion_effect(value, target.dtype)
        if effect:
            counts[value.dtype, target.dtype, effect] += 1
        else:
            lost.append(f"{name} is {dtype_name(value.dtype)}, the network's is {dtype_name(target.dtype)}")
    if lost:
        raise ValueError(
            f"{misfit}: other dtype, which cannot hold the values: {truncated(lost)}. Convert the network."
        )
    return [
        f"{count} of its tensors are {dtype_name(source)}, the network's {dtype_name(target)}: {effect}"
        for (source, target, effect), count in counts.items()
    ]


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"

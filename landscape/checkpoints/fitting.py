"""One tensor of a checkpoint for each name of a network.

The names need not be the same: wrappers' parts of names are passed over on both sides, one prefix may be missing on
either, and a tensor that the network ties to another may be stored under the other's name. BatchNorm's counts of
batches may be missing. What is not needed is ignored only outside the prefix; all that is done is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.checkpoints.names import Reading, few, last_part, readings, without_wrappers
from landscape.checkpoints.values import effect_of, equal, named

__all__ = ["fit", "is_extra_state", "tied_names"]

_COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel: a fact of the training, not of the network
# of BatchNorm, which PyTorch before 0.4.1 had not, nor other frameworks: a count without which it computes the same
_COUNTED = "num_batches_tracked"
_LEFT_OVER = "not in the network"


def fit(
    tensors: Mapping[str, Any], expected: Mapping[str, Any], aliases: Mapping[str, str], who: str, of: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The entry of ``tensors`` for each name in ``expected``, and what has been done to find them.

    Args:
        tensors: the checkpoint's entries.
        expected: the network's.
        aliases: another name of the same tied tensor; names that are not expected may be among them.
        who: what errors call the checkpoint.
        of: what they call the network.

    Raises:
        ValueError: names, shapes, dtypes or ties do not fit, or several prefixes do.
    """
    theirs, ours, others = without_wrappers(tensors, expected, [*aliases.keys(), *aliases.values()])
    entries = {theirs[name]: value for name, value in tensors.items()}
    own = {ours[name]: value for name, value in expected.items()}
    groups = _groups({others[name]: others[other] for name, other in aliases.items()})

    misfit = f"{who} does not fit {of}"
    found = _the_one(_Sides(entries, own, groups), misfit, f"{who} fits {of}")
    _check_ties(found, entries, groups, misfit)
    values = {name: entries[entry] for name, entry in found.entries.items()}
    stored = {bare: name for name, bare in theirs.items()}
    wrapped = any(
        stored[found.entries[bare]] != found.reading.entry(name)
        for name, bare in ours.items()
        if bare in values and bare not in found.tied
    )
    notes = [*found.notes(wrapped), *_conversions(values, own, misfit)]
    values.update((name, own[name]) for name in found.uncounted)
    return {name: values[bare] for name, bare in ours.items()}, tuple(notes)


def tied_names(state: Mapping[str, Any]) -> dict[str, str]:
    """For each entry of a state_dict that is the same memory as one before it, the name of that one."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, t in state.items():
        if isinstance(t, Tensor) and t.layout == torch.strided and t.numel() and t.device.type != "meta":
            other = first.setdefault((t.device, t.dtype, t.data_ptr(), t.shape, t.stride()), name)
            if other != name:
                aliases[name] = other
    return aliases


def is_extra_state(name: str) -> bool:
    """Whether it is what a module's ``get_extra_state`` gave: of any type, and of any shape."""
    return last_part(name) == "_extra_state"


@dataclass(frozen=True)
class _Sides:
    """A checkpoint's entries and a network's own tensors, both by names without wrappers, and names that are tied."""

    entries: Mapping[str, Any]
    own: Mapping[str, Any]
    groups: Mapping[str, tuple[str, ...]]

    def found(self, reading: Reading) -> dict[str, str]:
        """For each of the network's names that is found, which of its tensor's names the checkpoint has."""
        found = {}
        for name in self.own:
            for called in (name, *self.groups.get(name, ())):
                if reading.entry(called) in self.entries:
                    found[name] = called
                    break
        return found

    def has_shape(self, name: str, entry: str) -> bool:
        """Whether the entry can be what the network calls ``name``."""
        own = self.own[name]
        return not isinstance(own, Tensor) or is_extra_state(name) or _shape(self.entries[entry]) == _shape(own)

    def score(self, reading: Reading) -> tuple[int, int]:
        """How many of the network's names are found in the right shape, and how many at all; counts do not count."""
        found = {name: called for name, called in self.found(reading).items() if last_part(name) != _COUNTED}
        return sum(self.has_shape(name, reading.entry(called)) for name, called in found.items()), len(found)

    def fit(self, reading: Reading) -> _Fit:
        """All that there is to say of a reading."""
        found = self.found(reading)
        entries = {name: reading.entry(called) for name, called in found.items()}
        known = {reading.entry(name) for name in (*self.own, *self.groups)}
        left = {
            entry: entry.startswith(reading.off) and last_part(entry) not in _COUNTERS and not is_extra_state(entry)
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
            reading,
            entries,
            tied={name: called for name, called in found.items() if called != name},
            uncounted=[name for name in lacking if last_part(name) == _COUNTED],
            ignored=[entry for entry, counts in left.items() if not counts],
            problems={kind: names for kind, names in problems.items() if names},
        )


@dataclass(frozen=True)
class _Fit:
    """What a reading finds, and what is wrong with it."""

    reading: Reading
    entries: dict[str, str]  # what each of the network's names that is found is called in the checkpoint
    tied: dict[str, str]  # the names that are found under another of the same tensor, and which
    uncounted: list[str]  # counts of batches that are not found
    ignored: list[str]
    problems: dict[str, list[str]]

    @property
    def complete(self) -> bool:
        """Whether all of the network is found, though something else may stand beside it."""
        return self.problems.keys() <= {_LEFT_OVER}

    def notes(self, wrapped: bool) -> list[str]:
        """What a user should be told, in sentences; ``wrapped``: that wrappers' parts of names differ."""
        notes = []
        if wrapped:
            notes.append("what wrappers add to names, such as 'module.' and '_orig_mod.', is passed over")
        if self.reading.off:
            notes.append(f"the prefix {self.reading.off!r} of its names is taken off")
        if self.reading.on:
            notes.append(f"the prefix {self.reading.on!r}, which the network's names have, is put before its own")
        if self.ignored:
            notes.append(f"what the network has not is ignored: {few(self.ignored)}")
        if self.tied:
            pairs = [f"{name} from {other}" for name, other in self.tied.items()]
            notes.append(f"tied weights that are saved once are taken from their partners: {few(pairs)}")
        if self.uncounted:
            notes.append(f"counts of batches that it lacks stay the network's own: {few(self.uncounted)}")
        return notes


def _the_one(sides: _Sides, misfit: str, fits: str) -> _Fit:
    """The only reading that finds the whole network, if nothing that belongs to it is left over."""
    exact = sides.fit(Reading())
    if not exact.problems:
        return exact
    tried = {reading: sides.score(reading) for reading in (Reading(), *readings(sides.own, sides.entries))}
    top = max(tried.values())
    # the best of them, which are all that are complete if any is; the names as they are come first
    best = [sides.fit(reading) for reading, score in tried.items() if score == top]
    good: list[_Fit] = []
    for fit in sorted((f for f in best if f.complete), key=lambda f: (len(f.problems), len(f.uncounted))):
        # a network that a trainer holds twice is saved twice, and either is right
        if not any(_same(fit, other, sides.entries) for other in good):
            good.append(fit)
    if len(good) > 1:
        prefixes = [repr(fit.reading.off or fit.reading.on) if fit.reading != Reading() else "none" for fit in good]
        raise ValueError(
            f"{fits} under more than one prefix ({few(prefixes)}), with other values under each: save the part that "
            "you mean alone, as torch.save(trainer.part.state_dict(), path), and give that file"
        )
    if good and not good[0].problems:
        return good[0]
    nearest = best[0]
    how = "" if nearest.reading == Reading() else f", with the {nearest.reading} its names, by which most fit"
    kinds = "; ".join(f"{kind}: {few(names)}" for kind, names in nearest.problems.items())
    raise ValueError(f"{misfit}{how}: {kinds}. Give the network that it was saved from.")


def _same(a: _Fit, b: _Fit, entries: Mapping[str, Any]) -> bool:
    """Whether both find the same values."""
    pairs = [(entries[entry], entries[b.entries[name]]) for name, entry in a.entries.items() if name in b.entries]
    return all(equal(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor))


def _groups(aliases: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """For each name that is tied, all names of its tensor."""
    groups: dict[str, tuple[str, ...]] = {}
    for name, other in aliases.items():
        union = tuple(dict.fromkeys([*groups.get(name, (name,)), *groups.get(other, (other,))]))
        groups.update(dict.fromkeys(union, union))
    return groups


def _check_ties(found: _Fit, entries: Mapping[str, Any], groups: Mapping[str, tuple[str, ...]], misfit: str) -> None:
    """The network has one tensor where the checkpoint may have several: they must be the same."""
    for group in dict.fromkeys(groups.values()):
        saved = [entry for name in group if isinstance(entries.get(entry := found.reading.entry(name)), Tensor)]
        for entry in saved[1:]:
            if not equal(entries[saved[0]], entries[entry]):
                raise ValueError(
                    f"{misfit}: {saved[0]} and {entry} are one tensor in the network, but have different values. Give "
                    "a network that does not tie them"
                )


def _conversions(values: Mapping[str, Any], own: Mapping[str, Any], misfit: str) -> list[str]:
    """What the network's dtypes do to the values: nothing, or rounding, and anything else is an error."""
    counts: dict[tuple[torch.dtype, torch.dtype, str], int] = defaultdict(int)
    lost = []
    for name, value in values.items():
        target = own[name]
        if is_extra_state(name) or not isinstance(target, Tensor) or value.dtype == target.dtype:
            continue
        effect = effect_of(value, target.dtype)
        if effect:
            counts[value.dtype, target.dtype, effect] += 1
        else:
            lost.append(f"{name} is {named(value.dtype)}, the network's is {named(target.dtype)}")
    if lost:
        raise ValueError(f"{misfit}: other dtype, which cannot hold the values: {few(lost)}. Convert the network.")
    return [
        f"{count} of its tensors are {named(source)}, the network's {named(target)}: {effect}"
        for (source, target, effect), count in counts.items()
    ]


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"

"""What a comparison was made of, and whether its checkpoints can be compared at all."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from landscape.checkpoints import Checkpoint
from landscape.compare.objectives import Objectives
from landscape.objective import ModelObjective
from landscape.objective.tensors import fixed_tensors

__all__ = ["check_fixed_tensors", "check_names", "check_weights_differ", "provenance_of"]


def check_names(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise ValueError unless there is one at least, and all have names of their own."""
    names = [c.name for c in checkpoints]
    if not names:
        raise ValueError("checkpoints is empty: give at least one")
    if len(set(names)) < len(names):
        raise ValueError(f"checkpoints are named {names}: give each a name of its own")
    for name in names:
        if not name or name.startswith(".") or "/" in name or name in ("measures", "minima"):
            raise ValueError(
                f"checkpoint name {name!r}: names are folders in the store, so no '/', and not 'measures' or 'minima'"
            )


def check_weights_differ(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise ValueError if two hold the same weights."""
    known: dict[str, str] = {}
    for checkpoint in checkpoints:
        twin = known.setdefault(checkpoint.digest(), checkpoint.name)
        if twin != checkpoint.name:
            raise ValueError(f"checkpoints {twin!r} and {checkpoint.name!r} hold the same weights: give one of them")


def check_fixed_tensors(checkpoints: Sequence[Checkpoint], f: ModelObjective) -> None:
    """On a line only theta moves and what belongs to it is gathered anew: the rest must be the same."""
    first = fixed_tensors(f.at(checkpoints[0]), with_statistics=False)
    for checkpoint in checkpoints[1:]:
        for name, tensor in fixed_tensors(f.at(checkpoint), with_statistics=False).items():
            if not torch.equal(tensor, first[name]):
                raise ValueError(
                    f"checkpoints {checkpoints[0].name!r} and {checkpoint.name!r} differ in {name!r}, which is not "
                    "trainable, so that theta is not all of their difference: make it trainable, or compare "
                    "checkpoints that share it"
                )


def provenance_of(checkpoints: Sequence[Checkpoint], objectives: Objectives) -> dict[str, Any]:
    """Versions, machine, sizes and hashes, as JSON-able values."""
    train, test = objectives.train, objectives.test
    notes = [f"{c.name}: {note}" for c in checkpoints for note in objectives.at(c).load_notes]
    return {
        "versions": {name: _version(name) for name in ("landscape-toolkit", "torch", "numpy")},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {train.device}",
        "problem": objectives.problem.name,
        "weights": train.size,
        "examples": {"train": train.examples, "test": test.examples},
        "notes": [*train.notes, *notes],
        "sha256": {
            "checkpoints": {c.name: c.digest() for c in checkpoints},
            "train": train.data_digest(),
            "test": test.data_digest(),
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "not installed"
